"""Judge a model: clean, sensitivity and invariance accuracy, each as the design defines it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.attacks import (
    Attack,
    apgd_attack,
    embedding_attack,
    frozen,
    pgd_attack,
    square_attack,
    targeted_apgd_attack,
    worst_case,
)
from trainer.attacks import predict as predict_logits
from trainer.config import EvaluationConfig
from trainer.data import Split
from trainer.invariance import JudgingSet

BATCH = {"cpu": 256, "cuda": 2048}
"""Images per pass of the model: what a CPU's caches hold, what fills a GPU."""


class Evaluation(NamedTuple):
    """Accuracies and shares in [0, 1]; the field names are those of `EpochReport`."""

    clean_accuracy: float
    sensitivity_accuracy: float
    invariance_accuracy: float
    invariance_stuck: float
    invariance_unchanged: float
    invariance_changed_size: int
    invariance_original_label: float


def evaluate(
    model: nn.Module,
    split: Split,
    judging: JudgingSet,
    attacks: Sequence[Attack],
    *,
    generator: torch.Generator,
) -> Evaluation:
    """All accuracies of `model`, which is left exactly as it was found.

    Args:
        model: images (B, C, H, W) to a `Prediction`.
        split: images (N, C, H, W) in [0, 1] for clean and sensitivity accuracy.
        judging: perturbed images with the oracle's labels, for invariance accuracy.
        attacks: the sensitivity attacks, worst case over all of them per image.
        generator: the attacks' random starts.

    Raises:
        TrialFailed: for a model whose logits are not finite.
    """
    batch = BATCH[split.images.device.type]
    with frozen(model):
        result = worst_case(
            lambda images: model(images).logits,
            split.images,
            split.labels,
            attacks,
            generator=generator,
            batch_size=batch,
        )
        answers = predict_labels(model, judging.images, batch_size=batch)
        right_when_clean = predict_labels(model, judging.source_images, batch_size=batch) == judging.source_labels
    return figures(result.clean, result.survived, judging, answers, right_when_clean)


def figures(
    clean: Tensor, survived: Tensor, judging: JudgingSet, answers: Tensor, right_when_clean: Tensor
) -> Evaluation:
    """What is said of a model that has been asked.

    Args:
        clean: (N,) bool, right on the unperturbed image.
        survived: (N,) bool, and under every sensitivity attack.
        answers: (M,) to the judging set's perturbed images.
        right_when_clean: (M,) bool, right on their sources.
    """
    changed, unchanged = judging.changed, judging.unchanged
    return Evaluation(
        clean_accuracy=mean(clean),
        sensitivity_accuracy=mean(survived),
        invariance_accuracy=mean((answers == judging.judge_labels)[changed]),
        invariance_stuck=mean((answers == judging.source_labels)[changed & right_when_clean]),
        invariance_unchanged=mean((answers == judging.judge_labels)[unchanged]),
        invariance_changed_size=int(changed.sum()),
        invariance_original_label=mean(answers == judging.source_labels),
    )


def predict_labels(model: nn.Module, images: Tensor, *, batch_size: int) -> Tensor:
    """The model's answers (N,) to images (N, C, H, W), in the mode the model is in."""
    return predict_logits(lambda batch: model(batch).logits, images, batch_size=batch_size).argmax(1)


def mean(flags: Tensor) -> float:
    """The share of true flags; 0 of no flags, so that a model that had nothing right when clean is not stuck."""
    return flags.double().mean().item() if len(flags) else 0.0


def judging_attacks(evaluation: EvaluationConfig) -> list[Attack]:
    """The fixed attack that every epoch of every trial is judged by: PGD with the plan's budget and restarts."""
    return [
        pgd_attack(
            norm=evaluation.eval_sensitivity_norm,
            epsilon=evaluation.eval_sensitivity_epsilon,
            steps=evaluation.eval_sensitivity_steps,
            restarts=evaluation.eval_sensitivity_restarts,
        )
    ]


def on_ladder(evaluation: EvaluationConfig, *, epoch: int, epochs: int, ladder: int) -> EvaluationConfig:
    """What an epoch is judged by where the attack grows with the training.

    In the second half, which the model is chosen from, it is the evaluation itself, so that all that may be chosen is
    judged alike. Before that every halving of the epoch halves the steps, down to `ladder` of them, with one restart.

    Args:
        epoch: from 1 to `epochs`.
        ladder: least steps; 0 for the whole attack from the first epoch on.
    """
    if ladder == 0 or 2 * epoch > epochs:
        return evaluation
    steps = evaluation.eval_sensitivity_steps
    while 2 * epoch <= epochs:
        epoch, steps = 2 * epoch, math.ceil(steps / 2)
    return replace(evaluation, eval_sensitivity_steps=max(steps, ladder), eval_sensitivity_restarts=1)


def strength(evaluation: EvaluationConfig) -> int:
    """Gradient steps per image of the judge's attack."""
    return evaluation.eval_sensitivity_steps * evaluation.eval_sensitivity_restarts


def ensemble(
    *,
    norm: str,
    epsilon: float,
    steps: int = 100,
    queries: int = 5000,
    model: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> list[Attack]:
    """The full evaluation set: APGD-CE, APGD-T, Square and, where the model is given, attacks of its embedding.

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        queries: calls of the model by Square.
        model: images (B, C, H, W) to (logits (B, K), embedding (B, D)).
    """
    attacks = [
        apgd_attack(norm=norm, epsilon=epsilon, steps=steps),
        targeted_apgd_attack(norm=norm, epsilon=epsilon, steps=steps),
    ]
    if model is not None:
        attacks += [
            embedding_attack(model, norm=norm, epsilon=epsilon, steps=steps, towards_other=towards_other)
            for towards_other in (False, True)
        ]
    return [*attacks, square_attack(norm=norm, epsilon=epsilon, queries=queries)]
