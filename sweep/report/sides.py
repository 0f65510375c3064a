"""The sides of a comparison: which sweeps are on them, whether these may be compared, and their effort.

A side is one sweep or, joined by commas, the same sweep on several seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sweep.front import JudgedTrials, Objectives
from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan, read_plan, space_changes
from sweep.report.verdicts import requirements_text
from sweep.state import SweepState, judged_trials, read_state
from trainer.crowds import crowd_words
from trainer.errors import InputError

_SAME_SUMMARY = (
    *("data_fingerprint", "judged_images", "changed_mass", "judge_accuracy", "judge_agreement"),
    *("changed_images", "oracle_accuracy", "oracle_coverage"),
)
"""Keys of the data summary that must agree beside the evaluation: the data, the judged images and their judge, here and
in earlier versions."""


class Sweep(NamedTuple):
    """One sweep and what it found."""

    plan: SweepPlan
    results: SweepState

    @property
    def points(self) -> np.ndarray:
        """Objectives (n, d) of its contenders: configurations that fulfil the requirements, means over their seeds."""
        return self.results.points(self.results.contenders.values())

    @property
    def answers(self) -> JudgedTrials | None:
        """Answers by image of the trials of all finished configurations; None if they were not kept."""
        results, names = self.results, self.plan.objectives.names
        trials = [trial for number in results.configurations for trial in results.members(number)]
        return judged_trials(trials, results.judged, [*names, *(each.name for each in results.require)])

    @property
    def pair(self) -> tuple[int, int]:
        """Seed and split: sweeps of two sides that agree in both are a pair."""
        return self.plan.seed, self.plan.space.evaluation.split_seed


@dataclass(frozen=True)
class Side:
    """The same sweep on one or several seeds."""

    name: str
    sweeps: tuple[Sweep, ...]
    """Sweeps in the order of their seeds."""

    @property
    def objectives(self) -> Objectives:
        return self.sweeps[0].plan.objectives

    @property
    def finished(self) -> list[TrialRecord]:
        """All trials that finished, infeasible ones included."""
        return [record for sweep in self.sweeps for record in sweep.results.finished.values()]

    @property
    def points(self) -> np.ndarray:
        """Objectives (n, d) of the contenders of all sweeps."""
        return np.vstack([sweep.points for sweep in self.sweeps])

    @property
    def front(self) -> list[TrialRecord]:
        """Configurations on the fronts of the sweeps, each its own."""
        return [record for sweep in self.sweeps for record in sweep.results.front_records]

    @property
    def hypervolumes(self) -> np.ndarray:
        """Hypervolumes (k,) of its k sweeps."""
        return np.array([sweep.results.hypervolume for sweep in self.sweeps])

    @property
    def hypervolume(self) -> float:
        """Mean over the sweeps."""
        return float(self.hypervolumes.mean())


def read_side(names: str, *, storage: str | None) -> Side:
    """Read one side as it is typed; of each trial's reports the last alone is kept, which is its result.

    Raises:
        InputError: for a sweep that is not there or has nothing on its front, or sweeps that are not the same one on
            different seeds.
    """
    sweeps = []
    for name in names.split(","):
        plan = read_plan(name.strip(), storage=storage)
        results = read_state(plan, keep_epochs=False)
        if not results.finished:
            raise InputError(f"no trial of {plan.name} has finished yet: there is nothing to compare")
        if not results.contenders:
            reason = (
                f"fulfils {requirements_text(plan)}" if results.infeasible else f"has finished on {plan.seeds} seeds"
            )
            raise InputError(f"no configuration of {plan.name} {reason} yet: there is nothing to compare")
        sweeps.append(Sweep(plan, results))
    _check_one_side(sweeps)
    return Side(names, tuple(sorted(sweeps, key=lambda sweep: sweep.pair)))


def check_comparable(a: Side, b: Side) -> None:
    """Require that all sweeps were evaluated alike, on the same data, by the same judge, under the same requirements.

    Raises:
        InputError: naming everything that differs.
    """
    if both := {sweep.plan.name for sweep in a.sweeps} & {sweep.plan.name for sweep in b.sweeps}:
        raise InputError(f"{', '.join(sorted(both))}: on both sides; a sweep can't be compared with itself")
    splits = [{sweep.pair[1]: sweep for sweep in side.sweeps} for side in (a, b)]
    if splits[0].keys() != splits[1].keys():
        mine, theirs = (", ".join(map(str, sorted(each))) for each in splits)
        raise InputError(f"{a.name} and {b.name} were judged on different splits: split_seed = {mine} and {theirs}")
    for split, sweep in splits[0].items():
        _check_judged_alike(sweep, splits[1][split])


def unequal_effort(a: Side, b: Side) -> str:
    """Return in what the sweeps had unequal effort, such as `24 and 96 trials`; empty if in nothing."""
    efforts = [_effort(sweep) for side in (a, b) for sweep in side.sweeps]
    different = {name: list(dict.fromkeys(effort[name] for effort in efforts)) for name in efforts[0]}
    return "; ".join(f"{' and '.join(map(str, values))} {name}" for name, values in different.items() if values[1:])


def _effort(sweep: Sweep) -> dict[str, Any]:
    """Return, by its name, all that makes a sweep of the same space find a better front or a worse one.

    Where a limit ends the sweep, that is its effort; else the number of trials that ended.
    """
    plan = sweep.plan
    flat = plan.stop_when_flat and f"{plan.stop_when_flat} ({plan.flat_growth})"
    limits = (flat, plan.max_hours, plan.max_gpu_hours, plan.budget_epochs)
    settings = f" ({plan.eta}, {plan.grace_epochs}, {plan.stop_chance})"
    rule = plan.stopper + ("" if plan.stopper == "none" else settings)
    # Who draws or stops by what has finished draws and stops otherwise if more trials run at once.
    at_once = plan.pack if plan.stopper != "none" or plan.sampler not in ("random", "qmc") else 1
    return {
        "trials": plan.trials if any(limits) else len(sweep.results.ended),
        "epochs": plan.epochs_per_trial,
        "seeds of each configuration": plan.seeds,
        "as sampler": plan.sampler,
        "as stopper": rule,
        "as ladder": plan.ladder,
        "in a pack": at_once,
        "as stop-when-flat": limits[0],
        "hours at most": limits[1],
        "GPU hours at most": limits[2],
        "epochs of all trials at most": limits[3],
    }


def _check_one_side(sweeps: list[Sweep]) -> None:
    """Require that the sweeps of a side are one sweep on different seeds.

    Raises:
        InputError: naming what is wrong.
    """
    for (seed, _), count in Counter(sweep.pair for sweep in sweeps).items():
        if count > 1:
            named = ", ".join(sweep.plan.name for sweep in sweeps if sweep.plan.seed == seed)
            raise InputError(f"{named}: all on --seed {seed}; the sweeps of one side must be on different seeds")
    first, spaces = sweeps[0], [sweep.plan.space.to_dict() for sweep in sweeps]
    for other, space in zip(sweeps[1:], spaces[1:], strict=True):
        named = [key for key in ("space", "points") if space.get(key) != spaces[0].get(key)]
        named += ["earlier spaces"] if space_changes(other.plan) != space_changes(first.plan) else []
        if named:
            raise InputError(
                f"{first.plan.name} and {other.plan.name} differ in their {' and '.join(named)}; the sweeps of one "
                "side must be of the same space"
            )
        _check_judged_alike(first, other)


def _check_judged_alike(one: Sweep, other: Sweep) -> None:
    """Require the same evaluation, objectives and requirements and, of the same split, the same data and judge.

    Raises:
        InputError: naming everything that differs.
    """
    mine, theirs = _judging(one), _judging(other)
    names = [name for name in mine if one.pair[1] == other.pair[1] or name not in ("split_seed", *_SAME_SUMMARY)]
    different = [f"{name} = {mine[name]} and {theirs[name]}" for name in names if mine[name] != theirs[name]]
    if different:
        raise InputError(
            f"{one.plan.name} and {other.plan.name} were judged differently, so their points can't be compared: "
            + "; ".join(different)
        )


def _judging(sweep: Sweep) -> Mapping[str, Any]:
    """Return by name all that decides what a point of a sweep means."""
    plan, summary = sweep.plan, sweep.results.data_summary
    return {
        **plan.space.evaluation.to_dict(),
        "crowd": crowd_words(plan.space.evaluation),
        "objectives": ", ".join(plan.objectives.names),
        "reference": plan.objectives.reference,
        "requirements": requirements_text(plan) or "none",
        **{name: summary.get(name, "unknown") for name in _SAME_SUMMARY},
    }
