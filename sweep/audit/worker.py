"""A task of an audit on a worker: a finalist trained on a fresh seed and judged on the test split; torch only here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.audit.results import AuditResult, AuditTask, judged_by, read_result, result_file, sealed
from sweep.engine import Task, evaluation_of, explain, shared
from sweep.plan import AuditOptions
from trainer.config import EvaluationConfig, TrialConfig
from trainer.human_agreement import JUDGE, MODEL, ExamplesFolder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.attacks import Evidence
    from trainer.data import Split
    from trainer.invariance import LabelledSet


def prepare_test(common: Task, examples: ExamplesFolder | None) -> None:
    """Make the test split's judging set and per-model attack, once, in the cache.

    Damaged examples are refused here, before anything is trained.
    """
    _labelled_sets(common, examples)
    shared(common).judging_set("test")
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
    """Train one finalist, judge it and write the result, as far as that is not done; return why it failed, or nothing.

    Args:
        common: what all trials of the sweep share.
    """
    from trainer.files import FolderStore

    try:
        model = _train(common, task, folder)
        audited = read_result(folder, task, options)
        if audited is None:
            baseline = _train(common, undefended, folder) if undefended else None
            audited = _evaluate(common, task, model, baseline, options)
        if examples and not audited.answers_to(examples):
            audited = dataclasses.replace(audited, people=_compare_with_people(common, model, examples))
        FolderStore(folder).write(result_file(task), sealed(audited))
    except Exception as error:  # noqa: BLE001 - one may fail in any way, and the audit goes on
        return explain(error)
    return ""


def _train(common: Task, task: AuditTask, folder: Path) -> nn.Module:
    """Return the model that a trial of this configuration chooses; what an earlier audit left of it is resumed."""
    import torch

    from trainer.files import FolderStore
    from trainer.training import MODEL_FILE, load_model, run_trial

    torch.set_num_threads(common.threads)
    device = "cuda" if common.use_gpu and torch.cuda.is_available() else "cpu"
    config, store = TrialConfig.from_mapping(task.config), FolderStore(folder / "models" / task.name)
    if not (store.folder / MODEL_FILE).exists():
        deque(run_trial(config, evaluation_of(common), shared(common), store=store, device=device), maxlen=0)
    return load_model(store.folder / MODEL_FILE).to(device)


def _evaluate(
    common: Task, task: AuditTask, model: nn.Module, baseline: nn.Module | None, options: AuditOptions
) -> AuditResult:
    """Return every number of a model on the test split. The generators' seed is the same for all, so it cancels."""
    from trainer.training import ensemble, evaluate, judging_generator, to_device

    prepared, evaluation, device = shared(common), evaluation_of(common), next(model.parameters()).device
    test = to_device(draw(prepared.data.test, options.test_size, seed=evaluation.split_seed), device)
    attacks = ensemble(
        norm=evaluation.eval_sensitivity_norm,
        epsilon=evaluation.eval_sensitivity_epsilon,
        steps=options.steps,
        queries=options.queries,
        model=model,
    )
    judging = prepared.judging_set("test").to(device)
    judged = evaluate(model, test, judging, attacks, generator=judging_generator(evaluation, device))
    proven = _certify(model, test, evaluation)
    assert proven.get("certified_accuracy", 0) <= judged.sensitivity_accuracy, "an attack broke what was proven robust"
    evidence = _check(common, model, baseline, test, options)
    return AuditResult(
        number=task.number,
        config=task.config,
        judged_by=judged_by(options),
        images=len(test.labels),
        numbers={**judged.numbers(), **proven, **_attack_invariance(common, model), "curve_area": evidence.curve.area},
        curve={name: list(values) for name, values in evidence.curve._asdict().items()},
        evidence={name: value for name, value in vars(evidence).items() if name != "curve"},
        warnings=evidence.warnings,
    )


def _certify(model: nn.Module, test: Split, evaluation: EvaluationConfig) -> dict[str, float]:
    """Return `certified_accuracy`, the share of test images that are proven robust at the judging budget.

    An L2 budget has no such number: the bounds are those of boxes, and the box around an L2 ball is far larger.
    """
    from trainer.models import Classifier
    from trainer.objective import certified_images

    if evaluation.eval_sensitivity_norm != "linf":
        return {}
    assert isinstance(model, Classifier)
    proven = certified_images(model, *test, evaluation.eval_sensitivity_epsilon)
    return {"certified_accuracy": proven.double().mean().item()}


def _attack_invariance(common: Task, model: nn.Module) -> dict[str, float]:
    """Run the per-model attack beside the fixed set, over all candidates of the test images.

    Returns:
        `adversary_accuracy`: of the people who see a change at most, the share whose answer the model gives even at
        its worst candidate; `adversary_stuck`: among images that it had right when clean, the share of these people
        who see a change in a candidate to which its answer is still the same; `adversary_size`: the number of images
        that would measure as surely, were all seen as changed by everybody.
    """
    import torch

    from trainer.attacks import frozen

    device = next(model.parameters()).device
    with frozen(model), torch.no_grad():
        found = shared(common).adversary("test").run(lambda images: model(images.to(device)).logits.cpu())
    return {
        "adversary_accuracy": 1 - _ratio(found.missed.sum(), found.changed.sum()),
        "adversary_stuck": _ratio(found.stuck[found.right].sum(), found.changed[found.right].sum()),
        "adversary_size": _ratio(found.changed.sum() ** 2, found.changed.square().sum()),
    }


def _ratio(part: Tensor, whole: Tensor) -> float:
    """Return a quotient of two sums; 0 if there is nothing to divide by."""
    return float(part / whole) if whole > 0 else 0.0


def _compare_with_people(common: Task, model: nn.Module, examples: ExamplesFolder) -> dict[str, Any]:
    """Return how far the judge and the model agree with people, in plain values."""
    from trainer.invariance import answers_of, ask_people

    answerers = {JUDGE: shared(common).answer, MODEL: answers_of(model)}
    return dataclasses.asdict(ask_people(examples, _labelled_sets(common, examples), answerers))


def _check(common: Task, model: nn.Module, baseline: nn.Module | None, test: Split, options: AuditOptions) -> Evidence:
    """Gather evidence against a meaningless attack, at half the steps: the check that doubles them takes all."""
    from trainer.attacks import frozen, gather_evidence
    from trainer.training import BATCH, judging_generator

    evaluation, device = evaluation_of(common), test.images.device
    with frozen(model), frozen(baseline) if baseline else contextlib.nullcontext():
        return gather_evidence(
            lambda images: model(images).logits,
            *test,
            norm=evaluation.eval_sensitivity_norm,
            epsilon=evaluation.eval_sensitivity_epsilon,
            generator=judging_generator(evaluation, device),
            undefended=(lambda images: baseline(images).logits) if baseline else None,
            steps=max(1, options.steps // 2),
            queries=max(1, options.queries // 5),
            batch_size=BATCH[device.type],
        )


def draw(split: Split, size: int, *, seed: int) -> Split:
    """Return so many images of a split, all for 0: drawn, since MNIST's first test images are easier than its last."""
    import torch

    count = len(split.labels)
    if not 0 < size < count:
        return split
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values
    return type(split)(split.images[chosen], split.labels[chosen])
