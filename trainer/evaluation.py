"""Judge a model: clean, sensitivity and invariance accuracy, each as the design defines it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer import sensitivity
from trainer.config import EvaluationConfig
from trainer.data import Split
from trainer.preparation import JudgingSet

EVALUATION_BATCH = 1000


class Evaluation(NamedTuple):
    """Accuracies and shares in [0, 1]; the field names are those of `EpochReport`."""

    clean_accuracy: float
    sensitivity_accuracy: float
    invariance_accuracy: float
    invariance_stuck: float
    invariance_unchanged: float
    invariance_changed_size: int


def evaluate(
    model: nn.Module,
    split: Split,
    judging: JudgingSet,
    attacks: Sequence[sensitivity.Attack],
    *,
    generator: torch.Generator,
) -> Evaluation:
    """All accuracies of `model`, which is left exactly as it was found.

    Args:
        split: images (N, C, H, W) in [0, 1] for clean and sensitivity accuracy.
        judging: perturbed images with the oracle's labels, for invariance accuracy.
        attacks: the sensitivity attacks, worst case over all of them per image.
        generator: the attacks' random starts.
    """
    with sensitivity.frozen(model):
        result = sensitivity.worst_case(
            lambda images: model(images).logits,
            split.images,
            split.labels,
            attacks,
            generator=generator,
            batch_size=EVALUATION_BATCH,
        )
        invariance = judge_invariance(model, judging)
    return Evaluation(mean(result.clean), mean(result.survived), *invariance)


def judge_invariance(model: nn.Module, judging: JudgingSet) -> tuple[float, float, float, int]:
    """Invariance accuracy, stuck share, agreement on the unchanged rest, and the size of C."""
    answers = predict(model, judging.images)
    right_when_clean = predict(model, judging.source_images) == judging.source_labels
    changed, unchanged = judging.changed, judging.unchanged
    return (
        mean(answers[changed] == judging.oracle_labels[changed]),
        mean((answers == judging.source_labels)[changed & right_when_clean]),
        mean(answers[unchanged] == judging.oracle_labels[unchanged]),
        int(changed.sum()),
    )


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The model's answers (N,) to images (N, C, H, W), in the mode the model is in."""
    return torch.cat([model(part).logits.argmax(1) for part in images.split(EVALUATION_BATCH)])


def mean(flags: Tensor) -> float:
    """The share of true flags; 0 of no flags, so that a model that had nothing right when clean is not stuck."""
    return flags.double().mean().item() if len(flags) else 0.0


def judging_attacks(evaluation: EvaluationConfig) -> list[sensitivity.Attack]:
    """The fixed attack that every epoch of every trial is judged by: PGD with the plan's budget and restarts."""
    return [
        sensitivity.pgd_attack(
            norm=evaluation.eval_sensitivity_norm,
            epsilon=evaluation.eval_sensitivity_epsilon,
            steps=evaluation.eval_sensitivity_steps,
            restarts=evaluation.eval_sensitivity_restarts,
        )
    ]
