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
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.errors import InputError, TrialFailed

Logits = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to logits (B, K)."""


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
    if _looks_like_probabilities(logits):
        raise InputError(
            "the model returns probabilities (every row lies in [0, 1] and sums to 1): "
            "an attack needs logits, the gradients through a softmax that is applied twice vanish"
        )


def _looks_like_probabilities(logits: Tensor) -> bool:
    """Whether every row of (N, K) lies in [0, 1] and sums to 1."""
    in_range = logits.min() >= 0 and logits.max() <= 1
    return bool(in_range) and bool(((logits.sum(1) - 1).abs() < 1e-3).all())


# ------------------------------------------------------------------------------------------ shared with other attacks


def logit_at(logits: Tensor, classes: Tensor) -> Tensor:
    """The logit (B,) of one class (B,) per row (B, K)."""
    return logits.gather(1, classes[:, None]).squeeze(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the largest other one (B,); below 0 where the answer is wrong."""
    return logit_at(logits, labels) - logits.scatter(1, labels[:, None], -math.inf).amax(1)
