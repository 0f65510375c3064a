"""TODO one line."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.attacks.attack import Attack, Objective, Scores, Victim
from trainer.attacks.logits import Logits, is_wrong
from trainer.attacks.norms import Budget, Draws, Norm, checked_ball, choose, per_image, positive

Loss = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to a loss per image (B,), which an attack maximises."""


# --------------------------------------------------------------------------------------------------------- losses


def cross_entropy_loss(logits: Logits, labels: Tensor) -> Loss:
    """Cross-entropy of the labels (B,)."""
    return lambda images: F.cross_entropy(logits(images), labels, reduction="none")


def kl_loss(logits: Logits, clean_logits: Tensor) -> Loss:
    """KL(clean || perturbed) of the predictions, as TRADES attacks (Zhang et al. 2019, eq. 5).

    Its gradient is 0 at the clean images themselves: start at random.

    Args:
        logits: the model.
        clean_logits: its answers (B, K) to the clean images.
    """
    clean = F.log_softmax(clean_logits.detach(), dim=1)
    return lambda images: F.kl_div(F.log_softmax(logits(images), 1), clean, reduction="none", log_target=True).sum(1)


# --------------------------------------------------------------------------------------- attacks to train with


def fgsm(loss: Loss, images: Tensor, *, norm: Norm, epsilon: Budget) -> Tensor:
    """Fast gradient (sign) method (Goodfellow et al. 2015): one step of the whole budget from the image itself.

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
    """Projected gradient ascent (Madry et al. 2018). The same operations whatever the data: it can be captured.

    Args:
        loss: what to maximise.
        images: (B, C, H, W) in [0, 1].
        norm: one of `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps, at least 1.
        taken: (B,) how many of them each image takes before it stands still; None takes all.
        step_size: length of a step in pixel units; 2.5 epsilon / steps if not given, which can cross the norm.
        generator: draws the start from the ball; without one the start is the image itself.

    Returns:
        Perturbed images (B, C, H, W) in [0, 1], inside the norm.
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
    """Gradient (B, C, H, W) of each image's loss in that image; no parameter's `.grad` is touched."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        total = loss(images).sum()
    return torch.autograd.grad(total, images)[0]


def fgsm_attack(*, norm: str, epsilon: float) -> Attack:
    """FGSM on the cross-entropy."""
    ball = checked_ball(norm, epsilon)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        images = victim.images[rows]
        return _ascend(cross_entropy_scores(victim), images, images, rows, ball, epsilon, steps=1, step_size=epsilon)

    return Attack("fgsm", 1, run)


def pgd_attack(*, norm: str, epsilon: float, steps: int, restarts: int = 1, step_size: float | None = None) -> Attack:
    """PGD on the cross-entropy, every round from its own random start.

    Unlike `pgd` it looks at every point on the way, and an image leaves at its first wrong answer.

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        restarts: rounds.
        step_size: length of a step in pixel units; 2.5 epsilon / steps if not given.
    """
    ball = checked_ball(norm, epsilon)
    length = 2.5 * epsilon / positive("steps", steps) if step_size is None else step_size

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        images = victim.images[rows]
        start = (images + ball.random_start(victim.images, epsilon, generator)[rows]).clamp(0, 1)
        return _ascend(cross_entropy_scores(victim), images, start, rows, ball, epsilon, steps=steps, step_size=length)

    return Attack("pgd", positive("restarts", restarts), run)


def cross_entropy_scores(victim: Victim) -> Objective:
    def objective(perturbed: Tensor, rows: Tensor) -> Scores:
        answer, labels = victim.logits(perturbed), victim.labels[rows]
        return Scores(F.cross_entropy(answer, labels, reduction="none"), is_wrong(answer, labels))

    return objective


def _ascend(
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
    """The loop of `pgd` in which an image stops where the model is first wrong."""
    found, standing, perturbed = start.clone(), torch.arange(len(rows), device=rows.device), start
    for _ in range(steps):
        scores, gradient = score_with_gradient(objective, perturbed, rows)
        right = ~scores.wrong
        standing, rows, images, perturbed = standing[right], rows[right], images[right], perturbed[right]
        if not len(rows):
            break
        step = step_size * ball.steepest_step(gradient[right])
        perturbed = (images + ball.project(perturbed + step - images, epsilon)).clamp(0, 1)
        found[standing] = perturbed
    return found


def score_with_gradient(objective: Objective, perturbed: Tensor, rows: Tensor) -> tuple[Scores, Tensor]:
    """Scores and the gradient (B, C, H, W) of the loss, in one pass."""
    perturbed = perturbed.detach().requires_grad_()
    with torch.enable_grad():
        scores = objective(perturbed, rows)
        (gradient,) = torch.autograd.grad(scores.loss.sum(), perturbed)
    return Scores(scores.loss.detach(), scores.wrong), gradient
