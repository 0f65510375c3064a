"""Ways to move an image over another, tried when its neighbours are sought: the published grid, and random draws.

Tramèr et al. 2020: section 4 and its appendix move images over a grid of shifts and rotations for the Linf attack, and
by random affine maps for the L0 attack. Images are 8-bit in the published procedure and rounded after every
resampling, so all of this is done in levels, whole numbers from 0 to 255.

Shapes: N images, C channels, H rows, W columns, D = C H W, A alignments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from trainer.errors import InputError
from trainer.words import did_you_mean

WHITE = 255.0
_SPLINE_ORDER = 3
COARSE_STEP = 3
"""Every so many-th rotation of a grid is searched with at first."""


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


def alignments_for(dataset: str, norm: str) -> Alignments:
    """What the attack of a norm tries on a data set: the published choice for 28x28 images, shifts scaled for others.

    CIFAR-10 is only shifted: a turned photograph has blank corners that no training image has.

    Raises:
        InputError: for a data set or norm that none is known for.
    """
    for name, value, known in (("data set", dataset, _ALIGNMENTS), ("norm", norm, ("linf", "l0"))):
        if value not in known:
            raise InputError(f"no alignments for {name} {value!r}: {did_you_mean(value, known)}")
    return _ALIGNMENTS[dataset][norm]


@dataclass(frozen=True)
class AlignmentGrid:
    """Shifts along both axes and rotations about the centre, symmetric about 0 and evenly spaced."""

    shift_limit: float
    """In pixels."""
    shift_count: int
    rotation_limit: float
    """In degrees."""
    rotation_count: int

    @property
    def shifts(self) -> np.ndarray:
        return _symmetric(self.shift_limit, self.shift_count)

    @property
    def rotations(self) -> np.ndarray:
        return _symmetric(self.rotation_limit, self.rotation_count)

    @property
    def size(self) -> int:
        """A. Alignment a is (rotation, down, right) in row-major order, so its negation is A - 1 - a."""
        return self.rotation_count * self.shift_count**2

    @property
    def tracks(self) -> Tracks:
        """Of every shift the rotations, with every `COARSE_STEP`-th and the last as knots."""
        knots = sorted({*range(0, self.rotation_count, COARSE_STEP), self.rotation_count - 1})
        return Tracks(self.shift_count**2, tuple(knots))

    def sought(self, images: Tensor) -> Tensor:
        """All of them: every level counts."""
        return images

    def aligner(self, height: int, width: int, device: torch.device) -> GridAligner:
        return GridAligner(self, height, width, device)


def _symmetric(limit: float, count: int) -> np.ndarray:
    """`count` evenly spaced numbers in [-limit, limit], exactly symmetric about 0."""
    numbers = np.linspace(-limit, limit, count) if count > 1 else np.zeros(1)
    return (numbers - numbers[::-1]) / 2


class GridAligner:
    """Rotate, then shift, as `scipy.ndimage` does it to 8-bit images: order-3 splines, rounded after each of the two.

    Both are linear maps of the image before the rounding, so they are applied as matrices, in float64: rounding to
    levels then hides the order of summation.
    """

    def __init__(self, grid: AlignmentGrid, height: int, width: int, device: torch.device) -> None:
        self.grid = grid
        self._rotate = torch.stack([_rotation_matrix(r, height, width) for r in grid.rotations]).to(device)
        self._down = torch.stack([_shift_matrix(s, height) for s in grid.shifts]).to(device)
        self._right = torch.stack([_shift_matrix(s, width) for s in grid.shifts]).to(device)
        self._rotate_all = self._rotate.transpose(0, 1).flatten(1).contiguous()
        self._down_all = self._down.mT.flatten(0, 1).contiguous()
        self._right_all = self._right.transpose(0, 1).flatten(1).contiguous()

    def all(self, levels: Tensor) -> Tensor:
        """Every alignment of `levels` (N, C, H, W): (N, A, C, H, W) uint8."""
        rotated = to_levels(levels.double().flatten(2) @ self._rotate_all)
        rotated = rotated.view(*levels.shape[:2], self.grid.rotation_count, *levels.shape[2:])
        return torch.stack([self._shift(image) for image in rotated.transpose(2, 3)])

    def _shift(self, rotated: Tensor) -> Tensor:
        """Every shift of one image's rotations (C, H, R, W): (A, C, H, W) uint8."""
        channels, height, _, width = rotated.shape
        shifted = self._down_all @ (rotated @ self._right_all).flatten(2)
        shifted = shifted.add_(0.5).clamp_(0, WHITE).to(torch.uint8)  # cuts off what `to_levels` rounds down
        shifts = self.grid.shift_count
        shifted = shifted.view(channels, shifts, height, -1, shifts, width).permute(3, 1, 4, 0, 2, 5)
        return shifted.reshape(-1, channels, height, width)

    def usable(self, levels: Tensor) -> Tensor:
        """All of them."""
        return levels.new_ones(len(levels), self.grid.size, dtype=torch.bool)

    def back(self, levels: Tensor, alignment: Tensor) -> Tensor:
        """Moved by the opposite angle and shifts. Not the inverse: as published, it too rotates before it shifts."""
        return self.each(levels, self.negated(alignment))

    def each(self, levels: Tensor, alignment: Tensor) -> Tensor:
        """`levels` (N, C, H, W), each moved by its own `alignment` (N,), as levels: uint8."""
        count = self.grid.shift_count
        rotation, down, right = alignment // count**2, alignment // count % count, alignment % count
        rotated = torch.empty_like(levels, dtype=torch.float64)
        for r in rotation.unique().tolist():
            own = levels[rotation == r].double()
            rotated[rotation == r] = (own.flatten(2) @ self._rotate[r]).view_as(own)
        return to_levels(self._down[down].mT[:, None] @ (to_levels(rotated) @ self._right[right][:, None])).to(
            torch.uint8
        )

    def negated(self, alignment: Tensor) -> Tensor:
        """The alignment by the opposite angle and shifts."""
        return self.grid.size - 1 - alignment


