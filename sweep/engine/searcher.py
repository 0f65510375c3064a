"""The search as Ray Tune asks it, in as many slots as are free."""

from __future__ import annotations

from typing import Any

from ray.tune.search import ConcurrencyLimiter, Searcher

from sweep.engine.result_keys import FAILURE, report_of
from sweep.engine.slots import Slots
from sweep.search import Budget, ParetoSearch


class TuneSearcher(Searcher):
    """A `ParetoSearch` behind Ray Tune's interface, which names trials by ids of its own and hands out flat results."""

    def __init__(self, search: ParetoSearch) -> None:
        super().__init__()
        self.search = search
        self._numbers: dict[str, int] = {}
        """Trials that run, by Ray Tune's ids."""

    def suggest(self, trial_id: str) -> Any:
        """Return what the next trial is given, or Ray Tune's word for the end."""
        proposal = self.search.suggest()
        if proposal is None:
            return Searcher.FINISHED if self.search.is_over else None
        self._numbers[trial_id] = proposal.number
        plain = proposal._asdict()
        return plain if proposal.reason else {name: plain[name] for name in ("number", "config", "sampler_state")}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._numbers.pop(trial_id)
        if self.search.pauses(number):
            return
        report = report_of(result or {})
        final = report if report.get("final") else None
        state = "failed" if error or FAILURE in (result or {}) else "finished" if final else "stopped"
        self.search.end(number, state, final)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the ledger is what a search is rebuilt from."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing, for the same reason."""


class SlotLimiter(ConcurrencyLimiter):
    """Asks the search for a trial when a slot is free, and counts for the budget how many are under way."""

    def __init__(self, searcher: Searcher, slots: Slots, budget: Budget) -> None:
        super().__init__(searcher, max_concurrent=slots.concurrent)
        self.slots, self.budget = slots, budget

    def suggest(self, trial_id: str) -> dict | None:
        self.max_concurrent = min(self.slots.limit, self.slots.open_slots())
        self.budget.promised = len(self.live_trials)
        return super().suggest(trial_id)

    def get_state(self) -> dict[str, Any]:
        """Return nothing: the base class would copy the budget and, with it, the whole state of the sweep."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its searcher for a restore of its own, which is never asked for.
        return Searcher, ()
