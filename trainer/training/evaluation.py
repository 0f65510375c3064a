"""Evaluation of a model: its clean, sensitivity and invariance accuracy.

Shape letters: N images of a split, M images of a judging set, B images of a batch, C channels, H rows, W columns, K
classes, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer.answers import Answers
from trainer.attacks import (
    APGD_SLACK,
    SQUARE_SLACK,
    Attack,
    WorstCase,
    apgd_attacks,
    embedding_attack,
    judged,
    pgd_attack,
    square_attack,
    worst_case,
)
from trainer.attacks import predict as predict_logits
from trainer.config import EvaluationConfig
from trainer.data import Split
from trainer.invariance import JudgingSet

BATCH = {"cpu": 256, "cuda": 2048}
"""Images per pass of the model, by type of device: as many as a CPU's caches hold, or as fill a GPU."""


_LIKELY_TARGETS = 4
"""Wrong classes that the chosen epoch is attacked towards. On models of MNIST 9 broke at most 0.004 of the images more,
in twice the time."""

_TARGETS_OF_EARLIER_VERSIONS = 9
"""The same where targeted PGD is left out, as in sweeps that began before there was any."""

_TINY = 1e-30
"""Stands for a sum of squares of 0."""


class Evaluation(NamedTuple):
    """Accuracies and shares in [0, 1], masses in images; the field names are those of `EpochReport`."""

    clean_accuracy: float
    sensitivity_accuracy: float
    invariance_accuracy: float
    invariance_stuck: float
    invariance_unchanged: float
    invariance_changed_mass: float
    invariance_effective_size: float
    invariance_original_label: float
    others: Mapping[str, float]
    """The invariance numbers by the other crowds, such as `lenient/invariance_accuracy`."""
    answers: Answers
    """The model's answers, from which all of this follows."""

    def numbers(self) -> dict[str, float]:
        """Return all numbers by name, in one flat mapping."""
        plain = {name: value for name, value in self._asdict().items() if name not in ("others", "answers")}
        return plain | dict(self.others)


def evaluate(
    model: nn.Module,
    split: Split,
    judging: JudgingSet,
    attacks: Sequence[Attack],
    *,
    generator: torch.Generator,
) -> Evaluation:
    """Measure all accuracies of a model, which is left exactly as it was found.

    Args:
        model: images (B, C, H, W) to a `Prediction`.
        split: images (N, C, H, W) in [0, 1] for clean and sensitivity accuracy.
        judging: perturbed images with the crowds' answers, for invariance accuracy.
        attacks: the sensitivity attacks; an image counts as robust only if it survives all of them.
        generator: draws the attacks' random starts.

    Raises:
        TrialFailed: for a model whose logits are not finite.
    """
    return evaluate_attacked(model, attacked(model, split, attacks, generator=generator), judging)


def evaluate_attacked(model: nn.Module, outcome: WorstCase, judging: JudgingSet) -> Evaluation:
    """Measure as `evaluate` does, where the outcome of the sensitivity attacks is known."""
    batch = BATCH[judging.images.device.type]
    with judged(model):
        answers = predict_labels(model, judging.images, batch_size=batch)
        right_when_clean = predict_labels(model, judging.source_images, batch_size=batch) == judging.source_labels
    return accuracies(answers_in_bits(outcome.clean, outcome.survived, answers, right_when_clean), judging)


def accuracies(given: Answers, judging: JudgingSet) -> Evaluation:
    """Compute the accuracies from a model's answers to the images of a split and of its judging set."""
    device = judging.images.device
    clean, survived, perturbed, right_sources = (
        torch.from_numpy(each).to(device)
        for each in (given.right, given.robust, given.perturbed.astype(np.int64), given.right_sources)
    )
    of_crowds = {
        name: _by_crowd(shares, judging.source_labels, perturbed, right_sources)
        for name, shares in judging.shares.items()
    }
    own, *others = of_crowds
    return Evaluation(
        clean_accuracy=_mean(clean),
        sensitivity_accuracy=_mean(survived),
        **of_crowds[own],
        invariance_original_label=_mean(perturbed == judging.source_labels),
        others={f"{name}/{number}": value for name in others for number, value in of_crowds[name].items()},
        answers=given,
    )


