"""A trial as Ray Tune runs it: a dict comes in, epoch reports go out. Only workers import torch."""

from __future__ import annotations

import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ray import tune

from sweep.engine.result_keys import ENVIRONMENT, FAILURE, FOOTPRINT, STORAGE, WARNINGS
from sweep.engine.task import Task, device_of, evaluation_of, shared, trial_store
from trainer.config import TrialConfig
from trainer.errors import InputError, OtsweepError, StorageFailed

if TYPE_CHECKING:
    from trainer.report import EpochReport


_CUDA_CONTEXT = 512 * 2**20
"""Bytes of a GPU that a process holds beside PyTorch's allocator, which does not count them: 0.3 to 0.5 GB."""


class Footprint(NamedTuple):
    """Peak memory of a worker, in bytes."""

    host: int
    gpu: int
    gpu_total: int
    """Memory of the GPU that it was given; 0 without one."""


def measure(*, gpu: bool) -> Footprint:
    """Return the footprint of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host = peak if sys.platform == "darwin" else peak * 1024
    if not gpu:
        return Footprint(host, 0, 0)
    import torch

    return Footprint(host, torch.cuda.max_memory_reserved() + _CUDA_CONTEXT, torch.cuda.mem_get_info()[1])


class TrialTrainable(tune.Trainable):
    """A trial with one `step` per epoch report. It is a class, since Ray reuses no worker of a function."""

    def setup(self, config: dict[str, Any], task: Task | None = None) -> None:
        assert task is not None
        self.task = task
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.number: int = config["number"]
        self.on_gpu = False
        self.warnings: list[str] = []
        self.reports = self._run(config["config"])

    def _run(self, values: dict[str, Any]) -> Iterator[EpochReport]:
        """Yield the trial's reports. Everything that can fail happens in here, so that `step` can say why."""
        import torch

        from trainer.training import run_trial

        torch.set_num_threads(self.task.threads)
        device = device_of(self.task)
        self.on_gpu = device == "cuda"
        yield from run_trial(
            TrialConfig.from_mapping(values),
            evaluation_of(self.task),
            shared(self.task),
            ladder=self.task.ladder,
            store=trial_store(self.task.sweep_folder, self.number, warn=self.warnings.append),
            device=device,
            warn=self.warnings.append,
        )

    def step(self) -> dict[str, Any]:
        try:
            outcome = next(self.reports)
        except Exception as error:  # noqa: BLE001 - a trial may fail in any way, and the sweep continues
            outcome = error
        return result_of(outcome, self.warnings, lambda: measure(gpu=self.on_gpu))


def result_of(
    outcome: EpochReport | Exception, warnings: list[str], footprint: Callable[[], Footprint]
) -> dict[str, Any]:
    """Return the result for Ray Tune of a trial that has reported or failed; a report takes the warnings along."""
    if isinstance(outcome, StorageFailed):
        return {STORAGE: str(outcome), "done": True}
    if isinstance(outcome, Exception):
        return {FAILURE: explain(outcome), ENVIRONMENT: _lacks_something(outcome), "done": True}
    taken, warnings[:] = list(warnings), []
    return {"report": outcome.to_dict(), WARNINGS: taken, FOOTPRINT: tuple(footprint()), "done": outcome.final}


def _lacks_something(error: Exception) -> bool:
    """Return whether a trial failed for want of its environment (data, a module, memory), not by its configuration."""
    return _lacks_memory(error) or isinstance(error, (InputError, ImportError, OSError))


def _lacks_memory(error: Exception) -> bool:
    # PyTorch's own class is named, since it need not be imported where an error is explained.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def explain(error: Exception) -> str:
    """Return one line for the user: what went wrong and, unless the message was written for users, where."""
    if _lacks_memory(error):
        said = ". ".join(str(error).split(". ")[:2]).rstrip(".")  # PyTorch adds advice about its allocator
        return f"too little memory, of which a smaller batch_size takes less ({said or type(error).__name__})"
    if isinstance(error, OtsweepError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
