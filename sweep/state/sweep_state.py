"""What a sweep has found so far: its trials and their front, kept up to date as events come in."""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from search_spaces import Requirement, violation
from sweep.front import Front, Objectives, constrained_ranks, front_mask, front_probability, mean_intervals
from sweep.front import knee as knee_of
from sweep.ledger import Event, TrialRecord
from sweep.plan import SweepPlan
from trainer.errors import InputError
from trainer.intervals import Interval

DATA_SUMMARY = "prepared.json"
"""In a sweep's folder: what it stands on (the data's fingerprint) and what is known of the oracle that judges."""

REQUIRED_KEYS = {
    "data_fingerprint",
    "validation_images",
    "judged_images",
    "changed_images",
    "oracle_accuracy",
    "oracle_coverage",
}

DataSummary = dict[str, Any]


class Replicates(NamedTuple):
    """What the seeds of a configuration tell beyond their means."""

    intervals: tuple[Interval, ...]
    """Student's 95% interval of each objective's mean."""

    chance: float
    """That it is on the front, were all configurations run on fresh seeds: by bootstrap."""


def read_data_summary(folder: Path) -> DataSummary:
    """The facts of a sweep, empty before they are known.

    Raises:
        InputError: for a file that is damaged.
    """
    path = folder / DATA_SUMMARY
    if not path.exists():
        return {}
    try:
        facts = json.loads(path.read_text())
        missing = REQUIRED_KEYS - facts.keys()
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({error}); without it `otsweep resume` makes it anew") from None
    if missing:
        raise InputError(f"{path}: lacks {', '.join(sorted(missing))}; without the file `otsweep resume` makes it anew")
    return facts


class _FoundFront(NamedTuple):
    """The front of so many contenders."""

    contenders: int
    records: tuple[TrialRecord, ...]
    """The best in the first objective first."""
    knee: int | None
    """Number of the configuration at its knee."""


class Milestone(NamedTuple):
    """Where a sweep stood when a configuration had finished."""

    time: float
    """Unix seconds."""
    finished: int
    """Configurations, this one among them."""
    hypervolume: float
    front_size: int
    hours: float
    """That all trials which had ended by then took, in all slots together."""


def state_of_trials(plan: SweepPlan, trials: Mapping[int, TrialRecord]) -> SweepState:
    """What the trials of a sweep come to by its plan."""
    return SweepState(plan.objectives, trials, total=plan.trials, seeds=plan.seeds, require=plan.space.require)


