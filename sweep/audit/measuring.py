"""One model measured on the test split: under the full set of attacks, by several judges; torch only in here.

An audit measures its finalists so, and `judge` any model that it is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from sweep.plan import AuditOptions
from trainer.config import EvaluationConfig
from trainer.human_agreement import JUDGE, MODEL, ExamplesFolder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.attacks import Attack, Evidence, WorstCase
    from trainer.data import Split
    from trainer.invariance import LabelledSet, Prepared


class Measured(NamedTuple):
    """The measurements of one model; the fields are those of an `AuditResult`, which explains them."""

    images: int
    rows: list[int]
    numbers: dict[str, float]
    answers: str
    broken_by: dict[str, int]
    curve: dict[str, list[float]]
    evidence: dict[str, float | None]
    warnings: list[str]


def measure_model(
    model: nn.Module,
    prepared: Prepared,
    options: AuditOptions,
    *,
    with_evidence: bool = True,
    baseline: nn.Module | None = None,
    begin: Callable[[str], object] = lambda stage: None,
) -> Measured:
    """Return every number of a model on the test split. The generators' seed is the same for all, so it cancels.

    Args:
        model: images (B, C, H, W) to a `Prediction`; left exactly as it was found.
        prepared: data and judges.
        options: the effort.
        with_evidence: whether its accuracy over the budget and the evidence for its attack are measured too.
        baseline: an undefended model, from which attacks are transferred for the evidence.
        begin: called with the name of each stage that begins.

    Raises:
        InputError: if nothing can be judged on the test split.
        TrialFailed: for a model whose logits are not finite.
    """
    from trainer.training import attacked, evaluate_attacked, judging_generator, to_device

    evaluation, data = prepared.evaluation, prepared.data
    device = next(model.parameters()).device
    begin("sensitivity attacks")
    rows = _draw(len(data.test.labels), options.test_size, seed=evaluation.split_seed)
    test = to_device(type(data.test)(*(field[rows] for field in data.test)), device)
    attacks = _full_attacks(evaluation, options, model, classes=data.classes)
    outcome = attacked(model, test, attacks, generator=judging_generator(evaluation))
    begin("invariance images")
    judgings = [prepared.judging_set("test", judge=judge).to(device) for judge in range(options.judges)]
    judged = [evaluate_attacked(model, outcome, judging) for judging in judgings]
    begin("certified accuracy")
    proven = _certify(model, test, evaluation)
    assert proven.get("certified_accuracy", 0) <= judged[0].sensitivity_accuracy, "an attack broke what is proven"
    begin("per-model invariance attack")
    numbers = {
        **{name: fmean(each.numbers()[name] for each in judged) for name in judged[0].numbers()},
        **proven,
        **_attack_invariance(prepared, model),
        **_validity(prepared, test, outcome, options),
    }
    measured = Measured(
        images=len(test.labels),
        rows=rows.tolist() if len(rows) < len(data.test.labels) else [],
        numbers=numbers,
        answers=judged[0].answers.encode(),
        broken_by={attack.name: int((outcome.broken_by == k).sum()) for k, attack in enumerate(attacks)},
        curve={},
        evidence={},
        warnings=[],
    )
    if not with_evidence:
        return measured
    begin("evidence for the attack")
    evidence = _check(model, baseline, test, evaluation, options)
    return measured._replace(
        numbers=numbers | {"curve_area": evidence.curve.area},
        curve={name: list(values) for name, values in evidence.curve._asdict().items()},
        evidence={name: value for name, value in vars(evidence).items() if name != "curve"},
        warnings=evidence.warnings,
    )


def _full_attacks(
    evaluation: EvaluationConfig, options: AuditOptions, model: nn.Module, *, classes: int
) -> list[Attack]:
    """Return the full set of attacks, with FAB at the end if it is asked for."""
    from trainer.attacks import fab_attack
    from trainer.training import ensemble

    budget: dict[str, Any] = {
        "norm": evaluation.eval_sensitivity_norm,
        "epsilon": evaluation.eval_sensitivity_epsilon,
    }
    fab = [fab_attack(**budget, steps=options.fab)] if options.fab else []
    return [*ensemble(**budget, steps=options.steps, queries=options.queries, classes=classes, model=model), *fab]


def _validity(prepared: Prepared, test: Split, outcome: WorstCase, options: AuditOptions) -> dict[str, float]:
    """Return whether people would still see the source's class in the images that broke the model.

    Returns:
        `sensitivity_invalid`: the share of the crowd, mean over judges, who see another class than the source's in an
        image that broke the model, on which it is then not wrong; `sensitivity_doubted`: the same on the images that
        these were made from. 0 where nothing was broken.
    """
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


def why_uncertified(model: nn.Module, evaluation: EvaluationConfig) -> str:
    """Return why no bounds of a model can be computed; an empty text if they can."""
    from trainer.models import Classifier

    if evaluation.eval_sensitivity_norm != "linf":
        return "the bounds are those of boxes, and the box around an L2 ball is far larger"
    return "" if isinstance(model, Classifier) else "bounds are known for the built-in networks alone"


def _certify(model: nn.Module, test: Split, evaluation: EvaluationConfig) -> dict[str, float]:
    """Return `certified_accuracy`, the share of test images that are proven robust, where that can be computed."""
    from trainer.models import Classifier
    from trainer.objective import certified_images

    if why_uncertified(model, evaluation):
        return {}
    assert isinstance(model, Classifier)
    proven = certified_images(model, *test, evaluation.eval_sensitivity_epsilon)
    return {"certified_accuracy": proven.double().mean().item()}


def _attack_invariance(prepared: Prepared, model: nn.Module) -> dict[str, float]:
    """Run the per-model attack beside the fixed set, over all candidates of the test images.

    Returns:
        `adversary_accuracy`: of the people who see a change at most, the share whose answer the model gives even at
        its worst candidate; `adversary_stuck`: among images that it had right when clean, the share of these people
        who see a change in a candidate to which its answer is still the same; `adversary_size`: the number of images
        that would measure as surely, were all seen as changed by everybody.
    """
    import torch

    from trainer.attacks import judged

    device = next(model.parameters()).device
    with judged(model), torch.no_grad():
        found = prepared.adversary("test").run(lambda images: model(images.to(device)).logits.cpu())
    return {
        "adversary_accuracy": 1 - _ratio(found.missed.sum(), found.changed.sum()),
        "adversary_stuck": _ratio(found.stuck[found.right].sum(), found.changed[found.right].sum()),
        "adversary_size": _ratio(found.changed.sum() ** 2, found.changed.square().sum()),
    }


def _ratio(part: Tensor, whole: Tensor) -> float:
    """Return a quotient of two sums; 0 if there is nothing to divide by."""
    return float(part / whole) if whole > 0 else 0.0


def _check(
    model: nn.Module, baseline: nn.Module | None, test: Split, evaluation: EvaluationConfig, options: AuditOptions
) -> Evidence:
    """Gather evidence against a meaningless attack, at half the steps: the check that doubles them takes all."""
    from trainer.attacks import gather_evidence, judged
    from trainer.training import BATCH, judging_generator

    device = test.images.device
    with judged(model), judged(baseline) if baseline else contextlib.nullcontext():
        return gather_evidence(
            lambda images: model(images).logits,
            *test,
            norm=evaluation.eval_sensitivity_norm,
            epsilon=evaluation.eval_sensitivity_epsilon,
            generator=judging_generator(evaluation),
            undefended=(lambda images: baseline(images).logits) if baseline else None,
            steps=max(1, options.steps // 2),
            queries=max(1, options.queries // 5),
            batch_size=BATCH[device.type],
        )


def _draw(count: int, size: int, *, seed: int) -> Tensor:
    """Return positions of so many of `count` images, of all for 0: drawn, as MNIST's first test images are easier."""
    import torch

    if not 0 < size < count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values


