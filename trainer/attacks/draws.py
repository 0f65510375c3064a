"""Random numbers that do not depend on the device: drawn on the generator's own, the CPU, then copied.

So trials on a mixed cluster share their starts, and a trial draws the same numbers wherever it is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Draws = torch.Generator | Sequence[torch.Generator]
"""Source of random numbers: one generator, or several of which each draws for an equal part of the images, in order,
exactly what it would draw for that part alone."""


def uniform(shape: Sequence[int], like: Tensor, generator: Draws) -> Tensor:
    """Draw numbers from [0, 1), of the type and on the device of `like`; several generators part the first axis."""
    return _drawn(torch.rand, shape, like, generator)


def normal(shape: Sequence[int], like: Tensor, generator: Draws) -> Tensor:
    """Draw as `uniform` does, from the normal distribution of mean 0 and deviation 1."""
    return _drawn(torch.randn, shape, like, generator)


def _drawn(random: Callable[..., Tensor], shape: Sequence[int], like: Tensor, generator: Draws) -> Tensor:
    """Draw by `torch.rand` or `torch.randn`, of the type and on the device of `like`."""
    if isinstance(generator, torch.Generator):
        pinned = like.is_cuda  # else the host would wait for all that the GPU has still to do
        numbers = random(tuple(shape), generator=generator, dtype=like.dtype, pin_memory=pinned)
        return numbers.to(like.device, non_blocking=True)
    part = (shape[0] // len(generator), *shape[1:])
    return torch.cat([_drawn(random, part, like, each) for each in generator])
