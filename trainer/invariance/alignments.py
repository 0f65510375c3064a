"""The interface of alignments: ways to move an image over another, all tried when its neighbours are searched for.

Tramèr et al. 2020, section 4 and its appendix, move images over a grid of shifts and rotations for the Linf attack and
by random affine maps for the L0 attack. Images are 8-bit in the published procedure and rounded after every
resampling, so alignments work in levels, whole numbers from 0 to 255.

Shapes: N images, C channels, H rows, W columns, A alignments.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

WHITE = 255.0
"""Level of a pixel that is 1 in [0, 1] images."""


class Tracks(NamedTuple):
    """An order of alignments in tracks: alignment a is at position a // number of track a % number.

    Along a track every image changes slowly: between two neighbouring knots it nearly moves on a straight line.
    """

    number: int
    """Count of tracks."""
    knots: tuple[int, ...]
    """Ascending positions, the first and the last among them."""

    @property
    def inner(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The I positions that are no knots: (I,) position, numbers of the knots below and above, and the share of the
        way from the one to the other (float32)."""
        knots = torch.tensor(self.knots)
        position = torch.tensor([p for p in range(self.knots[-1]) if p not in self.knots], dtype=torch.int64)
        above = torch.searchsorted(knots, position)
        below = above - 1
        return position, below, above, (position - knots[below]) / (knots[above] - knots[below])


class Alignments(Protocol):
    """A set of alignments: a frozen dataclass whose fields determine it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def size(self) -> int:
        """A, the number of alignments."""
        ...

    @property
    def tracks(self) -> Tracks:
        """Tracks through all alignments; a first search sees only the knots, so fewer knots make it faster."""
        ...

    def sought(self, images: Tensor) -> Tensor:
        """Return `images` (N, C, H, W) in [0, 1] as they are compared, in [0, 1]."""
        ...

    def aligner(self, height: int, width: int, device: torch.device) -> _Aligner:
        """Build what moves images of that size."""
        ...


class _Aligner(Protocol):
    """Mover of images of one size, given and returned as levels: whole numbers from 0 to 255."""

    def all(self, levels: Tensor) -> Tensor:
        """Return every alignment of `levels` (N, C, H, W): (N, A, C, H, W) uint8."""
        ...

    def usable(self, levels: Tensor) -> Tensor:
        """Return which alignments of `levels` (N, C, H, W) may be searched with: (N, A) bool, one or more per image."""
        ...

    def back(self, levels: Tensor, alignment: Tensor) -> Tensor:
        """Move each of `levels` (N, C, H, W) against its own `alignment` (N,): (N, C, H, W) uint8."""
        ...


@cache
def aligner_of(alignments: Alignments, height: int, width: int, device: torch.device) -> _Aligner:
    """Return the aligner of images of a size; it is made once, because the matrices of a grid take seconds."""
    return alignments.aligner(height, width, device)


def to_levels(values: Tensor) -> Tensor:
    """Round half up and clip to 0..255, as SciPy writes a result into 8-bit pixels."""
    return (values + 0.5).floor_().clamp_(0, WHITE)
