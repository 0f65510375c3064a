"""Sensitivity attacks: small changes of an image that change the model's answer although not a person's.

Images lie in [0, 1] and stay there; budgets (epsilon) are in those pixel units. Attacks read a model through closures
on tensors, so anything that returns logits can be attacked. `fgsm` and `pgd` are lean enough to train with; an `Attack`
is for judging, by `worst_case`.

Shape letters: N images of a set, B of a batch, C channels, H rows, W columns, K classes, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

Draws = torch.Generator | Sequence[torch.Generator]
"""Where random numbers come from: one generator, or several that each draw for an equal part of the images, in order,
what they would draw for it alone."""


# ---------------------------------------------------------------------------------------------------------- norms


class Norm(Protocol):
    """The geometry of one ball of perturbations."""

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation (B, C, H, W), kept broadcastable (B, 1, 1, 1)."""
        ...

    def random_start(self, images: Tensor, epsilon: Budget, generator: Draws) -> Tensor:
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

    def random_start(self, images: Tensor, epsilon: Budget, generator: Draws) -> Tensor:
        return (2 * uniform(images.shape, images, generator) - 1) * _per_image(epsilon)

    def steepest_step(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor, epsilon: Budget) -> Tensor:
        radius = _per_image(epsilon)
        return delta.clamp(-radius, radius)  # pyright: ignore[reportCallIssue, reportArgumentType] (takes either)


class L2:
    """Euclidean length of the change."""

    def size(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)

    def random_start(self, images: Tensor, epsilon: Budget, generator: Draws) -> Tensor:
        # Lengths between two customs, uniform in length (a single start breaks more from well inside) and uniform in
        # volume (nearly all of it lies at the surface, where restarts differ more): either alone loses a point.
        length = uniform((len(images), 1, 1, 1), images, generator).sqrt()
        normal = drawn(torch.randn, images.shape, images, generator)
        return self.steepest_step(normal) * length * _per_image(epsilon)

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


def uniform(shape: Sequence[int], like: Tensor, generator: Draws) -> Tensor:
    return drawn(torch.rand, shape, like, generator)


def drawn(random: Callable[..., Tensor], shape: Sequence[int], like: Tensor, generator: Draws) -> Tensor:
    """Numbers of `torch.rand` or `torch.randn`; of type and device only `like` counts."""
    if isinstance(generator, torch.Generator):
        return random(tuple(shape), generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
    part = (shape[0] // len(generator), *shape[1:])
    return torch.cat([drawn(random, part, like, each) for each in generator])


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
    length = _per_image(2.5 * epsilon / count if step_size is None else step_size)
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


# ------------------------------------------------------------------------------------------ shared with other attacks


def logit_at(logits: Tensor, classes: Tensor) -> Tensor:
    """The logit (B,) of one class (B,) per row (B, K)."""
    return logits.gather(1, classes[:, None]).squeeze(1)


def checked_ball(norm: str, epsilon: float) -> Norm:
    """The norm of that name. Raises InputError for an unknown one, or a budget that it can't have."""
    ball = norm_named(norm)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise InputError(f"epsilon = {epsilon!r}: must be a finite number, at least 0")
    check_budget("epsilon", epsilon, norm)
    return ball


def positive(name: str, value: int) -> int:
    """The value. Raises InputError, with the option's name, if it is less than 1."""
    if value < 1:
        raise InputError(f"{name} = {value!r}: must be at least 1")
    return value


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the largest other one (B,); below 0 where the answer is wrong."""
    return logit_at(logits, labels) - logits.scatter(1, labels[:, None], -math.inf).amax(1)


def choose(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` (B, C, H, W) for the images where the condition (B,) holds, else `no`."""
    return torch.where(condition.view(-1, 1, 1, 1), yes, no)
