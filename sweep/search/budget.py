"""What may still be spent on a sweep: when it is over before its last trial, and when running trials must stop."""

from __future__ import annotations

import time

from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.state import SweepState

_HOUR = 3600.0


class Budget:
    """A sweep's budgets against its results and the clock that never jumps: the wall's may be set meanwhile.

    What earlier runs of the sweep took is told by the seconds that their trials held their slots.
    """

    def __init__(self, plan: SweepPlan, results: SweepState, concurrent: int) -> None:
        self.plan, self.results = plan, results
        self.hours_before = results.held_seconds / concurrent / _HOUR
        self.begun = time.monotonic()
        self.holding: dict[int, float] = {}
        """Since when, less what it held before, each running trial has held its slot."""
        self.promised = 0
        """Trials that were proposed and have not ended, also those that have no slot yet."""
        self.resting, self.resting_held, self.resting_whole = 0, 0.0, 0.0
        """Trials that held a slot and hold none now: how many, the seconds that they did, and those that they would
        have as whole trials. Sums, since they are asked for with every report."""
        for record in results.trials.values():
            self.rest(record)

    def rest(self, record: TrialRecord, sign: int = 1) -> None:
        """Count a trial that holds no slot; with a `sign` of -1 no longer."""
        if record.held:
            self.resting += sign
            self.resting_held += sign * record.held
            self.resting_whole += sign * _whole_seconds(record)

    def hold(self, number: int) -> None:
        """A trial begins, or goes on, in a slot."""
        record = self.results.trials.get(number)
        if record and number not in self.holding:
            self.rest(record, -1)
        self.holding[number] = time.monotonic() - (record.held if record else 0.0)

    def held(self, number: int) -> float:
        """Seconds that a running trial has held its slots, all attempts together."""
        return time.monotonic() - self.holding[number] if number in self.holding else 0.0

    def release(self, number: int) -> None:
        """A trial has ended, as its record says by now."""
        if self.holding.pop(number, None) is not None:
            self.rest(self.results.trials[number])

    @property
    def gpu_hours(self) -> float:
        """Spent so far."""
        return self.plan.gpu_share * (self.resting_held + sum(map(self.held, self.holding))) / _HOUR

    @property
    def usual(self) -> float:
        """Seconds that a whole trial holds its slot, by what the sweep has seen; 0 before the first report."""
        holding = [self.results.trials[number] for number in self.holding if number in self.results.trials]
        wholes = [_whole_seconds(record) for record in holding if record.held]
        known = self.resting + len(wholes)
        return (self.resting_whole + sum(wholes)) / known if known else 0.0

    @property
    def gpu_hours_ahead(self) -> float:
        """That the trials under way still need, and one more would."""
        usual = self.usual
        left = sum(max(0.0, usual - self.held(number)) for number in self.holding)
        begun = usual * (1 + max(0, self.promised - len(self.holding)))
        return self.plan.gpu_share * (left + begun) / _HOUR

    def spent(self) -> bool:
        """Whether the hard cap is reached: running trials stop at their next epoch, where a resume goes on."""
        return bool(self.plan.max_gpu_hours) and self.gpu_hours >= self.plan.max_gpu_hours

    def overrun(self) -> bool:
        """Whether the hard cap is passed by a whole trial: nothing goes on, not even to its epoch's end. Before the
        first report a single trial runs, and is let come to it: else no resume could ever get further."""
        usual_hours = self.plan.gpu_share * self.usual / _HOUR
        return self.spent() and 0 < usual_hours <= self.gpu_hours - self.plan.max_gpu_hours

    def enough(self) -> bool:
        """Whether no new trial begins; those that run end as they would have."""
        plan = self.plan
        if plan.stop_when_flat and self.results.growth(plan.stop_when_flat) <= plan.flat_growth:
            return True
        if plan.max_gpu_hours and self.gpu_hours + self.gpu_hours_ahead > plan.max_gpu_hours:
            return True
        hours = self.hours_before + (time.monotonic() - self.begun) / _HOUR
        return bool(plan.max_hours) and hours >= plan.max_hours


def _whole_seconds(record: TrialRecord) -> float:
    """For how long a trial that has reported holds its slot from its first epoch to its last."""
    epochs = [report["epoch"] for report in record.reports if not report["final"]]
    if record.state == "finished" or not epochs:
        return record.held
    return record.held * max(1.0, record.config["epochs"] / epochs[-1])
