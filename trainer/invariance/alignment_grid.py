"""The published grid of alignments, for the Linf attack: shifts along both axes and rotations about the centre.

Shapes: N images, C channels, H rows, W columns, A alignments, R rotations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from trainer.invariance.alignments import WHITE, Tracks, to_levels

_SPLINE_ORDER = 3
COARSE_STEP = 3
"""Distance of knots on a track: every so many-th rotation of a grid is used in the first search."""


@dataclass(frozen=True)
class AlignmentGrid:
    """Shifts along both axes and rotations about the centre, symmetric about 0 and evenly spaced."""

    shift_limit: float
    """Largest shift along either axis, in pixels."""
    shift_count: int
    rotation_limit: float
    """Largest rotation, in degrees."""
    rotation_count: int

    @property
    def shifts(self) -> np.ndarray:
        """All shifts along one axis, in pixels, ascending."""
        return _symmetric(self.shift_limit, self.shift_count)

    @property
    def rotations(self) -> np.ndarray:
        """All rotations, in degrees, ascending."""
        return _symmetric(self.rotation_limit, self.rotation_count)

    @property
    def size(self) -> int:
        """A, the number of alignments. Alignment a is (rotation, down, right) in row-major order, so its negation is
        A - 1 - a."""
        return self.rotation_count * self.shift_count**2

    @property
    def tracks(self) -> Tracks:
        """One track for every shift, along its rotations, with every `COARSE_STEP`-th and the last one as knots."""
        knots = sorted({*range(0, self.rotation_count, COARSE_STEP), self.rotation_count - 1})
        return Tracks(self.shift_count**2, tuple(knots))

    def sought(self, images: Tensor) -> Tensor:
        """Return the images as they are: every level counts."""
        return images

    def aligner(self, height: int, width: int, device: torch.device) -> GridAligner:
        """Build the aligner of images of a size."""
        return GridAligner(self, height, width, device)


def _symmetric(limit: float, count: int) -> np.ndarray:
    """Return `count` evenly spaced numbers in [-limit, limit], exactly symmetric about 0."""
    numbers = np.linspace(-limit, limit, count) if count > 1 else np.zeros(1)
    return (numbers - numbers[::-1]) / 2


class GridAligner:
    """An aligner that rotates, then shifts, as `scipy.ndimage` does: order-3 splines, rounded to 8 bits after each.

    Before the rounding both are linear maps of the image, so they are applied as matrices, in float64: rounding to
    levels then hides the order of summation.
    """

    def __init__(self, grid: AlignmentGrid, height: int, width: int, device: torch.device) -> None:
        self.grid = grid
        self._turns = grid.rotation_count > 1
        turns = [_rotation_matrix(r, height, width) for r in grid.rotations] if self._turns else [torch.empty(0, 0)]
        self._rotate = torch.stack(turns).to(device)
        self._down = torch.stack([_shift_matrix(s, height) for s in grid.shifts]).to(device)
        self._right = torch.stack([_shift_matrix(s, width) for s in grid.shifts]).to(device)
        self._rotate_all = self._rotate.transpose(0, 1).flatten(1).contiguous()
        self._down_all = self._down.mT.flatten(0, 1).contiguous()
        self._right_all = self._right.transpose(0, 1).flatten(1).contiguous()

    def all(self, levels: Tensor) -> Tensor:
        """Return every alignment of `levels` (N, C, H, W): (N, A, C, H, W) uint8."""
        rotated = to_levels(levels.double().flatten(2) @ self._rotate_all) if self._turns else levels.double()
        rotated = rotated.view(*levels.shape[:2], self.grid.rotation_count, *levels.shape[2:])
        return torch.stack([self._shift(image) for image in rotated.transpose(2, 3)])

    def _shift(self, rotated: Tensor) -> Tensor:
        """Return every shift of one image's rotations (C, H, R, W): (A, C, H, W) uint8."""
        channels, height, _, width = rotated.shape
        shifted = self._down_all @ (rotated @ self._right_all).flatten(2)
        shifted = shifted.add_(0.5).clamp_(0, WHITE).to(torch.uint8)  # the cast truncates, as `to_levels` does
        shifts = self.grid.shift_count
        shifted = shifted.view(channels, shifts, height, -1, shifts, width).permute(3, 1, 4, 0, 2, 5)
        return shifted.reshape(-1, channels, height, width)

    def usable(self, levels: Tensor) -> Tensor:
        """Return True for all of them (N, A)."""
        return levels.new_ones(len(levels), self.grid.size, dtype=torch.bool)

    def back(self, levels: Tensor, alignment: Tensor) -> Tensor:
        """Move by the opposite angle and shifts; not the inverse, as it too rotates before it shifts (as published)."""
        return self.each(levels, self.negated(alignment))

    def each(self, levels: Tensor, alignment: Tensor) -> Tensor:
        """Move each of `levels` (N, C, H, W) by its own `alignment` (N,): (N, C, H, W) uint8."""
        count = self.grid.shift_count
        rotation, down, right = alignment // count**2, alignment // count % count, alignment % count
        rotated = levels.double()
        for r in rotation.unique().tolist() if self._turns else []:
            own = rotated[rotation == r]
            rotated[rotation == r] = (own.flatten(2) @ self._rotate[r]).view_as(own)
        shifted = self._down[down].mT[:, None] @ (to_levels(rotated) @ self._right[right][:, None])
        return to_levels(shifted).to(torch.uint8)

    def negated(self, alignment: Tensor) -> Tensor:
        """Return the alignment by the opposite angle and shifts."""
        return self.grid.size - 1 - alignment


def _rotation_matrix(degrees: float, height: int, width: int) -> Tensor:
    """Return (H W, H W) float64 whose row p is the rotation of an image that is 1 in pixel p and 0 elsewhere."""
    basis = np.eye(height * width).reshape(-1, height, width)
    moved = ndimage.rotate(basis, degrees, axes=(2, 1), reshape=False, order=_SPLINE_ORDER)
    return torch.from_numpy(moved.reshape(height * width, -1))


def _shift_matrix(pixels: float, size: int) -> Tensor:
    """Return (size, size) float64: the shift along one axis; the spline of two axes is the product of one of each."""
    return torch.from_numpy(np.stack([ndimage.shift(row, pixels, order=_SPLINE_ORDER) for row in np.eye(size)]))
