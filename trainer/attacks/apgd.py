"""Auto-PGD (Croce and Hein 2020): on the cross-entropy, on the targeted DLR loss, and on distances of embeddings.

Shape letters: N images of a set, B of a batch, C channels, H rows, W columns, K classes, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.attacks.attack import Attack, Objective, Scores, Victim
from trainer.attacks.gradient import cross_entropy_scores, score_with_gradient
from trainer.attacks.logits import is_wrong, logit_at
from trainer.attacks.norms import Norm, checked_ball, choose, positive
from trainer.errors import InputError


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio (Croce & Hein 2020, eq. 7), blind to shift and scale of logits.

    Args:
        logits: (B, K) with at least 4 classes.
        labels: (B,).
        targets: (B,) other than the labels.

    Returns:
        (B,) above 0 where the target's logit exceeds the label's.

    Raises:
        InputError: for fewer classes.
    """
    if logits.shape[1] < 4:
        raise InputError(f"the targeted DLR loss needs at least 4 classes: the model has {logits.shape[1]}")
    ordered = logits.sort(dim=1, descending=True).values
    rise = logit_at(logits, targets) - logit_at(logits, labels)
    return rise / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2).clamp_min(1e-12)


def apgd_attack(*, norm: str, epsilon: float, steps: int = 100, restarts: int = 1) -> Attack:
    """Build APGD-CE: Auto-PGD on the cross-entropy (Croce & Hein 2020).

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        restarts: rounds, each from its own random start.

    Raises:
        InputError: for an unknown norm, a budget that it can't have, or steps or restarts below 1.
    """
    ball = checked_ball(norm, epsilon)
    positive("steps", steps)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        return _apgd(cross_entropy_scores(victim), victim, rows, ball, epsilon, steps, generator)

    return Attack("apgd-ce", positive("restarts", restarts), run)


def targeted_apgd_attack(*, norm: str, epsilon: float, steps: int = 100, targets: int = 9) -> Attack:
    """Build APGD-T: Auto-PGD on the targeted DLR loss, a round for each target class, the likeliest wrong one first.

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        targets: rounds; where there are fewer wrong classes, the first ones are targets once more.

    Raises:
        InputError: for an unknown norm, a budget that it can't have, or steps or targets below 1; when run, for a
            model of fewer than 4 classes.
    """
    ball = checked_ball(norm, epsilon)
    positive("steps", steps)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        goals = torch.zeros_like(victim.labels)
        goals[rows] = _likely_target(victim, rows, number)

        def objective(perturbed: Tensor, rows: Tensor) -> Scores:
            answer, labels = victim.logits(perturbed), victim.labels[rows]
            return Scores(targeted_dlr(answer, labels, goals[rows]), is_wrong(answer, labels))

        return _apgd(objective, victim, rows, ball, epsilon, steps, generator)

    return Attack("apgd-t", positive("targets", targets), run)


@torch.no_grad()
def _likely_target(victim: Victim, rows: Tensor, number: int) -> Tensor:
    """Return the wrong class (B,) of the `number`-th largest logit, counted from 0, on the clean image."""
    answer, labels = victim.logits(victim.images[rows]), victim.labels[rows]
    ranking = answer.scatter(1, labels[:, None], -math.inf).argsort(dim=1, descending=True, stable=True)
    return ranking[:, number % (answer.shape[1] - 1)]


def embedding_attack(
    model: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    norm: str,
    epsilon: float,
    steps: int = 100,
    restarts: int = 1,
    towards_other: bool = False,
) -> Attack:
    """Build Auto-PGD on the squared Euclidean distance of embeddings, which a defence of embeddings should withstand.

    Args:
        model: function from images (B, C, H, W) to (logits (B, K), embedding (B, D)).
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        restarts: rounds, each from its own random start.
        towards_other: move an image towards the nearest clean embedding of the set that the model gives another
            class, instead of away from its own clean embedding.

    Raises:
        InputError: for an unknown norm, a budget that it can't have, or steps or restarts below 1.
    """
    ball = checked_ball(norm, epsilon)
    positive("steps", steps)
    sign = -1 if towards_other else 1

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        anchors = _anchors(model, victim, rows, towards_other)

        def objective(perturbed: Tensor, rows: Tensor) -> Scores:
            answer, embedding = model(perturbed)
            distance = (embedding - anchors[rows]).square().sum(1)
            return Scores(sign * distance, is_wrong(answer, victim.labels[rows]))

        return _apgd(objective, victim, rows, ball, epsilon, steps, generator)

    return Attack("embedding-other" if towards_other else "embedding", positive("restarts", restarts), run)


@torch.no_grad()
def _anchors(
    model: Callable[[Tensor], tuple[Tensor, Tensor]], victim: Victim, rows: Tensor, towards_other: bool
) -> Tensor:
    """Return, by row of the set (N, D), the embedding that an image moves away from, or towards."""
    parts = [model(batch) for batch in victim.images.split(len(rows))]
    embeddings = torch.cat([embedding for _, embedding in parts])
    if not towards_other:
        return embeddings
    answers = torch.cat([logits.argmax(1) for logits, _ in parts])
    same_class = victim.labels[rows, None] == answers
    distances = torch.cdist(embeddings[rows], embeddings).masked_fill(same_class, math.inf)
    anchors = embeddings.clone()
    anchors[rows] = embeddings[distances.argmin(1)]
    return anchors


