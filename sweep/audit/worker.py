"""A task of an audit on a worker: a model of a finalist, trained if need be, and judged; torch only here."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.audit.measuring import answers_on_validation, compare_with_people, measure_model
from sweep.audit.results import AuditResult, AuditTask, judged_by, judged_file, read_result, result_file, sealed
from sweep.engine import Task, device_of, evaluation_of, explain, shared
from sweep.plan import AuditOptions
from sweep.state import judged_images
from trainer.config import TrialConfig
from trainer.errors import InputError
from trainer.human_agreement import ExamplesFolder

if TYPE_CHECKING:
    from torch import nn

    from trainer.invariance import LabelledSet


def prepare_test(common: Task, examples: ExamplesFolder | None, folder: Path, options: AuditOptions) -> None:
    """Make the judges, the test split's judging sets and the per-model attack, once, in the cache.

    What each judge's crowds say of the judged test images is written beside the results: with it every number can be
    counted anew from the models' answers. Damaged examples are refused here, before anything
    is trained.
    """
    from trainer.files import FolderStore

    _labelled_sets(common, examples)
    for judge in range(options.judges):
        FolderStore(folder).write(judged_file(judge), judged_images(shared(common), "test", judge=judge).to_bytes())
    shared(common).adversary("test")


@lru_cache(maxsize=1)
def _labelled_sets(common: Task, examples: ExamplesFolder | None) -> Sequence[LabelledSet]:
    """Return every set of a folder of examples that people labelled."""
    from trainer.invariance import read_examples

    data = shared(common).data
    return read_examples(Path(examples.path), data.test, classes=data.classes) if examples else ()


def train_undefended(common: Task, undefended: AuditTask, folder: Path) -> str:
    """Train an undefended baseline; return why it failed, or nothing."""
    try:
        _train(common, undefended, folder)
    except Exception as error:  # noqa: BLE001 - the audit goes on without this baseline
        return explain(error)
    return ""


def audit_one(
    common: Task,
    task: AuditTask,
    undefended: AuditTask | None,
    folder: Path,
    options: AuditOptions,
    examples: ExamplesFolder | None,
) -> str:
    """Judge one model of a finalist and write the result, as far as that is not done; return why it failed, or nothing.

    A model on a fresh seed is trained first; the sweep's own only if it is not kept.

    Args:
        common: what all trials of the sweep share.
    """
    from trainer.files import FolderStore

    try:
        model = _own(common, task, folder) if task.own else _train(common, task, folder)
        audited = read_result(folder, task, options)
        if audited is None:
            baseline = _train(common, undefended, folder) if undefended else None
            audited = _evaluate(common, task, model, baseline, options)
        if examples and not audited.answers_to(examples):
            audited = dataclasses.replace(
                audited, people=compare_with_people(model, shared(common), examples, _labelled_sets(common, examples))
            )
        FolderStore(folder).write(result_file(task), sealed(audited))
    except Exception as error:  # noqa: BLE001 - one may fail in any way, and the audit goes on
        return explain(error)
    return ""


def _own(common: Task, task: AuditTask, folder: Path) -> nn.Module:
    """Return the model that the sweep's trial chose: as it was kept, else trained again, which gives the same bits."""
    from trainer.training import MODEL_FILE, load_model

    kept = Path(common.sweep_folder) / "trials" / f"{task.number:04d}" / MODEL_FILE
    try:
        return load_model(kept, architecture=task.config["architecture"]).to(_device(common))
    except InputError:
        return _train(common, task, folder)


def _device(common: Task) -> str:
    import torch

    torch.set_num_threads(common.threads)
    return device_of(common)


def _train(common: Task, task: AuditTask, folder: Path) -> nn.Module:
    """Return the model that a trial of this configuration chooses; what an earlier audit left of it is resumed."""
    from trainer.files import FolderStore
    from trainer.training import MODEL_FILE, load_model, run_trial

    device = _device(common)
    config, store = TrialConfig.from_mapping(task.config), FolderStore(folder / "models" / task.name)
    if not (store.folder / MODEL_FILE).exists():
        # On fresh seeds as ever, whatever the ladder: it changes no number by which an epoch is chosen.
        ladder = common.ladder if task.own else 0
        reports = run_trial(
            config, evaluation_of(common), shared(common), ladder=ladder, last=False, store=store, device=device
        )
        deque(reports, maxlen=0)
    return load_model(store.folder / MODEL_FILE, architecture=config.architecture).to(device)


def _evaluate(
    common: Task, task: AuditTask, model: nn.Module, baseline: nn.Module | None, options: AuditOptions
) -> AuditResult:
    """Return every number of a model on the test split.

    The sweep's own model is attacked on the validation split as well, where it was selected, and its attack is checked.
    """
    prepared = shared(common)
    measured = measure_model(model, prepared, options, with_evidence=task.own, baseline=baseline)
    return AuditResult(
        number=task.number,
        config=task.config,
        judged_by=judged_by(options),
        own=task.own,
        validation=answers_on_validation(model, prepared, options) if task.own else {},
        **measured._asdict(),
    )
