"""Settings that all trials of a sweep share, and what a worker makes of them. Only workers import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.plan import SweepPlan, UrlStore, folder_of, is_url, plugins_of, pull_remote, push_remote, url_of
from trainer.config import EvaluationConfig, TrialConfig
from trainer.plugins import SentPlugin, allow_plugins, receive_plugins, send_plugins

if TYPE_CHECKING:
    from trainer.files import Store
    from trainer.invariance import Prepared


@dataclass(frozen=True)
class Task:
    """Settings that all trials of a sweep share, in plain values that any node can read."""

    evaluation: tuple[tuple[str, Any], ...]
    invariance_norms: tuple[str, ...]
    sweep_folder: str
    cache_dir: str
    data_dir: str | None
    threads: int
    use_gpu: bool
    ladder: int = 0
    plugins: tuple[SentPlugin, ...] = ()
    """Source of the user's own modules that the plan names and that are not installed."""
    named: tuple[str, ...] = ()
    """The functions in them, and in installed ones, that the plan names: no other is imported."""


def make_task(plan: SweepPlan) -> Task:
    """Return the settings that every trial of a plan is given.

    Raises:
        InputError: if a module of the user's own that the plan names is not on this machine.
    """
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
        plugins=send_plugins(plugins_of(plan)),
        named=tuple(plugins_of(plan)),
    )


def trial_store(sweep_folder: str, number: int, *, warn: Callable[[str], None] = lambda message: None) -> Store:
    """Return the store of a trial's checkpoints, in a folder or at a URL.

    Args:
        warn: called with a message if a folder refuses a file for a while.
    """
    from trainer.files import FolderStore

    where = f"{sweep_folder}/trials/{number:04d}"
    return UrlStore(where) if is_url(where) else FolderStore(Path(where), log=warn)


@lru_cache(maxsize=1)
def shared(task: Task) -> Prepared:
    """Open data, training perturbations and judging set: once per worker process, mapped from one file per node."""
    return prepare_shared(task, lambda stage, done, total: None)


def prepare_shared(
    task: Task, progress: Callable[[str, int, int], None], configs: Iterable[Mapping[str, Any]] = ()
) -> Prepared:
    """Compute what is not in the cache yet, open the rest.

    Args:
        task: settings of the sweep.
        progress: called with a stage, how much of it is done, and how much there is.
        configs: configurations whose functions of one's own are checked before.

    Raises:
        InputError: for data that can't be had, or a function that lacks a property.
    """
    from trainer.invariance import prepare

    allow_plugins(task.named)
    receive_plugins(task.plugins)
    cache = cache_folder(task)
    before = set(cache.glob("*"))
    _check_own(task, configs, cache)
    prepared = prepare(
        evaluation_of(task),
        invariance_norms=task.invariance_norms,
        data_dir=data_folder(task),
        cache_dir=cache,
        device=device_of(task),
        progress=progress,
    )
    for made in sorted(set(cache.glob("*")) - before):
        push_remote(made)
    return prepared


def device_of(task: Task) -> str:
    """Return the torch device of a worker: a GPU where the sweep's trials have one, and this machine too."""
    import torch

    return "cuda" if task.use_gpu and torch.cuda.is_available() else "cpu"


def _check_own(task: Task, configs: Iterable[Mapping[str, Any]], cache: Path) -> None:
    """Check what configurations name of one's own."""
    from trainer.data import load_data
    from trainer.training import check_own

    if checked := [TrialConfig.from_mapping(config) for config in configs]:
        data = load_data(evaluation_of(task), data_dir=data_folder(task), cache_dir=cache)
        for config in checked:
            check_own(config, data)


def cache_folder(task: Task) -> Path:
    """Return this machine's folder of what is prepared, brought up to date from its URL if it has one."""
    cache = folder_of(task.cache_dir) if is_url(task.cache_dir) else Path(task.cache_dir)
    pull_remote(cache)
    return cache


def data_folder(task: Task) -> Path | None:
    """Return the folder in which published data is looked for, if the plan names one."""
    return Path(task.data_dir) if task.data_dir else None


def data_summary_of(prepared: Prepared, task: Task) -> dict[str, Any]:
    """Return what is known of a sweep's data, judging set and judge, in plain values."""
    from trainer.human_agreement import JUDGE, find_examples
    from trainer.invariance import ask_people, ceiling, changed_mass, read_examples

    judge, judging, data = prepared.judge_quality, prepared.judging, prepared.data
    seen = changed_mass(judging)
    examples = find_examples(None, dataset=data.name, data_dir=task.data_dir)
    sets = read_examples(Path(examples.path), data.test, classes=data.classes) if examples else []
    return {
        "data_fingerprint": prepared.data.fingerprint,
        "validation_images": len(prepared.data.validation.labels),
        "judged_images": len(judging.images),
        "crowd": prepared.crowd.name,
        "changed_mass": judging.changed.sum().item(),
        "changed_share_interval": list(seen.share_interval),
        "effective_size": seen.effective_size,
        "effective_size_interval": list(seen.effective_interval),
        "attainable_accuracy": judging.attainable,
        "ceiling": ceiling(judging, prepared.evaluation, images=len(data.validation.labels)),
        "judge_accuracy": judge.accuracy,
        "judge_agreement": judge.agreement,
        "people": dataclasses.asdict(ask_people(examples, sets, {JUDGE: prepared.answer})) if examples else None,
    }


def evaluation_of(task: Task) -> EvaluationConfig:
    return EvaluationConfig.from_mapping(dict(task.evaluation))
