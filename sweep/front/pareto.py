"""The front: pure functions on arrays.

Every function takes `points` (n, d), finite, one row per trial and one column per objective, in the objectives' own
units and directions, and an `Objectives` that carries those directions. `Objectives.turn` is the one place that knows
them: behind it more is better in every column, and turned points are called gains.
"""

from __future__ import annotations

import bisect
import math

import numpy as np
from numpy.typing import ArrayLike

from sweep.front.objectives import Objectives

_KNEE_TOLERANCE = 1e-9
"""Least distance of a knee from the line between a front's ends, in units of the front's extent: more than rounding."""


def front_mask(points: ArrayLike, objectives: Objectives) -> np.ndarray:
    """Return which points (n,) no other dominates; of equal points all or none are on the front."""
    return _front_mask(objectives.turn(points))


def ranks(points: ArrayLike, objectives: Objectives) -> np.ndarray:
    """Return ranks (n,) by non-dominated sorting: 0 on the front, 1 on the front of the rest, and so on."""
    gains, inverse = np.unique(objectives.turn(points), axis=0, return_inverse=True)
    layers = _layers_2d(gains) if gains.shape[1] == 2 else _layers(gains)
    return layers[inverse.ravel()]


def constrained_ranks(points: ArrayLike, violations: ArrayLike, objectives: Objectives) -> np.ndarray:
    """Return ranks (n,) under constraints (Deb 2002, definition 1): feasible points come first, by `ranks`, then
    infeasible ones, the least violation first. `violations` (n,) are at least 0, and 0 where all constraints hold."""
    points, violations = np.asarray(points, dtype=float), np.asarray(violations, dtype=float)
    feasible = violations <= 0
    layers = np.zeros(len(violations), dtype=int)
    layers[feasible] = ranks(points[feasible], objectives)
    behind = np.unique(violations[~feasible], return_inverse=True)[1]
    layers[~feasible] = layers[feasible].max(initial=-1) + 1 + behind
    return layers


def hypervolume(points: ArrayLike, objectives: Objectives) -> float:
    """Return the volume between the reference and the front; points worse than the reference anywhere add nothing."""
    return _hypervolume(objectives.turn(points), objectives.turned_reference)


def contributions(points: ArrayLike, objectives: Objectives) -> np.ndarray:
    """Return the hypervolume (n,) that would be lost without each point, all others staying; 0 for equal points."""
    gains, reference = objectives.turn(points), objectives.turned_reference
    on_front = _front_mask(gains)
    # A point of the front that goes uncovers at most what is on the front of the rest.
    kept = gains[~on_front]
    others = np.vstack([gains[on_front], kept[_front_mask(kept)]])
    volume = _hypervolume(gains, reference)
    lost = [volume - _hypervolume(np.delete(others, i, axis=0), reference) for i in range(on_front.sum())]
    alone = np.zeros(len(gains))
    alone[on_front] = np.maximum(lost, 0.0)
    return alone


def improvements(points: ArrayLike, front: ArrayLike, objectives: Objectives) -> np.ndarray:
    """Return the hypervolume (n,) that each of `points` (n, d) alone would add to that of `front` (m, d).

    With two objectives it takes O(log m) for each point; with more, a hypervolume.
    """
    gains, reference = objectives.turn(points), objectives.turned_reference
    stairs = _staircase(objectives.turn(front))
    stairs = stairs[(stairs > reference).all(axis=1)]
    if len(reference) == 2:
        return _improvements_2d(gains, stairs, reference)
    volume = _hypervolume(stairs, reference)
    grown = np.array([_hypervolume(np.vstack([stairs, gain]), reference) for gain in gains])
    return np.maximum(grown - volume, 0.0)


def knee(points: ArrayLike, objectives: Objectives) -> int | None:
    """Return the index of the front's knee: where giving up a little of one objective no longer buys much of another.

    The knee is the front's point farthest beyond the line (plane) through the front's ends, with every objective
    measured in the front's own extent (Das 1999). A front without a point beyond that line has no knee: one of fewer
    than three different points, or one that bends inwards.
    """
    gains = objectives.turn(points)
    on_front = np.flatnonzero(_front_mask(gains))
    if len(on_front) == 0:
        return None
    front = gains[on_front]
    extent = np.ptp(front, axis=0)
    shares = (front - front.min(axis=0)) / np.where(extent > 0, extent, 1.0)
    # In these units the line through the ends is where the shares sum to 1.
    beyond = shares.sum(axis=1)
    ends = beyond[shares.argmax(axis=0)]
    best = int(beyond.argmax())
    return int(on_front[best]) if beyond[best] > ends.max() + _KNEE_TOLERANCE else None


