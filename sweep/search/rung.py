"""One rung: the groups of trials that reached a number of epochs, and their ranking."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from search_spaces import Requirement, violation
from sweep.front import Layers, Objectives
from sweep.ledger import TrialRecord
from sweep.search.change_model import ChangeModel
from sweep.search.decision import RungPosition

_NEWEST = 500
"""Finished trials, the newest, that count at most for changes after a rung, so that a decision's cost is bounded."""

_NAMED = 3
"""Number of trials that dominate a stopped one and are named in its reason."""

_LEARNED_FROM = 64
"""Finished trials, the newest, from which a trial's end is forecast at most: learning from them takes milliseconds."""


class Observation(NamedTuple):
    """Numbers that a trial reported after an epoch."""

    numbers: tuple[float, ...]
    """Objectives, then the numbers that requirements name."""

    strength: str
    """The same as in `Decision`."""


class _Newest:
    """The newest rows of numbers, at most `_NEWEST`, in no order."""

    def __init__(self, columns: int) -> None:
        self._rows, self._added = np.empty((_NEWEST, columns)), 0

    def __len__(self) -> int:
        return min(self._added, _NEWEST)

    def append(self, row: Sequence[float]) -> None:
        self._rows[self._added % _NEWEST] = row
        self._added += 1

    @property
    def rows(self) -> np.ndarray:
        """The rows (n, columns); the next one may overwrite one of them."""
        return self._rows[: len(self)]

    def last(self, count: int) -> np.ndarray:
        """Return at most `count` rows that were added last (n, columns), in the order in which they were added."""
        return self._rows[np.arange(self._added - min(count, len(self)), self._added) % _NEWEST]


