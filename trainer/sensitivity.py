"""Sensitivity attacks: small changes of an image that change the model's answer although not a person's.

Images lie in [0, 1] and stay there; budgets (epsilon) are in those pixel units. Attacks read a model through closures
on tensors, so anything that returns logits can be attacked. `fgsm` and `pgd` are lean enough to train with; an `Attack`
is for judging, by `worst_case`.

Shape letters: N images of a set, B of a batch, C channels, H rows, W columns, K classes, D embedding size.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import InputError, TrialFailed, check_budget, did_you_mean

Budget = float | Tensor
"""A radius for all images (a number or a 0-d tensor) or one per image (B,)."""

Logits = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to logits (B, K)."""

Loss = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to a loss per image (B,), which an attack maximises."""


# ---------------------------------------------------------------------------------------------------------- norms


class Norm(Protocol):
    """The geometry of one ball of perturbations."""

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation (B, C, H, W), kept broadcastable (B, 1, 1, 1)."""
        ...

    def random_start(self, images: Tensor, epsilon: Budget, generator: torch.Generator) -> Tensor:
        """Perturbations (B, C, H, W) drawn from the ball; of the images only shape, type and device count."""
        ...

    def steepest_step(self, gradient: Tensor) -> Tensor:
        """The direction of norm 1 along which a loss of this gradient (B, C, H, W) grows fastest; 0 where it is 0."""
        ...

    def project(self, delta: Tensor, epsilon: Budget) -> Tensor:
        """The nearest perturbations (B, C, H, W) inside the ball."""
        ...


class Linf:
    """Largest absolute change of any pixel."""

    def size(self, delta: Tensor) -> Tensor:
        return delta.abs().amax(dim=(1, 2, 3), keepdim=True)

    def random_start(self, images: Tensor, epsilon: Budget, generator: torch.Generator) -> Tensor:
        return (2 * _uniform(images.shape, images, generator) - 1) * _per_image(epsilon)

    def steepest_step(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor, epsilon: Budget) -> Tensor:
        radius = _per_image(epsilon)
        return delta.clamp(-radius, radius)  # pyright: ignore[reportCallIssue, reportArgumentType] (takes either)


class L2:
    """Euclidean length of the change."""

    def size(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)

    def random_start(self, images: Tensor, epsilon: Budget, generator: torch.Generator) -> Tensor:
        # Lengths between two customs, uniform in length (a single start breaks more from well inside) and uniform in
        # volume (nearly all of it lies at the surface, where restarts differ more): either alone loses a point.
        length = _uniform((len(images), 1, 1, 1), images, generator).sqrt()
        normal = torch.randn(images.shape, generator=generator, device=generator.device, dtype=images.dtype)
        return self.steepest_step(normal.to(images.device)) * length * _per_image(epsilon)

    def steepest_step(self, gradient: Tensor) -> Tensor:
        return gradient / self.size(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)

    def project(self, delta: Tensor, epsilon: Budget) -> Tensor:
        length = self.size(delta).clamp_min(torch.finfo(delta.dtype).tiny)
        return delta * (_per_image(epsilon) / length).clamp(max=1)


NORMS: dict[str, Norm] = {"linf": Linf(), "l2": L2()}


def norm_named(name: str) -> Norm:
    """The norm of that name.

    Raises:
        InputError: for a name that is not in `NORMS`.
    """
    if name not in NORMS:
        raise InputError(f"unknown norm {name!r}: {did_you_mean(name, NORMS)}")
    return NORMS[name]


def _per_image(value: Budget) -> Budget:
    return value.view(-1, 1, 1, 1) if isinstance(value, Tensor) and value.ndim == 1 else value


