"""Two fronts beside one another: what each covers, how certain that is, and where each leads.

Each side is one sweep or, joined by commas, the same sweep on several seeds. The plane is that of the first two
objectives, turned so that more is better in both: x the first gain, and a front's height at x the second gain that it
reaches without giving up x.

Shapes: n trials, d objectives, s sweeps of a side, k values on the x axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np

from sweep.front import Objectives, binomial_resampling, epsilon_indicator, hypervolume
from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan, read_plan
from sweep.state import SweepState, read_state
from trainer.crowds import crowd_words
from trainer.errors import InputError
from trainer.intervals import Interval
from trainer.report import images_behind

DRAWS = 1000
"""Resamples of the interval."""
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


@dataclass(frozen=True)
class Side:
    """The same sweep on one or several seeds."""

    name: str
    sweeps: tuple[Sweep, ...]

    @property
    def objectives(self) -> Objectives:
        return self.sweeps[0].plan.objectives

    @property
    def trials(self) -> list[TrialRecord]:
        """All trials that finished."""
        return [record for sweep in self.sweeps for record in sweep.results.finished.values()]

    @property
    def points(self) -> np.ndarray:
        """Objectives (n, d) of all trials that finished."""
        return self.sweeps[0].results.points(self.trials)

    @property
    def front(self) -> list[TrialRecord]:
        """Trials on the fronts of the sweeps, each its own."""
        return [record for sweep in self.sweeps for record in sweep.results.front_records]

    @property
    def hypervolume(self) -> float:
        """Mean over the sweeps."""
        return fmean(sweep.results.hypervolume for sweep in self.sweeps)


class Region(NamedTuple):
    """A stretch of the first objective on which one side reaches more of the second than the other."""

    leader: str
    low: float
    high: float
    """The end of the stretch; both ends are in the objective's own unit, from its worse to its better one."""
    lead: float
    """Largest lead on the stretch, in the second objective."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two sides; `a` minus `b` where it is a difference."""

    a: Side
    b: Side
    difference: float
    interval: Interval
    epsilon: tuple[float, float]
    """Amount that must be added to `a` so that it covers `b`, and the other way round."""
    covered_alone: tuple[float, float]
    """Hypervolume that only `a` covers, and that only `b` covers."""
    regions: tuple[Region, ...]


def read_side(names: str, *, storage: str | None) -> Side:
    """Read one side as it is typed.

    Raises:
        InputError: for a sweep that is not there or has no finished trial, or sweeps that were judged differently.
    """
    sweeps = []
    for name in names.split(","):
        plan = read_plan(name.strip(), storage=storage)
        results = read_state(plan)
        if not results.finished:
            raise InputError(f"no trial of {plan.name} has finished yet: there is nothing to compare")
        sweeps.append(Sweep(plan, results))
    for other in sweeps[1:]:
        _check_comparable(sweeps[0], other)
    return Side(names, tuple(sweeps))


