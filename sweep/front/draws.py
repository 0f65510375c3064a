"""Many draws of the same points at once: who is on the front of each, who is its knee, and its hypervolume.

Shape letters: B draws, n points, d objectives, k members of a group, c constraints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sweep.front.objectives import Objectives
from sweep.front.pareto import front_mask, hypervolume, knee

_AT_ONCE = 250_000
"""Points that are sorted at once: some 20 MB."""


class FrontDraws(NamedTuple):
    """Fronts of many draws."""

    on_front: np.ndarray
    """(n,): share of the draws in which each point is on the front."""
    knees: np.ndarray
    """(n,): share of the draws in which it is the knee."""
    hypervolumes: np.ndarray
    """(B,)."""


def draw_members(samples: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return means (B, n, d) of groups in every draw, each of k members drawn from its own with replacement.

    The variance of such a mean is too small by (k - 1) / k, so members are first moved away from the group's mean, by
    the root of k / (k - 1). A group whose members are equal has exactly their value.

    Args:
        samples: (B, n, k, d), the members in every draw.
    """
    draws, n, k, _ = samples.shape
    if k == 1:
        return samples[:, :, 0]
    means = samples.mean(axis=2, keepdims=True)
    # The mean of equal members is exactly theirs: rounding must not part groups that tie.
    means = np.where((samples == samples[:, :, :1]).all(axis=2, keepdims=True), samples[:, :, :1], means)
    wide = (samples - means) * math.sqrt(k / (k - 1))
    chosen = generator.integers(k, size=(draws, n, k, 1))
    return means[:, :, 0] + np.take_along_axis(wide, chosen, axis=2).mean(axis=2)


def front_draws(points: np.ndarray, objectives: Objectives, *, excesses: np.ndarray | None = None) -> FrontDraws:
    """Return the fronts of all draws.

    Args:
        points: (B, n, d), finite.
        excesses: (B, n, c), by how much each point violates each constraint; one that violates any is on no front.
    """
    on_front, knees, volumes = np.zeros(points.shape[1]), np.zeros(points.shape[1]), []
    for drawn, mask, (found,) in _fronts(points, [objectives], excesses):
        on_front += mask.sum(axis=0)
        volumes.append(found)
        for each, members in zip(drawn, mask, strict=True):
            place = knee(each[members], objectives)
            if place is not None:
                knees[np.flatnonzero(members)[place]] += 1
    return FrontDraws(on_front / len(points), knees / len(points), np.concatenate(volumes))


def hypervolume_draws(
    points: np.ndarray, objectives: Sequence[Objectives], *, excesses: np.ndarray | None = None
) -> np.ndarray:
    """Return the hypervolumes (R, B) alone, in a fraction of the time; the points are those of `front_draws`.

    Args:
        objectives: R of them, which differ in their references alone.
    """
    return np.concatenate([volumes for _, _, volumes in _fronts(points, objectives, excesses)], axis=1)


def _fronts(
    points: np.ndarray, several: Sequence[Objectives], excesses: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield, for some draws after another, the points, which of them are on the front, and the hypervolumes (R, B)."""
    objectives = several[0]
    draws, n, d = points.shape
    feasible = np.ones((draws, n), dtype=bool) if excesses is None else np.all(excesses <= 0, axis=2)
    step = max(1, _AT_ONCE // max(n, 1))
    for first in range(0, draws, step):
        drawn, allowed = points[first : first + step], feasible[first : first + step]
        if d == 2:
            gains = np.where(allowed[..., None], drawn * objectives.signs, -np.inf)
            yield drawn, *_fronts_2d(gains, [each.turned_reference for each in several])
            continue
        mask = np.zeros(allowed.shape, dtype=bool)
        for row, (each, some) in enumerate(zip(drawn, allowed, strict=True)):
            mask[row, some] = front_mask(each[some], objectives)
        fronts = [each[members] for each, members in zip(drawn, mask, strict=True)]
        yield drawn, mask, np.array([[hypervolume(front, each) for front in fronts] for each in several])


def _fronts_2d(gains: np.ndarray, references: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return which points (B, n) are on the front of their draw, and the hypervolumes (R, B) from R references (2,).

    Args:
        gains: (B, n, 2), -inf for points that do not count.
    """
    order = np.lexsort((-gains[..., 1], -gains[..., 0]))
    x, y = (np.take_along_axis(gains[..., each], order, axis=1) for each in (0, 1))
    lowest = np.full((len(gains), 1), -np.inf)
    # What came before has a first gain at least as good, and of equal points only the first is asked.
    best_before = np.concatenate([lowest, np.maximum.accumulate(y, axis=1)[:, :-1]], axis=1)
    first = np.ones(x.shape, dtype=bool)
    first[:, 1:] = (x[:, 1:] != x[:, :-1]) | (y[:, 1:] != y[:, :-1])
    leader = np.maximum.accumulate(np.where(first, np.arange(x.shape[1]), 0), axis=1)
    kept = np.take_along_axis(y > best_before, leader, axis=1)
    mask = np.zeros(kept.shape, dtype=bool)
    np.put_along_axis(mask, order, kept, axis=1)
    return mask, np.array([_areas(x, y, reference) for reference in references])


def _areas(x: np.ndarray, y: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the hypervolumes (B,) of points whose first gains `x` (B, n) fall, with their second gains `y` (B, n)."""
    heights = np.maximum.accumulate(np.where(x > reference[0], np.maximum(y, reference[1]), reference[1]), axis=1)
    widths = np.where(np.isfinite(x), np.maximum(x - reference[0], 0), 0)
    return (widths * np.diff(heights, axis=1, prepend=reference[1])).sum(axis=1)
