"""The front, and all layers of non-dominated sorting, kept up to date point by point."""

from __future__ import annotations

import bisect
import copy
import math
from collections import Counter
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from sweep.front.objectives import Objectives
from sweep.front.pareto import hypervolume, ranks


class Front:
    """The front of the points added so far and its hypervolume, kept up to date.

    With two objectives a point costs O(log n). The hypervolume is the exact sum of the front's rectangles, rounded
    once: it does not depend on the order in which the points came, and equals `hypervolume` bit for bit.
    """

    def __init__(self, objectives: Objectives) -> None:
        self.objectives = objectives
        self._reference = tuple(objectives.turned_reference.tolist())
        self._gains: list[tuple[float, ...]] = []
        """The front's different points, turned, in ascending order."""
        self._counts: list[int] = []
        """Number of times that each was added."""
        self._area = Fraction(0)
        self.size = 0
        """Number of points on the front, equal ones counted each."""

    def copy(self) -> Front:
        """Return a front of its own with the same points."""
        other = copy.copy(self)
        other._gains, other._counts = self._gains.copy(), self._counts.copy()
        return other

    @property
    def points(self) -> np.ndarray:
        """The front's different points (m, d), from the worst to the best in the first objective."""
        return self.objectives.turn(self._gains)

    @property
    def hypervolume(self) -> float:
        if len(self._reference) == 2:
            return float(self._area)
        return hypervolume(self.points, self.objectives)

    def add(self, point: ArrayLike) -> bool:
        """Add a point (d,); return whether it is on the front, as a point that equals one of the front is."""
        gain = self.objectives.gain(point)
        index = bisect.bisect_left(self._gains, gain)
        if index < len(self._gains) and self._gains[index] == gain:
            self._counts[index] += 1
            self.size += 1
            return True
        return self._insert_2d(gain, index) if len(gain) == 2 else self._insert(gain, index)

    def _insert_2d(self, gain: tuple[float, ...], index: int) -> bool:
        """Insert `gain` before `index`, if it is on the front.

        The second gain falls along the front: what dominates `gain` stands at `index`, and what it dominates stands
        right before.
        """
        if index < len(self._gains) and self._gains[index][1] >= gain[1]:
            return False
        start = index
        while start > 0 and self._gains[start - 1][1] <= gain[1]:
            start -= 1
        # The rectangle at the index begins where the one before it ends.
        self._area -= self._rectangles(start, index + 1)
        self.size += 1 - sum(self._counts[start:index])
        self._gains[start:index], self._counts[start:index] = [gain], [1]
        self._area += self._rectangles(start, start + 2)
        return True

    def _rectangles(self, start: int, stop: int) -> Fraction:
        """Return the exact area of the rectangles of the points from `start` to `stop`, as in `pareto._rectangles`."""
        left, floor = self._reference
        total = Fraction(0)
        for i in range(start, min(stop, len(self._gains))):
            x, y = self._gains[i]
            before = max(self._gains[i - 1][0], left) if i > 0 else left
            total += Fraction((max(x, left) - before) * max(y - floor, 0.0))
        return total

    def _insert(self, gain: tuple[float, ...], index: int) -> bool:
        """Insert `gain` before `index`, if it is on the front."""
        gains = np.array(self._gains).reshape(-1, len(gain))
        if (gains >= gain).all(axis=1).any():
            return False
        # What it dominates stands before it, in ascending order.
        for i in np.flatnonzero((gains[:index] <= gain).all(axis=1))[::-1]:
            self.size -= self._counts.pop(i)
            del self._gains[i]
        index = bisect.bisect_left(self._gains, gain)
        self._gains.insert(index, gain)
        self._counts.insert(index, 1)
        self.size += 1
        return True