class _Climb(NamedTuple):
    """The state of Auto-PGD on each of the B images that the model still has right, in the letters of algorithm 1."""

    position: Tensor
    """(B,) position in the result."""
    rows: Tensor
    """(B,) position in the set."""
    images: Tensor
    perturbed: Tensor
    """(B, C, H, W) x(k)."""
    previous: Tensor
    """(B, C, H, W) x(k-1)."""
    loss: Tensor
    """(B,) f(x(k))."""
    gradient: Tensor
    best: Tensor
    """(B, C, H, W) x_max."""
    best_loss: Tensor
    best_gradient: Tensor
    step_size: Tensor
    """(B, 1, 1, 1) eta."""
    rises: Tensor
    """(B,) steps since the last checkpoint that raised the loss."""
    checked_loss: Tensor
    """(B,) the best loss at the last checkpoint."""
    halved: Tensor
    """(B,) bool: whether the last checkpoint halved the step size."""


def _apgd(
    objective: Objective,
    victim: Victim,
    rows: Tensor,
    ball: Norm,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Run Auto-PGD (algorithm 1): return the first wrong point of every image (B, C, H, W), else its best point."""
    images, delta = victim.images[rows], ball.random_start(victim.images, epsilon, generator)[rows]
    # Start on the surface of the ball: the first steps are long, and restarts end further apart than from within.
    start = (images + delta * epsilon / ball.size(delta).clamp_min(torch.finfo(delta.dtype).tiny)).clamp(0, 1)
    found = start.clone()
    climb = _leave_if_wrong(found, *_first_point(objective, images, start, rows, epsilon))
    for begin, end in pairwise(step_checkpoints(steps)):
        for k in range(begin, end):
            if not len(climb.rows):
                return found
            climb, wrong = _step(objective, climb, ball, epsilon, momentum=0.25 if k else 0.0)
            climb = _leave_if_wrong(found, climb, wrong)
        climb = _check_progress(climb, window=end - begin)
    found[climb.position] = climb.best
    return found


def _first_point(
    objective: Objective, images: Tensor, start: Tensor, rows: Tensor, epsilon: float
) -> tuple[_Climb, Tensor]:
    (loss, wrong), gradient = score_with_gradient(objective, start, rows)
    position = torch.arange(len(rows), device=rows.device)
    step_size = torch.full_like(loss, 2 * epsilon).view(-1, 1, 1, 1)
    rises, halved = torch.zeros_like(rows), torch.zeros_like(wrong)
    best = (start, loss, gradient)
    return _Climb(position, rows, images, start, start, loss, gradient, *best, step_size, rises, loss, halved), wrong


def _step(objective: Objective, climb: _Climb, ball: Norm, epsilon: float, *, momentum: float) -> tuple[_Climb, Tensor]:
    """Make the projected step, mix it with the one before, and keep the best point (lines 6 to 10)."""

    def project(points: Tensor) -> Tensor:
        return (climb.images + ball.project(points - climb.images, epsilon)).clamp(0, 1)

    here = climb.perturbed
    ahead = project(here + climb.step_size * ball.steepest_step(climb.gradient))
    moved = project(here + (1 - momentum) * (ahead - here) + momentum * (here - climb.previous))
    (loss, wrong), gradient = score_with_gradient(objective, moved, climb.rows)
    better = loss > climb.best_loss
    climb = climb._replace(
        perturbed=moved,
        previous=here,
        loss=loss,
        gradient=gradient,
        best=choose(better, moved, climb.best),
        best_loss=torch.where(better, loss, climb.best_loss),
        best_gradient=choose(better, gradient, climb.best_gradient),
        rises=climb.rises + (loss > climb.loss),
    )
    return climb, wrong


def _leave_if_wrong(found: Tensor, climb: _Climb, wrong: Tensor) -> _Climb:
    """Write images with a wrong answer into the result and go on with the others."""
    found[climb.position[wrong]] = climb.perturbed[wrong]
    return _Climb(*(values[~wrong] for values in climb))


def _check_progress(climb: _Climb, *, window: int) -> _Climb:
    """Halve the step and go back to the best point where the loss has risen too rarely (lines 11 to 16)."""
    rarely_rose = climb.rises < 0.75 * window  # condition 1
    stalled = ~climb.halved & (climb.checked_loss == climb.best_loss)  # condition 2
    halve = rarely_rose | stalled
    return climb._replace(
        perturbed=choose(halve, climb.best, climb.perturbed),
        loss=torch.where(halve, climb.best_loss, climb.loss),
        gradient=choose(halve, climb.best_gradient, climb.gradient),
        step_size=choose(halve, climb.step_size / 2, climb.step_size),
        rises=torch.zeros_like(climb.rises),
        checked_loss=climb.best_loss,
        halved=halve,
    )


def step_checkpoints(steps: int) -> list[int]:
    """Return 0, w_j = ceil(p_j steps) with p_1 = 0.22 and p_j+1 = p_j + max(p_j - p_j-1 - 0.03, 0.06), and `steps`."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Round before taking the ceiling: sums of such floats exceed a whole number of steps by a hair.
    return sorted({min(math.ceil(round(share * steps, 6)), steps) for share in shares})
