"""Many draws of the same points at once: who is on the front of each, who is its knee, and its hypervolume.

Shape letters: B draws, n points, d objectives, k members of a group, c constraints.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sweep.front.objectives import Objectives
from sweep.front.pareto import front_mask, hypervolume, knee

_AT_ONCE = 1_000_000
"""Points that are sorted at once."""


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
    draws, n, d = points.shape
    feasible = np.ones((draws, n), dtype=bool) if excesses is None else np.all(excesses <= 0, axis=2)
    on_front, knees, volumes = np.zeros(n), np.zeros(n), np.zeros(draws)
    for first in range(0, draws, max(1, _AT_ONCE // max(n, 1))):
        part = slice(first, first + max(1, _AT_ONCE // max(n, 1)))
        if d == 2:
            gains, reference = points[part] * objectives.signs, objectives.turned_reference
            mask, volumes[part] = _fronts_2d(np.where(feasible[part, :, None], gains, -np.inf), reference)
        else:
            mask = np.zeros((len(points[part]), n), dtype=bool)
            for row, (drawn, allowed) in enumerate(zip(points[part], feasible[part], strict=True)):
                mask[row, allowed] = front_mask(drawn[allowed], objectives)
                volumes[first + row] = hypervolume(drawn[allowed], objectives)
        on_front += mask.sum(axis=0)
        for drawn, members in zip(points[part], mask, strict=True):
            found = knee(drawn[members], objectives)
            if found is not None:
                knees[np.flatnonzero(members)[found]] += 1
    return FrontDraws(on_front / draws, knees / draws, volumes)


def _fronts_2d(gains: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which points (B, n) are on the front of their draw, and the hypervolumes (B,).

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
    heights = np.maximum.accumulate(np.where(x > reference[0], np.maximum(y, reference[1]), reference[1]), axis=1)
    widths = np.where(np.isfinite(x), np.maximum(x - reference[0], 0), 0)
    return mask, (widths * np.diff(heights, axis=1, prepend=reference[1])).sum(axis=1)