def _rotation_matrix(degrees: float, height: int, width: int) -> Tensor:
    """(H W, H W) float64: row p is what the rotation makes of an image that is 1 in pixel p and 0 elsewhere."""
    basis = np.eye(height * width).reshape(-1, height, width)
    moved = ndimage.rotate(basis, degrees, axes=(2, 1), reshape=False, order=_SPLINE_ORDER)
    return torch.from_numpy(moved.reshape(height * width, -1))


def _shift_matrix(pixels: float, size: int) -> Tensor:
    """(size, size) float64: the shift along one axis; splines of two axes are the product of the splines of each."""
    return torch.from_numpy(np.stack([ndimage.shift(row, pixels, order=_SPLINE_ORDER) for row in np.eye(size)]))


def to_levels(values: Tensor) -> Tensor:
    """Rounded half up and clipped to 0..255, as SciPy writes a result into 8-bit pixels."""
    return (values + 0.5).floor_().clamp_(0, WHITE)


@dataclass(frozen=True)
class AffineDraws:
    """Affine maps about the centre, each angle, scale, shear and shift drawn evenly from within its limit.

    Images are compared in black and white. A map is used for an image if, mapped and mapped back, at least
    `LEAST_INK` of its ink is left: the others push it out of the frame.
    """

    rotation_limit: float
    """In radians."""
    scale_limit: float
    """The scale lies in [1 - limit, 1 + limit], the same along both axes."""
    shear_limit: float
    shift_limit: float
    """In pixels."""
    size: int
    """A."""
    seed: int = 0

    @property
    def tracks(self) -> Tracks:
        """None lies between others: all are knots."""
        number = math.gcd(self.size, _DRAWN_TRACKS)
        return Tracks(number, tuple(range(self.size // number)))

    def sought(self, images: Tensor) -> Tensor:
        """Black and white."""
        return (images > 0.5).to(images.dtype)

    def aligner(self, height: int, width: int, device: torch.device) -> AffineAligner:
        return AffineAligner(self, height, width, device)


_LEAST_INK = 0.85
_DRAWN_TRACKS = 25
"""As many as the published grid has; nothing but speed depends on it."""


class AffineAligner:
    """Samples images bilinearly at the places that an affine map, or its inverse, sends the pixels to."""

    def __init__(self, draws: AffineDraws, height: int, width: int, device: torch.device) -> None:
        maps = affine_maps(draws, height, width)
        self._maps, self._inverse = maps.to(device), torch.linalg.inv(maps).to(device)

    def all(self, levels: Tensor) -> Tensor:
        return torch.stack([self._sample(self._repeat(image), self._maps) for image in levels]).to(torch.uint8)

    def usable(self, levels: Tensor) -> Tensor:
        left = torch.stack([self._round_trip(image).flatten(1).sum(1) for image in levels.float()])
        usable = left >= _LEAST_INK * levels.float().flatten(1).sum(1, keepdim=True)
        # The map that keeps most is always used: a stroke at the frame's edge may leave no other.
        return usable.scatter_(1, left.argmax(1, keepdim=True), True)

    def back(self, levels: Tensor, alignment: Tensor) -> Tensor:
        return self._sample(levels, self._inverse[alignment]).to(torch.uint8)

    def _round_trip(self, image: Tensor) -> Tensor:
        return self._sample(self._sample(self._repeat(image), self._maps), self._inverse)

    def _repeat(self, image: Tensor) -> Tensor:
        """(A, C, H, W) of one image (C, H, W)."""
        return image.expand(len(self._maps), *image.shape)

    def _sample(self, levels: Tensor, maps: Tensor) -> Tensor:
        """`levels` (S, C, H, W), each by its own map (S, 3, 3), blank outside; float32 levels."""
        places = F.affine_grid(maps[:, :2], list(levels.shape), align_corners=False)
        return to_levels(F.grid_sample(levels.float(), places, align_corners=False))


def affine_maps(draws: AffineDraws, height: int, width: int) -> Tensor:
    """(A, 3, 3) float32, from the places of the moved image to those of the image, in units of half its sides."""
    generator = torch.Generator().manual_seed(draws.seed)
    angle, scale, shear, right, down = torch.rand(5, draws.size, generator=generator, dtype=torch.float64) * 2 - 1
    angle, scale, shear = draws.rotation_limit * angle, 1 + draws.scale_limit * scale, draws.shear_limit * shear
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    turn = _matrices([[angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero], [zero, zero, one]])
    slant = _matrices([[scale, shear * scale, zero], [zero, scale, zero], [zero, zero, one]])
    shift = _matrices(
        [[one, zero, draws.shift_limit * right], [zero, one, draws.shift_limit * down], [zero, zero, one]]
    )
    half_sides = torch.tensor([width / 2, height / 2, 1], dtype=torch.float64)
    pixels = shift @ turn @ slant
    return (pixels * half_sides / half_sides[:, None]).float()


def _matrices(rows: list[list[Tensor]]) -> Tensor:
    """(A, 3, 3) of 3 x 3 entries (A,)."""
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _scaled(side: int, *, turned: bool = True) -> dict[str, Alignments]:
    """By norm, the published choices for images of 28 pixels a side, for others."""
    shift, turn = side / PAPER_SIZE, float(turned)
    return {
        "linf": AlignmentGrid(
            shift_limit=3 * shift, shift_count=5, rotation_limit=30 * turn, rotation_count=31 if turned else 1
        ),
        "l0": AffineDraws(
            rotation_limit=0.25 * turn,
            scale_limit=0.2 * turn,
            shear_limit=0.2 * turn,
            shift_limit=8 * shift,
            size=_DRAWS,
        ),
    }


PAPER_SIZE = 28
_DRAWS = 775
"""As many as the grid has points."""
_ALIGNMENTS = {
    "mnist": _scaled(28),
    "fashion_mnist": _scaled(28),
    "digits": _scaled(8),
    "cifar10": _scaled(32, turned=False),
}
"""By data set and norm."""
