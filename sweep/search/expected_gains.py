"""The hypervolume that trials are expected to add to the front, by how finished trials changed since the same rung.

What a trial brought to a rung and its configuration forecast its change (`ChangeModel`); the model's errors on finished
trials, each as likely as the others, say how far off that may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sweep.front import front_mask, improvements
from sweep.search.rung import Rung
from sweep.search.rungs import Rungs

_RECENT = 30
"""Newest configurations at the first rung, which tell what a new one brings."""

_TOGETHER = 64
"""Trials that are looked at together, the most promising first, until no other can be better."""


class _ExpectedGain(NamedTuple):
    """The addition to the front that is expected of a trial which has come to a rung."""

    number: int

    gain: float
    """Hypervolume per epoch that it, with the other seeds of its configuration, needs from there to the end."""

    chance: float
    """Probability that it adds any."""


class ExpectedGains:
    """Forecasts of what trials add to the front, by what the rungs know when it is made.

    A trial's end is what it brought to a rung, plus the change since then that is forecast, plus an error of that
    forecast, each as likely as the others. Running trials count as if their expected ends were on the front already.

    Args:
        epochs: epochs of a whole trial.
        seeds: trials of a configuration, all of which must end for it to be on the front.
        running: numbers of the trials that run.
    """

    def __init__(self, rungs: Rungs, *, epochs: int, seeds: int, running: Iterable[int]) -> None:
        self.rungs, self.epochs, self.seeds, self._running = rungs, epochs, seeds, sorted(running)

    def of(self, key: tuple[int, str], numbers: Sequence[int]) -> Iterator[_ExpectedGain]:
        """Yield what trials that came to a rung, named by its key, are expected to add, in their order."""
        rung, groups = self.rungs.rungs[key], [self.rungs.groups[number] for number in numbers]
        for number, group, gains in zip(numbers, groups, self._gains(rung, groups), strict=True):
            left = self.seeds - len(self.rungs.end.trials.get(group, ()))
            yield _ExpectedGain(
                number, float(gains.mean()) / (left * (self.epochs - key[0])), float((gains > 0).mean())
            )

    def best(self, waiting: Mapping[tuple[int, str], Iterable[int]], *, least_chance: float) -> _ExpectedGain | None:
        """Return who adds most per epoch; None if nobody has a larger chance than this to add any.

        Args:
            waiting: numbers of trials by the keys of the rungs to which they came.
        """
        best: _ExpectedGain | None = None
        for key in sorted(waiting):
            numbers = np.array(sorted(waiting[key]), dtype=int)
            if not len(numbers):
                continue
            bounds = self._bounds(key, numbers)
            order = np.argsort(-bounds, kind="stable")
            for some in np.split(order, range(_TOGETHER, len(order), _TOGETHER)):
                if not len(some) or bounds[some[0]] <= (best.gain if best else 0.0):
                    break
                found = [each for each in self.of(key, numbers[some].tolist()) if each.chance > least_chance]
                best = max([*([best] if best else []), *found], key=lambda each: each.gain, default=None)
        return best

    def of_new(self) -> float:
        """Return the hypervolume per epoch that a new trial is expected to add, left at the first rung if it lags.

        It is the best ratio of expected gain to expected epochs, over all gains below which a trial is left.
        """
        first = self.rungs.levels[0]
        rung = max(
            (rung for (level, _), rung in self.rungs.rungs.items() if level == first), key=lambda each: len(each.rows)
        )
        newest = sorted(rung.trials, key=lambda group: min(rung.trials[group]))[-_RECENT:]
        gains = np.sort(self._gains(rung, newest).mean(axis=1))[::-1]
        continued = np.arange(1, len(gains) + 1)
        ratios = np.cumsum(gains) / (first * len(gains) + (self.epochs - first) * continued)
        return float(ratios.max()) / self.seeds

    # ----------------------------------------------------------------------------------------------------- forecasts

    def _gains(self, rung: Rung, groups: Sequence[str]) -> np.ndarray:
        """Return the hypervolume (n, m) that each forecast end of some groups (n,) would add."""
        means = np.array([rung.means(group) for group in groups])
        known = np.asarray(np.isfinite(means).all(axis=1))
        means = np.where(known[:, None], means, 0.0)
        ends = (means + rung.model(means, groups))[:, None] + rung.model.errors
        points, violations = rung.split(ends.reshape(-1, ends.shape[-1]))
        points = points.reshape(*ends.shape[:2], -1)
        gains = improvements(np.concatenate(points), self._front, self.rungs.objectives).reshape(ends.shape[:2])
        for row, group in enumerate(groups):
            # What it is itself is no competition.
            if group in self._expected or self.rungs.end.on_front(group):
                gains[row] = improvements(points[row], self._front_without(group), self.rungs.objectives)
        return gains * (violations.reshape(gains.shape) == 0) * known[:, None]

    def _bounds(self, key: tuple[int, str], numbers: np.ndarray) -> np.ndarray:
        """Return a bound (n,) of what each trial that came to a rung is expected to add per epoch, cheap to find."""
        rung, objectives = self.rungs.rungs[key], self.rungs.objectives
        groups = [self.rungs.groups[number] for number in numbers.tolist()]
        means = np.array([rung.means(group) for group in groups])
        known = np.asarray(np.isfinite(means).all(axis=1))
        means, d = np.where(known[:, None], means, 0.0), len(objectives.names)
        best = (rung.model.errors[:, :d] * objectives.signs).max(axis=0) * objectives.signs
        tops = (means + rung.model(means, groups))[:, :d] + best
        return improvements(tops, self._finished_front, objectives) * known / (self.epochs - key[0])

    # -------------------------------------------------------------------------------------------------------- fronts

    @cached_property
    def _expected(self) -> dict[str, np.ndarray]:
        """Points (d,) that running trials are expected to end with, by their groups."""
        found = {}
        for number in self._running:
            for last in self.rungs.decisions.get(number, [])[-1:]:
                rung, group = self.rungs.rungs[last.rung, last.strength], self.rungs.groups[number]
                brought = np.array([rung.means(group)])
                end = (brought + rung.model(brought, [group]))[0]
                if np.isfinite(end).all() and rung.split(end[None])[1][0] == 0:
                    found[group] = end[: len(self.rungs.objectives.names)]
        return found

    @cached_property
    def _finished_front(self) -> np.ndarray:
        return self._front_of({})

    @cached_property
    def _front(self) -> np.ndarray:
        return self._front_of(self._expected)

    def _front_without(self, group: str) -> np.ndarray:
        return self._front_of({other: end for other, end in self._expected.items() if other != group}, without=group)

    def _front_of(self, expected: Mapping[str, np.ndarray], *, without: str = "") -> np.ndarray:
        """Return the front (n, d) of the configurations that have finished but for one, and of expected ends."""
        end = self.rungs.end
        counts = np.array([len(members) for members in end.trials.values()], dtype=int)
        kept = np.logical_and(end.violations[: len(end.rows)] == 0, counts == self.seeds)
        if without in end.rows:
            kept[end.rows[without]] = False
        points = np.vstack([end.points[:, : len(end.rows)][:, kept].T, *expected.values()])
        return points[front_mask(points, self.rungs.objectives)]
