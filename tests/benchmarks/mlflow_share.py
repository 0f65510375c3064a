"""MLflow's writer at scale: its share of the driver's time in a sweep of 10,000 trials, and how far it is behind.

All trials but the last few hundred have ended and are taken as written; those begin, report and end at the pace of a
real sweep, in a driver that does nothing else. The writer and its store (SQLite, in this process: the dearest for the
driver) are the real ones. What it took is its thread's processor time, as the kernel tells it.

    python -m tests.benchmarks mlflow_share
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sweep.ledger.reading import read_ledger
from sweep.plan.plan import SweepPlan
from sweep.state.sweep_state import SweepState
from sweep.tracking.tracker import Tracker
from sweep.tracking.trial_runs import TrialRun
from sweep.tracking.writer import Writer
from tests.benchmarks.common import print_machine, print_result
from tests.support import events
from tests.support.recorded_sweeps import recorded

TRIALS, SECONDS = 10_000, 240
SLOTS, EPOCHS, TRIAL_SECONDS = 16, 10, 20.0
"""16 slots with trials of 20 seconds: a trial ends every 1.25 seconds, and a report comes every 0.11."""


class Course:
    """The trials of a recorded sweep, again and again, with accuracies of their own."""

    def __init__(self, plan: SweepPlan) -> None:
        self.plan = plan
        self.records = list(read_ledger(plan.folder).trials.values())
        self.generator = np.random.default_rng(0)

    def reports(self, number: int) -> Iterator[dict[str, Any]]:
        told = self.records[number % len(self.records)].reports
        moved = self.generator.normal(0, 0.03, size=len(self.plan.objectives.names))
        for epoch in range(1, EPOCHS + 2):
            report = {**told[-1 if epoch > EPOCHS else 0], "epoch": min(epoch, EPOCHS), "time": time.time()}
            moved_to = {name: report[name] + x for name, x in zip(self.plan.objectives.names, moved, strict=True)}
            yield report | {name: float(np.clip(value, 0, 1)) for name, value in moved_to.items()}

    def begin(self, results: SweepState, number: int) -> None:
        config = self.records[number % len(self.records)].config
        results.apply(events.started(number, config, time=time.time()))


def ended_before(course: Course, count: int) -> SweepState:
    """A sweep of which so many trials have ended."""
    results = SweepState(course.plan.objectives, {}, total=course.plan.trials)
    for number in range(count):
        course.begin(results, number)
        for report in course.reports(number):
            results.apply(events.reported(number, report))
        results.apply(events.ended(number, "finished", time=time.time()))
    return results


def take_as_written(tracker: Tracker) -> None:
    """As if the writer had written all that there is; what is to be changed of it goes into one run of the store."""
    state = tracker.take_state()
    writer = tracker.writer = Writer(tracker.plan, tracker.plan.mlflow_uri, log=print)
    writer.open(state)
    trials = writer.trials
    trials.ranking.refresh(state, over=False)
    run_id = writer.store.create_run("written before", started=0, tags={})
    for number in state.trials:
        _, tags = trials.ranking.changes(number, state, {}, over=False)
        trials.runs[number] = TrialRun(run_id, set(), tags=tags, described=True, closed=True, status="FINISHED")
    writer.parent.milestones = len(state.course)
    tracker.loaded = True
    # The front's files, too, which are due again after a hundred times what they took.
    tracker.write_pass()


def drive(course: Course, tracker: Tracker, results: SweepState, seconds: float) -> list[float]:
    """The events of a driver at their pace; how late each was, in seconds."""
    late = []
    running: list[tuple[int, Iterator[dict[str, Any]]]] = []
    begun, pace = time.monotonic(), TRIAL_SECONDS / (SLOTS * (EPOCHS + 1))
    for event in range(int(seconds / pace)):
        time.sleep(max(0.0, begun + event * pace - time.monotonic()))
        late.append(time.monotonic() - begun - event * pace)
        if len(running) < SLOTS:
            number = len(results.trials)
            course.begin(results, number)
            running.append((number, course.reports(number)))
        number, reports = running.pop(0)
        report = next(reports)
        results.apply(events.reported(number, report))
        if report["final"]:
            results.apply(events.ended(number, "finished", time=time.time()))
        else:
            running.append((number, reports))
        tracker.changed(number)
    return late


def main() -> None:
    print_machine("mlflow", "sqlalchemy")
    with tempfile.TemporaryDirectory() as folder:
        plan = dataclasses.replace(recorded("thousand", Path(folder)), trials=TRIALS)
        course = Course(plan)
        results = ended_before(course, TRIALS - int(SECONDS * SLOTS / TRIAL_SECONDS))
        tracker = Tracker(plan, results, print)
        take_as_written(tracker)
        tracker.start()
        assert tracker.thread.ident is not None
        clock = time.pthread_getcpuclockid(tracker.thread.ident)
        spent, begun = time.clock_gettime(clock), time.monotonic()
        late = drive(course, tracker, results, SECONDS)
        spent, took = time.clock_gettime(clock) - spent, time.monotonic() - begun
        behind = len({*tracker.waiting, *tracker.changes})
        tracker.ending.set()
        tracker.thread.join()
    print(f"{TRIALS} trials, {len(late) / took:.1f} reports/s for {took:.0f} s")
    print(f"writer: {spent:.2f} s of processor time; {behind} trials with something not yet written")
    print(f"driver: events late by {1000 * statistics.median(late):.1f} ms (median), {1000 * max(late):.0f} ms (most)")
    print_result("mlflow_share", spent / took)


if __name__ == "__main__":
    main()
