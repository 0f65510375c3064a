"""MLflow beside a running sweep: a thread writes, so that neither trials nor the driver wait for the store."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from sweep.plan import SweepPlan
from sweep.state import SweepState
from sweep.tracking.mlflow_internals import explain_error
from sweep.tracking.store import Log, OnProgress
from sweep.tracking.writer import Writer

PASS_SECONDS = 5.0
"""Minimum seconds between two passes."""
TIME_SHARE = 0.05
"""Maximum share of the driver's time for writing: a pass ends, and the next one waits, accordingly."""


class Tracker:
    """A `Writer` in a thread of its own. Each pass writes the state that it finds at its beginning."""

    def __init__(self, plan: SweepPlan, state: SweepState, log: Log) -> None:
        self.plan, self.log = plan, log
        self._state = state
        self.writer: Writer | None = None
        self.changes: deque[int] = deque()
        """Trials that changed since the latest pass began."""
        self.waiting: dict[int, None] = {}
        """Trials of which something is not written, those that have waited longest first. The thread's own."""
        self.loaded = False
        self.away = False
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self.thread.start()

    def changed(self, number: int) -> None:
        """Take note of a trial that began, reported or ended, once the state has it."""
        self.changes.append(number)

    def close(self, *, complete: bool, on_progress: OnProgress = lambda done, total: None) -> None:
        """Write what is left, and end the parent run: as killed, unless the sweep is complete."""
        self.ending.set()
        self.thread.join()
        state = self.take_state()
        if not state.trials:
            return
        whole = True

        def finish() -> None:
            nonlocal whole
            whole = self._connected(state).finish(state, over=complete, on_progress=on_progress)

        if not self.attempt(finish) or not whole:
            self.log(f"MLflow lacks some of the results: `otsweep sync {self.plan.name}` writes them once it answers")
        elif self.writer is not None and (missing := self.writer.parts.missing()):
            self.log(missing)
        if self.writer is not None:
            self.writer.close()

    def take_state(self) -> SweepState:
        """Return the state for a pass; the trials that changed before wait to be written in it."""
        while self.changes:
            self.waiting.setdefault(self.changes.popleft())
        return self._state.snapshot()

    def work(self) -> None:
        """Run passes until the sweep ends."""
        pause = PASS_SECONDS
        while not self.ending.wait(pause):
            begun = time.thread_time()
            self.attempt(self.write_pass)
            pause = max(PASS_SECONDS, (time.thread_time() - begun) / TIME_SHARE)

    def attempt(self, write: Callable[[], None]) -> bool:
        """Return whether a write succeeded. The first failure in a row is logged, and the next pass tries again."""
        try:
            write()
        except Exception as error:  # noqa: BLE001 - whatever the store answers, the sweep goes on
            if not self.away:
                self.log(f"MLflow does not take results at the moment ({explain_error(error)}); going on without it")
            self.away = True
            return False
        self.away = False
        return True

    def link(self, address: str) -> str:
        """Return the link to the sweep's front on MLflow's page at `address`; without a known run, `address`."""
        parent = self.writer.parent if self.writer else None
        return address + parent.link if parent and parent.run_id else address

    def _connected(self, state: SweepState) -> Writer:
        """Return the writer once it has asked the store what that holds already."""
        if self.writer is None:
            self.writer = Writer(self.plan, self.plan.mlflow_uri, log=self.log)
        if not self.writer.is_open:
            self.writer.open(state)
        return self.writer

    def write_pass(self) -> None:
        """Write as much as fits of what is missing. A sweep that cannot begin has no trial, and leaves no run."""
        state = self.take_state()
        if not state.trials:
            return
        begun = time.thread_time()

        def enough() -> bool:
            return self.ending.is_set() or time.thread_time() - begun >= TIME_SHARE * PASS_SECONDS

        writer = self._connected(state)
        if not self.loaded:
            for number in list(state.trials):
                self.waiting.setdefault(number)
            self.loaded = True
        writer.trials.ranking.refresh(state, over=False)
        failed: dict[int, None] = {}
        try:
            while self.waiting and not enough():
                number = next(iter(self.waiting))
                failed[number] = self.waiting.pop(number)
                with writer.write_apart(number):
                    writer.trials.write(state.trials[number], state)
                    del failed[number]
        finally:
            # Last in line, so that a trial that always fails does not hold up the others.
            self.waiting |= failed
        writer.write_front(state, enough=enough)
