"""Two fronts beside one another: what each covers, how certain that is, and where each leads.

A sweep is the unit of all that is claimed: what one sweep found, another seed may not find. The plane is that of the
first two objectives, turned so that more is better in both: x the first gain, and a front's height at x the second gain
that it reaches without giving up x.

Shapes: n configurations, d objectives, s sweeps of a side, B draws, k values on the x axis.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
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
    behind = _behind(a, b)
    drawn = _drawn((*a.sweeps, *b.sweeps), behind)
    return Comparison(
        a,
        b,
        effort=unequal_effort(a, b),
        paired=paired,
        difference=_difference(
            np.concatenate([a.hypervolumes, b.hypervolumes]),
            None if drawn is None else drawn[0],
            len(a.sweeps),
            paired,
        ),
        epsilon=(_epsilon((mine, other) for mine, other in pairs), _epsilon((other, mine) for mine, other in pairs)),
        covered_alone=(
            fmean(_covered_alone(mine, other, objectives) for mine, other in pairs),
            fmean(_covered_alone(other, mine, objectives) for mine, other in pairs),
        ),
        stretches=_stretches(a, b, paired, behind, None if drawn is None else drawn[1:]),
    )


def heights(points: np.ndarray, objectives: Objectives, x: np.ndarray) -> np.ndarray:
    """Return the second gain (k,) that points (n, d) reach without giving up the first gain `x` (k,); -inf for none."""
    gains = objectives.turn(points)[:, :2]
    gains = gains[np.argsort(-gains[:, 0])]
    best = np.maximum.accumulate(np.append(-np.inf, gains[:, 1]))  # of the first 0, 1, ... points
    return best[np.searchsorted(-gains[:, 0], -x, side="right")]


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


def _behind(a: Side, b: Side) -> list[Objectives]:
    """Return the plane with references at the ends of stretches, from the worst to the best; empty if there is none.

    The stretches have equal length, from the reference to the best first objective of either side. They do not depend
    on which side leads where, so that the test on each holds.
    """
    plane = a.objectives.plane()
    sign, floor = plane.signs[0], plane.turned_reference[0]
    best = max(plane.turn(side.points[:, :2])[:, 0].max() for side in (a, b))
    if best <= floor:
        return []
    edges = np.linspace(floor, best, _STRETCHES + 1)
    return [dataclasses.replace(plane, reference=(float(edge * sign), plane.reference[1])) for edge in edges]


def _stretches(
    a: Side, b: Side, paired: bool, behind: Sequence[Objectives], drawn: np.ndarray | None
) -> tuple[_Stretch, ...]:
    """Return the stretches between references (k,), by the sweeps' hypervolumes (k, s, B) from there in draws.

    The area of a front above a stretch is the hypervolume from a reference at its low end, less that from one at its
    high end.
    """
    if not behind:
        return ()
    sign, edges = behind[0].signs[0], np.array([each.turned_reference[0] for each in behind])
    planes = [sweep.points[:, :2] for sweep in (*a.sweeps, *b.sweeps)]
    volumes = np.array([[hypervolume(points, each) for points in planes] for each in behind])
    above = -np.diff(volumes, axis=0) / np.diff(edges)[:, None]
    drawn = None if drawn is None else -np.diff(drawn, axis=0) / np.diff(edges)[:, None, None]
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


def _drawn(sweeps: Sequence[Sweep], behind: Sequence[Objectives]) -> np.ndarray | None:
    """Return the hypervolumes (1 + k, s, B) of sweeps in draws of the sources, first under their own objectives.

    None is returned if a sweep was made before answers were kept by image.
    """
    volumes = []
    for sweep in sweeps:
        plan, answers = sweep.plan, sweep.answers
        if answers is None:
            return None
        # Of one seed of the draws all get the same images, so that sweeps of one split share theirs.
        drawn = resampled_hypervolumes(
            [answers],
            plan.objectives,
            require=plan.space.require,
            seeds=plan.seeds,
            seed=plan.space.evaluation.split_seed,
            draws=_DRAWS,
            parts=behind,
        )
        volumes.append(drawn)
    return np.concatenate(volumes, axis=1)


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
