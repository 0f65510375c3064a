"""Ranks of configurations over a sweep's course, as they are written to MLflow.

A rank changes with nearly every trial that ends, and MLflow takes no number back. So a configuration's rank is noted
when it has finished, whenever half as many more have, and at the end. What is noted follows from the ledger alone,
whoever refreshes the ranks and when, and grows with the number of trials, not with its square.
"""

from __future__ import annotations

import bisect
import math
from typing import NamedTuple

from sweep.front import Layers, Objectives
from sweep.ledger import TrialRecord
from sweep.state.findings import Findings

GROWTH = 1.5
"""Ratio of the numbers of finished configurations between two rankings of them all."""


class TrackedRank(NamedTuple):
    """A configuration's rank at some point of a sweep's course."""

    finished: int
    """Number of configurations that had finished."""
    time: float
    """Unix seconds; from one rank to the next it never falls, whatever the clock did."""
    rank: int
    """Non-dominated rank, 0 on the front; infeasible configurations rank behind all feasible ones."""


class RankTracker:
    """Ranks of every configuration that finished, in the order in which they are noted."""

    def __init__(self, objectives: Objectives, *, seeds: int = 1) -> None:
        self.seeds = seeds
        self.finished = 0
        """Number of configurations that had finished at the latest refresh."""
        self.noted: dict[int, list[TrackedRank]] = {}
        """Ranks by the number of a configuration's first trial."""
        self._time = 0.0
        self._due = 1
        """Number of finished configurations at which all are ranked next."""
        self._layers = Layers(objectives)
        self._violations: list[float] = []
        """Different amounts by which configurations violate the requirements, in ascending order."""

    def ranks_of(self, number: int, *, after: int) -> list[TrackedRank]:
        """Return the ranks of a trial's configuration that were noted after so many had finished."""
        noted = self.noted.get(number - number % self.seeds, [])
        return noted[bisect.bisect_right(noted, after, key=lambda each: each.finished) :]

    def refresh(self, state: Findings, *, over: bool = False) -> None:
        """Take in the configurations that finished since; once the sweep is over, note the last rank of each."""
        whole = list(state.configurations.values())
        for milestone, record in zip(state.course[self.finished :], whole[self.finished :], strict=True):
            self.finished += 1
            self._time = max(self._time, milestone.time)
            self._note(record.number, self._rank_on_arrival(state, record))
            if self.finished >= self._due:
                self._rank_all(state, whole[: self.finished])
                self._due = math.ceil(GROWTH * self.finished)
        if over and self.finished:
            self._rank_all(state, whole, also_unchanged=True)

    def _rank_on_arrival(self, state: Findings, record: TrialRecord) -> int:
        """Return the rank that `Findings.ranks` gives, at the cost of one more point instead of all."""
        violation = state.violation(record)
        if violation <= 0:
            self._layers.add(state.point(record))
            return self._layers.layer(state.point(record))
        index = bisect.bisect_left(self._violations, violation)
        if self._violations[index : index + 1] != [violation]:
            self._violations.insert(index, violation)
        return max(len(self._layers), 1) + index

    def _rank_all(self, state: Findings, whole: list[TrialRecord], *, also_unchanged: bool = False) -> None:
        for record, rank in zip(whole, state.ranks_of(whole), strict=True):
            if also_unchanged or self.noted[record.number][-1].rank != rank:
                self._note(record.number, rank)

    def _note(self, number: int, rank: int) -> None:
        noted = self.noted.setdefault(number, [])
        if not noted or noted[-1].finished < self.finished:
            noted.append(TrackedRank(self.finished, self._time, rank))
