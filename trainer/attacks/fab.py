"""FAB-T, the fast adaptive boundary attack (Croce and Hein 2020, arXiv 1907.02044), towards target classes.

Other attacks climb a loss inside the ball. This one walks along a boundary of the model, towards the image, and so
finds the nearest wrong answer whatever the budget: it needs no step size, and is blind to the scale of the logits.

Shape letters: N images of a set, B of a batch, C channels, H rows, W columns, P pixels times channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.attacks.attack import Attack, Objective, Scores, Victim
from trainer.attacks.gradient import score_with_gradient
from trainer.attacks.logits import is_wrong, likely_target, logit_at
from trainer.attacks.norms import Norm, checked_ball, choose, positive

_LARGEST_BIAS = 0.1
"""Alpha max: most weight of the step that starts at the clean image."""
_OVERSHOOT = 1.05
"""Eta: how far a step goes beyond the linearised boundary."""
_BACK = 0.9
"""Beta: share of the way from the clean image at which the walk goes on after a wrong answer."""
_SECANTS = 3
"""Steps of the final search between the clean image and the wrong answer."""
_SHORT = 0.99
"""Share of the way to the boundary that a secant goes: just before it the answer is still wrong."""


def fab_attack(*, norm: str, epsilon: float, steps: int = 100, targets: int = 9) -> Attack:
    """Build FAB-T: a round for each target class, the likeliest wrong one first.

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units; an image whose nearest wrong answer lies beyond it stays as it is.
        steps: gradient steps of a round.
        targets: rounds; where there are fewer wrong classes, the first ones are targets once more.

    Raises:
        InputError: for an unknown norm, a budget that it can't have, or steps or targets below 1.
    """
    ball = checked_ball(norm, epsilon)
    positive("steps", steps)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        images, goals = (
            victim.images[rows],
            likely_target(victim.logits, victim.images[rows], victim.labels[rows], number),
        )
        nearest = nearest_wrong(victim, rows, goals, norm=ball, steps=steps, enough=epsilon)
        # Rounding at the edge of the ball must not leave it.
        inside = ball.size(nearest - images).flatten() <= epsilon * (1 + 1e-6)
        return choose(inside, (images + ball.project(nearest - images, epsilon)).clamp(0, 1), images)

    return Attack("fab-t", positive("targets", targets), run)


def nearest_wrong(
    victim: Victim, rows: Tensor, goals: Tensor, *, norm: Norm, steps: int, enough: float = 0.0
) -> Tensor:
    """Return the nearest point (B, C, H, W) found that the model gets wrong; infinite where none was found.

    Args:
        victim: the model and its images.
        rows: (B,) the images in question.
        goals: (B,) the class whose boundary with the label each image walks along.
        norm: measures distance.
        steps: gradient steps.
        enough: distance, in pixel units, within which an image is done at once.
    """
    images, labels = victim.images[rows], victim.labels[rows]
    found, best = torch.full_like(images, math.inf), torch.full_like(images[:, 0, 0, 0], math.inf)
    position, here = torch.arange(len(rows), device=rows.device), images

    def lead(points: Tensor, at: Tensor) -> Scores:
        answer = victim.logits(points)
        return Scores(logit_at(answer, goals[at]) - logit_at(answer, labels[at]), is_wrong(answer, labels[at]))

    for _ in range(steps):
        going = best[position] > enough
        position, here = position[going], here[going]
        if not len(position):
            break
        clean, (scores, gradient) = images[position], score_with_gradient(lead, here, position)
        here = _step(clean, here, scores.loss, gradient, norm)
        with torch.no_grad():
            wrong = lead(here, position).wrong
        distance = norm.size(here - clean).flatten()
        nearer = wrong & (distance < best[position])
        found[position[nearer]], best[position[nearer]] = here[nearer], distance[nearer]
        here = choose(wrong, clean + _BACK * (here - clean), here)
    hit = best.isfinite().nonzero().flatten()
    if len(hit):
        found[hit] = _search(lead, images[hit], found[hit], hit)
    return found


def _step(clean: Tensor, here: Tensor, lead: Tensor, gradient: Tensor, norm: Norm) -> Tensor:
    """Step just beyond the linearised boundary from here, biased towards the point of it that is nearest to the image.

    Args:
        clean: (B, C, H, W).
        here: (B, C, H, W).
        lead: (B,) of the goal's logit over the label's, here.
        gradient: (B, C, H, W) of the lead.
        norm: measures distance.
    """
    normal, points = gradient.flatten(1), torch.stack([here.flatten(1), clean.flatten(1)])
    offset = lead - (normal * points[0]).sum(1)
    ahead, straight = (onto_hyperplane(each, normal, offset, norm).view_as(here) for each in points)
    to_here, to_clean = norm.size(ahead - here), norm.size(straight - clean)
    bias = (to_here / (to_here + to_clean).clamp_min(1e-12)).clamp(max=_LARGEST_BIAS)  # eq. 10
    moved = (1 - bias) * (here + _OVERSHOOT * (ahead - here)) + bias * (clean + _OVERSHOOT * (straight - clean))
    return moved.clamp(0, 1)  # eq. 9


def onto_hyperplane(points: Tensor, normal: Tensor, offset: Tensor, norm: Norm) -> Tensor:
    """Return the nearest points (B, P) in [0, 1] on hyperplanes, or the nearest to these where the box misses them.

    The way there is x - t g, cut off at the box, with g the steepest direction: what it descends is a rising and
    piecewise linear function of t, whose pieces end where a pixel reaches the box (eq. 5; exact, by sorting).

    Args:
        points: (B, P) in [0, 1].
        normal: (B, P), w.
        offset: (B,), b of the hyperplane <w, x> + b = 0.
        norm: what is least.
    """
    height = (normal * points).sum(1) + offset
    direction = norm.steepest_step(normal[:, :, None, None]).flatten(1) * height.sign()[:, None]
    room = torch.where(direction > 0, points, 1 - points)
    speed, rate = direction.abs(), (direction * normal).abs()
    reach = torch.where(speed > 0, room / speed, 0)
    reach, order = reach.sort(1)
    rate, stopped = rate.gather(1, order), (normal.abs() * room * (speed > 0)).gather(1, order).cumsum(1)
    # Of each piece: what stopped pixels have descended before it, and the rate of those that still move in it.
    before, moving = (
        stopped - stopped.diff(dim=1, prepend=torch.zeros_like(stopped[:, :1])),
        rate.flip(1).cumsum(1).flip(1),
    )
    passed = before + moving * reach  # what is descended at the piece's end
    piece = (passed < height.abs()[:, None]).sum(1, keepdim=True).clamp(max=points.shape[1] - 1)
    start, slope, end = (each.gather(1, piece) for each in (before, moving, reach))
    time = torch.minimum((height.abs()[:, None] - start) / slope.clamp_min(torch.finfo(slope.dtype).tiny), end)
    return (points - time.clamp_min(0) * direction).clamp(0, 1)


@torch.no_grad()
def _search(lead: Objective, clean: Tensor, wrong: Tensor, at: Tensor) -> Tensor:
    """Return wrong points (B, C, H, W) that lie nearer to clean ones on the same line, by secants of the lead."""
    near, far = clean, wrong
    low, high = lead(near, at).loss, lead(far, at).loss
    for _ in range(_SECANTS):
        share = _SHORT * (high / (high - low).clamp_min(1e-12)).clamp(0, 1).view(-1, 1, 1, 1)
        middle = far + share * (near - far)
        scores = lead(middle, at)
        far, high = choose(scores.wrong, middle, far), torch.where(scores.wrong, scores.loss, high)
        near, low = choose(scores.wrong, near, middle), torch.where(scores.wrong, low, scores.loss)
    return far
