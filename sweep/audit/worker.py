"""A task of an audit on a worker: a model of a finalist, trained if need be, and judged; torch only here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sweep.audit.results import AuditResult, AuditTask, judged_by, judged_file, read_result, result_file, sealed
from sweep.engine import Task, evaluation_of, explain, shared
from sweep.plan import AuditOptions
from sweep.state import judged_images
from trainer.config import EvaluationConfig, TrialConfig
from trainer.errors import InputError
from trainer.human_agreement import JUDGE, MODEL, ExamplesFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainer.attacks import Attack, Evidence, WorstCase
    from trainer.data import Split
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
            audited = dataclasses.replace(audited, people=_compare_with_people(common, model, examples))
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
    return "cuda" if common.use_gpu and torch.cuda.is_available() else "cpu"


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
    """Return every number of a model on the test split. The generators' seed is the same for all, so it cancels.

    The sweep's own model is attacked on the validation split as well, where it was selected, and its attack is checked.
    """
    from trainer.training import attacked, evaluate_attacked, to_device

    prepared, evaluation, device = shared(common), evaluation_of(common), next(model.parameters()).device
    rows = draw(len(prepared.data.test.labels), options.test_size, seed=evaluation.split_seed)
    test = to_device(type(prepared.data.test)(*(field[rows] for field in prepared.data.test)), device)
    attacks = _attacks(evaluation, options, model, classes=prepared.data.classes)
    outcome = attacked(model, test, attacks, generator=_generator(evaluation, device))
    judgings = [prepared.judging_set("test", judge=judge).to(device) for judge in range(options.judges)]
    judged = [evaluate_attacked(model, outcome, judging) for judging in judgings]
    proven = _certify(model, test, evaluation)
    assert proven.get("certified_accuracy", 0) <= judged[0].sensitivity_accuracy, "an attack broke what is proven"
    found = AuditResult(
        number=task.number,
        config=task.config,
        judged_by=judged_by(options),
        images=len(test.labels),
        rows=rows.tolist() if len(rows) < len(prepared.data.test.labels) else [],
        numbers={
            **{name: fmean(each.numbers()[name] for each in judged) for name in judged[0].numbers()},
            **proven,
            **_attack_invariance(common, model),
            **_validity(common, test, outcome, options),
        },
        answers=judged[0].answers.encode(),
        broken_by={attack.name: int((outcome.broken_by == k).sum()) for k, attack in enumerate(attacks)},
    )
    return _with_own(common, found, model, baseline, test, options) if task.own else found


def _with_own(
    common: Task, found: AuditResult, model: nn.Module, baseline: nn.Module | None, test: Split, options: AuditOptions
) -> AuditResult:
    """Return the result of the sweep's own model with its answers on the validation split, and with evidence."""
    from trainer.training import attacked, evaluate_attacked, final_attacks, to_device

    prepared, evaluation = shared(common), evaluation_of(common)
    device = test.images.device
    validation, judging = to_device(prepared.data.validation, device), prepared.judging.to(device)
    as_selected = final_attacks(evaluation, classes=prepared.data.classes)
    outcome = attacked(model, validation, as_selected, generator=_generator(evaluation, device))
    answers = {"selected": evaluate_attacked(model, outcome, judging).answers}
    left = outcome.survived.nonzero().flatten()
    if len(left):  # the full set of attacks meets what those have left
        part = type(validation)(*(field[left] for field in validation))
        attacks = _attacks(evaluation, options, model, classes=prepared.data.classes)
        outcome.survived[left] &= attacked(model, part, attacks, generator=_generator(evaluation, device)).survived
    answers["attacked"] = evaluate_attacked(model, outcome, judging).answers
    evidence = _check(common, model, baseline, test, options)
    return dataclasses.replace(
        found,
        own=True,
        numbers={**found.numbers, "curve_area": evidence.curve.area},
        validation={name: each.encode() for name, each in answers.items()},
        curve={name: list(values) for name, values in evidence.curve._asdict().items()},
        evidence={name: value for name, value in vars(evidence).items() if name != "curve"},
        warnings=evidence.warnings,
    )


def _attacks(evaluation: EvaluationConfig, options: AuditOptions, model: nn.Module, *, classes: int) -> list[Attack]:
    """Return the full set of attacks, with FAB at the end if it is asked for."""
    from trainer.attacks import fab_attack
    from trainer.training import ensemble

    budget = {"norm": evaluation.eval_sensitivity_norm, "epsilon": evaluation.eval_sensitivity_epsilon}
    fab = [fab_attack(**budget, steps=options.fab)] if options.fab else []
    return [*ensemble(**budget, steps=options.steps, queries=options.queries, classes=classes, model=model), *fab]


def _generator(evaluation: EvaluationConfig, device: torch.device) -> torch.Generator:
    from trainer.training import judging_generator

    return judging_generator(evaluation, device)


def _validity(common: Task, test: Split, outcome: WorstCase, options: AuditOptions) -> dict[str, float]:
    """Return whether people would still see the source's class in the images that broke the model.

    Returns:
        `sensitivity_invalid`: the share of the crowd, mean over judges, who see another class than the source's in an
        image that broke the model, on which it is then not wrong; `sensitivity_doubted`: the same on the images that
        these were made from. 0 where nothing was broken.
    """
    prepared = shared(common)
    broken = outcome.clean & ~outcome.survived
    labels = test.labels[broken].cpu()
    if not len(labels):
        return {"sensitivity_invalid": 0.0, "sensitivity_doubted": 0.0}
    judges = [prepared.judge_numbered(number) for number in range(options.judges)]

    def doubt(images: Tensor) -> float:
        answers = [judge.shares(images.cpu(), prepared.crowd) for judge in judges]
        return fmean(1 - share.gather(1, labels[:, None]).double().mean().item() for share in answers)

    return {
        "sensitivity_invalid": doubt(outcome.images[broken]),
        "sensitivity_doubted": doubt(test.images[broken]),
    }


def _certify(model: nn.Module, test: Split, evaluation: EvaluationConfig) -> dict[str, float]:
    """Return `certified_accuracy`, the share of test images that are proven robust at the judging budget.

    An L2 budget has no such number: the bounds are those of boxes, and the box around an L2 ball is far larger.
    Nor has a network of one's own: its layers may be any.
    """
    from trainer.models import Classifier
    from trainer.objective import certified_images

    if evaluation.eval_sensitivity_norm != "linf" or not isinstance(model, Classifier):
        return {}
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
    from trainer.training import BATCH

    evaluation, device = evaluation_of(common), test.images.device
    with frozen(model), frozen(baseline) if baseline else contextlib.nullcontext():
        return gather_evidence(
            lambda images: model(images).logits,
            *test,
            norm=evaluation.eval_sensitivity_norm,
            epsilon=evaluation.eval_sensitivity_epsilon,
            generator=_generator(evaluation, device),
            undefended=(lambda images: baseline(images).logits) if baseline else None,
            steps=max(1, options.steps // 2),
            queries=max(1, options.queries // 5),
            batch_size=BATCH[device.type],
        )


def draw(count: int, size: int, *, seed: int) -> Tensor:
    """Return positions of so many of `count` images, of all for 0: drawn, as MNIST's first test images are easier."""
    import torch

    if not 0 < size < count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values
