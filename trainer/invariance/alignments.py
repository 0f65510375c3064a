"""Ways to move an image over another, tried when its neighbours are sought: the published grid, and random draws.

Tramèr et al. 2020: section 4 and its appendix move images over a grid of shifts and rotations for the Linf attack, and
by random affine maps for the L0 attack. Images are 8-bit in the published procedure and rounded after every
resampling, so all of this is done in levels, whole numbers from 0 to 255.

Shapes: N images, C channels, H rows, W columns, D = C H W, A alignments.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

WHITE = 255.0


class Tracks(NamedTuple):
    """Alignments ordered into tracks: a is at position a // number of track a % number.

    Along a track every image changes slowly: between two neighbouring knots it nearly moves on a straight line.
    """

    number: int
    knots: tuple[int, ...]
    """Ascending positions, the first and the last among them."""

    @property
    def inner(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the I positions that are no knots: (I,) position, number of the knot below and above, and how much of the
        way to the latter (float32)."""
        knots = torch.tensor(self.knots)
        position = torch.tensor([p for p in range(self.knots[-1]) if p not in self.knots], dtype=torch.int64)
        above = torch.searchsorted(knots, position)
        below = above - 1
        return position, below, above, (position - knots[below]) / (knots[above] - knots[below])


class Alignments(Protocol):
    """What is tried: a frozen dataclass, all of it in its fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def size(self) -> int:
        """A."""
        ...

    @property
    def tracks(self) -> Tracks:
        """Their knots stand for all in a first search: the fewer there are, the faster."""
        ...

    def sought(self, images: Tensor) -> Tensor:
        """What of `images` (N, C, H, W) in [0, 1] is compared, in [0, 1]."""
        ...

    def aligner(self, height: int, width: int, device: torch.device) -> _Aligner:
        """What moves images of that size."""
        ...


class _Aligner(Protocol):
    """Moves images of one size, all as levels: whole numbers from 0 to 255."""

    def all(self, levels: Tensor) -> Tensor:
        """Every alignment of `levels` (N, C, H, W): (N, A, C, H, W) uint8."""
        ...

    def usable(self, levels: Tensor) -> Tensor:
        """(N, A) bool: whether the alignment of `levels` (N, C, H, W) may be searched with; at least one per image."""
        ...

    def back(self, levels: Tensor, alignment: Tensor) -> Tensor:
        """`levels` (N, C, H, W), each moved against its own `alignment` (N,): (N, C, H, W) uint8."""
        ...


@cache
def aligner_of(alignments: Alignments, height: int, width: int, device: torch.device) -> _Aligner:
    """Made once: the matrices of a grid take seconds."""
    return alignments.aligner(height, width, device)


def to_levels(values: Tensor) -> Tensor:
    """Rounded half up and clipped to 0..255, as SciPy writes a result into 8-bit pixels."""
    return (values + 0.5).floor_().clamp_(0, WHITE)
