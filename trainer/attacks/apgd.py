"""Auto-PGD (Croce and Hein 2020): on the cross-entropy, on the targeted DLR loss, and on distances of embeddings.

Beside it plain PGD on the targeted DLR loss.

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
from trainer.attacks.gradient import ascend, cross_entropy_scores, score_with_gradient
from trainer.attacks.logits import is_wrong, likely_target, logit_at, margin
from trainer.attacks.norms import Norm, checked_ball, choose, positive
from trainer.errors import InputError

APGD_SLACK = 0.25
"""Slack of attacks on finalists. At every checkpoint an image is given up that would stay farther than this from a
wrong answer if it came as much nearer in every window to come as in the half window before. The distance is that of the
DLR loss, which is 1 for a sure answer. On 16 sets of images of eight models no number of the ensemble changed."""


_LEAST_CLASSES = 4
"""Classes that the targeted DLR loss compares."""


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
    if logits.shape[1] < _LEAST_CLASSES:
        raise InputError(
            f"the targeted DLR loss needs at least {_LEAST_CLASSES} classes: the model has {logits.shape[1]}"
        )
    ordered = logits.sort(dim=1, descending=True).values
    rise = logit_at(logits, targets) - logit_at(logits, labels)
    return rise / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2).clamp_min(1e-12)


def apgd_attack(*, norm: str, epsilon: float, steps: int = 100, restarts: int = 1, slack: float = math.inf) -> Attack:
    """Build APGD-CE: Auto-PGD on the cross-entropy (Croce & Hein 2020).

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        restarts: rounds, each from its own random start.
        slack: see `APGD_SLACK`; by default no image is given up.

    Raises:
        InputError: for an unknown norm, a budget that it can't have, or steps or restarts below 1.
    """
    ball = checked_ball(norm, epsilon)
    positive("steps", steps)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        return _apgd(cross_entropy_scores(victim), victim, rows, ball, epsilon, steps, generator, slack)

    return Attack("apgd-ce", positive("restarts", restarts), run)


def apgd_attacks(
    *,
    norm: str,
    epsilon: float,
    steps: int,
    classes: int,
    targets: int = 9,
    targeted_steps: int = 0,
    slack: float = math.inf,
) -> list[Attack]:
    """Build APGD-CE and, for 4 classes or more, targeted PGD and APGD after it: their loss needs 4.

    Args:
        norm, epsilon, steps, slack: those of `apgd_attack`.
        classes: K.
        targets: most wrong classes that targeted attacks go towards, the likeliest first.
        targeted_steps: steps of targeted PGD; 0 leaves it out.

    Raises:
        InputError: as `apgd_attack`.
    """
    attacks = [apgd_attack(norm=norm, epsilon=epsilon, steps=steps, slack=slack)]
    if classes < _LEAST_CLASSES:
        return attacks
    most = min(targets, classes - 1)
    if targeted_steps:
        attacks.append(targeted_pgd_attack(norm=norm, epsilon=epsilon, steps=targeted_steps, targets=most))
    return [*attacks, targeted_apgd_attack(norm=norm, epsilon=epsilon, steps=steps, targets=most, slack=slack)]


def targeted_apgd_attack(
    *, norm: str, epsilon: float, steps: int = 100, targets: int = 9, slack: float = math.inf
) -> Attack:
    """Build APGD-T: Auto-PGD on the targeted DLR loss, a round for each target class, the likeliest wrong one first.

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        targets: rounds; where there are fewer wrong classes, the first ones are targets once more.
        slack: see `APGD_SLACK`; by default no image is given up.

    Raises:
        InputError: for an unknown norm, a budget that it can't have, or steps or targets below 1; when run, for a
            model of fewer than 4 classes.
    """
    ball = checked_ball(norm, epsilon)
    positive("steps", steps)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        return _apgd(_towards_target(victim, rows, number), victim, rows, ball, epsilon, steps, generator, slack)

    return Attack("apgd-t", positive("targets", targets), run)


def targeted_pgd_attack(*, norm: str, epsilon: float, steps: int = 30, targets: int = 9) -> Attack:
    """Build PGD on the targeted DLR loss, a round for each target class, the likeliest wrong one first.

    Its steps keep their length of 2.5 epsilon / steps. APGD's are long at first: they land on the surface of the ball,
    where the loss of some models is flat. On models of MNIST at 0.3 that had trained on invariance images 20 such steps
    broke up to 17 points of what 20 of APGD-T had left, and more than 100 of these.

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
    step_size = 2.5 * epsilon / positive("steps", steps)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        images, objective = victim.images[rows], _towards_target(victim, rows, number)
        start = (images + ball.random_start(victim.images, epsilon, generator)[rows]).clamp(0, 1)
        return ascend(objective, images, start, rows, ball, epsilon, steps=steps, step_size=step_size)

    return Attack("pgd-t", positive("targets", targets), run)