def _uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(tuple(shape), generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device)


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
    step_size: Budget | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018). The same operations whatever the data: it can be captured.

    Args:
        loss: what to maximise.
        images: (B, C, H, W) in [0, 1].
        norm: one of `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps, at least 1.
        step_size: length of a step in pixel units; 2.5 epsilon / steps if not given, which can cross the norm.
        generator: draws the start from the ball; without one the start is the image itself.

    Returns:
        Perturbed images (B, C, H, W) in [0, 1], inside the norm.
    """
    length = _per_image(2.5 * epsilon / _positive("steps", steps) if step_size is None else step_size)
    images = images.detach()
    perturbed = images
    if generator is not None:
        perturbed = (images + norm.random_start(images, epsilon, generator)).clamp(0, 1)
    for _ in range(steps):
        step = length * norm.steepest_step(input_gradient(loss, perturbed))
        perturbed = (images + norm.project(perturbed + step - images, epsilon)).clamp(0, 1)
    return perturbed


def input_gradient(loss: Loss, images: Tensor) -> Tensor:
    """Gradient (B, C, H, W) of each image's loss in that image; no parameter's `.grad` is touched."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        total = loss(images).sum()
    return torch.autograd.grad(total, images)[0]


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no gradients for parameters inside; every submodule and parameter as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


# ----------------------------------------------------------------------------------------- attacks to judge by


class Victim(NamedTuple):
    """What is attacked: a model and a whole set of images."""

    logits: Logits
    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    labels: Tensor
    """(N,) classes from 0 to K - 1."""


@dataclass(frozen=True)
class Attack:
    """A named search for images that the model gets wrong."""

    name: str
    rounds: int
    """Restarts (times target classes); an image that one round breaks is left out of the next."""
    run: Callable[[Victim, Tensor, int, torch.Generator], Tensor]
    """(victim, rows (B,) of the set to attack, number of the round, generator) to candidates (B, C, H, W).

    Random numbers are drawn for all N images and then picked by row, so that what one image meets doesn't depend on
    which others still stand, nor on the size of a batch."""


class WorstCase(NamedTuple):
    """What is left of a set of images after every attack and round."""

    clean: Tensor
    """(N,) bool: right on the unperturbed image."""
    survived: Tensor
    """(N,) bool: right on it and on everything that any attack found. Its mean is the sensitivity accuracy."""
    images: Tensor
    """(N, C, H, W): the image that broke the answer; where none did the last one tried; where the answer was wrong
    to begin with the clean one."""
    broken_by: Tensor
    """(N,) the position in `attacks` of the one that broke the answer; -1 where none did or none was needed."""


def worst_case(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[Attack],
    *,
    generator: torch.Generator,
    batch_size: int = 512,
) -> WorstCase:
    """Every attack in turn, each on the images that still stand.

    The model must be in evaluation mode: see `frozen`.

    Args:
        logits: images (B, C, H, W) to logits (B, K).
        images: (N, C, H, W) in [0, 1].
        labels: (N,) classes from 0 to K - 1.
        attacks: tried in this order, cheap ones best first.
        generator: seeds every round of every attack, whoever still stands.
        batch_size: images per call of the model.

    Raises:
        InputError: for images outside [0, 1], labels outside the classes, or a model that returns probabilities.
        TrialFailed: for logits that are not finite.
    """
    check_images(images)
    victim = Victim(logits, images.detach(), labels)
    clean_logits = predict(logits, images, batch_size=batch_size)
    check_logits(clean_logits, labels)
    clean = clean_logits.argmax(1) == labels
    survived, perturbed, broken_by = clean.clone(), victim.images.clone(), torch.full_like(labels, -1)
    noise = torch.Generator(generator.device)
    for position, attack in enumerate(attacks):
        for number in range(attack.rounds):
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            standing = survived.nonzero().flatten()
            for first in range(0, len(standing), batch_size):
                rows = standing[first : first + batch_size]
                candidates = attack.run(victim, rows, number, noise.manual_seed(seed))
                broken = rows[is_wrong(predict(logits, candidates, batch_size=batch_size), labels[rows])]
                perturbed[rows] = candidates
                survived[broken] = False
                broken_by[broken] = position
    return WorstCase(clean, survived, perturbed, broken_by)


@torch.no_grad()
def predict(logits: Logits, images: Tensor, *, batch_size: int) -> Tensor:
    """Logits (N, K) of images (N, C, H, W), a batch at a time."""
    return torch.cat([logits(batch) for batch in images.split(batch_size)])


def is_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool: whether the largest of the logits (B, K) is not at the label (B,)."""
    return logits.argmax(1) != labels


class Scores(NamedTuple):
    """How far an attack has come on each image."""

    loss: Tensor
    """(B,) what it maximises."""
    wrong: Tensor
    """(B,) bool: whether the model is already wrong."""


Objective = Callable[[Tensor, Tensor], Scores]
"""Perturbed images (B, C, H, W) and their rows in the set (B,) to scores; one call of the model gives both."""


def fgsm_attack(*, norm: str, epsilon: float) -> Attack:
    """FGSM on the cross-entropy."""
    ball = _checked_ball(norm, epsilon)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        images = victim.images[rows]
        return _ascend(_cross_entropy(victim), images, images, rows, ball, epsilon, steps=1, step_size=epsilon)

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
    ball = _checked_ball(norm, epsilon)
    length = 2.5 * epsilon / _positive("steps", steps) if step_size is None else step_size

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        images = victim.images[rows]
        start = (images + ball.random_start(victim.images, epsilon, generator)[rows]).clamp(0, 1)
        return _ascend(_cross_entropy(victim), images, start, rows, ball, epsilon, steps=steps, step_size=length)

    return Attack("pgd", _positive("restarts", restarts), run)


def _cross_entropy(victim: Victim) -> Objective:
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
        scores, gradient = _score(objective, perturbed, rows)
        right = ~scores.wrong
        standing, rows, images, perturbed = standing[right], rows[right], images[right], perturbed[right]
        if not len(rows):
            break
        step = step_size * ball.steepest_step(gradient[right])
        perturbed = (images + ball.project(perturbed + step - images, epsilon)).clamp(0, 1)
        found[standing] = perturbed
    return found


def _score(objective: Objective, perturbed: Tensor, rows: Tensor) -> tuple[Scores, Tensor]:
    """Scores and the gradient (B, C, H, W) of the loss, in one pass."""
    perturbed = perturbed.detach().requires_grad_()
    with torch.enable_grad():
        scores = objective(perturbed, rows)
        (gradient,) = torch.autograd.grad(scores.loss.sum(), perturbed)
    return Scores(scores.loss.detach(), scores.wrong), gradient


# ----------------------------------------------------------------------------------------------------------- APGD


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, eq. 6): blind to a shift or a scale of the logits.

    Args:
        logits: (B, K) with at least 3 classes.
        labels: (B,).

    Returns:
        (B,) above 0 where the answer is wrong.
    """
    _need_classes("the DLR loss", logits, 3)
    ordered = logits.sort(dim=1, descending=True).values
    return -margin(logits, labels) / (ordered[:, 0] - ordered[:, 2]).clamp_min(1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """DLR towards a target class (Croce & Hein 2020, eq. 7).

    Args:
        logits: (B, K) with at least 4 classes.
        labels: (B,).
        targets: (B,) other than the labels.
    """
    _need_classes("the targeted DLR loss", logits, 4)
    ordered = logits.sort(dim=1, descending=True).values
    rise = _at(logits, targets) - _at(logits, labels)
    return rise / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2).clamp_min(1e-12)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the largest other one (B,); below 0 where the answer is wrong."""
    return _at(logits, labels) - logits.scatter(1, labels[:, None], -math.inf).amax(1)


def apgd_attack(*, norm: str, epsilon: float, steps: int = 100, restarts: int = 1) -> Attack:
    """APGD-CE: Auto-PGD on the cross-entropy.

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        restarts: rounds, each from its own random start.
    """
    ball = _checked_ball(norm, epsilon)
    _positive("steps", steps)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        return _apgd(_cross_entropy(victim), victim, rows, ball, epsilon, steps, generator)

    return Attack("apgd-ce", _positive("restarts", restarts), run)


def targeted_apgd_attack(*, norm: str, epsilon: float, steps: int = 100, targets: int = 9) -> Attack:
    """APGD-T: Auto-PGD on the targeted DLR loss, a round for each target class from the likeliest wrong one down.

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        targets: rounds; where there are fewer wrong classes the first ones have another round.
    """
    ball = _checked_ball(norm, epsilon)
    _positive("steps", steps)

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        goals = torch.zeros_like(victim.labels)
        goals[rows] = _likely_target(victim, rows, number)

        def objective(perturbed: Tensor, rows: Tensor) -> Scores:
            answer, labels = victim.logits(perturbed), victim.labels[rows]
            return Scores(targeted_dlr(answer, labels, goals[rows]), is_wrong(answer, labels))

        return _apgd(objective, victim, rows, ball, epsilon, steps, generator)

    return Attack("apgd-t", _positive("targets", targets), run)


@torch.no_grad()
def _likely_target(victim: Victim, rows: Tensor, number: int) -> Tensor:
    """The wrong class (B,) that has the number-th largest logit on the clean image."""
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
    """Auto-PGD on the squared Euclidean distance of embeddings: what a defence of embeddings should withstand.

    Args:
        model: images (B, C, H, W) to (logits (B, K), embedding (B, D)).
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        steps: gradient steps of a round.
        restarts: rounds, each from its own random start.
        towards_other: instead of away from its clean embedding, towards the nearest clean embedding of the set that
            the model gives another class.
    """
    ball = _checked_ball(norm, epsilon)
    _positive("steps", steps)
    sign = -1 if towards_other else 1

    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        anchors = _anchors(model, victim, rows, towards_other)

        def objective(perturbed: Tensor, rows: Tensor) -> Scores:
            answer, embedding = model(perturbed)
            distance = (embedding - anchors[rows]).square().sum(1)
            return Scores(sign * distance, is_wrong(answer, victim.labels[rows]))

        return _apgd(objective, victim, rows, ball, epsilon, steps, generator)

    return Attack("embedding-other" if towards_other else "embedding", _positive("restarts", restarts), run)


@torch.no_grad()
def _anchors(
    model: Callable[[Tensor], tuple[Tensor, Tensor]], victim: Victim, rows: Tensor, towards_other: bool
) -> Tensor:
    """By row of the set (N, D): the embedding that an image leaves, or the one that it makes for."""
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
    """Where Auto-PGD stands on each of the B images that the model still has right."""

    place: Tensor
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
    """Auto-PGD (Croce & Hein 2020, algorithm 1); an image leaves at its first wrong answer, else gives its best."""
    images, delta = victim.images[rows], ball.random_start(victim.images, epsilon, generator)[rows]
    # From the surface of the ball: with these long first steps restarts then end further apart than from within.
    start = (images + delta * epsilon / ball.size(delta).clamp_min(torch.finfo(delta.dtype).tiny)).clamp(0, 1)
    found = start.clone()
    climb = _leave_if_wrong(found, *_first_point(objective, images, start, rows, epsilon))
    for begin, end in pairwise(_checkpoints(steps)):
        for k in range(begin, end):
            if not len(climb.rows):
                return found
            climb, wrong = _step(objective, climb, ball, epsilon, momentum=0.25 if k else 0.0)
            climb = _leave_if_wrong(found, climb, wrong)
        climb = _check_progress(climb, window=end - begin)
    found[climb.place] = climb.best
    return found


def _first_point(
    objective: Objective, images: Tensor, start: Tensor, rows: Tensor, epsilon: float
) -> tuple[_Climb, Tensor]:
    (loss, wrong), gradient = _score(objective, start, rows)
    place = torch.arange(len(rows), device=rows.device)
    step_size = torch.full_like(loss, 2 * epsilon).view(-1, 1, 1, 1)
    rises, halved = torch.zeros_like(rows), torch.zeros_like(wrong)
    best = (start, loss, gradient)
    return _Climb(place, rows, images, start, start, loss, gradient, *best, step_size, rises, loss, halved), wrong


def _step(objective: Objective, climb: _Climb, ball: Norm, epsilon: float, *, momentum: float) -> tuple[_Climb, Tensor]:
    """Lines 6 to 10: the projected step, mixed with the one before it, and the best point so far."""

    def project(points: Tensor) -> Tensor:
        return (climb.images + ball.project(points - climb.images, epsilon)).clamp(0, 1)

    here = climb.perturbed
    ahead = project(here + climb.step_size * ball.steepest_step(climb.gradient))
    moved = project(here + (1 - momentum) * (ahead - here) + momentum * (here - climb.previous))
    (loss, wrong), gradient = _score(objective, moved, climb.rows)
    better = loss > climb.best_loss
    climb = climb._replace(
        perturbed=moved,
        previous=here,
        loss=loss,
        gradient=gradient,
        best=_choose(better, moved, climb.best),
        best_loss=torch.where(better, loss, climb.best_loss),
        best_gradient=_choose(better, gradient, climb.best_gradient),
        rises=climb.rises + (loss > climb.loss),
    )
    return climb, wrong


def _leave_if_wrong(found: Tensor, climb: _Climb, wrong: Tensor) -> _Climb:
    """Write broken images into the result and go on with the others."""
    found[climb.place[wrong]] = climb.perturbed[wrong]
    return _Climb(*(values[~wrong] for values in climb))


def _check_progress(climb: _Climb, *, window: int) -> _Climb:
    """Lines 11 to 16: halve the step and go back to the best point where the loss has not risen as it should."""
    rarely_rose = climb.rises < 0.75 * window  # condition 1
    stalled = ~climb.halved & (climb.checked_loss == climb.best_loss)  # condition 2
    halve = rarely_rose | stalled
    return climb._replace(
        perturbed=_choose(halve, climb.best, climb.perturbed),
        loss=torch.where(halve, climb.best_loss, climb.loss),
        gradient=_choose(halve, climb.best_gradient, climb.gradient),
        step_size=_choose(halve, climb.step_size / 2, climb.step_size),
        rises=torch.zeros_like(climb.rises),
        checked_loss=climb.best_loss,
        halved=halve,
    )


def _checkpoints(steps: int) -> list[int]:
    """0, then w_j = ceil(p_j steps) with p_1 = 0.22, p_j+1 = p_j + max(p_j - p_j-1 - 0.03, 0.06), then `steps`."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Rounded first: sums of such floats exceed a whole number of steps by a hair.
    return sorted({min(math.ceil(round(share * steps, 6)), steps) for share in shares})


def _choose(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` (B, C, H, W) for the images where the condition (B,) holds, else `no`."""
    return torch.where(condition.view(-1, 1, 1, 1), yes, no)


# --------------------------------------------------------------------------------------------------------- Square


def square_attack(*, norm: str, epsilon: float, queries: int = 5000, restarts: int = 1) -> Attack:
    """Square (Andriushchenko et al. 2020): random search that reads logits and needs no gradient.

    Args:
        norm: a name in `NORMS`.
        epsilon: budget in pixel units.
        queries: proposals per image and round, each a call of the model; the start takes one more.
        restarts: rounds.
    """
    _checked_ball(norm, epsilon)
    _positive("queries", queries)
    squares = SQUARES[norm]

    @torch.no_grad()
    def run(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
        """Algorithm 1; an image leaves at its first wrong answer."""
        images = best = victim.images[rows]
        least = torch.full_like(best[:, 0, 0, 0], math.inf)
        found, place = best.clone(), torch.arange(len(rows), device=rows.device)
        for query in range(queries + 1):
            if query == 0:
                random = _uniform((len(victim.images), _start_numbers(images)), images, generator)[rows]
                candidates = squares.start(images, epsilon, random)
            else:
                random = _uniform((len(victim.images), 5 + images.shape[1]), images, generator)[rows]
                side = squares.side(_share((query - 1) / queries), images)
                candidates = squares.propose(images, best, side, epsilon, random)
            loss = margin(victim.logits(candidates), victim.labels[rows])
            best, least = _choose(loss < least, candidates, best), torch.minimum(loss, least)
            found[place] = best
            right = least >= 0
            place, rows, images, best, least = (values[right] for values in (place, rows, images, best, least))
            if not len(rows):
                break
        return found

    return Attack("square", _positive("restarts", restarts), run)


def _share(progress: float) -> float:
    """p, the share of the pixels that a square covers: 0.8, halved as the search goes on (section 3.1 there)."""
    halvings = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    return 0.8 / 2 ** bisect_left(halvings, progress)


class Squares(Protocol):
    """How Square moves under one norm. `random` (B, .) holds uniform numbers from [0, 1), a row per image."""

    def start(self, images: Tensor, epsilon: float, random: Tensor) -> Tensor:
        """First points (B, C, H, W), inside the ball and [0, 1]; at most (C + 1) H W numbers per image."""
        ...

    def side(self, share: float, images: Tensor) -> int:
        """Side in pixels of a square that covers this share of an image."""
        ...

    def propose(self, images: Tensor, best: Tensor, side: int, epsilon: float, random: Tensor) -> Tensor:
        """The best points (B, C, H, W), changed in a square; 5 + C numbers per image."""
        ...


class LinfSquares:
    """Squares of one colour on the edge of the ball (section 3.3, algorithm 2)."""

    def start(self, images: Tensor, epsilon: float, random: Tensor) -> Tensor:
        """Vertical stripes of one pixel's width."""
        _, channels, _, width = images.shape
        stripes = _signs(random[:, : channels * width]).view(-1, channels, 1, width)
        return (images + epsilon * stripes).clamp(0, 1)

    def side(self, share: float, images: Tensor) -> int:
        height, width = images.shape[2:]
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)

    def propose(self, images: Tensor, best: Tensor, side: int, epsilon: float, random: Tensor) -> Tensor:
        """A change by 2 epsilon puts the square on the edge of the ball, wherever in it it was."""
        window = _window(random[:, :2], side, images)
        colours = _signs(random[:, 5:])[:, :, None, None]
        delta = best - images + 2 * epsilon * colours * window.inside
        return (images + NORMS["linf"].project(delta, epsilon)).clamp(0, 1)


