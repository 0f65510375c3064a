"""The budget of a sweep: its end before its last trial, and the end of running trials."""

from __future__ import annotations

import time

from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.state import SweepState

_HOUR = 3600.0


class Budget:
    """A sweep's budgets, by its state and a clock that never jumps, unlike the wall clock, which may be set.

    What earlier runs of the sweep took is known by the time for which their trials had their slots.
    """

    def __init__(self, plan: SweepPlan, state: SweepState, concurrent: int) -> None:
        self.plan, self.state = plan, state
        self._hours_before = state.slot_seconds / concurrent / _HOUR
        self._begun = time.monotonic()
        self._since: dict[int, float] = {}
        """Time since which each running trial has its slot, moved back by the time that it had one before."""
        self.promised = 0
        """Number of trials that were proposed and have not ended, also those that have no slot yet."""
        self._resting, self._resting_seconds, self._resting_whole = 0, 0.0, 0.0
        """Trials that had a slot and have none now: their number, the time that they had one, and the time that they
        would have had one as whole trials. These are sums, since every report needs them."""
        for record in state.trials.values():
            self._rest(record)

    def runs(self, number: int) -> bool:
        """Return whether a trial has a slot."""
        return number in self._since

    def hold(self, number: int) -> None:
        """Count a trial that begins, or continues, in a slot."""
        record = self.state.trials.get(number)
        if record and not self.runs(number):
            self._rest(record, -1)
        self._since[number] = time.monotonic() - (record.slot_seconds if record else 0.0)

    def slot_seconds(self, number: int) -> float:
        """Return for how long a running trial has had a slot, all attempts together."""
        return time.monotonic() - self._since[number] if self.runs(number) else 0.0

    def release(self, number: int) -> None:
        """Count a trial that has ended, as its record in the state says."""
        if self._since.pop(number, None) is not None:
            self._rest(self.state.trials[number])

    @property
    def gpu_hours(self) -> float:
        """GPU hours spent so far."""
        return self.plan.gpu_share * (self._resting_seconds + sum(map(self.slot_seconds, self._since))) / _HOUR

    @property
    def usual(self) -> float:
        """Time in seconds for which a whole trial has its slot, by what was seen; 0 before the first report."""
        running = [self.state.trials[number] for number in self._since if number in self.state.trials]
        wholes = [_whole_seconds(record) for record in running if record.slot_seconds]
        known = self._resting + len(wholes)
        return (self._resting_whole + sum(wholes)) / known if known else 0.0

    @property
    def gpu_hours_ahead(self) -> float:
        """Estimated GPU hours for running trials plus one more."""
        usual = self.usual
        left = sum(max(0.0, usual - self.slot_seconds(number)) for number in self._since)
        begun = usual * (1 + max(0, self.promised - len(self._since)))
        return self.plan.gpu_share * (left + begun) / _HOUR

    @property
    def _epochs_ahead(self) -> int:
        """Epochs trained once running trials, and one more, will have been trained whole."""
        running = sum(
            report["epoch"] for number in self.state.under_way for report in self.state.trials[number].reports[-1:]
        )
        return self.state.epochs_trained - running + (self.promised + 1) * self.plan.epochs_per_trial

    def spent(self) -> bool:
        """Return whether the hard cap is reached: running trials stop at their next epoch, where a resume continues."""
        return bool(self.plan.max_gpu_hours) and self.gpu_hours >= self.plan.max_gpu_hours

    def overrun(self) -> bool:
        """Return whether the hard cap is passed by a whole trial: all trials stop, even in the middle of an epoch.

        Before the first report a single trial runs, and may reach it: else no resume could ever get further.
        """
        usual_hours = self.plan.gpu_share * self.usual / _HOUR
        return self.spent() and 0 < usual_hours <= self.gpu_hours - self.plan.max_gpu_hours

    def enough(self) -> bool:
        """Return whether no new trial is to begin; running trials end as they would have."""
        plan = self.plan
        if plan.budget_epochs and plan.stopper != "thaw" and self._epochs_ahead > plan.budget_epochs:
            return True
        if plan.stop_when_flat and self.state.growth(plan.stop_when_flat) <= plan.flat_growth:
            return True
        if plan.max_gpu_hours and self.gpu_hours + self.gpu_hours_ahead > plan.max_gpu_hours:
            return True
        hours = self._hours_before + (time.monotonic() - self._begun) / _HOUR
        return bool(plan.max_hours) and hours >= plan.max_hours

    def _rest(self, record: TrialRecord, sign: int = 1) -> None:
        """Count a trial that has no slot; with a `sign` of -1 uncount it."""
        if record.slot_seconds:
            self._resting += sign
            self._resting_seconds += sign * record.slot_seconds
            self._resting_whole += sign * _whole_seconds(record)


def _whole_seconds(record: TrialRecord) -> float:
    """Return for how long a trial that has reported has its slot from its first epoch to its last."""
    epochs = [report["epoch"] for report in record.reports if not report["final"]]
    if record.state == "finished" or not epochs:
        return record.slot_seconds
    return record.slot_seconds * max(1.0, record.config["epochs"] / epochs[-1])
