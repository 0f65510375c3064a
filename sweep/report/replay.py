"""Replays of a sweep under other rules for stopping trials, from the curves in its ledger."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from sweep.front import hypervolume as hypervolume_of
from sweep.plan import SweepPlan
from sweep.report.tables import plain_table
from sweep.report.words import percent
from sweep.state import SweepState

if TYPE_CHECKING:  # Optuna and Ray's searcher come with it, which only a replay needs
    from sweep.search import Agreement, Rungs

ETAS = (2, 3, 4, 8)
"""Reduction factors that are replayed where none is given."""


class _Replay(NamedTuple):
    """A sweep as it would have gone under other rungs, its reports coming in their recorded order."""

    eta: int
    grace_epochs: int
    rungs: Rungs
    """The rungs, with every decision in them."""
    spent: int
    """Epochs trained."""
    logged: int
    """Epochs trained in the sweep as it was."""
    stopped: tuple[int, ...]
    """Trials that would have been stopped, ascending."""
    lost: tuple[int, ...]
    """Stopped trials that are on the sweep's front; of a configuration on several seeds the first."""
    hypervolume: float
    """Hypervolume of the front without the stopped trials."""

    @property
    def saved(self) -> float:
        """Share of the epochs that would not have been trained."""
        return 1 - self.spent / self.logged if self.logged else 0.0


def replay_sweep(
    plan: SweepPlan, results: SweepState, *, etas: Sequence[int], grace_epochs: int, stop_chance: float
) -> list[_Replay]:
    """Report a ledger's epochs, in the order in which they came, to rungs of other settings, one for each eta."""
    groups: dict[int, str] = {}  # shared, as are the reports in order: making them takes as long as a replay
    reports = _reports_in_order(results)
    return [_replay(plan, results, reports, eta, grace_epochs, stop_chance, groups) for eta in etas]


def _replay(
    plan: SweepPlan,
    results: SweepState,
    reports: Iterable[tuple[int, dict[str, Any]]],
    eta: int,
    grace_epochs: int,
    stop_chance: float,
    groups: dict[int, str],
) -> _Replay:
    from sweep.search import Rungs, rung_levels

    levels = rung_levels(grace_epochs=grace_epochs, eta=eta, epochs=plan.epochs_per_trial)
    rungs = Rungs(
        plan.objectives,
        levels=levels,
        eta=eta,
        require=plan.space.require,
        stop_chance=stop_chance,
        explain=False,
        groups=groups,
    )
    spent = logged = 0
    for number, report in reports:
        logged += not report["final"]
        if rungs.stopped(number):
            continue
        spent += not report["final"]
        (rungs.finish if report["final"] else rungs.observe)(number, results.trials[number].config, report)
    stopped = tuple(number for number in results.trials if rungs.stopped(number))
    cut = {results.members(number)[0].number for number in stopped}
    kept = [record for number, record in results.contenders.items() if number not in cut]
    lost = tuple(sorted({record.number for record in results.front_records} & cut))
    hypervolume = hypervolume_of(results.points(kept), plan.objectives)
    return _Replay(eta, grace_epochs, rungs, spent, logged, stopped, lost, hypervolume)


def _reports_in_order(results: SweepState) -> list[tuple[int, dict[str, Any]]]:
    """Return all reports with their trials' numbers, by time."""
    timed = [(report["time"], number, report) for number, record in results.trials.items() for report in record.reports]
    return [(number, report) for _, number, report in sorted(timed, key=lambda each: each[:2])]


def replay_table(replays: list[_Replay], results: SweepState) -> Table:
    """Return a table for a terminal: one row per setting."""
    columns = ("eta", "rungs at epoch", "epochs", "saved", "stopped", "hypervolume kept", "front lost")
    table = plain_table(*columns, fold=[len(columns) - 1])
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


