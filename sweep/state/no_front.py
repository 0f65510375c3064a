"""The reason why a sweep has no front."""

from __future__ import annotations

from sweep.state.findings import Findings


def why_no_front(state: Findings) -> str:
    """Return a clause on why there is no front: nothing has finished, or nothing fulfils what is required.

    It then names the configuration that violates the requirements least, and its numbers.
    """
    if not state.infeasible:
        seeds = f" on all {state.seeds} seeds" if state.seeds > 1 else ""
        return f"no trial of it has finished{seeds}"
    nearest = min(state.infeasible.values(), key=state.violation)
    found = nearest.result or {}
    violated = [f"{each.name} = {found[each.name]:.4g}" for each in state.require if each.excess(found[each.name]) > 0]
    return (
        f"none of its {len(state.infeasible)} finished configurations fulfils {' and '.join(map(str, state.require))}; "
        f"the nearest is trial {nearest.number:03d} with {' and '.join(violated)}"
    )
