"""Two fronts beside one another: what each covers, how certain that is, and where each leads.

A sweep is the unit of all that is claimed: what one sweep found, another seed may not find. The plane is that of the
first two objectives, turned so that more is better in both: x the first gain, and a front's height at x the second gain
that it reaches without giving up x.

Shapes: n configurations, d objectives, s sweeps of a side, B draws, k values on the x axis.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from sweep.front import (
    Difference,
    Objectives,
    difference,
    epsilon_indicator,
    hypervolume,
    resampled_hypervolumes,
)
from sweep.report.sides import Side, Sweep, check_comparable, unequal_effort

_LEVEL = 0.95
_STRETCHES = 4
_DRAWS = 400

_Draw = Callable[[Objectives], np.ndarray]
"""Hypervolumes (s, B) under some objectives of all sweeps, in draws of the sources that are the same in every call."""


@dataclass(frozen=True)
class _Stretch:
    """A stretch of the first objective, and by how much the fronts' mean heights on it differ."""

    low: float
    high: float
    """Its ends, in the objective's own unit, from the worse to the better one."""

    heights: tuple[float, float]
    """Mean heights of both sides above the reference, in the unit of the second objective."""

    difference: Difference
    """Difference of the heights; its level is such that all stretches' intervals hold together (Bonferroni)."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two sides; `a` minus `b` where it is a difference."""

    a: Side
    b: Side
    effort: str
    """Unequal effort in words; then no claim is made. Empty if effort was equal."""

    paired: bool
    """True if both sides ran on the same seeds."""

    difference: Difference
    """Difference of the hypervolumes."""

    epsilon: tuple[float, float]
    """Amount that must be added to a sweep of `a` so that it covers one of `b`, and the other way round."""

    covered_alone: tuple[float, float]
    """Hypervolume that only `a` covers, and that only `b` covers: means over the pairs of sweeps."""

    stretches: tuple[_Stretch, ...]

    @property
    def claim(self) -> bool:
        """True if one side may be called better."""
        return self.difference.claim and not self.effort


def compare_sweeps(a: Side, b: Side) -> Comparison:
    """Compare two sides.

    Raises:
        InputError: if they were judged differently, or stand under different requirements.
    """
    check_comparable(a, b)
    objectives = a.objectives
    paired = [sweep.pair for sweep in a.sweeps] == [sweep.pair for sweep in b.sweeps]
    pairs = list(zip(a.sweeps, b.sweeps, strict=True) if paired else itertools.product(a.sweeps, b.sweeps))
    draw = _draw_of((*a.sweeps, *b.sweeps))
    return Comparison(
        a,
        b,
        effort=unequal_effort(a, b),
        paired=paired,
        difference=_difference(
            np.concatenate([a.hypervolumes, b.hypervolumes]), draw and draw(objectives), len(a.sweeps), paired
        ),
        epsilon=(_epsilon((mine, other) for mine, other in pairs), _epsilon((other, mine) for mine, other in pairs)),
        covered_alone=(
            fmean(_covered_alone(mine, other, objectives) for mine, other in pairs),
            fmean(_covered_alone(other, mine, objectives) for mine, other in pairs),
        ),
        stretches=_stretches(a, b, paired, draw),
    )


def heights(points: np.ndarray, objectives: Objectives, x: np.ndarray) -> np.ndarray:
    """Return the second gain (k,) that points (n, d) reach without giving up the first gain `x` (k,); -inf for none."""
    gains = objectives.turn(points)[:, :2]
    reached = np.where(gains[None, :, 0] >= x[:, None], gains[None, :, 1], -np.inf)
    return reached.max(axis=1)


def interval_text(found: Difference) -> str:
    """Return an interval and what it allows for; empty if none is known."""
    if found.interval is None:
        return ""
    low, high = found.interval
    known = {"sources": "other images alone, ", "sweeps": "other seeds on these images, "}.get(found.covers, "")
    return f"{known}95%: {low:+.4f} to {high:+.4f}"


def _epsilon(pairs: Iterable[tuple[Sweep, Sweep]]) -> float:
    return fmean(epsilon_indicator(mine.points, other.points, mine.plan.objectives) for mine, other in pairs)


def _covered_alone(mine: Sweep, other: Sweep, objectives: Objectives) -> float:
    """Return the hypervolume that a sweep covers and another does not."""
    both = np.vstack([mine.points, other.points])
    return hypervolume(both, objectives) - hypervolume(other.points, objectives)


def _stretches(a: Side, b: Side, paired: bool, draw: _Draw | None) -> tuple[_Stretch, ...]:
    """Return stretches of equal length from the reference to the best first objective of either side.

    They do not depend on which side leads where, so that the test on each holds. The area of a front above a stretch
    is the hypervolume from a reference at its low end, less that from one at its high end.
    """
    plane = a.objectives.plane()
    sign, floor = plane.signs[0], plane.turned_reference[0]
    best = max(plane.turn(side.points[:, :2])[:, 0].max() for side in (a, b))
    if best <= floor:
        return ()
    edges = np.linspace(floor, best, _STRETCHES + 1)
    behind = [dataclasses.replace(plane, reference=(float(edge * sign), plane.reference[1])) for edge in edges]
    sweeps = (*a.sweeps, *b.sweeps)
    volumes = np.array([[hypervolume(sweep.points[:, :2], each) for sweep in sweeps] for each in behind])
    above = -np.diff(volumes, axis=0) / np.diff(edges)[:, None]
    drawn = draw and -np.diff([draw(each) for each in behind], axis=0) / np.diff(edges)[:, None, None]
    k = len(a.sweeps)
    level = 1 - (1 - _LEVEL) / _STRETCHES
    return tuple(
        _Stretch(
            low=float(edges[i] * sign),
            high=float(edges[i + 1] * sign),
            heights=(float(above[i, :k].mean()), float(above[i, k:].mean())),
            difference=_difference(above[i], None if drawn is None else drawn[i], k, paired, level),
        )
        for i in range(_STRETCHES)
    )


def _draw_of(sweeps: Sequence[Sweep]) -> _Draw | None:
    """Return how the hypervolumes of sweeps are drawn; None if one was made before answers were kept by image."""
    answers = [sweep.answers for sweep in sweeps]
    known = [(sweep.plan, each) for sweep, each in zip(sweeps, answers, strict=True) if each is not None]
    if len(known) < len(sweeps):
        return None

    def draw(objectives: Objectives) -> np.ndarray:
        # Of one seed of the draws all get the same images, so that sweeps of one split share theirs.
        drawn = [
            resampled_hypervolumes(
                [each],
                objectives,
                require=plan.space.require,
                seeds=plan.seeds,
                seed=plan.space.evaluation.split_seed,
                draws=_DRAWS,
            )
            for plan, each in known
        ]
        return np.concatenate(drawn)

    return draw


def _difference(
    values: np.ndarray, drawn: np.ndarray | None, k: int, paired: bool, level: float = _LEVEL
) -> Difference:
    """Return the difference of the first k sweeps' values from the others'; `values` (s,), `drawn` (s, B)."""
    return difference(
        values[:k],
        values[k:],
        resampled_a=None if drawn is None else drawn[:k],
        resampled_b=None if drawn is None else drawn[k:],
        paired=paired,
        level=level,
    )
