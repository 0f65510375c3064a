"""The evaluation of stacked trials: the numbers of `evaluate` for each, in passes that all share.

Shape letters: T stacked trials, N images of a split, M images of a judging set, B images of each trial in a pass, S of
those that are kept, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.attacks import NORMS, Victim, check_logits, cross_entropy_scores, judged, score_with_gradient
from trainer.config import EvaluationConfig
from trainer.data import Split
from trainer.errors import OtsweepError
from trainer.invariance import JudgingSet
from trainer.training.evaluation import Evaluation, accuracies, answers_in_bits
from trainer.training.stacked_models import StackedModel, by_trial

STACKED_BATCH = {"cpu": 256, "cuda": 16384}
"""Images of all trials in a pass, by type of device: as many as a CPU's caches hold, or as fill a GPU."""


def error_of(check: Callable[..., object], *arguments: object) -> OtsweepError | None:
    """Return the error that a check of one trial's numbers raises, or None, so that the other trials go on."""
    try:
        check(*arguments)
    except OtsweepError as error:
        return error
    return None


def evaluate_stack(
    model: StackedModel,
    split: Split,
    judging: JudgingSet,
    evaluation: EvaluationConfig,
    *,
    generator: torch.Generator,
) -> list[Evaluation | OtsweepError]:
    """Return what `evaluate` returns or raises for each trial's model under `evaluation_attacks`.

    The model is left exactly as it was found.

    Args:
        model: the trials' models, stacked.
        split: images (N, C, H, W) in [0, 1] for clean and sensitivity accuracy.
        judging: perturbed images with the crowds' answers, for invariance accuracy.
        evaluation: the attack's norm, budget, steps and restarts.
        generator: draws the attack's random starts, the same for all trials as for one.
    """
    with judged(model):
        logits = _logits(model, split.images)
        failures = [error_of(check_logits, each, split.labels) for each in logits]
        clean = logits.argmax(2) == split.labels
        sound = torch.tensor([each is None for each in failures], device=clean.device)
        survived = _survive_pgd(model, split, clean & sound[:, None], evaluation, generator=generator)
        answers = _logits(model, judging.images).argmax(2)
        right_when_clean = _logits(model, judging.source_images).argmax(2) == judging.source_labels
    return [
        failures[i] or accuracies(answers_in_bits(clean[i], survived[i], answers[i], right_when_clean[i]), judging)
        for i in range(model.trials)
    ]


@torch.no_grad()
def _logits(model: StackedModel, images: Tensor) -> Tensor:
    """Return every trial's logits (T, N, K) for the same images (N, C, H, W)."""
    parts = images.split(_images_per_trial(model, images))
    return torch.cat([by_trial(model(part.repeat(model.trials, 1, 1, 1)).logits, model.trials) for part in parts], 1)


def _images_per_trial(model: StackedModel, images: Tensor) -> int:
    """Return how many images of each trial go through the models in one pass."""
    return max(1, STACKED_BATCH[images.device.type] // model.trials)


def _survive_pgd(
    model: StackedModel, split: Split, standing: Tensor, evaluation: EvaluationConfig, *, generator: torch.Generator
) -> Tensor:
    """Return which of the images `standing`, (T, N) bool, each trial still has right after all restarts of PGD.

    The points tried are those of `worst_case` with `pgd_attack`. There a broken image is left out; here all trials must
    keep equally many, so each keeps as many as the trial with most left.
    """
    ball = NORMS[evaluation.eval_sensitivity_norm]
    noise = torch.Generator()
    for _ in range(evaluation.eval_sensitivity_restarts):
        seed = int(torch.randint(2**62, (), generator=generator))
        delta = ball.random_start(split.images, evaluation.eval_sensitivity_epsilon, noise.manual_seed(seed))
        start = (split.images + delta).clamp(0, 1)
        for rows in _true_first(standing).split(_images_per_trial(model, split.images), dim=1):
            still = _survive_ascent(model, split, rows, start, standing.gather(1, rows), evaluation)
            standing = standing.scatter(1, rows, still)
    return standing


def _survive_ascent(
    model: StackedModel, split: Split, rows: Tensor, start: Tensor, standing: Tensor, evaluation: EvaluationConfig
) -> Tensor:
    """Return which of some images each trial has right at all points of one ascent, (T, B) bool.

    Args:
        rows: (T, B) of the split.
        start: (N, C, H, W) of all images.
        standing: (T, B) bool, the images that count.
    """
    ball, epsilon = NORMS[evaluation.eval_sensitivity_norm], evaluation.eval_sensitivity_epsilon
    step_size = 2.5 * epsilon / evaluation.eval_sensitivity_steps
    objective = cross_entropy_scores(Victim(lambda images: model(images).logits, *split))
    columns = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    perturbed = start[rows.flatten()]
    for _ in range(evaluation.eval_sensitivity_steps):
        if not rows.shape[1]:
            return standing
        scores, gradient = score_with_gradient(objective, perturbed, rows.flatten())
        right = standing.gather(1, columns) & ~by_trial(scores.wrong, len(rows))
        standing = standing.scatter(1, columns, right)
        kept = _true_first(right)
        rows, columns = rows.gather(1, kept), columns.gather(1, kept)
        perturbed, gradient = (_pick(each, kept) for each in (perturbed, gradient))
        images = split.images[rows.flatten()]
        step = step_size * ball.steepest_step(gradient)
        perturbed = (images + ball.project(perturbed + step - images, epsilon)).clamp(0, 1)
    if not rows.shape[1]:
        return standing
    with torch.no_grad():
        wrong = objective(perturbed, rows.flatten()).wrong
    return standing.scatter(1, columns, standing.gather(1, columns) & ~by_trial(wrong, len(rows)))


def _true_first(flags: Tensor) -> Tensor:
    """Return the columns of flags (T, B), in each row those that are true first: (T, S), S the most true in a row."""
    return flags.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(flags.sum(1).max())]


def _pick(folded: Tensor, kept: Tensor) -> Tensor:
    """Return of folded images (T B, ...) those that each trial keeps, by their columns (T, S): (T S, ...)."""
    firsts = torch.arange(len(kept), device=kept.device)[:, None] * (len(folded) // len(kept))
    return folded[(firsts + kept).flatten()]