class L2Squares:
    """Pairs of opposite bumps in one square, paid for by another square (section 3.4, algorithm 3)."""

    def start(self, images: Tensor, epsilon: float, random: Tensor) -> Tensor:
        """About 5 by 5 tiles of bumps, each turned its own way and with its own sign in every channel."""
        _, channels, height, width = images.shape
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        random = random[:, : (channels + 1) * down * across].view(-1, channels + 1, down, across)
        turned = (random[:, -1] < 0.5).long()
        tiles = _bumps(side, images)[turned].transpose(2, 3).reshape(-1, 1, down * side, across * side)
        signs = _signs(random[:, :-1]).repeat_interleave(side, 2).repeat_interleave(side, 3)
        delta = F.pad(tiles * signs, (0, width - across * side, 0, height - down * side))
        return (images + epsilon * NORMS["l2"].steepest_step(delta)).clamp(0, 1)

    def side(self, share: float, images: Tensor) -> int:
        """Odd, so that a bump has a middle, and at least 3 where the image is."""
        height, width = images.shape[2:]
        wanted = max(round(math.sqrt(share * height * width)), 3)
        return (min(wanted + 1 - wanted % 2, height, width) - 1) // 2 * 2 + 1

    def propose(self, images: Tensor, best: Tensor, side: int, epsilon: float, random: Tensor) -> Tensor:
        """Fill the first square with the second's share of the budget and what clipping left unused."""
        ball, channels = NORMS["l2"], images.shape[1]
        first, second = _window(random[:, :2], side, images), _window(random[:, 2:4], side, images)
        turned = (random[:, 4] < 0.5).long()
        delta = best - images
        both = first.inside | second.inside
        unused = (epsilon**2 - ball.size(delta).square()).clamp_min(0)
        available = (_channel_size(delta * both).square() + unused / channels).sqrt()
        bump = _signs(random[:, 5:])[:, :, None, None] * first.filled_with(_bumps(side, images)[turned])
        direction = bump + _channel_unit(delta * first.inside)
        delta = torch.where(both, 0, delta) + _channel_unit(direction) * available
        return (images + ball.project(delta, epsilon)).clamp(0, 1)


