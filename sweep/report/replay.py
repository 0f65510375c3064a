"""What another way of stopping trials would have done to a sweep, told from the curves that its ledger holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.table import Table

from sweep.front import hypervolume as hypervolume_of
from sweep.plan import SweepPlan
from sweep.report.tables import percent
from sweep.search import ALIKE, Agreement, Rungs, agreements, rung_levels
from sweep.state import SweepState

ETAS = (2, 3, 4, 8)
"""Shown where none is asked for."""


class _Replay(NamedTuple):
    """A sweep as it would have gone, had trials reported in the order in which they did."""

    eta: int
    grace_epochs: int

    rungs: Rungs
    """With every decision in it."""

    spent: int
    """Epochs trained."""

    logged: int
    """Epochs trained in the sweep as it was."""

    stopped: tuple[int, ...]
    """Trials that would have been stopped, ascending."""

    lost: tuple[int, ...]
    """Those of them that stand on the sweep's front; of a configuration on several seeds the first."""

    hypervolume: float
    """Of the front without the stopped."""

    @property
    def saved(self) -> float:
        """Share of the epochs."""
        return 1 - self.spent / self.logged if self.logged else 0.0


def replay_sweep(plan: SweepPlan, results: SweepState, *, eta: int, grace_epochs: int, stop_chance: float) -> _Replay:
    """Put every report of a ledger, as it came, to rungs of other settings."""
    levels = rung_levels(grace_epochs=grace_epochs, eta=eta, epochs=plan.epochs_per_trial)
    rungs = Rungs(plan.objectives, levels=levels, eta=eta, require=plan.space.require, stop_chance=stop_chance)
    spent = logged = 0
    for number, report in _reports_in_order(results):
        logged += not report["final"]
        if rungs.stopped(number):
            continue
        spent += not report["final"]
        (rungs.finish if report["final"] else rungs.hear)(number, results.trials[number].config, report)
    stopped = tuple(number for number in results.trials if rungs.stopped(number))
    cut = {results.members(number)[0].number for number in stopped}
    kept = [record for number, record in results.contenders.items() if number not in cut]
    lost = tuple(sorted({record.number for record in results.front_records} & cut))
    hypervolume = hypervolume_of(results.points(kept), plan.objectives)
    return _Replay(eta, grace_epochs, rungs, spent, logged, stopped, lost, hypervolume)


def _reports_in_order(results: SweepState) -> Iterator[tuple[int, dict[str, Any]]]:
    """What trials said, with their numbers, by the time at which they said it."""
    said = [(report["time"], number, report) for number, record in results.trials.items() for report in record.reports]
    for _, number, report in sorted(said, key=lambda each: each[:2]):
        yield number, report


def replay_table(replays: list[_Replay], results: SweepState) -> Table:
    """For a terminal: one row per setting."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("eta", "rungs at epoch", "epochs", "saved", "stopped", "hypervolume kept"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("front lost", overflow="fold")
    front = len(results.front_records)
    for each in replays:
        lost = " ".join(f"{number:03d}" for number in each.lost)
        table.add_row(
            str(each.eta),
            " ".join(map(str, each.rungs.levels)) or "none",
            f"{each.spent}/{each.logged}",
            percent(each.saved),
            f"{len(each.stopped)}/{len(results.trials)}",
            percent(each.hypervolume / results.hypervolume) if results.hypervolume else "",
            f"{len(each.lost)}/{front} {lost}",
        )
    return table


def unknown_ends(replays: list[_Replay], results: SweepState) -> list[int]:
    """Trials that the sweep itself stopped and one of the replays would not have: how they end is not logged."""
    return [number for number in results.stopped if any(number not in each.stopped for each in replays)]


def agreements_of(plan: SweepPlan, results: SweepState) -> list[Agreement]:
    """How far each of a sweep's rungs orders its trials as the next one does."""
    levels = rung_levels(grace_epochs=plan.grace_epochs, eta=plan.eta, epochs=plan.epochs_per_trial)
    return agreements(results.trials.values(), plan.objectives, levels=levels, epochs=plan.epochs_per_trial)


def agreement_table(found: list[Agreement]) -> Table:
    """For a terminal: one row per rung and the next."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    names = list(dict.fromkeys(each.objective for each in found))
    laddered = any(any(each.strengths) for each in found)
    for heading in ["epochs", *(["attack steps"] if laddered else []), "trials", *map(_short, names)]:
        table.add_column(heading, justify="right", no_wrap=True)
    for (lower, upper), rows in itertools.groupby(found, key=lambda each: each[:2]):
        of = {each.objective: each for each in rows}
        first = next(iter(of.values()))
        taus = [f"{of[name].correlation:.2f}" if name in of else "" for name in names]
        steps = [" to ".join(first.strengths)] if laddered else []
        table.add_row(f"{lower} to {upper}", *steps, str(first.trials), *taus)
    return table


def agreement_alarms(found: list[Agreement]) -> list[str]:
    """A line for every objective that some rungs order nearly by chance, as the next ones tell."""
    lines = []
    for name in dict.fromkeys(each.objective for each in found if each.low):
        rungs = [each.lower for each in found if each.low and each.objective == name]
        lines.append(
            f"alarm: the order in {_short(name)} at epoch {', '.join(map(str, rungs))} tells little of that at the "
            f"next rung (tau below {ALIKE:.2f}): what is stopped there is stopped nearly by chance; a later "
            "--grace-epochs, or a --ladder of more steps, helps"
        )
    return lines


def _short(objective: str) -> str:
    """As columns are headed."""
    return objective.removesuffix("_accuracy")