def epsilon_indicator(points: ArrayLike, other: ArrayLike, objectives: Objectives) -> float:
    """Return the additive epsilon indicator (Zitzler et al. 2003): the least amount that, added to every objective of
    `points` (n, d), makes them cover `other` (m, d) everywhere; at most 0 where they already do.
    """
    front, targets = (_staircase(objectives.turn(side)) for side in (points, other))
    if len(front) == 0 or len(targets) == 0:
        raise ValueError("the epsilon indicator needs at least one point on either side")
    return float(max((target - front).max(axis=1).min() for target in targets))


def _front_mask(gains: np.ndarray) -> np.ndarray:
    if gains.shape[1] == 2:
        return _front_mask_2d(gains)
    mask = np.zeros(len(gains), dtype=bool)
    # In descending lexical order a point is dominated only by what came before it.
    for i in np.lexsort(gains.T[::-1])[::-1]:
        front = gains[mask]
        mask[i] = not ((front >= gains[i]).all(axis=1) & (front > gains[i]).any(axis=1)).any()
    return mask


def _front_mask_2d(gains: np.ndarray) -> np.ndarray:
    """Return which points (n,) have the best second gain of equal first gains, better than at every better first."""
    columns, column = np.unique(-gains[:, 0], return_inverse=True)
    best = np.full(len(columns), -np.inf)
    np.maximum.at(best, column, gains[:, 1])
    before = np.concatenate([[-np.inf], np.maximum.accumulate(best)[:-1]])[: len(columns)]
    return (gains[:, 1] == best[column]) & (best > before)[column]


def _staircase(gains: np.ndarray) -> np.ndarray:
    """Return the front's different points (m, d) in ascending order; with two objectives the second falls."""
    return np.unique(gains[_front_mask(gains)], axis=0)


def _layers(gains: np.ndarray) -> np.ndarray:
    """Return ranks (n,), found front by front; `gains` (n, d) are all different."""
    layers = np.zeros(len(gains), dtype=int)
    rest = np.arange(len(gains))
    while len(rest):
        dominated = ~_front_mask(gains[rest])
        rest = rest[dominated]
        layers[rest] += 1
    return layers


def _layers_2d(gains: np.ndarray) -> np.ndarray:
    """Return ranks (n,) in O(n log n); `gains` (n, 2) are all different and in ascending order."""
    layers = np.zeros(len(gains), dtype=int)
    # The best second gain of each layer so far, with its sign turned: ascending, so that it can be searched.
    tops: list[float] = []
    for i in range(len(gains) - 1, -1, -1):
        # All that came before has a first gain at least as good, so a layer dominates the point if its top does.
        layer = bisect.bisect_right(tops, -gains[i, 1])
        tops[layer : layer + 1] = [-gains[i, 1]]
        layers[i] = layer
    return layers


def _hypervolume(gains: np.ndarray, reference: np.ndarray) -> float:
    front = _staircase(gains[(gains > reference).all(axis=1)])
    if len(front) == 0:
        return 0.0
    if len(reference) == 1:
        return float(front[0, 0] - reference[0])
    if len(reference) == 2:
        return math.fsum(_rectangles(front, reference))
    # Slices along the last objective, from the best downwards (While et al. 2006).
    front = front[np.argsort(-front[:, -1], kind="stable")]
    depths = -np.diff(front[:, -1], append=reference[-1])
    return math.fsum(depths[i] * _hypervolume(front[: i + 1, :-1], reference[:-1]) for i in np.flatnonzero(depths))


def _improvements_2d(gains: np.ndarray, stairs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the areas (n,) below `gains` (n, 2) and above a staircase (m, 2), all of it better than the reference."""
    left, floor = reference
    # From starts[k] to starts[k + 1] the stairs have heights[k], and after the last one that of the reference.
    starts, heights = np.append(left, stairs[:, 0]), np.append(stairs[:, 1], floor)
    below = np.append(0.0, np.cumsum(heights[:-1] * np.diff(starts)))
    right, top = gains.T
    # A point rises above the stairs from the first step on that is lower than it.
    first = np.searchsorted(-heights, -top, side="right")
    rises = (first < len(heights)) & (right > starts[np.minimum(first, len(stairs))])
    first, right, top = first[rises], right[rises], top[rises]
    last = np.searchsorted(starts, right) - 1
    under = below[last] - below[first] + heights[last] * (right - starts[last])
    areas = np.zeros(len(gains))
    areas[rises] = np.maximum(top * (right - starts[first]) - under, 0.0)
    return areas


def _rectangles(staircase: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the area (m,) that each point of a staircase (m, 2) adds to that of the points on its left."""
    return np.diff(staircase[:, 0], prepend=reference[0]) * (staircase[:, 1] - reference[1])
