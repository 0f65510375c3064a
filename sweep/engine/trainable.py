"""A trial as Ray Tune runs it: a dict comes in, epoch reports go out. Imported on workers; torch only once there."""

from __future__ import annotations

import dataclasses
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ray import tune

from sweep.plan import UrlStore, folder_of, is_url, pull_remote, push_remote
from trainer.config import EvaluationConfig, TrialConfig
from trainer.errors import OtsweepError, StorageFailed

if TYPE_CHECKING:
    from trainer.files import Store
    from trainer.invariance import Prepared
    from trainer.report import EpochReport
from sweep.search import FAILURE, FOOTPRINT, STORAGE, WARNINGS


@dataclass(frozen=True)
class Task:
    """What all trials of a sweep share, in plain values that any node can read."""

    evaluation: tuple[tuple[str, Any], ...]
    invariance_norms: tuple[str, ...]
    sweep_folder: str
    cache_dir: str
    data_dir: str | None
    threads: int
    use_gpu: bool
    ladder: int = 0


def trial_store(sweep_folder: str, number: int, *, log: Callable[[str], None] = lambda message: None) -> Store:
    """The same place as a store, also where the sweep is at a URL; `log` gets what a folder refused for a while."""
    from trainer.files import FolderStore

    where = f"{sweep_folder}/trials/{number:04d}"
    return UrlStore(where) if is_url(where) else FolderStore(Path(where), log=log)


@lru_cache(maxsize=1)
def shared(task: Task) -> Prepared:
    """Data, training perturbations and judging set: opened once per worker process, mapped from one file per node."""
    return prepare_shared(task, lambda stage, done, total: None)


def prepare_shared(task: Task, progress: Callable[[str, int, int], None]) -> Prepared:
    """Compute what is not in the cache yet, open the rest."""
    from trainer.invariance import prepare

    cache = cache_folder(task)
    before = set(cache.glob("*"))
    prepared = prepare(
        evaluation_of(task),
        invariance_norms=task.invariance_norms,
        data_dir=data_folder(task),
        cache_dir=cache,
        progress=progress,
    )
    for made in sorted(set(cache.glob("*")) - before):
        push_remote(made)
    return prepared


def cache_folder(task: Task) -> Path:
    """This machine's folder of what is prepared, holding what a URL has that it follows."""
    cache = folder_of(task.cache_dir) if is_url(task.cache_dir) else Path(task.cache_dir)
    pull_remote(cache)
    return cache


def data_folder(task: Task) -> Path | None:
    """Where published data is looked for, if the plan says it."""
    return Path(task.data_dir) if task.data_dir else None


def data_summary_of(prepared: Prepared, task: Task) -> dict[str, Any]:
    """What a sweep stands on, in plain values: its data, its judging set, and what is known of the judge."""
    from trainer.human_agreement import ORACLE, find_examples
    from trainer.invariance import ask_people, read_examples

    judge, judging, data = prepared.judge_quality, prepared.judging, prepared.data
    examples = find_examples(None, dataset=data.name, data_dir=task.data_dir)
    sets = read_examples(Path(examples.path), data.test, classes=data.classes) if examples else []
    return {
        "data_fingerprint": prepared.data.fingerprint,
        "validation_images": len(prepared.data.validation.labels),
        "judged_images": len(judging.images),
        "changed_images": int(judging.changed.sum()),
        "unchanged_images": int(judging.unchanged.sum()),
        "oracle_accuracy": judge.accuracy,
        "oracle_coverage": judge.coverage,
        "people": dataclasses.asdict(ask_people(examples, sets, {ORACLE: prepared.judge.label})) if examples else None,
    }


def evaluation_of(task: Task) -> EvaluationConfig:
    return EvaluationConfig.from_mapping(dict(task.evaluation))


class Footprint(NamedTuple):
    """The memory that a worker has taken at most, in bytes."""

    host: int
    gpu: int
    gpu_total: int
    """Of the GPU that it was given; 0 without one."""


def measure(*, gpu: bool) -> Footprint:
    """The footprint of this process, so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host = peak if sys.platform == "darwin" else peak * 1024
    if not gpu:
        return Footprint(host, 0, 0)
    import torch

    return Footprint(host, torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()[1])


class TrialTrainable(tune.Trainable):
    """One `step` per epoch report. A class, since only class trainables let Ray reuse a worker for the next trial."""

    def setup(self, config: dict[str, Any], task: Task | None = None) -> None:
        assert task is not None
        self.task = task
        self.begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.begin(new_config)
        return True

    def begin(self, config: dict[str, Any]) -> None:
        self.number: int = config["number"]
        self.on_gpu = False
        self.warnings: list[str] = []
        self.reports = self.run(config["config"])

    def run(self, values: dict[str, Any]) -> Iterator[EpochReport]:
        """Everything that can fail happens inside the generator, so that `step` can tell why."""
        import torch

        from trainer.training import run_trial

        torch.set_num_threads(self.task.threads)
        self.on_gpu = self.task.use_gpu and torch.cuda.is_available()
        yield from run_trial(
            TrialConfig.from_mapping(values),
            evaluation_of(self.task),
            shared(self.task),
            ladder=self.task.ladder,
            store=trial_store(self.task.sweep_folder, self.number, log=self.warnings.append),
            device="cuda" if self.on_gpu else "cpu",
            warn=self.warnings.append,
        )

    def step(self) -> dict[str, Any]:
        try:
            said = next(self.reports)
        except Exception as error:  # noqa: BLE001 - a trial may fail in any way, and the sweep goes on
            said = error
        return result_of(said, self.warnings, lambda: measure(gpu=self.on_gpu))


def result_of(said: EpochReport | Exception, warnings: list[str], footprint: Callable[[], Footprint]) -> dict[str, Any]:
    """What Ray Tune is told when a trial has reported or failed; the warnings are then said, and forgotten."""
    if isinstance(said, StorageFailed):
        return {STORAGE: str(said), "done": True}
    if isinstance(said, Exception):
        return {FAILURE: explain(said), "done": True}
    told, warnings[:] = list(warnings), []
    return {"report": said.to_dict(), WARNINGS: told, FOOTPRINT: tuple(footprint()), "done": said.final}


def explain(error: Exception) -> str:
    """One line for the user: what went wrong and, unless the message was written for users, where."""
    if isinstance(error, OtsweepError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