SQUARES: dict[str, Squares] = {"linf": LinfSquares(), "l2": L2Squares()}


class _Window(NamedTuple):
    """A square at its own place in each image."""

    rows: Tensor
    """(B, H) row of a pixel counted from the square's first."""
    columns: Tensor
    """(B, W) column of a pixel counted from the square's first."""
    side: int

    @property
    def inside(self) -> Tensor:
        """(B, 1, H, W) bool."""
        down = (self.rows >= 0) & (self.rows < self.side)
        across = (self.columns >= 0) & (self.columns < self.side)
        return (down[:, :, None] & across[:, None, :])[:, None]

    def filled_with(self, content: Tensor) -> Tensor:
        """(B, 1, H, W): content (B, side, side) at the square's place, 0 elsewhere."""
        rows, columns = self.rows.clamp(0, self.side - 1), self.columns.clamp(0, self.side - 1)
        image = torch.arange(len(content), device=content.device)[:, None, None]
        return content[image, rows[:, :, None], columns[:, None, :]][:, None] * self.inside


def _window(random: Tensor, side: int, images: Tensor) -> _Window:
    """Squares anywhere inside the images, from two uniform numbers each (B, 2)."""
    height, width = images.shape[2:]
    top, left = (random * torch.tensor([height - side + 1, width - side + 1]).to(random)).long().split(1, dim=1)
    rows, columns = (torch.arange(length, device=images.device) for length in (height, width))
    return _Window(rows - top, columns - left, side)