class SweepState:
    """Trials by number, and the front of those that finished. The driver changes it; the screen and MLflow read it.

    What is ranked are configurations: one per trial or, with several seeds, one for as many trials in a row. It has
    finished once all of them have. Then it stands as one record, with the number of its first trial and the means over
    its seeds as its result.

    Args:
        total: trials of the sweep.
        seeds: trials of a configuration.
        require: who breaks it is on no front.
    """

    def __init__(
        self,
        objectives: Objectives,
        trials: Mapping[int, TrialRecord],
        *,
        total: int,
        seeds: int = 1,
        require: Sequence[Requirement] = (),
    ) -> None:
        self.objectives, self.total, self.seeds, self.require = objectives, total, seeds, require
        self.facts: DataSummary = {}
        self.trials: dict[int, TrialRecord] = {}
        self.under_way: set[int] = set()
        """Those that run."""
        self.configurations: dict[int, TrialRecord] = {}
        """Those that finished, by the number of their first trial."""
        self.contenders: dict[int, TrialRecord] = {}
        """Those of them that fulfil what is required."""
        self.infeasible: dict[int, TrialRecord] = {}
        """And those that break it."""
        self.resampled: tuple[int, dict[int, Replicates]] = (0, {})
        """What `replicates` found last, and among how many configurations."""
        self.found = _FoundFront(0, (), None)
        self.front = Front(objectives)
        self.volumes: list[float] = []
        """The hypervolume after each trial that finished or was stopped, in the order in which they ended."""
        self.course: list[Milestone] = []
        """One per finished trial, in the order in which they ended."""
        self.ended_seconds = 0.0
        self.ended_in: Counter[str] = Counter()
        """How many trials ended in each state."""
        self._changing = threading.RLock()
        """Held while an event is applied, and while a snapshot is taken."""
        self.load(trials)

    def load(self, trials: Mapping[int, TrialRecord]) -> None:
        """Take in what a ledger holds."""
        self.trials.update(trials)
        self.under_way.update(self.running)
        self._count_ended()

    def _count_ended(self) -> None:
        """Count the trials that ended, in the order in which they did."""
        waiting = {number: record for number, record in self.finished.items() if self.seeds > 1}
        for record in sorted(self.ended.values(), key=lambda record: (record.ended_as, record.ended or 0.0)):
            waiting.pop(record.number, None)
            self.count(record, unless=waiting.keys())

    def apply(self, event: Event) -> TrialRecord:
        """Take in one event of the ledger, and return its trial's record.

        A trial that finished joins the points of the front, with all seeds of its configuration.
        """
        number = event["trial"]
        before = self.trials.get(number, TrialRecord(number))
        after = before.apply(event)
        with self._changing:
            self.trials[number] = after
            if after.state == "running":
                self.under_way.add(number)
                if before.state != "running":
                    self._count_anew()
            elif event["event"] == "ended":
                self.under_way.discard(number)
                self.count(after) if before.state == "running" else self._count_anew()
        return after

    def snapshot(self) -> SweepState:
        """Return the state as it is now, for another thread: nothing that comes later changes it.

        It costs a copy of some mappings, about 0.5 ms for 10,000 trials; records are shared, since they never change.
        """
        with self._changing:
            seen = copy.copy(self)
            for name in ("trials", "under_way", "configurations", "contenders", "infeasible", "volumes", "course"):
                setattr(seen, name, getattr(self, name).copy())
            seen.ended_in, seen.front = self.ended_in.copy(), self.front.copy()
        return seen

    def _count_anew(self) -> None:
        """Count all that ended: a trial that had ended runs again, or ended in another way."""
        self.configurations, self.contenders, self.infeasible = {}, {}, {}
        self.resampled, self.found, self.front = (0, {}), _FoundFront(0, (), None), Front(self.objectives)
        self.volumes, self.course, self.ended_seconds, self.ended_in = [], [], 0.0, Counter()
        self._count_ended()

    def count(self, record: TrialRecord, unless: Container[int] = ()) -> None:
        """Enter a trial that ended into the front, if with it its configuration has finished, and into the course of
        the hypervolume.

        Args:
            unless: trials that ended later, though it is known by now.
        """
        self.ended_seconds += seconds_of(record)
        self.ended_in[record.state] += 1
        members = self.members(record.number)
        if len(members) == self.seeds and all(
            each.state == "finished" and each.result is not None and each.number not in unless for each in members
        ):
            whole = _as_one(members)
            fulfils = self.violation(whole) == 0
            self.configurations[whole.number] = whole
            (self.contenders if fulfils else self.infeasible)[whole.number] = whole
            if fulfils:
                self.front.add(self.point(whole))
            standing = (len(self.configurations), self.hypervolume, self.front.size, self.ended_seconds / 3600)
            self.course.append(Milestone(record.ended or 0.0, *standing))
        if record.state != "failed":
            self.volumes.append(self.hypervolume)

    def members(self, number: int) -> list[TrialRecord]:
        """The trials of a trial's configuration that have begun, its own among them, by number."""
        first = number - number % self.seeds
        return [self.trials[each] for each in range(first, first + self.seeds) if each in self.trials]

    def violation(self, record: TrialRecord) -> float:
        """How far a configuration breaks what is required; 0 where it does not."""
        assert record.result is not None
        return violation(self.require, record.result)

    def growth(self, trials: int) -> float:
        """Of the hypervolume over the last so many trials that ended, as a share of it; 1 while there is none, or
        while there are fewer trials."""
        if len(self.volumes) <= trials or self.hypervolume == 0:
            return 1.0
        return 1 - self.volumes[-1 - trials] / self.hypervolume

    @property
    def held_seconds(self) -> float:
        """For how long trials have held their slots, all slots together."""
        return sum(record.held for record in self.trials.values())

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

    def states(self) -> Counter[str]:
        """How many trials are in each state."""
        return self.ended_in + Counter(running=len(self.under_way))

    def in_state(self, *states: str) -> dict[int, TrialRecord]:
        return {number: record for number, record in list(self.trials.items()) if record.state in states}

    def point(self, record: TrialRecord) -> np.ndarray:
        """The objectives of a trial or configuration that finished, (d,)."""
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
        """The configurations on the front, the best in the first objective first."""
        return list(self.find_front().records)

    @property
    def knee(self) -> int | None:
        """The number of the configuration at the front's knee, where the front has one."""
        return self.find_front().knee

    def find_front(self) -> _FoundFront:
        """The front as it is, found once for as many contenders: of ten thousand it takes a while."""
        contenders = list(self.contenders.values())
        if self.found.contenders != len(contenders):
            points = self.points(contenders)
            on_front = np.flatnonzero(front_mask(points, self.objectives))
            best_first = on_front[self.objectives.turn(points[on_front])[:, 0].argsort(kind="stable")[::-1]]
            place = knee_of(points, self.objectives)
            knee = None if place is None else contenders[place].number
            self.found = _FoundFront(len(contenders), tuple(contenders[place] for place in best_first), knee)
        return self.found

    def ranks(self) -> dict[int, int]:
        """Non-dominated rank of every trial whose configuration finished: 0 on the front, and who breaks what is
        required behind all who fulfil it."""
        whole = list(self.configurations.values())
        ranks = zip(whole, self.ranks_of(whole), strict=True)
        return {each.number: rank for record, rank in ranks for each in self.members(record.number)}

    def ranks_of(self, whole: Sequence[TrialRecord]) -> list[int]:
        """The same of some configurations that finished, among themselves."""
        violations = np.array([self.violation(record) for record in whole])
        ranks = constrained_ranks(self.points(whole), violations, self.objectives)
        return (ranks + (len(whole) > 0 and violations.min() > 0)).tolist()

    def replicates(self) -> dict[int, Replicates]:
        """What several seeds tell of every configuration that finished, by the number of its first trial; empty for
        one seed, which tells nothing of another."""
        whole = list(self.configurations)
        if self.seeds == 1 or not whole:
            return {}
        if self.resampled[0] == len(whole):
            return self.resampled[1]
        groups = [self.members(number) for number in whole]
        measured = np.stack([self.points(members) for members in groups])
        excesses = np.array(
            [
                [[r.excess(each.result[r.name]) for r in self.require] for each in group if each.result]
                for group in groups
            ]
        ).reshape(*measured.shape[:2], -1)
        chances = front_probability(measured, self.objectives, excesses=excesses, seed=0)
        intervals = mean_intervals(measured)
        found = {
            number: Replicates(tuple(Interval(*row) for row in interval.tolist()), float(chance))
            for number, interval, chance in zip(whole, intervals, chances, strict=True)
        }
        self.resampled = len(whole), found
        return found

    def told_together(self, number: int, replicates: Mapping[int, Replicates]) -> dict[str, float]:
        """What is known of a trial by its configuration, for MLflow: `violation` where something is required; with
        several seeds, given what `replicates` told, `mean_<objective>` with `_low` and `_high`, and `p_front`."""
        whole = self.configurations[number - number % self.seeds]
        told = {"violation": self.violation(whole)} if self.require else {}
        if whole.number in replicates:
            each = replicates[whole.number]
            told["p_front"] = each.chance
            for name, value, interval in zip(self.objectives.names, self.point(whole), each.intervals, strict=True):
                told |= {f"mean_{name}": float(value)}
                told |= {f"mean_{name}_low": interval.low, f"mean_{name}_high": interval.high}
        return told

    def epochs_done(self, epochs_per_trial: int) -> int:
        """Epochs that need not be waited for any more; those that an ended trial left out count as done."""
        trained = sum(report["epoch"] for number in list(self.under_way) for report in self.trials[number].reports[-1:])
        return self.ended_in.total() * epochs_per_trial + trained

    def share_done(self, epochs_per_trial: int) -> float:
        return self.epochs_done(epochs_per_trial) / (self.total * epochs_per_trial)


def _as_one(members: Sequence[TrialRecord]) -> TrialRecord:
    """Finished trials that differ in the seed alone as one record, whose result are their means; one alone as it is."""
    first = members[0]
    if len(members) == 1:
        return first
    results = [each.result for each in members if each.result is not None]
    means = {name: _mean([result[name] for result in results]) for name in results[0]}
    ended = max(each.ended or 0.0 for each in members)
    return dataclasses.replace(first, ended=ended, attempts=sum(each.attempts for each in members), reports=[means])


def _mean(values: Sequence[Any]) -> Any:
    """Of numbers, the same in any order; what all have in common stays as it is."""
    return values[0] if all(value == values[0] for value in values) else fmean(values)


def seconds_of(record: TrialRecord) -> float:
    """What a trial's epochs took, judging included."""
    reports = (report for report in record.reports if not report["final"])
    return sum(report["train_seconds"] + report["evaluation_seconds"] for report in reports)
