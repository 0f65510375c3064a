"""The driver at scale: its cost per report over the last thousand of 10,000 trials, over that of the first thousand.

Trials only report: ten epochs each, on curves that are drawn. What stands between Ray Tune and them is the very code of
a sweep, called as Ray Tune calls it, on as many slots: search, scheduler, ledger, results with their front, the budget
of a hard cap, the screen's lines, and MLflow's writer beside it on a SQLite store. What each of them takes is shown by
itself, as processor time of the driver's thread, which a busy machine does not stretch; then all of it by the clock
(the ledger waits for the disk), the writer's own thread, and the memory of the process. Ray's own cost is not in it.
Of fewer than 2,000 trials the second half is held against the first.

    python -m tests.benchmarks.driver_scale [TRIALS]
"""

from __future__ import annotations

import contextlib
import resource
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from search_spaces.reading import load_space
from sweep.engine.ledger_callback import LedgerCallback
from sweep.engine.result_keys import FOOTPRINT, REPORT
from sweep.engine.scheduler import MultiObjectiveASHA, SweepStopper
from sweep.engine.slots import Slots
from sweep.ledger.writing import LedgerWriter
from sweep.plan.from_options import make_plan
from sweep.plan.plan_file import write_plan
from sweep.report.screen import Screen
from sweep.search.budget import Budget
from sweep.search.rungs import Rungs
from sweep.state.sweep_state import state_of_trials
from sweep.tracking.tracker import Tracker
from tests.benchmarks.common import curve, print_machine, print_result
from tests.support.tuned_search import TunedSearch

TRIALS, EPOCHS, SLOTS, PART = 10_000, 10, 16, 1000
LEVELS = (1, 4)
NOBODY = 10**6
"""An eta by which all are compared and none is stopped, as where too few stand in a rung: all report ten times."""
SEED = 0


class Clock:
    """Seconds by layer, without what a layer calls of another."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.open: list[str] = []
        self.since = self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        """By this thread's processor and by the wall."""
        return time.thread_time(), time.perf_counter()

    def turn(self) -> None:
        now = self.now()
        processor, wall = (after - before for after, before in zip(now, self.since, strict=True))
        self.spent[self.open[-1] if self.open else "simulation"] += processor
        self.spent["wall"] += wall if self.open else 0.0
        self.since = now

    @contextlib.contextmanager
    def running(self, layer: str) -> Iterator[None]:
        self.turn()
        self.open.append(layer)
        try:
            yield
        finally:
            self.turn()
            self.open.pop()

    def watch(self, owner: object, layer: str, *names: str) -> None:
        for name in names:
            setattr(owner, name, self.watched(getattr(owner, name), layer))

    def watched(self, call: Callable[..., Any], layer: str) -> Callable[..., Any]:
        def timed(*words: Any, **options: Any) -> Any:
            with self.running(layer):
                return call(*words, **options)

        return timed


@dataclass
class Trial:
    """What of a Ray Tune trial is looked at, and the curve that it reports."""

    trial_id: str
    config: dict[str, Any]
    curve: Iterator[dict[str, Any]]


@dataclass
class Part:
    """What some trials in a row took."""

    reports: int
    spent: Counter[str]
    megabytes: float


LAYERS = ("search", "scheduler", "ledger", "front", "budget", "screen", "tracking")


