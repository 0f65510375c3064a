"""TODO one line."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.attacks import NORMS, Victim, check_logits, cross_entropy_scores, frozen, score_with_gradient
from trainer.config import EvaluationConfig
from trainer.data import Split
from trainer.errors import OtsweepError, TrialFailed
from trainer.invariance import JudgingSet
from trainer.report import check_finite
from trainer.training.evaluation import Evaluation, figures
from trainer.training.stacking import StackedModel, by_lane

JUDGED = {"cpu": 256, "cuda": 16384}
"""Images of all lanes in a pass of the judge: what a CPU's caches hold, what fills a GPU."""


def failure(epoch: int, numbers: Mapping[str, float]) -> TrialFailed | None:
    """What `check_finite` raises."""
    try:
        check_finite(epoch, numbers)
    except TrialFailed as error:
        return error
    return None


# ----------------------------------------------------------------------------------------------------------- judging


def judge_together(
    model: StackedModel,
    split: Split,
    judging: JudgingSet,
    evaluation: EvaluationConfig,
    *,
    generator: torch.Generator,
) -> list[Evaluation | OtsweepError]:
    """What `evaluate` says of each lane's model under `judging_attacks`; the model is left as it was found.

    Args:
        split: images (N, C, H, W) in [0, 1] for clean and sensitivity accuracy.
        judging: for invariance accuracy.
        generator: the attack's random starts, the same for all lanes as for one.
    """
    with frozen(model):
        logits = _answers(model, split.images)
        failures = [_unfit(each, split.labels) for each in logits]
        clean = logits.argmax(2) == split.labels
        sound = torch.tensor([each is None for each in failures], device=clean.device)
        survived = _withstand_pgd(model, split, clean & sound[:, None], evaluation, generator=generator)
        given = _answers(model, judging.images).argmax(2)
        right_when_clean = _answers(model, judging.source_images).argmax(2) == judging.source_labels
    return [
        failures[lane] or figures(clean[lane], survived[lane], judging, given[lane], right_when_clean[lane])
        for lane in range(model.lanes)
    ]


@torch.no_grad()
def _answers(model: StackedModel, images: Tensor) -> Tensor:
    """Every lane's logits (L, N, K) for the same images (N, C, H, W)."""
    parts = images.split(_per_lane(model, images))
    return torch.cat([by_lane(model(part.repeat(model.lanes, 1, 1, 1)).logits, model.lanes) for part in parts], 1)


def _per_lane(model: StackedModel, images: Tensor) -> int:
    """Images of a lane in a pass of the judge."""
    return max(1, JUDGED[images.device.type] // model.lanes)


def _unfit(logits: Tensor, labels: Tensor) -> OtsweepError | None:
    """What `check_logits` raises for a model's logits (N, K)."""
    try:
        check_logits(logits, labels)
    except OtsweepError as error:
        return error
    return None


def _withstand_pgd(
    model: StackedModel, split: Split, standing: Tensor, evaluation: EvaluationConfig, *, generator: torch.Generator
) -> Tensor:
    """Which of the images `standing` (L, N) bool every lane still has right after all rounds of the judge's PGD.

    The same points as `worst_case` tries with `pgd_attack`. There an image that was broken is left out; here lanes have
    to stay equally long, so that as many are kept of each as of the one with most left.
    """
    ball = NORMS[evaluation.eval_sensitivity_norm]
    noise = torch.Generator(generator.device)
    for _ in range(evaluation.eval_sensitivity_restarts):
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        delta = ball.random_start(split.images, evaluation.eval_sensitivity_epsilon, noise.manual_seed(seed))
        start = (split.images + delta).clamp(0, 1)
        for rows in _those_first(standing).split(_per_lane(model, split.images), dim=1):
            still = _withstand_round(model, split, rows, start, standing.gather(1, rows), evaluation)
            standing = standing.scatter(1, rows, still)
    return standing


def _withstand_round(
    model: StackedModel, split: Split, rows: Tensor, start: Tensor, standing: Tensor, evaluation: EvaluationConfig
) -> Tensor:
    """Which of some images every lane has right at all points of one ascent, (L, B) bool.

    Args:
        rows: (L, B) of the split.
        start: (N, C, H, W) of all images.
        standing: (L, B) bool, those that count.
    """
    ball, epsilon = NORMS[evaluation.eval_sensitivity_norm], evaluation.eval_sensitivity_epsilon
    step_size = 2.5 * epsilon / evaluation.eval_sensitivity_steps
    objective = cross_entropy_scores(Victim(lambda images: model(images).logits, *split))
    places = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    perturbed = start[rows.flatten()]
    for _ in range(evaluation.eval_sensitivity_steps):
        if not rows.shape[1]:
            return standing
        scores, gradient = score_with_gradient(objective, perturbed, rows.flatten())
        right = standing.gather(1, places) & ~by_lane(scores.wrong, len(rows))
        standing = standing.scatter(1, places, right)
        kept = _those_first(right)
        rows, places = rows.gather(1, kept), places.gather(1, kept)
        perturbed, gradient = (_pick(each, kept) for each in (perturbed, gradient))
        images = split.images[rows.flatten()]
        step = step_size * ball.steepest_step(gradient)
        perturbed = (images + ball.project(perturbed + step - images, epsilon)).clamp(0, 1)
    if not rows.shape[1]:
        return standing
    with torch.no_grad():
        wrong = objective(perturbed, rows.flatten()).wrong
    return standing.scatter(1, places, standing.gather(1, places) & ~by_lane(wrong, len(rows)))


def _those_first(flags: Tensor) -> Tensor:
    """Of each row of flags (L, B) where they are true, then of the others, up to as many as are true in any: (L, S)."""
    return flags.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(flags.sum(1).max())]


def _pick(images: Tensor, kept: Tensor) -> Tensor:
    """Of folded images (L B, ...) those that each lane keeps, (L, S) places in it."""
    firsts = torch.arange(len(kept), device=kept.device)[:, None] * (len(images) // len(kept))
    return images[(firsts + kept).flatten()]
