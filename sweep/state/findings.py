"""Questions about a sweep, and their answers: its trials by their states, the front, ranks, progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from search_spaces import Requirement, violation
from sweep.front import Front, Objectives, constrained_ranks, front_mask
from sweep.front import knee as knee_of
from sweep.ledger import TrialRecord
from sweep.state.data_summary import DataSummary
from sweep.state.judged import JudgedImages
from sweep.state.uncertainty import Uncertainty, uncertainty_of


class Milestone(NamedTuple):
    """Progress of a sweep at the time when a configuration had finished."""

    time: float
    """Unix seconds."""
    finished: int
    """Number of finished configurations, this one included."""
    hypervolume: float
    front_size: int
    hours: float
    """Time that all trials which had ended by then took, in all slots together."""


class _FoundFront(NamedTuple):
    """The front of the first so many contenders."""

    contenders: int = 0
    records: tuple[TrialRecord, ...] = ()
    """Records by the first objective, the best first."""
    knee: int | None = None
    """Number of the configuration at its knee."""


@dataclass
class FoundLast:
    """The latest answers to questions that take time; a state and its snapshots share them."""

    front: _FoundFront = _FoundFront()
    uncertainty: tuple[tuple[int, bool], Uncertainty] = (0, False), Uncertainty({})
    """Number of configurations, whether the judged images were known, and the answer."""


class Findings:
    """Trials by number, and the front of those that finished.

    What is ranked are configurations: one per trial or, with several seeds, one for as many trials in a row. It has
    finished once all of them have. Then it is one record, with the number of its first trial and the means over its
    seeds as its result.

    Args:
        total: trials of the sweep.
        seeds: trials of a configuration.
        require: requirements; a configuration that violates one is on no front.
    """

    def __init__(
        self, objectives: Objectives, *, total: int, seeds: int = 1, require: Sequence[Requirement] = ()
    ) -> None:
        self.objectives, self.total, self.seeds, self.require = objectives, total, seeds, require
        self.data_summary: DataSummary = {}
        self.judged: JudgedImages | None = None
        """The images that judge all trials; None before they are known, and in sweeps of earlier versions."""
        self.warnings: list[str] = []
        """Messages for people, where the trials were read from a ledger: what it has lost, and who says nothing."""
        self.trials: dict[int, TrialRecord] = {}
        self.under_way: set[int] = set()
        """Numbers of the running trials."""
        self.configurations: dict[int, TrialRecord] = {}
        """Finished configurations by the number of their first trial."""
        self.contenders: dict[int, TrialRecord] = {}
        """Those of them that fulfil the requirements."""
        self.infeasible: dict[int, TrialRecord] = {}
        """The others."""
        self.front = Front(objectives)
        self.volumes: list[float] = []
        """The hypervolume after each trial that finished or was stopped, in the order in which they ended."""
        self.course: list[Milestone] = []
        """One milestone per finished configuration, in the order in which they finished."""
        self.ended_seconds = 0.0
        """Time that the ended trials took."""
        self.ended_in: Counter[str] = Counter()
        """Number of ended trials by state."""
        self.found_last = FoundLast()

    # -------------------------------------------------------------------------------------------------------- trials

    @property
    def running(self) -> dict[int, TrialRecord]:
        return self._in_state("running")

    def silences(self) -> list[str]:
        """Return a line for each running trial whose worker says nothing."""
        silent = {number: self.trials[number].silence for number in sorted(self.under_way)}
        return [f"trial {number:03d}: {reason}" for number, reason in silent.items() if reason]

    @property
    def finished(self) -> dict[int, TrialRecord]:
        """Finished trials with a result; a damaged ledger can have lost it."""
        return {number: record for number, record in self._in_state("finished").items() if record.result is not None}

    @property
    def stopped(self) -> dict[int, TrialRecord]:
        """Trials that were stopped early. Their last report is of an unfinished trial, and never compared with a
        result."""
        return self._in_state("stopped")

    @property
    def failed(self) -> dict[int, TrialRecord]:
        return self._in_state("failed")

    @property
    def ended(self) -> dict[int, TrialRecord]:
        return self._in_state("finished", "stopped", "failed")

    def _in_state(self, *states: str) -> dict[int, TrialRecord]:
        return {number: record for number, record in self.trials.items() if record.state in states}

    def members(self, number: int) -> list[TrialRecord]:
        """Return the trials of a trial's configuration that have begun, its own included, by number."""
        first = number - number % self.seeds
        return [self.trials[each] for each in range(first, first + self.seeds) if each in self.trials]

    # ------------------------------------------------------------------------------------------------------ progress

    def states(self) -> Counter[str]:
        """Return the number of trials in each state."""
        return self.ended_in + Counter(running=len(self.under_way))

    def epochs_done(self, epochs_per_trial: int) -> int:
        """Return the number of epochs that need no more waiting; those that an ended trial left out count as done."""
        trained = sum(report["epoch"] for number in self.under_way for report in self.trials[number].reports[-1:])
        return self.ended_in.total() * epochs_per_trial + trained

    def share_done(self, epochs_per_trial: int) -> float:
        return self.epochs_done(epochs_per_trial) / (self.total * epochs_per_trial)

    @property
    def slot_seconds(self) -> float:
        """Time for which trials have had their slots, all slots together."""
        return sum(record.slot_seconds for record in self.trials.values())

    # -------------------------------------------------------------------------------------------------------- points

    def violation(self, record: TrialRecord) -> float:
        """Return by how much a configuration violates the requirements; 0 if it fulfils them."""
        assert record.result is not None
        return violation(self.require, record.result)

    def point(self, record: TrialRecord) -> np.ndarray:
        """Return the objectives of a trial or configuration that finished, (d,)."""
        assert record.result is not None
        return np.array([record.result[name] for name in self.objectives.names])

    def points(self, records: Iterable[TrialRecord]) -> np.ndarray:
        """Return the objectives (n, d) of finished trials."""
        return np.array([self.point(record) for record in records]).reshape(-1, len(self.objectives.names))

    # --------------------------------------------------------------------------------------------------------- front

    @property
    def hypervolume(self) -> float:
        return self.front.hypervolume

    def growth(self, trials: int) -> float:
        """Return the growth of the hypervolume over the last so many trials that ended, as a share of it.

        It is 1 while the hypervolume is 0 or fewer trials have ended.
        """
        if len(self.volumes) <= trials or self.hypervolume == 0:
            return 1.0
        return 1 - self.volumes[-1 - trials] / self.hypervolume

    @property
    def front_records(self) -> list[TrialRecord]:
        """Configurations on the front, by the first objective, the best first."""
        return list(self._find_front().records)

    @property
    def knee(self) -> int | None:
        """Number of the configuration at the front's knee; None if the front has no knee."""
        return self._find_front().knee

    def _find_front(self) -> _FoundFront:
        found, contenders = self.found_last.front, list(self.contenders.values())
        if found.contenders != len(contenders):
            points = self.points(contenders)
            on_front = np.flatnonzero(front_mask(points, self.objectives))
            best_first = on_front[self.objectives.turn(points[on_front])[:, 0].argsort(kind="stable")[::-1]]
            index = knee_of(points, self.objectives)
            knee = None if index is None else contenders[index].number
            found = _FoundFront(len(contenders), tuple(contenders[each] for each in best_first), knee)
            self.found_last.front = found
        return found

    def ranks(self) -> dict[int, int]:
        """Return the non-dominated rank of every trial whose configuration finished: 0 on the front.

        Configurations that violate the requirements rank behind all that fulfil them.
        """
        whole = list(self.configurations.values())
        ranks = zip(whole, self.ranks_of(whole), strict=True)
        return {each.number: rank for record, rank in ranks for each in self.members(record.number)}

    def ranks_of(self, whole: Sequence[TrialRecord]) -> list[int]:
        """Return the ranks of some finished configurations among themselves."""
        violations = np.array([self.violation(record) for record in whole])
        ranks = constrained_ranks(self.points(whole), violations, self.objectives)
        return (ranks + (len(whole) > 0 and violations.min() > 0)).tolist()

    # --------------------------------------------------------------------------------------------------- uncertainty

    def uncertainty(self) -> Uncertainty:
        """Return how far the front is a matter of the images and seeds that were drawn.

        Nothing is known with one seed and without the trials' answers.
        """
        whole = list(self.configurations)
        known, found = self.found_last.uncertainty
        if known != (len(whole), self.judged is not None):
            groups = list(map(self.members, whole))
            found = uncertainty_of(groups, self.objectives, self.require, self.judged, measured=self.hypervolume)
            self.found_last.uncertainty = (len(whole), self.judged is not None), found
        return found

    def configuration_metrics(self, number: int) -> dict[str, float]:
        """Return what MLflow shows of a trial's configuration.

        Returns:
            `violation` if there are requirements; `p_front` and `p_knee` where they are known; with several seeds
            `mean_<objective>` with `_low` and `_high`.
        """
        whole = self.configurations[number - number % self.seeds]
        metrics = {"violation": self.violation(whole)} if self.require else {}
        drawn = self.uncertainty().configurations.get(whole.number)
        if drawn is None:
            return metrics
        metrics |= {"p_front": drawn.chance, "p_knee": drawn.knee}
        # With one seed there are no intervals.
        for name, value, interval in zip(self.objectives.names, self.point(whole), drawn.intervals, strict=False):
            metrics |= {f"mean_{name}": float(value)}
            metrics |= {f"mean_{name}_low": interval.low, f"mean_{name}_high": interval.high}
        return metrics
