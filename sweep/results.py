"""What a sweep has found so far: its trials and their front, kept up to date as events come in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sweep import pareto
from sweep.ledger import TrialRecord
from sweep.pareto import Objectives
from trainer.config import InputError

FACTS = "prepared.json"
"""In a sweep's folder: what it stands on (the data's fingerprint) and what is known of the oracle that judges."""

REQUIRED_FACTS = {
    "data_fingerprint",
    "validation_images",
    "judged_images",
    "changed_images",
    "oracle_accuracy",
    "oracle_coverage",
}

Facts = dict[str, Any]


def read_facts(folder: Path) -> Facts:
    """The facts of a sweep, empty before they are known.

    Raises:
        InputError: for a file that is damaged.
    """
    path = folder / FACTS
    if not path.exists():
        return {}
    try:
        facts = json.loads(path.read_text())
        missing = REQUIRED_FACTS - facts.keys()
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({error}); without it `otsweep resume` makes it anew") from None
    if missing:
        raise InputError(f"{path}: lacks {', '.join(sorted(missing))}; without the file `otsweep resume` makes it anew")
    return facts


class Milestone(NamedTuple):
    """Where a sweep stood when a trial finished."""

    time: float
    """Unix seconds."""
    finished: int
    """Trials, this one among them."""
    hypervolume: float
    front_size: int
    hours: float
    """That all trials which had ended by then took, in all slots together."""


class Results:
    """Trials by number, and the front of those that finished. The driver changes it; the screen and MLflow read it."""

    def __init__(self, objectives: Objectives, trials: Mapping[int, TrialRecord], *, total: int) -> None:
        self.objectives, self.total = objectives, total
        self.facts: Facts = {}
        self.trials: dict[int, TrialRecord] = {}
        self.front = pareto.Front(objectives)
        self.volumes: list[float] = []
        """The hypervolume after each trial that finished or was stopped, in the order in which they ended."""
        self.course: list[Milestone] = []
        """One per finished trial, in the order in which they ended."""
        self.ended_seconds = 0.0
        self.load(trials)

    def load(self, trials: Mapping[int, TrialRecord]) -> None:
        """Take in what a ledger holds."""
        self.trials.update(trials)
        for record in sorted(self.ended.values(), key=lambda record: (record.ended or 0.0, record.number)):
            self.count(record)

    def end(self, number: int, state: str, *, reason: str, time: float) -> None:
        """A trial is over; one that finished joins the points of the front."""
        record = self.trials[number]
        record.end(state, reason=reason, time=time)
        self.count(record)

    def count(self, record: TrialRecord) -> None:
        """Enter a trial that ended into the front, if it finished, and into the course of the hypervolume."""
        self.ended_seconds += seconds_of(record)
        if record.state == "finished" and record.result is not None:
            self.front.add(self.point(record))
            standing = (len(self.course) + 1, self.hypervolume, self.front.size, self.ended_seconds / 3600)
            self.course.append(Milestone(record.ended or 0.0, *standing))
        if record.state != "failed":
            self.volumes.append(self.hypervolume)

    def growth(self, trials: int) -> float:
        """Of the hypervolume over the last so many trials that ended, as a share of it; 1 while there is none, or
        while there are fewer trials."""
        if len(self.volumes) <= trials or self.hypervolume == 0:
            return 1.0
        return 1 - self.volumes[-1 - trials] / self.hypervolume

    @property
    def trained_seconds(self) -> float:
        """What all epochs took, in all slots together."""
        return sum(map(seconds_of, self.trials.values()))

    @property
    def running(self) -> dict[int, TrialRecord]:
        return self.in_state("running")

    @property
    def finished(self) -> dict[int, TrialRecord]:
        """Those with a result; a damaged ledger can have lost it."""
        return {number: record for number, record in self.in_state("finished").items() if record.result is not None}

    @property
    def stopped(self) -> dict[int, TrialRecord]:
        """Stopped early: what they said last is of an unfinished trial, and never compared with a result."""
        return self.in_state("stopped")

    @property
    def failed(self) -> dict[int, TrialRecord]:
        return self.in_state("failed")

    @property
    def ended(self) -> dict[int, TrialRecord]:
        return self.in_state("finished", "stopped", "failed")

    def in_state(self, *states: str) -> dict[int, TrialRecord]:
        return {number: record for number, record in list(self.trials.items()) if record.state in states}

    def point(self, record: TrialRecord) -> np.ndarray:
        """A finished trial's objectives, (d,)."""
        assert record.result is not None
        return np.array([record.result[name] for name in self.objectives.names])

    def points(self, records: Iterable[TrialRecord]) -> np.ndarray:
        """Objectives (n, d) of finished trials."""
        return np.array([self.point(record) for record in records]).reshape(-1, len(self.objectives.names))

    @property
    def hypervolume(self) -> float:
        return self.front.hypervolume

    @property
    def front_records(self) -> list[TrialRecord]:
        """The trials on the front, the best in the first objective first."""
        finished = list(self.finished.values())
        mask = pareto.front_mask(self.points(finished), self.objectives)
        members = [record for record, on_front in zip(finished, mask, strict=True) if on_front]
        best_first = self.objectives.turn(self.points(members))[:, 0].argsort(kind="stable")[::-1]
        return [members[place] for place in best_first]

    @property
    def knee(self) -> int | None:
        """The number of the trial at the front's knee, where the front has one."""
        finished = list(self.finished.values())
        place = pareto.knee(self.points(finished), self.objectives) if finished else None
        return None if place is None else finished[place].number

    def ranks(self) -> dict[int, int]:
        """Non-dominated rank of every finished trial: 0 on the front."""
        finished = list(self.finished.values())
        ranks = pareto.ranks(self.points(finished), self.objectives)
        return {record.number: int(rank) for record, rank in zip(finished, ranks, strict=True)}

    def epochs_done(self, epochs_per_trial: int) -> int:
        """Epochs that need not be waited for any more; those that an ended trial left out count as done."""
        running = sum(report["epoch"] for record in self.running.values() for report in record.reports[-1:])
        return len(self.ended) * epochs_per_trial + running

    def share_done(self, epochs_per_trial: int) -> float:
        return self.epochs_done(epochs_per_trial) / (self.total * epochs_per_trial)


def seconds_of(record: TrialRecord) -> float:
    """What a trial's epochs took, judging included."""
    reports = (report for report in record.reports if not report["final"])
    return sum(report["train_seconds"] + report["evaluation_seconds"] for report in reports)
