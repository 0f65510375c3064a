"""Tasks on Ray's workers, with a line that shows how far they are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from sweep.engine import LOST_WORKER_RETRIES
from sweep.plan import SweepPlan
from sweep.report import duration
from trainer.errors import InputError
from trainer.interrupts import SignalHandler
from trainer.progress import ProgressLine

_POLL_SECONDS = 0.5


class TaskPool(NamedTuple):
    """Runs Ray tasks on the plan's resources."""

    plan: SweepPlan
    concurrent: int
    signals: SignalHandler
    progress: AuditProgress

    def run(self, stage: str, function: Callable[..., Any], tasks: Mapping[str, tuple[Any, ...]]) -> dict[str, str]:
        """Call a function for every task until all are done or a signal asks to stop; return why some failed, by name.

        Args:
            tasks: arguments by name.
        """
        remote = ray.remote(function).options(
            num_cpus=self.plan.cpus_per_trial, num_gpus=self.plan.gpus_per_trial, max_retries=LOST_WORKER_RETRIES
        )
        waiting, running, failed = deque(tasks), {}, {}
        self.progress.begin_tasks(stage, len(tasks))
        while (waiting or running) and not self.signals.asked:
            while waiting and len(running) < self.concurrent:
                name = waiting.popleft()
                running[remote.remote(*tasks[name])] = name
            self.progress.show_running(running.values())
            for ended in ray.wait(list(running), timeout=_POLL_SECONDS)[0]:
                name, reason = running.pop(ended), _failure(ended)
                self.progress.end_task(name, reason)
                failed |= {name: reason} if reason else {}
        return failed


def _failure(ended: ray.ObjectRef) -> str:
    """Return why a task failed, or nothing."""
    try:
        return ray.get(ended) or ""
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
    except RayError:
        return f"its worker was lost {LOST_WORKER_RETRIES + 1} times (killed or out of memory)"


class AuditProgress(ProgressLine):
    """The progress of an audit; elsewhere than on a terminal a line for each task that ended."""

    stage, done, total, begun = "", 0, 0, 0.0

    def prepare(self, stage: str, done: int, total: int) -> None:
        """Show how far the preparation is."""
        self.show(f"preparing: {stage}", done, total)

    def begin_tasks(self, stage: str, total: int) -> None:
        """Begin a stage of so many tasks."""
        self.stage, self.done, self.total, self.begun = stage, 0, total, time.monotonic()

    def show_running(self, names: Iterable[str]) -> None:
        """Show which tasks run."""
        self.update(f"{self.describe()}: {', '.join(names)}")

    def end_task(self, name: str, reason: str) -> None:
        """Count a task that is done, or failed for a reason, which stays on the screen."""
        self.done += 1
        if reason:
            self.log(f"{name} failed: {reason}")
        elif not self.living:
            self.log(f"{self.describe()}: {name}")

    def describe(self) -> str:
        """Return how many tasks of the stage are done, and the time gone and left."""
        gone = time.monotonic() - self.begun
        left = f", about {duration(gone / self.done * (self.total - self.done))} left" if self.done else ""
        return f"{self.stage} {self.done}/{self.total}; {duration(gone)} gone{left}"
