"""Attacks by gradient: FGSM and PGD, as lean functions to train with and as an `Attack` to judge by.

Shape letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.attacks.attack import Attack, Objective, Scores, Victim
from trainer.attacks.draws import Draws
from trainer.attacks.logits import Logits, is_wrong
from trainer.attacks.norms import Budget, Norm, checked_ball, choose, per_image, positive

Loss = Callable[[Tensor], Tensor]
"""Function from images (B, C, H, W) to a loss per image (B,), which an attack maximises."""


def cross_entropy_loss(logits: Logits, labels: Tensor) -> Loss:
    """Build the cross-entropy of the labels (B,)."""
    return lambda images: F.cross_entropy(logits(images), labels, reduction="none")


def kl_loss(logits: Logits, clean_logits: Tensor) -> Loss:
    """Build KL(clean || perturbed) of the predictions, the loss that TRADES attacks (Zhang et al. 2019, eq. 5).

    Its gradient is 0 at the clean images themselves, so an attack on it has to start at random.

    Args:
        logits: the model.
        clean_logits: its logits (B, K) for the clean images.
    """
    clean = F.log_softmax(clean_logits.detach(), dim=1)
    return lambda images: F.kl_div(F.log_softmax(logits(images), 1), clean, reduction="none", log_target=True).sum(1)


def fgsm(loss: Loss, images: Tensor, *, norm: Norm, epsilon: Budget) -> Tensor:
    """Take one step of the whole budget from the image: the fast gradient (sign) method (Goodfellow et al. 2015).

    Args:
        loss: what to maximise.
        images: (B, C, H, W) in [0, 1].
        norm: one of `NORMS`.
        epsilon: budget in pixel units.

    Returns:
        Perturbed images (B, C, H, W) in [0, 1], inside the ball.
    """
    return pgd(loss, images, norm=norm, epsilon=epsilon, steps=1, step_size=epsilon)


def pgd(
    loss: Loss,
    images: Tensor,
    *,
    norm: Norm,
    epsilon: Budget,
    steps: int,
    taken: Tensor | None = None,
    step_size: Budget | None = None,
    generator: Draws | None = None,
) -> Tensor:
    """Maximise the loss by projected gradient ascent (Madry et al. 2018).

    The operations are the same whatever the data, so a CUDA graph can capture them.

    Args:
        loss: what to maximise.
        images: (B, C, H, W) in [0, 1].
        norm: one of `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps, at least 1.
        taken: (B,) number of steps after which an image no longer moves; None moves all images at every step.
        step_size: length of a step in pixel units; 2.5 epsilon / steps if not given, enough to cross the ball.
        generator: draws the start from the ball; without one the start is the image itself.

    Returns:
        Perturbed images (B, C, H, W) in [0, 1], inside the ball.

    Raises:
        InputError: for steps below 1.
    """
    count = positive("steps", steps) if taken is None else taken
    length = per_image(2.5 * epsilon / count if step_size is None else step_size)
    images = images.detach()
    perturbed = images
    if generator is not None:
        perturbed = (images + norm.random_start(images, epsilon, generator)).clamp(0, 1)
    for number in range(steps):
        step = length * norm.steepest_step(input_gradient(loss, perturbed))
        moved = (images + norm.project(perturbed + step - images, epsilon)).clamp(0, 1)
        perturbed = moved if taken is None else choose(number < taken, moved, perturbed)
    return perturbed


def input_gradient(loss: Loss, images: Tensor) -> Tensor:
    """Return the gradient (B, C, H, W) of each image's loss in that image; leave every parameter's `.grad` alone."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        total = loss(images).sum()
    return torch.autograd.grad(total, images)[0]


def fgsm_attack(*, norm: str, epsilon: float) -> Attack:
    """Build FGSM on the cross-entropy; `norm` is a name in `NORMS`, `epsilon` in pixel units."""
    ball = checked_ball(norm, epsilon)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        images = victim.images[rows]
        return ascend(cross_entropy_scores(victim), images, images, rows, ball, epsilon, steps=1, step_size=epsilon)

    return Attack("fgsm", 1, run)


def pgd_attack(*, norm: str, epsilon: float, steps: int, restarts: int = 1, step_size: float | None = None) -> Attack:
    """Build PGD on the cross-entropy, every round from its own random start.

    Unlike `pgd` it looks at every point on the way: an image is done at its first wrong answer.

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        restarts: rounds.
        step_size: length of a step in pixel units; 2.5 epsilon / steps if not given.

    Raises:
        InputError: for an unknown norm, a budget that it can't have, or steps or restarts below 1.
    """
    ball = checked_ball(norm, epsilon)
    length = 2.5 * epsilon / positive("steps", steps) if step_size is None else step_size

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        images = victim.images[rows]
        start = (images + ball.random_start(victim.images, epsilon, generator)[rows]).clamp(0, 1)
        return ascend(cross_entropy_scores(victim), images, start, rows, ball, epsilon, steps=steps, step_size=length)

    return Attack("pgd", positive("restarts", restarts), run)


def cross_entropy_scores(victim: Victim) -> Objective:
    """Build the objective of the cross-entropy of the victim's labels."""

    def objective(perturbed: Tensor, rows: Tensor) -> Scores:
        answer, labels = victim.logits(perturbed), victim.labels[rows]
        return Scores(F.cross_entropy(answer, labels, reduction="none"), is_wrong(answer, labels), answer)

    return objective


def ascend(
    objective: Objective,
    images: Tensor,
    start: Tensor,
    rows: Tensor,
    ball: Norm,
    epsilon: float,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """Run the loop of `pgd` from `start` (B, C, H, W), in which an image stops where the model is first wrong."""
    found, position, perturbed = start.clone(), torch.arange(len(rows), device=rows.device), start
    for _ in range(steps):
        scores, gradient = score_with_gradient(objective, perturbed, rows)
        right = ~scores.wrong
        position, rows, images, perturbed = position[right], rows[right], images[right], perturbed[right]
        if not len(rows):
            break
        step = step_size * ball.steepest_step(gradient[right])
        perturbed = (images + ball.project(perturbed + step - images, epsilon)).clamp(0, 1)
        found[position] = perturbed
    return found


def score_with_gradient(objective: Objective, perturbed: Tensor, rows: Tensor) -> tuple[Scores, Tensor]:
    """Return scores and the gradient (B, C, H, W) of the loss, by one pass."""
    perturbed = perturbed.detach().requires_grad_()
    with torch.enable_grad():
        scores = objective(perturbed, rows)
        (gradient,) = torch.autograd.grad(scores.loss.sum(), perturbed)
    logits = None if scores.logits is None else scores.logits.detach()
    return Scores(scores.loss.detach(), scores.wrong, logits), gradient