def answers_in_bits(clean: Tensor, survived: Tensor, answers: Tensor, right_when_clean: Tensor) -> Answers:
    """Return a model's answers as they are kept.

    Args:
        clean: (N,) bool, whether the model is right on each unperturbed image.
        survived: (N,) bool, whether it is right on the image and under every sensitivity attack.
        answers: (M,) int64, its answers to the judging set's perturbed images.
        right_when_clean: (M,) bool, whether it is right on their sources.
    """
    # Copies: an array that shares a tensor's memory would change with it.
    right, robust, right_sources = (each.cpu().numpy().copy() for each in (clean, survived, right_when_clean))
    return Answers(right, robust, answers.cpu().numpy().astype(np.uint8), right_sources)


def _by_crowd(shares: Tensor, sources: Tensor, answers: Tensor, right_when_clean: Tensor) -> dict[str, float]:
    """Compute the invariance numbers of a model's answers (M,) by a crowd.

    Args:
        shares: (M, K), q: the share of the crowd who give each answer.
        sources: (M,) int64, the labels of the sources.
        answers: (M,) int64, those of the model to the perturbed images.
        right_when_clean: (M,) bool, whether it is right on their sources.
    """
    shares = shares.double()
    unchanged, agreeing = (shares.gather(1, labels[:, None]).squeeze(1) for labels in (sources, answers))
    changed, kept = 1 - unchanged, answers == sources
    mass = changed.sum().item()
    return {
        "invariance_accuracy": _share(agreeing[~kept], changed),
        "invariance_stuck": _share(changed[kept & right_when_clean], changed[right_when_clean]),
        "invariance_unchanged": _share(unchanged[kept], unchanged),
        "invariance_changed_mass": mass,
        "invariance_effective_size": mass**2 / max(changed.square().sum().item(), _TINY),
    }


def _share(part: Tensor, whole: Tensor) -> float:
    """Return the sum of a part's weights over that of the whole's; 0 of nothing."""
    total = whole.sum().item()
    return part.sum().item() / total if total > 0 else 0.0


def predict_labels(model: nn.Module, images: Tensor, *, batch_size: int) -> Tensor:
    """Return the model's answers (N,) int64 to images (N, C, H, W) in [0, 1]; its mode is left as it is."""
    return predict_logits(lambda batch: model(batch).logits, images, batch_size=batch_size).argmax(1)


def _mean(flags: Tensor) -> float:
    """Return the share of true flags, in [0, 1]; 0 of no flags, so a model that is never right is not called stuck."""
    return flags.double().mean().item() if len(flags) else 0.0


def evaluation_attacks(evaluation: EvaluationConfig) -> list[Attack]:
    """Return the fixed attack by which every epoch of every trial is evaluated: PGD with the plan's budget."""
    return [
        pgd_attack(
            norm=evaluation.eval_sensitivity_norm,
            epsilon=evaluation.eval_sensitivity_epsilon,
            steps=evaluation.eval_sensitivity_steps,
            restarts=evaluation.eval_sensitivity_restarts,
        )
    ]


def final_attacks(evaluation: EvaluationConfig, *, classes: int) -> list[Attack]:
    """Return the attacks by which the chosen epoch is judged once more: PGD as before, then stronger ones.

    They are APGD-CE, targeted PGD and targeted APGD.

    Under PGD with one restart alone, models came out 5 to 16 points too robust, and by how much depended on their
    training. Only images that are still right meet the next attack, so a model that withstands nothing costs nothing.

    Args:
        evaluation: the full evaluation.
        classes: K; the targeted loss needs 4.
    """
    attacks = evaluation_attacks(evaluation)
    if steps := evaluation.eval_final_steps:
        norm, epsilon = evaluation.eval_sensitivity_norm, evaluation.eval_sensitivity_epsilon
        targeted = evaluation.eval_targeted_steps
        targets = _LIKELY_TARGETS if targeted else _TARGETS_OF_EARLIER_VERSIONS
        attacks += apgd_attacks(
            norm=norm, epsilon=epsilon, steps=steps, classes=classes, targets=targets, targeted_steps=targeted
        )
    return attacks