def _towards_target(victim: Victim, rows: Tensor, number: int) -> Objective:
    """Return the targeted DLR loss of each image (B,) towards its likeliest wrong class but `number`."""
    goals = torch.zeros_like(victim.labels)
    goals[rows] = likely_target(victim.logits, victim.images[rows], victim.labels[rows], number)

    def objective(perturbed: Tensor, rows: Tensor) -> Scores:
        answer, labels = victim.logits(perturbed), victim.labels[rows]
        return Scores(targeted_dlr(answer, labels, goals[rows]), is_wrong(answer, labels))

    return objective


def embedding_attack(
    model: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    norm: str,
    epsilon: float,
    steps: int = 100,
    restarts: int = 1,
    towards_other: bool = False,
    slack: float = math.inf,
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
        slack: see `APGD_SLACK`; by default no image is given up.

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
            return Scores(sign * distance, is_wrong(answer, victim.labels[rows]), answer)

        return _apgd(objective, victim, rows, ball, epsilon, steps, generator, slack)

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
    gap: Tensor
    """(B,) the least so far of `_gap`."""
    earlier_gap: Tensor
    """(B,) the same in the middle between the last two checkpoints."""


def _apgd(
    objective: Objective,
    victim: Victim,
    rows: Tensor,
    ball: Norm,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
    slack: float,
) -> Tensor:
    """Run Auto-PGD (algorithm 1): return the first wrong point of every image (B, C, H, W), else its best point."""
    images, delta = victim.images[rows], ball.random_start(victim.images, epsilon, generator)[rows]
    # Start on the surface of the ball: the first steps are long, and restarts end further apart than from within.
    start = (images + delta * epsilon / ball.size(delta).clamp_min(torch.finfo(delta.dtype).tiny)).clamp(0, 1)
    found = start.clone()
    climb = _leave_if_wrong(found, *_first_point(objective, victim, images, start, rows, epsilon))
    checkpoints = step_checkpoints(steps)
    for left, (begin, end) in zip(range(len(checkpoints) - 2, -1, -1), pairwise(checkpoints), strict=True):
        for k in range(begin, end):
            if not len(climb.rows):
                return found
            climb, wrong = _step(objective, victim, climb, ball, epsilon, momentum=0.25 if k else 0.0)
            climb = _leave_if_wrong(found, climb, wrong)
            if k == (begin + end) // 2:
                climb = climb._replace(earlier_gap=climb.gap)
        climb = _give_up(found, climb, slack, left=left)
        climb = _check_progress(climb, window=end - begin)
    found[climb.position] = climb.best
    return found


def _gap(scores: Scores, labels: Tensor) -> Tensor:
    """Return how far (B,) answers are from a wrong one: the margin over the logits' own range, as in the DLR loss."""
    if scores.logits is None:
        return -scores.loss
    largest = scores.logits.topk(min(3, scores.logits.shape[1])).values
    return margin(scores.logits, labels) / (largest[:, 0] - largest[:, -1]).clamp_min(1e-12)


def _give_up(found: Tensor, climb: _Climb, slack: float, *, left: int) -> _Climb:
    """Write images that are given up into the result, at their best points, and go on with the others.

    Args:
        found: (B, C, H, W), the result.
        climb: state of the others.
        slack: see `APGD_SLACK`.
        left: windows between checkpoints that are still to come.
    """
    hopeless = climb.gap - left * (climb.earlier_gap - climb.gap) > slack
    found[climb.position[hopeless]] = climb.best[hopeless]
    return _Climb(*(values[~hopeless] for values in climb))


def _first_point(
    objective: Objective, victim: Victim, images: Tensor, start: Tensor, rows: Tensor, epsilon: float
) -> tuple[_Climb, Tensor]:
    scores, gradient = score_with_gradient(objective, start, rows)
    loss, wrong, gap = scores.loss, scores.wrong, _gap(scores, victim.labels[rows])
    position = torch.arange(len(rows), device=rows.device)
    step_size = torch.full_like(loss, 2 * epsilon).view(-1, 1, 1, 1)
    rises, halved = torch.zeros_like(rows), torch.zeros_like(wrong)
    best = (start, loss, gradient)
    checks = (step_size, rises, loss, halved, gap, gap)
    return _Climb(position, rows, images, start, start, loss, gradient, *best, *checks), wrong


def _step(
    objective: Objective, victim: Victim, climb: _Climb, ball: Norm, epsilon: float, *, momentum: float
) -> tuple[_Climb, Tensor]:
    """Make the projected step, mix it with the one before, and keep the best point (lines 6 to 10)."""

    def project(points: Tensor) -> Tensor:
        return (climb.images + ball.project(points - climb.images, epsilon)).clamp(0, 1)

    here = climb.perturbed
    ahead = project(here + climb.step_size * ball.steepest_step(climb.gradient))
    moved = project(here + (1 - momentum) * (ahead - here) + momentum * (here - climb.previous))
    scores, gradient = score_with_gradient(objective, moved, climb.rows)
    loss = scores.loss
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
        gap=torch.minimum(climb.gap, _gap(scores, victim.labels[climb.rows])),
    )
    return climb, scores.wrong


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
