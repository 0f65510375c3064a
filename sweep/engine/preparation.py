"""The preparation of what all trials of a sweep share, on a worker, and what is kept of it beside the plan."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayTaskError

from sweep.engine.task import Task, data_summary_of, prepare_shared
from sweep.plan import SweepPlan, own_corners, push_remote
from sweep.state import DATA_SUMMARY, JUDGED_IMAGES, DataSummary, JudgedImages, judged_images, read_data_summary
from trainer.errors import InputError
from trainer.files import patiently, write_whole
from trainer.interrupts import SignalHandler

WAIT_SECONDS = 1.0
"""Time between two looks at whether a signal has come, while no worker answers."""

_PROGRESS_SECONDS = 0.2
"""Least time between two messages about the preparation's progress."""

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and how much there is."""


class _Preparation(NamedTuple):
    """Outcome of a preparation, as far as the driver needs it."""

    summary: DataSummary
    judged: JudgedImages
    """The judged images of the validation split."""


class _Stage(NamedTuple):
    """Progress of the preparation: a stage, how much of it is done, and how much there is."""

    name: str
    done: int
    total: int


@ray.remote
def _prepare_remotely(task: Task, configs: list[dict[str, Any]]) -> Iterator[_Stage | _Preparation]:
    """Prepare on a worker, so that the driver needs no torch; yield the progress, then what the driver is to know."""
    messages: queue.Queue[_Stage | _Preparation | Exception] = queue.Queue()

    def work() -> None:
        try:
            prepared = prepare_shared(task, lambda *stage: messages.put(_Stage(*stage)), configs)
            messages.put(_Preparation(data_summary_of(prepared, task), judged_images(prepared, "validation")))
        except Exception as error:  # noqa: BLE001 - raised again below, on the thread that Ray listens to
            messages.put(error)

    threading.Thread(target=work).start()
    last_sent = 0.0
    while isinstance(message := messages.get(), _Stage):
        if time.monotonic() - last_sent > _PROGRESS_SECONDS:
            last_sent = time.monotonic()
            yield message
    if isinstance(message, Exception):
        raise message
    yield message


def prepare(task: Task, plan: SweepPlan, progress: Progress, signals: SignalHandler) -> _Preparation | None:
    """Compute what all trials share before the first of them starts; return what is kept of it, or None on a signal.

    Raises:
        InputError: if the data can't be had, or for a function of one's own that can't be trained with.
    """
    messages: Any = _prepare_remotely.options(num_cpus=1, num_gpus=plan.gpus_per_trial).remote(
        task, own_corners(plan.space)
    )
    try:
        while True:
            ready, _ = ray.wait([messages], timeout=WAIT_SECONDS)
            if signals.asked:
                return None
            if not ready:
                continue
            message = ray.get(next(messages))
            if isinstance(message, _Preparation):
                return message
            progress(*message)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise


def record_preparation(folder: Path, prepared: _Preparation) -> None:
    """Write the data summary and the judged images beside the plan, where they are not there yet.

    Raises:
        InputError: if the data is not the same as the sweep began with.
        StorageFailed: if they can't be written.
    """
    record_data_summary(folder, prepared.summary)
    if not (folder / JUDGED_IMAGES).exists():
        _write(folder / JUDGED_IMAGES, prepared.judged.to_bytes())


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
    _write(path, (json.dumps(summary, indent=2) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    patiently(lambda: write_whole(path, content), what=repr(str(path)))
    push_remote(path)