class Rung:
    """Groups of trials that reached a number of epochs, by their keys, ranked by the means over their trials."""

    def __init__(self, objectives: Objectives, require: Sequence[Requirement]) -> None:
        self.objectives, self.require = objectives, require
        self.trials: dict[str, dict[int, tuple[float, ...]]] = {}
        """Numbers (d + c,) of each group's trials: objectives, then the numbers that requirements name."""
        self.rows: dict[str, int] = {}
        """Index of each group in the three arrays that follow, which have room for more."""
        self.points = np.empty((len(objectives.names), 0))
        self.violations, self.leads = np.empty(0), np.empty(0, dtype=int)
        self.layers = Layers(objectives)
        """Points of the groups that fulfil the requirements."""
        self.changes = _Newest(len(objectives.names) + len(required_names(require)))
        """Differences (d + c,) from what finished trials brought here to what they finished with."""
        self._finished: list[tuple[str, tuple[float, ...]]] = []
        """Groups of the newest finished trials, in the order of their ends, with what these brought here."""
        self._model: ChangeModel | None = None

    def add(self, group: str, trial: int, numbers: Sequence[float]) -> None:
        """Add a trial with its numbers (d + c,) to its group."""
        members = self.trials.setdefault(group, {})
        row = self.rows.setdefault(group, len(self.rows))
        if row == self.points.shape[1]:
            self.points, self.violations, self.leads = map(_with_room, (self.points, self.violations, self.leads))
        elif members and self.violations[row] == 0:
            self.layers.remove(self.points[:, row])
        members[trial] = tuple(map(float, numbers))
        means = self.means(group)
        self.points[:, row], required = means[: len(self.points)], self._required(means)
        self.violations[row] = violation(self.require, required) if np.isfinite(means).all() else np.inf
        self.leads[row] = min(members)
        if self.violations[row] == 0:
            self.layers.add(self.points[:, row])

    def finish(self, group: str, trial: int, change: Sequence[float]) -> None:
        """Take in how a trial of a group changed (d + c,) from here to its end, if that is finite."""
        if all(map(math.isfinite, change)):
            self.changes.append(change)
            self._finished = [*self._finished[1 - _LEARNED_FROM :], (group, self.trials[group][trial])]
            self._model = None

    @property
    def model(self) -> ChangeModel:
        """The forecast of changes until the end, from those of the newest finished trials."""
        if self._model is None:
            changes = self.changes.last(_LEARNED_FROM)
            numbers = np.array([brought for _, brought in self._finished]).reshape(changes.shape)
            self._model = ChangeModel(numbers, [group for group, _ in self._finished], changes)
        return self._model

    def means(self, group: str) -> list[float]:
        """Return the means (d + c,) over a group's trials, exactly the same in whatever order they came."""
        members = self.trials[group]
        return [math.fsum(column) / len(members) for column in zip(*members.values(), strict=True)]

    def _required(self, means: Sequence[float]) -> dict[str, float]:
        """Return the numbers that requirements name, by their names."""
        return dict(zip(required_names(self.require), means[len(self.objectives.names) :], strict=True))

    def lags(self, group: str, *, eta: int) -> bool:
        """Return what `lags` says of a group's position, which is found only where its layer does not tell."""
        row, count = self.rows[group], len(self.rows)
        if self.violations[row] == 0:
            layer = self.layers.layer(self.points[:, row])
            if layer == 0 or count < eta or (self.layers.size(layer + 1) - 1) * eta < count:
                return False
            if self.layers.size(layer) * eta >= count:
                return True
        return lags(self.position(group), eta=eta)

    def position(self, group: str) -> RungPosition:
        """Return the position of a group that was added."""
        row, count = self.rows[group], len(self.rows)
        layer, rank = self._layer_and_rank(row)
        required = self._required(self.means(group))
        violated = " and ".join(str(each) for each in self.require if each.excess(required[each.name]) > 0)
        leads = np.sort(self.leads[self._dominators(row)])[:_NAMED]
        return RungPosition(layer, rank, count, tuple(leads.tolist()), violated)

    def _layer_and_rank(self, row: int) -> tuple[int, int]:
        """Return a group's layer and how many groups are ahead of it.

        Ahead are all of better layers, and of its own layer those that the epsilon-net takes before it. Equal points
        tie, and so do groups that violate the requirements equally.
        """
        violations, own = self.violations[: len(self.rows)], self.violations[row]
        if own > 0:
            better = violations[violations < own]
            return len(self.layers) + len(np.unique(better[better > 0])), len(better)
        layer = self.layers.layer(self.points[:, row])
        different, counts = self.layers.members(layer)
        feasible = self.points[:, : len(self.rows)][:, violations == 0]
        low, high = feasible.min(axis=1), feasible.max(axis=1)
        # In units of the extent of all groups that fulfil the requirements: from 0, the worst, to 1, the best.
        shares = self.objectives.turn(different) - np.minimum(*self.objectives.turn(np.stack([low, high])))
        me = int(np.flatnonzero((different == self.points[:, row]).all(axis=1))[0])
        before = farthest_first(shares / np.where(high > low, high - low, 1.0), until=me)[:-1]
        return layer, self.layers.size(layer) + int(counts[before].sum())

    def _dominators(self, row: int) -> np.ndarray:
        """Return the rows that dominate a row; none if it is not finite."""
        violations, own = self.violations[: len(self.rows)], self.violations[row]
        if own > 0:
            return np.flatnonzero(violations < own) if np.isfinite(own) else np.array([], dtype=int)
        gains = self.points[:, : len(self.rows)] * self.objectives.signs[:, None]
        mine = gains[:, row, None]
        return np.flatnonzero((gains >= mine).all(axis=0) & (gains > mine).any(axis=0) & (violations == 0))

    def on_front(self, group: str) -> bool:
        """Return whether a group has come here and is on the front."""
        row = self.rows.get(group)
        return row is not None and self.violations[row] == 0 and self.layers.layer(self.points[:, row]) == 0

    def split(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the points (n, d) in finite numbers (n, d + c), and by how much these violate requirements (n,)."""
        objectives = len(self.objectives.names)
        required = dict(zip(required_names(self.require), numbers[:, objectives:].T, strict=True))
        violations = np.zeros(len(numbers))
        for each in self.require:
            violations += np.maximum(each.excess(required[each.name]), 0.0)
        return numbers[:, :objectives], violations

    def would_lead(self, numbers: np.ndarray) -> np.ndarray:
        """Return which of some finite numbers (n, d + c) would be on the front (n,).

        While no group fulfils the requirements, these are the ones that would violate them least.
        """
        points, violations = self.split(numbers)
        if not len(self.layers):
            return violations <= self.violations[: len(self.rows)].min(initial=np.inf)
        return (violations == 0) & ~self.layers.dominate(points)


def _with_room(rows: np.ndarray) -> np.ndarray:
    """Return an array (..., n) with room for as many again in its last dimension."""
    return np.concatenate([rows, np.zeros((*rows.shape[:-1], max(rows.shape[-1], 64)), rows.dtype)], axis=-1)


def required_names(require: Iterable[Requirement]) -> list[str]:
    """Return the names of the numbers that requirements name, each once."""
    return list(dict.fromkeys(each.name for each in require))


def lags(position: RungPosition, *, eta: int) -> bool:
    """Return whether a group is neither on its rung's front nor among the best 1/eta of at least eta groups."""
    among_best = position.rank * eta < position.competitors
    return position.competitors >= eta and position.layer > 0 and not among_best


def report_after(record: TrialRecord, epoch: int, epochs: int) -> dict[str, Any] | None:
    """Return a trial's report after an epoch, after the last of its `epochs` the final one; None if there is none."""
    if epoch == epochs:
        return record.result
    return next((each for each in record.reports if each["epoch"] == epoch and not each["final"]), None)


def group_key(config: Mapping[str, Any]) -> str:
    """Return a key that is equal for trials that differ in the seed alone."""
    return json.dumps({name: value for name, value in config.items() if name != "seed"}, sort_keys=True)


def farthest_first(shares: np.ndarray, *, until: int = -1) -> np.ndarray:
    """Return an order (m,) of different points (m, d) in [0, 1] of which every beginning covers them well.

    With `until`, the index of one of them, it ends with that one: what follows takes as long again and is not asked.

    The first has the largest sum; each next one is the farthest from all before it (algorithm 2 of Schmucker et al.;
    Gonzalez 1985). Of two that are equally far the first by value is taken, since the points come in ascending order:
    nothing depends on which trial came first.
    """
    order, columns = [int(shares.sum(axis=1).argmax())], shares.T.copy()
    gaps = np.full(len(shares), np.inf)
    while len(order) < len(shares) and order[-1] != until:
        last = order[-1]
        gaps = np.minimum(gaps, ((columns - columns[:, last, None]) ** 2).sum(axis=0))
        gaps[last] = -np.inf  # and so it stays
        order.append(int(gaps.argmax()))
    return np.array(order)
