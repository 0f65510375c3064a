"""TODO one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainer.errors import InputError
from trainer.fields import check_budget
from trainer.words import did_you_mean

Budget = float | Tensor
"""A radius for all images (a number or a 0-d tensor) or one per image (B,)."""

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


class _Linf:
    """Largest absolute change of any pixel."""

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
    """Euclidean length of the change."""

    def size(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)

    def random_start(self, images: Tensor, epsilon: Budget, generator: Draws) -> Tensor:
        # Lengths between two customs, uniform in length (a single start breaks more from well inside) and uniform in
        # volume (nearly all of it lies at the surface, where restarts differ more): either alone loses a point.
        length = uniform((len(images), 1, 1, 1), images, generator).sqrt()
        normal = _drawn(torch.randn, images.shape, images, generator)
        return self.steepest_step(normal) * length * per_image(epsilon)

    def steepest_step(self, gradient: Tensor) -> Tensor:
        return gradient / self.size(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)

    def project(self, delta: Tensor, epsilon: Budget) -> Tensor:
        length = self.size(delta).clamp_min(torch.finfo(delta.dtype).tiny)
        return delta * (per_image(epsilon) / length).clamp(max=1)


NORMS: dict[str, Norm] = {"linf": _Linf(), "l2": _L2()}


def norm_named(name: str) -> Norm:
    """The norm of that name.

    Raises:
        InputError: for a name that is not in `NORMS`.
    """
    if name not in NORMS:
        raise InputError(f"unknown norm {name!r}: {did_you_mean(name, NORMS)}")
    return NORMS[name]


def per_image(value: Budget) -> Budget:
    return value.view(-1, 1, 1, 1) if isinstance(value, Tensor) and value.ndim == 1 else value


def uniform(shape: Sequence[int], like: Tensor, generator: Draws) -> Tensor:
    return _drawn(torch.rand, shape, like, generator)


def _drawn(random: Callable[..., Tensor], shape: Sequence[int], like: Tensor, generator: Draws) -> Tensor:
    """Numbers of `torch.rand` or `torch.randn`; of type and device only `like` counts."""
    if isinstance(generator, torch.Generator):
        return random(tuple(shape), generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
    part = (shape[0] // len(generator), *shape[1:])
    return torch.cat([_drawn(random, part, like, each) for each in generator])


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


def choose(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` (B, C, H, W) for the images where the condition (B,) holds, else `no`."""
    return torch.where(condition.view(-1, 1, 1, 1), yes, no)