def _check_comparable(one: Sweep, other: Sweep) -> None:
    """Require that both sweeps were evaluated alike, on the same data, by the same judge.

    Raises:
        InputError: naming everything that differs.
    """
    mine, theirs = (
        {
            **sweep.plan.space.evaluation.to_dict(),
            "crowd": crowd_words(sweep.plan.space.evaluation),
            "objectives": ", ".join(sweep.plan.objectives.names),
            "reference": sweep.plan.objectives.reference,
            **{name: sweep.results.data_summary.get(name, "unknown") for name in _SAME_SUMMARY},
        }
        for sweep in (one, other)
    )
    different = [f"{name} = {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]]
    if different:
        raise InputError(
            f"{one.plan.name} and {other.plan.name} were judged differently, so their points can't be compared: "
            + "; ".join(different)
        )


def compare_sweeps(a: Side, b: Side, *, seed: int = 0) -> Comparison:
    """Compare two sides.

    Args:
        seed: of the bootstrap.

    Raises:
        InputError: if they were judged differently.
    """
    _check_comparable(a.sweeps[0], b.sweeps[0])
    objectives, both = a.objectives, np.vstack([a.points, b.points])
    whole = hypervolume(both, objectives)
    return Comparison(
        a,
        b,
        difference=a.hypervolume - b.hypervolume,
        interval=_difference_interval(a, b, generator=np.random.default_rng(seed)),
        epsilon=(
            epsilon_indicator(a.points, b.points, objectives),
            epsilon_indicator(b.points, a.points, objectives),
        ),
        covered_alone=(whole - hypervolume(b.points, objectives), whole - hypervolume(a.points, objectives)),
        regions=tuple(regions(a, b)),
    )


def _difference_interval(a: Side, b: Side, *, generator: np.random.Generator) -> Interval:
    """Return a 95% bootstrap interval of the difference of hypervolumes, reflected around what was measured.

    Sweeps are drawn anew where a side has several, and every share is drawn as another evaluation on as many images
    might have measured it. Both sides are judged on the same images, which makes the true interval narrower.
    """
    drawn = [_draw_hypervolume(a, generator) - _draw_hypervolume(b, generator) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    measured = a.hypervolume - b.hypervolume
    return Interval(2 * measured - high, 2 * measured - low)


def _draw_hypervolume(side: Side, generator: np.random.Generator) -> float:
    """Return the mean over sweeps drawn with replacement, of trials measured anew."""
    chosen = generator.integers(len(side.sweeps), size=len(side.sweeps))
    return fmean(_resampled_hypervolume(side.sweeps[index], generator) for index in chosen)


def _resampled_hypervolume(sweep: Sweep, generator: np.random.Generator) -> float:
    """Return the hypervolume that another evaluation of the same trials might have measured."""
    finished = list(sweep.results.finished.values())
    points = sweep.results.points(finished)
    return hypervolume(binomial_resampling(points, _image_counts(sweep, finished))(generator), sweep.plan.objectives)


def _image_counts(sweep: Sweep, finished: Sequence[TrialRecord]) -> np.ndarray:
    """Return the number of images (n, d) behind every share."""
    images = int(sweep.results.data_summary.get("validation_images", 0)) or 10**9
    names, weighted = sweep.plan.objectives.names, ("invariance_accuracy", "invariance_stuck")
    results = [record.result or {} for record in finished]
    return np.array([[images_behind(result) if name in weighted else images for name in names] for result in results])


def heights(points: np.ndarray, objectives: Objectives, x: np.ndarray) -> np.ndarray:
    """Return the second gain (k,) that points (n, d) reach without giving up the first gain `x` (k,); -inf for none."""
    gains = objectives.turn(points)[:, :2]
    reached = np.where(gains[None, :, 0] >= x[:, None], gains[None, :, 1], -np.inf)
    return reached.max(axis=1)


def regions(a: Side, b: Side) -> list[Region]:
    """Return the stretches on which one side leads, from the worst to the best first objective, above the reference."""
    objectives = a.objectives
    floor = objectives.turned_reference[:2]
    edges = np.unique(np.concatenate([[floor[0]], *(objectives.turn(side.points)[:, 0] for side in (a, b))]))
    edges = edges[edges >= floor[0]]
    # Between two edges the heights are those at the upper one.
    high_a, high_b = (np.maximum(heights(side.points, objectives, edges[1:]), floor[1]) for side in (a, b))
    found: list[Region] = []
    sign = 1.0 if objectives.maximise[0] else -1.0
    for low, high, lead in zip(edges[:-1].tolist(), edges[1:].tolist(), (high_a - high_b).tolist(), strict=True):
        if lead == 0:
            continue
        leader, size = (a.name, lead) if lead > 0 else (b.name, -lead)
        if found and found[-1].leader == leader and found[-1].high == low:
            found[-1] = Region(leader, found[-1].low, high, max(found[-1].lead, size))
        else:
            found.append(Region(leader, low, high, size))
    return [each._replace(low=each.low * sign, high=each.high * sign) for each in found]
