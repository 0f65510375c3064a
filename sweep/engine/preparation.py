"""The preparation of what all trials of a sweep share, on a worker, and the summary of its data beside the plan."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from sweep.engine.signals import SignalHandler
from sweep.engine.task import Task, data_summary_of, prepare_shared
from sweep.plan import SweepPlan, push_remote
from sweep.state import DATA_SUMMARY, DataSummary, read_data_summary
from trainer.errors import InputError
from trainer.files import patiently, write_whole

WAIT_SECONDS = 1.0
"""Time between two looks at whether a signal has come, while no worker answers."""

_PROGRESS_SECONDS = 0.2
"""Least time between two messages about the preparation's progress."""

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and how much there is."""


@ray.remote
def _prepare_remotely(task: Task) -> Iterator[tuple[str, int, int] | DataSummary]:
    """Prepare on a worker, so that the driver needs no torch; yield the progress, then the data summary."""
    messages: queue.Queue[tuple[str, int, int] | DataSummary | Exception] = queue.Queue()

    def work() -> None:
        try:
            messages.put(data_summary_of(prepare_shared(task, lambda *stage: messages.put(stage)), task))
        except Exception as error:  # noqa: BLE001 - raised again below, on the thread that Ray listens to
            messages.put(error)

    threading.Thread(target=work).start()
    last_sent = 0.0
    while isinstance(message := messages.get(), tuple):
        if time.monotonic() - last_sent > _PROGRESS_SECONDS:
            last_sent = time.monotonic()
            yield message
    if isinstance(message, Exception):
        raise message
    yield message


def prepare(task: Task, plan: SweepPlan, progress: Progress, signals: SignalHandler) -> DataSummary | None:
    """Compute what all trials share before the first of them starts; return the data summary, or None on a signal.

    Raises:
        InputError: if the data can't be had.
    """
    messages: Any = _prepare_remotely.options(num_cpus=1, num_gpus=plan.gpus_per_trial).remote(task)
    try:
        while True:
            ready, _ = ray.wait([messages], timeout=WAIT_SECONDS)
            if signals.asked:
                return None
            if not ready:
                continue
            message = ray.get(next(messages))
            if isinstance(message, dict):
                return message
            progress(*message)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise


def record_data_summary(folder: Path, summary: DataSummary) -> None:
    """Write the data summary beside the plan, and refuse to continue with other data than the sweep began with.

    Raises:
        InputError: if the data is not the same.
        StorageFailed: if it can't be written.
    """
    path, known = folder / DATA_SUMMARY, read_data_summary(folder)
    if known:
        before = known["data_fingerprint"]
        if before != summary["data_fingerprint"]:
            raise InputError(
                f"the data has changed: the sweep began with fingerprint {before}, and finds "
                f"{summary['data_fingerprint']} now; give it the same files again, or start a new sweep"
            )
        return
    text = json.dumps(summary, indent=2) + "\n"
    patiently(lambda: write_whole(path, text.encode()), what=repr(str(path)))
    push_remote(path)