def compare_with_people(
    model: nn.Module, prepared: Prepared, examples: ExamplesFolder, sets: Sequence[LabelledSet]
) -> dict[str, Any]:
    """Return how far the judge and a model agree with people, a `HumanAgreement` in plain values.

    Args:
        model: images (B, C, H, W) to a `Prediction`.
        prepared: the judge.
        examples: the folder that the sets were read from.
        sets: images that people labelled.
    """
    from trainer.invariance import answers_of, ask_people

    answerers = {JUDGE: prepared.answer, MODEL: answers_of(model)}
    return dataclasses.asdict(ask_people(examples, sets, answerers))


def answers_on_validation(model: nn.Module, prepared: Prepared, options: AuditOptions) -> dict[str, str]:
    """Return the answers of a model on the validation split, where it was selected, encoded.

    Those `selected` are under the attacks that it was selected by, those `attacked` under the full set too.
    """
    from trainer.training import attacked, evaluate_attacked, final_attacks, judging_generator, to_device

    evaluation, device = prepared.evaluation, next(model.parameters()).device
    validation, judging = to_device(prepared.data.validation, device), prepared.judging.to(device)
    as_selected = final_attacks(evaluation, classes=prepared.data.classes)
    outcome = attacked(model, validation, as_selected, generator=judging_generator(evaluation))
    survived, left = outcome.survived.clone(), outcome.survived.nonzero().flatten()
    if len(left):  # the full set of attacks meets what those have left
        part = type(validation)(*(field[left] for field in validation))
        attacks = _full_attacks(evaluation, options, model, classes=prepared.data.classes)
        survived[left] = attacked(model, part, attacks, generator=judging_generator(evaluation)).survived
    outcomes = {"selected": outcome, "attacked": outcome._replace(survived=survived)}
    return {name: evaluate_attacked(model, each, judging).answers.encode() for name, each in outcomes.items()}
