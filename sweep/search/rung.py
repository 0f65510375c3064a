"""TODO one line."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from search_spaces import Requirement, violation
from sweep.front import Layers, Objectives
from sweep.ledger import TrialRecord

_REQUIRED = "required."
"""How the keys of what requirements name begin in a plain decision."""

CHANGES, _NEWEST = 4, 500
"""Finished trials that must have passed a rung before anybody is stopped in it, and how many of them count at most: the
newest, so that a decision's cost is bounded."""

_NAMED = 3
"""Of all that dominate a stopped trial, how many its reason names."""


class RungPosition(NamedTuple):
    """Where a group of trials stands among all that reached a rung."""

    layer: int
    """Its non-dominated rank: 0 on the rung's front."""

    place: int
    """How many stand before it."""

    competitors: int
    """How many groups were compared, with its own."""

    dominated_by: tuple[int, ...]
    """Some trials that dominate it, ascending."""

    broken: str = ""
    """The requirements that it does not fulfil."""


class Decision(NamedTuple):
    """What was decided when a trial reached a rung, and why."""

    rung: int
    """Epochs that make the rung."""

    epoch: int
    """Of the report that was compared: later than the rung if the trial passed it without a word."""

    layer: int
    place: int
    competitors: int
    dominated_by: tuple[int, ...]
    """As in `Standing`."""

    stop: bool

    strength: str
    """What all of them were measured with, as `trainer.report.STRENGTH` says; empty where all evaluations are equal."""

    values: tuple[float, ...]
    """The objectives that the trial brought to the rung, in their own units: see `Rungs.hear`."""

    broken: str = ""
    """As in `Standing`."""

    required: tuple[tuple[str, float], ...] = ()
    """What it brought of the numbers that requirements name."""

    followed: int = -1
    """The trial of its group that was stopped before it, and whose standing this is; -1 for none."""

    chance: float = 1.0
    """Share of the changes below with which it would come to stand on the front of the finished; 1 for too few."""

    changes: int = 0
    """Finished trials that told what may change after the rung."""

    @property
    def reason(self) -> str:
        """For people."""
        if self.followed >= 0:
            return f"stopped after epoch {self.epoch}: as trial {self.followed:03d} of its configuration was"
        others = " and ".join(f"{number:03d}" for number in self.dominated_by)
        return (
            f"stopped after epoch {self.epoch}: place {self.place + 1} of {self.competitors} at epoch {self.rung}"
            f"{', not ' + self.broken if self.broken else ''}{', dominated by ' + others if others else ''}"
            f"{self.hope}"
        )

    @property
    def hope(self) -> str:
        """What finished trials tell of its end; empty while they are too few."""
        if self.changes < CHANGES:
            return ""
        return f"; {round(self.chance * self.changes)} of {self.changes} finished trials rose enough to save it"

    def to_dict(self, objectives: Objectives) -> dict[str, Any]:
        """Plain scalars, as the ledger takes them."""
        plain = self._asdict() | {"dominated_by": " ".join(map(str, self.dominated_by))}
        plain |= {_REQUIRED + name: value for name, value in plain.pop("required")}
        return plain | dict(zip(objectives.names, plain.pop("values"), strict=True))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], objectives: Objectives) -> Decision:
        """What `to_dict` told."""
        fields = {name: plain[name] for name in cls._fields if name in plain}
        fields["dominated_by"] = tuple(map(int, plain["dominated_by"].split()))
        required = [key for key in plain if key.startswith(_REQUIRED)]
        fields["required"] = tuple((key.removeprefix(_REQUIRED), plain[key]) for key in required)
        return cls(**fields, values=tuple(plain[name] for name in objectives.names))


class Observation(NamedTuple):
    """What a trial said after an epoch."""

    numbers: tuple[float, ...]
    """Objectives, then what requirements name."""

    strength: str
    """As in `Decision`."""