def replay_content(
    plan: SweepPlan, results: SweepState, replays: list[_Replay], *, stop_chance: float
) -> dict[str, Any]:
    """Return replays as plain values: trials by number, correlations that are not known as None."""
    known = [each._asdict() for each in agreements_of(plan, results)]
    return {
        "sweep": plan.name,
        "hypervolume": results.hypervolume,
        "replays": [
            {
                "eta": each.eta,
                "grace_epochs": each.grace_epochs,
                "stop_chance": stop_chance,
                "epochs": each.spent,
                "epochs_logged": each.logged,
                "saved": each.saved,
                "stopped": list(each.stopped),
                "lost": list(each.lost),
                "hypervolume": each.hypervolume,
            }
            for each in replays
        ],
        "agreements": [
            each | {"correlation": None if math.isnan(each["correlation"]) else each["correlation"]} for each in known
        ],
        "unknown_ends": unknown_ends(replays, results),
        "choices": [step._asdict() for step in steps_of(results)],
    }


class _Step(NamedTuple):
    """A pause of a trial, its begin, its thaw, or a rung that it passed."""

    time: float
    """Unix seconds."""
    trial: int
    what: str
    """`begins`, `is thawed`, `pauses` or `goes on`."""
    epoch: int
    """Epochs that it had trained."""
    why: str


def steps_of(results: SweepState) -> list[_Step]:
    """Return every choice between trials that a sweep made which pauses them, in the order in which it made them."""
    steps = []
    for number, record in results.trials.items():
        times = {report["epoch"]: report["time"] for report in record.reports if not report["final"]}
        for each in record.decisions:
            if "pause" in each:
                what = "pauses" if each["pause"] else "goes on"
                time, why = times.get(each["epoch"], record.started or 0.0), each["reason"].partition(": ")[2]
                steps.append(_Step(time, number, what, each["epoch"], why))
        for each in record.begun:
            epoch = max((epoch for epoch, time in times.items() if time < each["time"]), default=0)
            if each["reason"]:
                what = "is thawed" if epoch else "begins"
                steps.append(_Step(each["time"], number, what, epoch, each["reason"]))
    return sorted(steps)


def step_table(steps: list[_Step]) -> Table:
    """Return a table for a terminal: one row per choice."""
    table = plain_table("trial", "", "epoch", "because", fold=[3])
    for step in steps:
        table.add_row(f"{step.trial:03d}", step.what, str(step.epoch), step.why)
    return table


def unknown_ends(replays: list[_Replay], results: SweepState) -> list[int]:
    """Return the trials that the sweep stopped and some replay would not have: how they end is not logged."""
    stopped_by_all = frozenset(results.stopped).intersection(*(each.stopped for each in replays))
    return [number for number in results.stopped if number not in stopped_by_all]


def agreements_of(plan: SweepPlan, results: SweepState) -> list[Agreement]:
    """Return how far each of a sweep's rungs orders its trials as the next one does."""
    from sweep.search import agreements, rung_levels

    levels = rung_levels(grace_epochs=plan.grace_epochs, eta=plan.eta, epochs=plan.epochs_per_trial)
    return agreements(results.trials.values(), plan.objectives, levels=levels, epochs=plan.epochs_per_trial)


def agreement_table(found: list[Agreement]) -> Table:
    """Return a table for a terminal: one row per rung and the next."""
    names = list(dict.fromkeys(each.objective for each in found))
    laddered = any(any(each.strengths) for each in found)
    table = plain_table("epochs", *(["attack steps"] if laddered else []), "trials", *map(_short, names))
    for (lower, upper), rows in itertools.groupby(found, key=lambda each: each[:2]):
        by_name = {each.objective: each for each in rows}
        first = next(iter(by_name.values()))
        taus = [f"{by_name[name].correlation:.2f}" if name in by_name else "" for name in names]
        steps = [" to ".join(first.strengths)] if laddered else []
        table.add_row(f"{lower} to {upper}", *steps, str(first.trials), *taus)
    return table


def agreement_alarms(found: list[Agreement]) -> list[str]:
    """Return a line for every objective that some rungs order nearly by chance, compared with the next rungs."""
    from sweep.search import ALIKE

    lines = []
    for name in dict.fromkeys(each.objective for each in found if each.low):
        rungs = [each.lower for each in found if each.low and each.objective == name]
        lines.append(
            f"alarm: the order in {_short(name)} at epoch {', '.join(map(str, rungs))} says little about that at the "
            f"next rung (tau below {ALIKE:.2f}): what is stopped there is stopped nearly by chance; a later "
            "--grace-epochs, or a --ladder of more steps, helps"
        )
    return lines


def _short(objective: str) -> str:
    """Return an objective's heading."""
    return objective.removesuffix("_accuracy")
