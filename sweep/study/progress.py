"""The progress of a study: one line that says which sweep or audit runs, how far that is, and when the whole ends."""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import fmean
from typing import IO

from rich.console import Console

from sweep.audit import AuditProgress
from sweep.plan import Step, SweepPlan
from sweep.report import Screen, duration
from sweep.state import SweepState


class StudyClock:
    """The work of a study that is done, and the time that the rest will take at the pace of this run.

    Args:
        steps: number of sweeps, and of audits.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.begun, self.since = steps, time.monotonic(), 0.0
        self.position = {"sweep": 0, "audit": 0}
        self.took: dict[str, list[float]] = {"sweep": [], "audit": []}
        """Seconds that each sweep and audit of this run took."""
        self.heading = ""

    def begin(self, kind: str, step: Step) -> None:
        """Begin the next sweep or audit."""
        self.position[kind] += 1
        self.heading = f"{kind} {self.position[kind]} of {self.steps} ({step.arm}, seed {step.seed})"
        self.since = time.monotonic()

    def end(self, kind: str) -> None:
        """End it."""
        self.took[kind].append(time.monotonic() - self.since)

    def outlook(self) -> str:
        """Return the time gone, the time left and the hour of the end, as far as one sweep and one audit tell."""
        gone = f"{duration(time.monotonic() - self.begun)} gone"
        if not all(self.took.values()):
            return gone
        ahead = {kind: self.steps - self.position[kind] for kind in self.took}
        under_way = max(0.0, fmean(self.took[self.heading.partition(" ")[0]]) - (time.monotonic() - self.since))
        left = under_way + sum(count * fmean(self.took[kind]) for kind, count in ahead.items())
        return (
            f"{gone}, about {duration(left)} left, until {time.strftime('%H:%M', time.localtime(time.time() + left))}"
        )


class StudyScreen(Screen):
    """The screen of one of a study's sweeps: a line, whose stage is the sweep."""

    def __init__(self, console: Console, plan: SweepPlan, results: SweepState, clock: StudyClock) -> None:
        super().__init__(console, plan, results)
        self.clock = clock

    def open(self, *, resumed: bool, remarks: Iterable[str]) -> None:
        """Begin the line; remarks are the same for all sweeps of an arm, and stand in `otsweep plan`."""
        self.line.begin(self.clock.heading)

    def prepare(self, stage: str, done: int, total: int) -> None:
        self.line.show(f"{self.clock.heading}: preparing: {stage}", done, total)

    def __enter__(self) -> StudyScreen:
        self.line.clear()
        return self

    def trial_changed(self, number: int) -> None:
        """Say what failed, and how far the sweep is."""
        record, state = self.results.trials[number], self.results
        if record.state == "failed":
            self.log(f"{self.plan.name}, trial {number:03d} failed: {record.reason}")
        front = f"front {state.front.size}, hypervolume {state.hypervolume:.4f}"
        self.line.update(f"{self.clock.heading}: {self.counts(state)}; {front}; {self.clock.outlook()}")


class StudyAuditProgress(AuditProgress):
    """The progress of one of a study's audits."""

    def __init__(self, stream: IO[str], clock: StudyClock) -> None:
        super().__init__(stream, clock.heading)
        self.clock = clock

    def describe(self) -> str:
        return f"{self.clock.heading}: {self.stage} {self.done}/{self.total}; {self.clock.outlook()}"

    def prepare(self, stage: str, done: int, total: int) -> None:
        self.show(f"{self.clock.heading}: preparing: {stage}", done, total)
