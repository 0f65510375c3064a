"""Norms of perturbations: each one small object that draws a start, steps, and projects.

Shape letters: B images of a batch, C channels, H rows, W columns. Lengths and budgets are in pixel units of [0, 1]
images.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from trainer.attacks.draws import Draws, normal, uniform
from trainer.errors import InputError
from trainer.fields import check_budget
from trainer.words import did_you_mean

Budget = float | Tensor
"""Radius of the ball: one for all images (a number or a 0-d tensor) or one per image (B,), at least 0."""


class Norm(Protocol):
    """The geometry of one ball of perturbations."""

    def size(self, delta: Tensor) -> Tensor:
        """Return the norm (B, 1, 1, 1) of each perturbation (B, C, H, W)."""
        ...

    def random_start(self, images: Tensor, epsilon: Budget, generator: Draws) -> Tensor:
        """Draw perturbations (B, C, H, W) from the ball; only shape, type and device of the images count."""
        ...

    def steepest_step(self, gradient: Tensor) -> Tensor:
        """Return the direction of norm 1 in which a loss of this gradient (B, C, H, W) grows fastest; 0 if it is 0."""
        ...

    def project(self, delta: Tensor, epsilon: Budget) -> Tensor:
        """Return the nearest perturbations (B, C, H, W) inside the ball."""
        ...


class _Linf:
    """The largest absolute change of any pixel."""

    def size(self, delta: Tensor) -> Tensor:
        return delta.abs().amax(dim=(1, 2, 3), keepdim=True)

    def random_start(self, images: Tensor, epsilon: Budget, generator: Draws) -> Tensor:
        return (2 * uniform(images.shape, images, generator) - 1) * per_image(epsilon)

    def steepest_step(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor, epsilon: Budget) -> Tensor:
        radius = per_image(epsilon)
        return delta.clamp(-radius, radius)  # pyright: ignore[reportCallIssue, reportArgumentType] (takes either)


class _L2:
    """The Euclidean length of the change."""

    def size(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)

    def random_start(self, images: Tensor, epsilon: Budget, generator: Draws) -> Tensor:
        # Between two customs, uniform in length (a single start from well inside breaks more) and uniform in volume
        # (starts lie near the surface, where restarts differ more): by either alone the attack loses a point.
        length = uniform((len(images), 1, 1, 1), images, generator).sqrt()
        direction = normal(images.shape, images, generator)
        return self.steepest_step(direction) * length * per_image(epsilon)

    def steepest_step(self, gradient: Tensor) -> Tensor:
        return gradient / self.size(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)

    def project(self, delta: Tensor, epsilon: Budget) -> Tensor:
        length = self.size(delta).clamp_min(torch.finfo(delta.dtype).tiny)
        return delta * (per_image(epsilon) / length).clamp(max=1)


NORMS: dict[str, Norm] = {"linf": _Linf(), "l2": _L2()}
"""Norms by name."""


def norm_named(name: str) -> Norm:
    """Return the norm of that name.

    Raises:
        InputError: for a name that is not in `NORMS`.
    """
    if name not in NORMS:
        raise InputError(f"unknown norm {name!r}: {did_you_mean(name, NORMS)}")
    return NORMS[name]


def per_image(value: Budget) -> Budget:
    """Return one value for all images as it is, one per image (B,) as (B, 1, 1, 1)."""
    return value.view(-1, 1, 1, 1) if isinstance(value, Tensor) and value.ndim == 1 else value


def checked_ball(norm: str, epsilon: float) -> Norm:
    """Return the norm of that name after checking that it can have this budget.

    Raises:
        InputError: for an unknown name, or a budget that is not finite, negative, or too large for the norm.
    """
    ball = norm_named(norm)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise InputError(f"epsilon = {epsilon!r}: must be a finite number, at least 0")
    check_budget("epsilon", epsilon, norm)
    return ball


def positive(name: str, value: int) -> int:
    """Return the value after checking that it is at least 1.

    Raises:
        InputError: with the option's name, if it is less.
    """
    if value < 1:
        raise InputError(f"{name} = {value!r}: must be at least 1")
    return value


def choose(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Choose, image by image, `yes` (B, C, H, W) where the condition (B,) holds, else `no`."""
    return torch.where(condition.view(-1, 1, 1, 1), yes, no)