def _bumps(side: int, like: Tensor) -> Tensor:
    """(2, side, side) of norm 1: two bumps of opposite sign one above the other, and side by side (equation 2)."""
    upper = side // 2
    bumps = torch.cat([_bump(upper, side), -_bump(side - upper, side)])
    bumps = (bumps / torch.linalg.vector_norm(bumps)).to(like)
    return torch.stack([bumps, bumps.T])


def _bump(height: int, width: int) -> Tensor:
    """(height, width): at Chebyshev distance d from the middle the sum of 1 / (c + 1)^2 over c from d on."""
    rows, columns = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2).square()
    return terms.flip(0).cumsum(0).flip(0)[torch.maximum(rows[:, None], columns)]


def _signs(random: Tensor) -> Tensor:
    """1 or -1 for each uniform number."""
    return 1 - 2 * (random < 0.5).to(random.dtype)


def _channel_size(delta: Tensor) -> Tensor:
    """Euclidean norm of every channel, (B, C, 1, 1)."""
    return torch.linalg.vector_norm(delta, dim=(2, 3), keepdim=True)


def _channel_unit(delta: Tensor) -> Tensor:
    """Every channel (B, C, H, W) at norm 1; 0 where it is 0."""
    return delta / _channel_size(delta).clamp_min(torch.finfo(delta.dtype).tiny)


