"""TODO one line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from sweep.engine.signals import SignalHandler
from sweep.engine.trainable import Task
from sweep.plan import SweepPlan, push_remote, url_of
from sweep.state import DATA_SUMMARY, DataSummary, read_data_summary
from trainer.errors import InputError
from trainer.files import patiently, write_whole

WAIT_SECONDS = 1.0
"""Between two looks at whether somebody asked to stop, while nothing is heard from a worker."""

_TOLD_SECONDS = 0.2
"""Between two words on the preparation's progress."""

Progress = Callable[[str, int, int], None]


def make_task(plan: SweepPlan) -> Task:
    """What every trial is given, in plain values."""
    evaluation = plan.space.evaluation
    return Task(
        evaluation=tuple(evaluation.to_dict().items()),
        invariance_norms=plan.space.values_of("invariance_norm"),
        sweep_folder=url_of(plan.folder) or str(plan.folder),
        cache_dir=url_of(plan.cache_dir) or str(plan.cache_dir),
        data_dir=str(plan.data_dir) if plan.data_dir else None,
        threads=max(1, int(plan.cpus_per_trial)),
        use_gpu=plan.gpus_per_trial > 0,
        ladder=plan.ladder,
    )


@ray.remote
def _prepare_remotely(task: Task) -> Iterator[tuple[str, int, int] | DataSummary]:
    """The preparation on a worker, so that the driver needs no torch; yields its progress, then what it found."""
    import queue
    import threading

    from sweep.engine.trainable import data_summary_of, prepare_shared

    said: queue.Queue[tuple[str, int, int] | DataSummary | Exception] = queue.Queue()

    def work() -> None:
        try:
            said.put(data_summary_of(prepare_shared(task, lambda *stage: said.put(stage)), task))
        except Exception as error:  # noqa: BLE001 - raised again below, on the thread that Ray listens to
            said.put(error)

    threading.Thread(target=work).start()
    told = 0.0
    while isinstance(news := said.get(), tuple):
        if time.monotonic() - told > _TOLD_SECONDS:
            told = time.monotonic()
            yield news
    if isinstance(news, Exception):
        raise news
    yield news


def prepare(task: Task, plan: SweepPlan, progress: Progress, interruption: SignalHandler) -> DataSummary | None:
    """Everything that all trials share, computed once before the first of them starts; None if interrupted."""
    news: Any = _prepare_remotely.options(num_cpus=1, num_gpus=plan.gpus_per_trial).remote(task)
    try:
        while True:
            ready, _ = ray.wait([news], timeout=WAIT_SECONDS)
            if interruption.asked:
                return None
            if not ready:
                continue
            said = ray.get(next(news))
            if isinstance(said, dict):
                return said
            progress(*said)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
    return None


def record_data_summary(folder: Path, facts: DataSummary) -> None:
    """Keep what the sweep stands on beside its plan; refuse to go on with other data than it began with.

    Raises:
        InputError: if the data is not the same.
        StorageFailed: if they can't be written.
    """
    path, known = folder / DATA_SUMMARY, read_data_summary(folder)
    if known:
        before = known["data_fingerprint"]
        if before != facts["data_fingerprint"]:
            raise InputError(
                f"the data has changed: the sweep began with fingerprint {before}, and finds "
                f"{facts['data_fingerprint']} now; give it the same files again, or start a new sweep"
            )
        return
    text = json.dumps(facts, indent=2) + "\n"
    patiently(lambda: write_whole(path, text.encode()), what=repr(str(path)))
    push_remote(path)
