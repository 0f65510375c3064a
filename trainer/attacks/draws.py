"""Random numbers that do not depend on the device: drawn on the generator's own, the CPU, then copied.

So trials on a mixed cluster share their starts, and a trial draws the same numbers wherever it is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

_Random = Callable[..., Tensor]
"""`torch.rand` or `torch.randn`."""


class _Asked(NamedTuple):
    """Numbers that a step asked for."""

    random: _Random
    shape: tuple[int, ...]
    numbers: Tensor
    """The memory that holds them in every step."""


class DrawnAhead:
    """A source of the same numbers as another, which lie in the same memory in every step: so a step can be replayed.

    The first step decides what is drawn in each. `draw` comes before a step, and `rewind` before one on the same
    numbers.
    """

    def __init__(self, source: Draws) -> None:
        self._source = source
        self._asked: list[_Asked] = []
        self._next = 0

    def draw(self) -> None:
        """Draw the numbers of the next step."""
        self.rewind()
        for asked in self._asked:
            asked.numbers.copy_(_drawn(asked.random, asked.shape, asked.numbers, self._source), non_blocking=True)

    def rewind(self) -> None:
        """Give the next step the numbers of the last."""
        self._next = 0

    def take(self, random: _Random, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the numbers that the step asks for next.

        Raises:
            RuntimeError: if it asks for others than the first step did.
        """
        if self._next == len(self._asked):
            self._asked.append(_Asked(random, shape, _drawn(random, shape, like, self._source)))
        asked = self._asked[self._next]
        if (asked.random, asked.shape) != (random, shape):
            raise RuntimeError(f"a step asks for {shape} random numbers where the first asked for {asked.shape}")
        self._next += 1
        return asked.numbers


Draws: TypeAlias = torch.Generator | Sequence[torch.Generator] | DrawnAhead
"""Source of random numbers: one generator, or several of which each draws for an equal part of the images, in order,
exactly what it would draw for that part alone; or numbers that were drawn ahead."""


def uniform(shape: Sequence[int], like: Tensor, generator: Draws) -> Tensor:
    """Draw numbers from [0, 1), of the type and on the device of `like`; several generators part the first axis."""
    return _drawn(torch.rand, shape, like, generator)


def normal(shape: Sequence[int], like: Tensor, generator: Draws) -> Tensor:
    """Draw as `uniform` does, from the normal distribution of mean 0 and deviation 1."""
    return _drawn(torch.randn, shape, like, generator)


def _drawn(random: _Random, shape: Sequence[int], like: Tensor, generator: Draws) -> Tensor:
    """Draw by `torch.rand` or `torch.randn`, of the type and on the device of `like`."""
    if isinstance(generator, DrawnAhead):
        return generator.take(random, tuple(shape), like)
    if isinstance(generator, torch.Generator):
        pinned = like.is_cuda  # else the host would wait for all that the GPU has still to do
        numbers = random(tuple(shape), generator=generator, dtype=like.dtype, pin_memory=pinned)
        return numbers.to(like.device, non_blocking=True)
    part = (shape[0] // len(generator), *shape[1:])
    return torch.cat([_drawn(random, part, like, each) for each in generator])
