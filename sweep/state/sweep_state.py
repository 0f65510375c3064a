"""The state of a sweep, kept up to date by the events of its ledger, live or read back."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from search_spaces import Requirement
from sweep.front import Front, Objectives
from sweep.ledger import END_STATES, Event, TrialRecord, read_ledger
from sweep.plan import SweepPlan
from sweep.state.data_summary import read_data_summary
from sweep.state.findings import Findings, FoundLast, Milestone
from sweep.state.judged import JUDGED_IMAGES, read_judged_images
from sweep.state.uncertainty import mean_record


def state_of_trials(plan: SweepPlan, trials: Mapping[int, TrialRecord]) -> SweepState:
    """Return the state of a plan's sweep after some trials."""
    return SweepState(plan.objectives, trials, total=plan.trials, seeds=plan.seeds, require=plan.space.require)


def read_state(plan: SweepPlan, *, keep_epochs: bool = True) -> SweepState:
    """Return the state of a plan's sweep as its ledger tells, with what is known of its data.

    Whoever shows it tells its `warnings` too.

    Args:
        keep_epochs: False where results alone are asked for: no report but each trial's last is kept, which saves most
            of the memory, and the time that trials took counts as none.
    """
    ledger = read_ledger(plan.folder, keep_epochs=keep_epochs)
    state = state_of_trials(plan, ledger.trials)
    state.warnings = [f"{plan.name}, ledger: {warning}" for warning in ledger.warnings]
    state.warnings += [f"{plan.name}, {silence}" for silence in state.silences()]
    state.read_data(plan.folder)
    return state


class SweepState(Findings):
    """Findings that change with every event. The driver's thread changes them; others look at a `snapshot`.

    Args:
        trials: trials as a ledger holds them.
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
        super().__init__(objectives, total=total, seeds=seeds, require=require)
        self._changing = threading.RLock()
        """Held while an event is applied, and while a snapshot is taken."""
        self.load(trials)

    def load(self, trials: Mapping[int, TrialRecord]) -> None:
        """Take in what a ledger holds."""
        self.trials.update(trials)
        self.under_way.update(self.running)
        self.waiting.update(self.paused)
        self.epochs_trained = sum(map(_epochs_of, self.trials.values()))
        self._count_ended()

    def read_data(self, folder: Path) -> None:
        """Take in what lies beside the plan: the summary of the data, and the images that judge all trials."""
        self.data_summary = read_data_summary(folder)
        self.judged = read_judged_images(folder / JUDGED_IMAGES)

    def apply(self, event: Event) -> TrialRecord:
        """Take in one event of the ledger, and return its trial's record.

        A trial that finished joins the points of the front, with all seeds of its configuration.
        """
        number = event["trial"]
        before = self.trials.get(number, TrialRecord(number))
        after = before.apply(event)
        with self._changing:
            self.trials[number] = after
            self.epochs_trained += _epochs_of(after) - _epochs_of(before)
            (self.waiting.add if after.state == "paused" else self.waiting.discard)(number)
            if after.state == "paused":
                self.under_way.discard(number)
            elif after.state == "running":
                self.under_way.add(number)
                if before.state in END_STATES:
                    self._count_anew()
            elif event["event"] == "ended":
                self.under_way.discard(number)
                self._count_anew() if before.state in END_STATES else self._count(after)
        return after

    def snapshot(self) -> SweepState:
        """Return the state as it is now, for another thread: nothing that comes later changes it.

        It costs a copy of some mappings, about 0.5 ms for 10,000 trials; records are shared, since they never change.
        """
        with self._changing:
            seen = copy.copy(self)
            for name in (
                "trials",
                "under_way",
                "waiting",
                "configurations",
                "contenders",
                "infeasible",
                "volumes",
                "course",
            ):
                setattr(seen, name, getattr(self, name).copy())
            seen.ended_in, seen.front = self.ended_in.copy(), self.front.copy()
        return seen

    def _count_ended(self) -> None:
        """Count the trials that ended, in the order in which they did."""
        waiting = {number: record for number, record in self.finished.items() if self.seeds > 1}
        for record in sorted(self.ended.values(), key=lambda record: (record.ended_as, record.ended or 0.0)):
            waiting.pop(record.number, None)
            self._count(record, unless=waiting.keys())

    def _count_anew(self) -> None:
        """Count all that ended: a trial that had ended runs again, or ended in another way."""
        self.configurations, self.contenders, self.infeasible = {}, {}, {}
        self.front, self.found_last = Front(self.objectives), FoundLast()
        self.volumes, self.course, self.ended_seconds, self.ended_in = [], [], 0.0, Counter()
        self._count_ended()

    def _count(self, record: TrialRecord, unless: Container[int] = ()) -> None:
        """Count a trial that ended. If its configuration has finished with it, that joins the front and the course.

        Args:
            unless: trials that ended later, although their ends are known.
        """
        self.ended_seconds += seconds_of(record)
        self.ended_in[record.state] += 1
        members = self.members(record.number)
        if len(members) == self.seeds and all(
            each.state == "finished" and each.result is not None and each.number not in unless for each in members
        ):
            whole = mean_record(members)
            fulfils = self.violation(whole) == 0
            self.configurations[whole.number] = whole
            (self.contenders if fulfils else self.infeasible)[whole.number] = whole
            if fulfils:
                self.front.add(self.point(whole))
            progress = (len(self.configurations), self.hypervolume, self.front.size, self.ended_seconds / 3600)
            self.course.append(Milestone(record.ended or 0.0, *progress))
        if record.state != "failed":
            self.volumes.append(self.hypervolume)


def _epochs_of(record: TrialRecord) -> int:
    """Return the epochs that a trial has trained."""
    # The final report, which stands last, is of the chosen epoch.
    return max((report["epoch"] for report in record.reports[-2:]), default=0)


def seconds_of(record: TrialRecord) -> float:
    """Return the time that a trial's epochs took, judging included."""
    reports = (report for report in record.reports if not report["final"])
    return sum(report["train_seconds"] + report["evaluation_seconds"] for report in reports)