# ----------------------------------------------------------------------------------------------------- the full set


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


# --------------------------------------------------------------------------------------------------------- checks


def check_images(images: Tensor) -> None:
    """Raise InputError unless images are (N, C, H, W), at least one, floating and in [0, 1]."""
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise InputError(f"images: {tuple(images.shape)} of {images.dtype}; must be (N, C, H, W) of a floating type")
    low, high = (float(bound) for bound in torch.aminmax(images))
    if not (low >= 0 and high <= 1):
        raise InputError(f"images range from {low:g} to {high:g}: must lie in [0, 1] (normalise inside the model)")


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raise unless logits (N, K) can be attacked and labels (N,) fit them.

    Raises:
        InputError: for labels outside the classes or probabilities in the place of logits.
        TrialFailed: for logits that are not finite.
    """
    if not torch.isfinite(logits).all():
        raise TrialFailed("the model's logits on clean images are not finite")
    size, classes = logits.shape
    if labels.shape != (size,):
        raise InputError(f"labels: {tuple(labels.shape)}; must be one per image, ({size},)")
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise InputError(f"labels range from {low} to {high}: the model has classes 0 to {classes - 1}")
    if looks_like_probabilities(logits):
        raise InputError(
            "the model returns probabilities (every row lies in [0, 1] and sums to 1): "
            "an attack needs logits, the gradients through a softmax that is applied twice vanish"
        )


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether every row of (N, K) lies in [0, 1] and sums to 1."""
    in_range = logits.min() >= 0 and logits.max() <= 1
    return bool(in_range) and bool(((logits.sum(1) - 1).abs() < 1e-3).all())


def _need_classes(what: str, logits: Tensor, least: int) -> None:
    if logits.shape[1] < least:
        raise InputError(f"{what} needs at least {least} classes: the model has {logits.shape[1]}")


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    """The logit (B,) of one class (B,) per row (B, K)."""
    return logits.gather(1, classes[:, None]).squeeze(1)


def _start_numbers(images: Tensor) -> int:
    _, channels, height, width = images.shape
    return (channels + 1) * height * width


def _checked_ball(norm: str, epsilon: float) -> Norm:
    ball = norm_named(norm)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise InputError(f"epsilon = {epsilon!r}: must be a finite number, at least 0")
    check_budget("epsilon", epsilon, norm)
    return ball


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise InputError(f"{name} = {value!r}: must be at least 1")
    return value