class Layers:
    """The layers of the points added so far, kept up to date: layer 0 is the front, layer 1 the front of the rest.

    With two objectives a point costs O(log n) for every layer that it moves points out of (Buzdalov, Yakupov and
    Stankevich 2015); with more, and where a point is removed, all are sorted anew.
    """

    def __init__(self, objectives: Objectives) -> None:
        self._objectives = objectives
        self._layers: list[list[tuple[float, ...]]] = []
        """Different points of each layer, turned, in ascending order."""
        self._falls: list[list[float]] = []
        """Second gains of the same with two objectives, with their signs turned, and so in ascending order too."""
        self._counts: Counter[tuple[float, ...]] = Counter()
        self._sizes: list[int] = []

    def __len__(self) -> int:
        return len(self._layers)

    def size(self, layers: int) -> int:
        """Return the number of points in the first `layers` layers, equal ones counted each."""
        return sum(self._sizes[:layers])

    def layer(self, point: ArrayLike) -> int:
        """Return the layer of a point (d,) that was added."""
        gain = self._objectives.gain(point)
        if len(gain) == 2:
            return self._first_beaten_by(gain)
        return next(k for k, layer in enumerate(self._layers) if gain in layer)

    def members(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a layer's different points (m, d) in ascending order of gain, and how often each was added (m,)."""
        gains = self._layers[layer]
        return self._objectives.turn(gains), np.array([self._counts[gain] for gain in gains])

    def dominate(self, points: np.ndarray) -> np.ndarray:
        """Return which of some points (n, d) one of the front dominates, (n,)."""
        gains = self._objectives.turn(points)
        if not self._layers:
            return np.zeros(len(gains), dtype=bool)
        front = np.array(self._layers[0])
        if front.shape[1] != 2:
            dominated = (front[:, None] >= gains).all(axis=2) & (front[:, None] > gains).any(axis=2)
            return np.asarray(dominated.any(axis=0))
        # Of those at least as good in the first gain, the first one is the best in the second.
        place = np.searchsorted(front[:, 0], gains[:, 0])
        x, y = front[np.minimum(place, len(front) - 1)].T
        return (place < len(front)) & ((y > gains[:, 1]) | ((y == gains[:, 1]) & (x > gains[:, 0])))

    def add(self, point: ArrayLike) -> None:
        """Add a point (d,), finite."""
        gain = self._objectives.gain(point)
        self._counts[gain] += 1
        if self._counts[gain] > 1:
            self._sizes[self.layer(point)] += 1
        elif len(gain) == 2:
            self._insert(gain)
        else:
            self._sort()

    def remove(self, point: ArrayLike) -> None:
        """Undo the adding of a point (d,)."""
        self._counts -= Counter([self._objectives.gain(point)])
        self._sort()

    def _sort(self) -> None:
        gains = sorted(self._counts)
        layers = ranks(self._objectives.turn(gains), self._objectives) if gains else np.array([], dtype=int)
        self._layers = [[gains[i] for i in np.flatnonzero(layers == k)] for k in range(layers.max(initial=-1) + 1)]
        self._falls = [[-gain[1] for gain in layer] for layer in self._layers if len(layer[0]) == 2]
        self._sizes = [sum(map(self._counts.__getitem__, layer)) for layer in self._layers]

    def _first_beaten_by(self, gain: tuple[float, ...]) -> int:
        """Find the first layer with no point that dominates `gain`; what a layer dominates, all layers before it do."""
        low, high, first = 0, len(self._layers), (gain[0],)
        while low < high:  # not `bisect`, whose key would be a call of Python in the hottest loop of a replay
            middle = (low + high) // 2
            layer = self._layers[middle]
            # Of those at least as good in the first gain, the first one is the best in the second.
            index = bisect.bisect_left(layer, first)
            if index < len(layer) and layer[index] != gain and layer[index][1] >= gain[1]:
                low = middle + 1
            else:
                high = middle
        return low

    def _insert(self, gain: tuple[float, ...]) -> None:
        """Insert a new point: what it dominates in its layer moves to the next layer, and does the same there."""
        moved, falls, size = [gain], [-gain[1]], self._counts[gain]
        for k in range(self._first_beaten_by(gain), len(self._layers)):
            layer, fall = self._layers[k], self._falls[k]
            # Where the first gain is no better than the last one's, and the second no better than the first one's.
            stop = bisect.bisect_right(layer, (moved[-1][0], math.inf))
            start = bisect.bisect_left(fall, falls[0], hi=stop)
            beaten, layer[start:stop] = layer[start:stop], moved
            fallen, fall[start:stop] = fall[start:stop], falls
            beaten_size = sum(map(self._counts.__getitem__, beaten))
            self._sizes[k] += size - beaten_size
            moved, falls, size = beaten, fallen, beaten_size
            if not moved:
                return
        self._layers.append(moved)
        self._falls.append(falls)
        self._sizes.append(size)