class Rung:
    """Who has reached a number of epochs: groups by key, ranked by the means of their trials."""

    def __init__(self, objectives: Objectives, require: Sequence[Requirement]) -> None:
        self.objectives, self.require = objectives, require
        self.trials: dict[str, dict[int, tuple[float, ...]]] = {}
        """Of every group the numbers (d + c,) of its trials: objectives, then what the requirements name."""
        self.rows: dict[str, int] = {}
        """Of every group its place in the three that follow, which have room for more."""
        self.points = np.empty((len(objectives.names), 0))
        self.violations, self.leads = np.empty(0), np.empty(0, dtype=int)
        self.layers = Layers(objectives)
        """Of the groups that fulfil what is required."""
        self.changes: deque[np.ndarray] = deque(maxlen=_NEWEST)
        """By what the numbers (d + c,) of trials that finished have changed since."""

    def enter(self, group: str, trial: int, numbers: Sequence[float]) -> None:
        members = self.trials.setdefault(group, {})
        row = self.rows.setdefault(group, len(self.rows))
        if row == self.points.shape[1]:
            self.points, self.violations, self.leads = map(_with_room, (self.points, self.violations, self.leads))
        elif members and self.violations[row] == 0:
            self.layers.remove(self.points[:, row])
        members[trial] = tuple(map(float, numbers))
        means = self.means(group)
        self.points[:, row], required = means[: len(self.points)], self.required(means)
        self.violations[row] = violation(self.require, required) if np.isfinite(means).all() else np.inf
        self.leads[row] = min(members)
        if self.violations[row] == 0:
            self.layers.add(self.points[:, row])

    def means(self, group: str) -> list[float]:
        """Over a group's trials (d + c,): exactly the same in whatever order they came."""
        members = self.trials[group]
        return [math.fsum(column) / len(members) for column in zip(*members.values(), strict=True)]

    def required(self, means: Sequence[float]) -> dict[str, float]:
        """What a group's numbers are by the names that requirements know them by."""
        return dict(zip(required_names(self.require), means[len(self.objectives.names) :], strict=True))

    def standing(self, group: str) -> RungPosition:
        row, count = self.rows[group], len(self.rows)
        layer, place = self.place(row)
        required = self.required(self.means(group))
        broken = " and ".join(str(each) for each in self.require if each.excess(required[each.name]) > 0)
        return RungPosition(
            layer, place, count, tuple(np.sort(self.leads[self.dominators(row)])[:_NAMED].tolist()), broken
        )

    def place(self, row: int) -> tuple[int, int]:
        """Its layer, and how many stand before it: all of better layers, and of its own those that the epsilon-net
        takes before it. Equal points tie, and so do those that break the requirements equally."""
        violations, own = self.violations[: len(self.rows)], self.violations[row]
        if own > 0:
            better = violations[violations < own]
            return len(self.layers) + len(np.unique(better[better > 0])), len(better)
        layer = self.layers.layer(self.points[:, row])
        different, counts = self.layers.members(layer)
        feasible = self.points[:, : len(self.rows)][:, violations == 0]
        low, high = feasible.min(axis=1), feasible.max(axis=1)
        # In units of the extent of all who fulfil what is required: from 0, the worst, to 1, the best.
        shares = self.objectives.turn(different) - np.minimum(*self.objectives.turn(np.stack([low, high])))
        order = farthest_first(shares / np.where(high > low, high - low, 1.0))
        me = int(np.flatnonzero((different[order] == self.points[:, row]).all(axis=1))[0])
        return layer, self.layers.size(layer) + int(counts[order[:me]].sum())

    def dominators(self, row: int) -> np.ndarray:
        """The rows that dominate one; none for what is not finite."""
        violations, own = self.violations[: len(self.rows)], self.violations[row]
        if own > 0:
            return np.flatnonzero(violations < own) if np.isfinite(own) else np.array([], dtype=int)
        gains = self.points[:, : len(self.rows)] * self.objectives.signs[:, None]
        mine = gains[:, row, None]
        return np.flatnonzero((gains >= mine).all(axis=0) & (gains > mine).any(axis=0) & (violations == 0))

    def on_front(self, group: str) -> bool:
        """Whether a group has come here and stands on the front."""
        row = self.rows.get(group)
        return row is not None and self.violations[row] == 0 and self.layers.layer(self.points[:, row]) == 0

    def would_lead(self, numbers: np.ndarray) -> np.ndarray:
        """Which of some finite numbers (n, d + c) would stand on the front (n,); where nobody fulfils what is required,
        which would break it no more than anybody does."""
        points, rest = np.split(numbers, [len(self.objectives.names)], axis=1)
        required = dict(zip(required_names(self.require), rest.T, strict=True))
        excesses = [np.maximum(each.excess(required[each.name]), 0.0) for each in self.require]
        violations = np.sum([np.zeros(len(numbers)), *excesses], axis=0)
        if not len(self.layers):
            return violations <= self.violations[: len(self.rows)].min(initial=np.inf)
        front, gains = self.objectives.turn(self.layers.members(0)[0])[:, None], self.objectives.turn(points)
        dominated = ((front >= gains).all(axis=2) & (front > gains).any(axis=2)).any(axis=0)
        return (violations == 0) & ~dominated


def _with_room(rows: np.ndarray) -> np.ndarray:
    """The same (..., n) with as many again to come."""
    return np.concatenate([rows, np.zeros((*rows.shape[:-1], max(rows.shape[-1], 64)), rows.dtype)], axis=-1)


def required_names(require: Iterable[Requirement]) -> list[str]:
    """The numbers that requirements name, each once."""
    return list(dict.fromkeys(each.name for each in require))


def behind(standing: RungPosition, *, eta: int) -> bool:
    """Whether it is neither on the rung's front nor among the best 1/eta, where at least eta are there to compare."""
    among_best = standing.place * eta < standing.competitors
    return standing.competitors >= eta and standing.layer > 0 and not among_best


def at(record: TrialRecord, epoch: int, epochs: int) -> dict[str, Any] | None:
    """What a trial said after an epoch; at the last one what it said finally."""
    if epoch == epochs:
        return record.result
    return next((each for each in record.reports if each["epoch"] == epoch and not each["final"]), None)


def group_key(config: Mapping[str, Any]) -> str:
    """Equal for trials that differ in the seed alone."""
    return json.dumps({name: value for name, value in config.items() if name != "seed"}, sort_keys=True)


def farthest_first(shares: np.ndarray) -> np.ndarray:
    """An order (m,) of different points (m, d) in [0, 1], ascending, of which every beginning covers them well.

    The first is the one with the largest sum, each next the one farthest from all before it (algorithm 2 of Schmucker
    et al.; Gonzalez 1985). Where two are as far, the one that comes first by value: nothing depends on who came first.
    """
    order, columns = [int(shares.sum(axis=1).argmax())], shares.T.copy()
    gaps = np.full(len(shares), np.inf)
    while len(order) < len(shares):
        last = order[-1]
        gaps = np.minimum(gaps, ((columns - columns[:, last, None]) ** 2).sum(axis=0))
        gaps[last] = -np.inf  # and so it stays
        order.append(int(gaps.argmax()))
    return np.array(order)