def final_effort(evaluation: EvaluationConfig, *, classes: int) -> float:
    """Return the gradient steps of what `final_attacks` adds, over those of an epoch's attack."""
    steps = {"pgd-t": evaluation.eval_targeted_steps}
    rounds = final_attacks(evaluation, classes=classes)[1:]
    taken = sum(attack.rounds * steps.get(attack.name, evaluation.eval_final_steps) for attack in rounds)
    return 1 + taken / attack_steps(evaluation)


def surviving(model: nn.Module, split: Split, attacks: Sequence[Attack], *, generator: torch.Generator) -> Tensor:
    """Return which images (N,) bool a model has right when clean and under every attack.

    The model is left exactly as it was found.

    Args:
        model, split, attacks, generator: those of `evaluate`.
    """
    return attacked(model, split, attacks, generator=generator).survived


def attacked(model: nn.Module, split: Split, attacks: Sequence[Attack], *, generator: torch.Generator) -> WorstCase:
    """Return what a model has right, what of it is left under every attack, and the images that broke the rest.

    The model is left exactly as it was found.

    Args:
        model, split, attacks, generator: those of `evaluate`.
    """
    with judged(model):
        return worst_case(
            lambda images: model(images).logits,
            split.images,
            split.labels,
            attacks,
            generator=generator,
            batch_size=BATCH[split.images.device.type],
        )


def judging_generator(evaluation: EvaluationConfig) -> torch.Generator:
    """Return the generator of the attack's random starts, which are the same for every trial, epoch and device."""
    return torch.Generator().manual_seed(evaluation.split_seed)


def on_ladder(evaluation: EvaluationConfig, *, epoch: int, epochs: int, ladder: int) -> EvaluationConfig:
    """Return the evaluation of an epoch where the attack grows with the training.

    In the second half, from which the model is chosen, it is the full evaluation, so that all candidates are measured
    alike. Before that every halving of the epoch halves the steps, down to `ladder` of them, with one restart.

    Args:
        evaluation: the full evaluation.
        epoch: from 1 to `epochs`.
        epochs: of the whole training.
        ladder: least steps; 0 for the full attack in every epoch.
    """
    if ladder == 0 or 2 * epoch > epochs:
        return evaluation
    steps = evaluation.eval_sensitivity_steps
    while 2 * epoch <= epochs:
        epoch, steps = 2 * epoch, math.ceil(steps / 2)
    return replace(evaluation, eval_sensitivity_steps=max(steps, ladder), eval_sensitivity_restarts=1)


def attack_steps(evaluation: EvaluationConfig) -> int:
    """Return the gradient steps per image of the evaluation's attack, over all restarts."""
    return evaluation.eval_sensitivity_steps * evaluation.eval_sensitivity_restarts


def ensemble(
    *,
    norm: str,
    epsilon: float,
    steps: int = 100,
    queries: int = 5000,
    classes: int = 10,
    model: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> list[Attack]:
    """Return the full set of attacks: APGD-CE, targeted PGD and APGD, attacks on a given model's embedding, and Square.

    Images that are out of reach of one are given up early, but by targeted PGD, which has half the steps: that takes a
    third of the time.

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        queries: calls of the model that Square makes.
        classes: K; the targeted loss needs 4.
        model: maps images (B, C, H, W) to (logits (B, K), embedding (B, D)).
    """
    targeted = max(1, steps // 2)
    attacks = apgd_attacks(
        norm=norm, epsilon=epsilon, steps=steps, classes=classes, targeted_steps=targeted, slack=APGD_SLACK
    )
    if model is not None:
        attacks += [
            embedding_attack(
                model, norm=norm, epsilon=epsilon, steps=steps, towards_other=towards_other, slack=APGD_SLACK
            )
            for towards_other in (False, True)
        ]
    return [*attacks, square_attack(norm=norm, epsilon=epsilon, queries=queries, slack=SQUARE_SLACK)]
