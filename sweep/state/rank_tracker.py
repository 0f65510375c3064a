"""How configurations rank while their sweep goes on, as MLflow is told of it.

A rank changes with nearly every trial that ends, and MLflow takes no number back. So a configuration's rank is told
when it has finished, whenever half as many more have, and at the end: what is told follows from the ledger alone,
whoever tells it and when, and grows with the number of trials, not with its square.
"""

from __future__ import annotations

import bisect
import math
from typing import NamedTuple

from sweep.front import Layers
from sweep.ledger import TrialRecord
from sweep.state.sweep_state import SweepState

GROWTH = 1.5
"""Of the number of finished configurations, between two rankings of them all."""


class TrackedRank(NamedTuple):
    """A configuration's rank at some point of a sweep's course."""

    finished: int
    """Configurations, by then."""
    time: float
    """Unix seconds; from one standing to the next it never falls, whatever the clock did."""
    rank: int
    """Non-dominated, 0 on the front; who breaks what is required stands behind all who fulfil it."""


class RankTracker:
    """The standings of every configuration that finished, in the order in which they are told."""

    def __init__(self, results: SweepState) -> None:
        self.results = results
        self.told: dict[int, list[TrackedRank]] = {}
        """By the number of a configuration's first trial."""
        self.finished, self.time = 0, 0.0
        self.due = 1
        """At how many finished configurations all are ranked next."""
        self.layers = Layers(results.objectives)
        self.violations: list[float] = []
        """Different ones of those that break what is required, in ascending order."""

    def of(self, number: int, *, after: int) -> list[TrackedRank]:
        """Those of a trial's configuration that came after so many had finished."""
        told = self.told.get(number - number % self.results.seeds, [])
        return told[bisect.bisect_right(told, after, key=lambda standing: standing.finished) :]

    def catch_up(self, *, over: bool = False) -> None:
        """Take in what finished since; once the sweep is `over`, everyone's last rank."""
        # In this order: the driver enters a configuration before it enters that into the course.
        course = self.results.course[self.finished :]
        if course:
            whole = list(self.results.configurations.values())
            for milestone, record in zip(course, whole[self.finished :], strict=False):
                self.finished += 1
                self.time = max(self.time, milestone.time)
                self.tell(record.number, self.rank_on_arrival(record))
                if self.finished >= self.due:
                    self.rank_all(whole[: self.finished])
                    self.due = math.ceil(GROWTH * self.finished)
        if over and self.finished:
            self.rank_all(list(self.results.configurations.values())[: self.finished], also_unchanged=True)

    def rank_on_arrival(self, record: TrialRecord) -> int:
        """As `Results.ranks` has it, at the cost of one more point instead of all."""
        violation = self.results.violation(record)
        if violation <= 0:
            self.layers.add(self.results.point(record))
            return self.layers.layer(self.results.point(record))
        place = bisect.bisect_left(self.violations, violation)
        if self.violations[place : place + 1] != [violation]:
            self.violations.insert(place, violation)
        return max(len(self.layers), 1) + place

    def rank_all(self, whole: list[TrialRecord], *, also_unchanged: bool = False) -> None:
        for record, rank in zip(whole, self.results.ranks_of(whole), strict=True):
            if also_unchanged or self.told[record.number][-1].rank != rank:
                self.tell(record.number, rank)

    def tell(self, number: int, rank: int) -> None:
        told = self.told.setdefault(number, [])
        if not told or told[-1].finished < self.finished:
            told.append(TrackedRank(self.finished, self.time, rank))