def simulate(storage: Path, clock: Clock, trials: int, part: int) -> Iterator[Part]:
    """A sweep, in parts of so many trials."""
    plan = make_plan(
        load_space("digits"),
        name="scale",
        storage=str(storage),
        mlflow_uri=f"sqlite:///{storage}/mlflow.db",
        trials=trials,
        epochs=EPOCHS,
        gpus_per_trial=1 / SLOTS,
        max_gpu_hours=1e6,
        keep_models="none",
    )
    write_plan(plan)
    results = state_of_trials(plan, {})
    budget, slots = Budget(plan, results, SLOTS), Slots(plan, SLOTS, known=False)
    rungs = Rungs(plan.objectives, levels=LEVELS, eta=NOBODY)
    search = TunedSearch(plan.space, plan.objectives, sampler="tpe", seed=SEED, configurations=trials)
    scheduler = MultiObjectiveASHA(rungs)
    with (storage / "screen.txt").open("w") as lines, LedgerWriter(plan.folder) as ledger:
        screen = Screen(Console(file=lines), plan, results)
        tracker = Tracker(plan, results, log=screen.log)

        def listen(number: int) -> None:
            tracker.changed(number)
            screen.trial_changed(number)

        ledger_callback = LedgerCallback(ledger, results, rungs, budget, slots, on_event=listen, log=screen.log)
        clock.watch(search, "search", "suggest", "on_trial_complete")
        clock.watch(scheduler, "scheduler", "on_trial_result", "on_trial_complete")
        clock.watch(ledger, "ledger", "started", "reported", "decided", "ended")
        clock.watch(ledger_callback, "front", "on_trial_start", "on_trial_result")
        clock.watch(budget, "budget", "hold", "slot_seconds", "release", "spent", "enough", "overrun")
        clock.watch(screen, "screen", "trial_changed")
        clock.watch(tracker, "tracking", "changed")
        written = Writing(tracker)
        tracker.start()
        stopper = SweepStopper(spent=budget.spent, requested=budget.overrun)
        running: deque[Trial] = deque()
        begun = ended = reports = 0
        screen.begun = time.monotonic()
        while ended < trials:
            while begun < trials and len(running) < slots.limit and not budget.enough():
                suggested = search.suggest(str(begun))
                running.append(Trial(str(begun), suggested, curve(SEED, suggested["number"], EPOCHS)))
                ledger_callback.on_trial_start(0, [], running[-1])
                begun += 1
            trial = running.popleft()
            report = next(trial.curve)
            flat = {REPORT + name: value for name, value in report.items()}
            hear = scheduler.on_trial_complete if report["final"] else scheduler.on_trial_result
            stop = hear(None, trial, flat) == "STOP"  # pyright: ignore[reportArgumentType]
            ledger_callback.on_trial_result(0, [], trial, {"report": report, FOOTPRINT: (2**30, 2**28, 2**33)})
            stop |= stopper(trial.trial_id, flat) or stopper.stop_all()
            reports += 1
            if not (stop or report["final"]):
                running.append(trial)
                continue
            search.on_trial_complete(trial.trial_id, flat)
            ended += 1
            if ended % part == 0:
                clock.turn()
                clock.spent["writer"] = written.seconds()
                yield Part(reports, clock.spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
                clock.spent, reports = Counter(), 0
        # What MLflow lacks by now would be written at the end of a sweep; nobody reads it here.
        tracker.ending.set()
        tracker.thread.join()


class Writing:
    """Processor time of MLflow's writer, on the thread where it works."""

    def __init__(self, tracker: Tracker) -> None:
        self.total = self.told = 0.0
        self.write = tracker.write_pass
        tracker.write_pass = self.timed

    def timed(self) -> None:
        begun = time.thread_time()
        try:
            self.write()
        finally:
            self.total += time.thread_time() - begun

    def seconds(self) -> float:
        """Since it was asked last."""
        before, self.told = self.told, self.total
        return self.told - before


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    print_machine("optuna", "pyarrow", "mlflow")
    print(f"ms per report; {trials} trials of {EPOCHS} epochs on {SLOTS} slots, TPE, rungs at epochs {LEVELS}")
    headings = [*LAYERS, "all", "by clock", "writer", "MB"]
    print(f"{'trials':>8}{'reports':>9}" + "".join(f"{heading:>10}" for heading in headings))
    sums, size = [], min(PART, max(1, trials // 2))
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(simulate(Path(folder), Clock(), trials, size), 1):
            each = [1000 * part.spent[layer] / part.reports for layer in LAYERS]
            sums.append(sum(each))
            each += [sums[-1], *(1000 * part.spent[other] / part.reports for other in ("wall", "writer"))]
            columns = "".join(f"{ms:10.3f}" for ms in each)
            print(f"{number * size:8}{part.reports:9}{columns}{part.megabytes:10.0f}", flush=True)
    print_result("driver_scale", sums[-1] / sums[0])


if __name__ == "__main__":
    main()
