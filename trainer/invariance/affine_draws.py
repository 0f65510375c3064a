"""Random affine maps as alignments, as published for the L0 attack.

Shapes: N images, C channels, H rows, W columns, A alignments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.invariance.alignments import Tracks, to_levels


@dataclass(frozen=True)
class AffineDraws:
    """Affine maps about the centre; angle, scale, shear and shift are drawn evenly, each from within its limit.

    Images are compared in black and white. A map is used for an image if mapping it there and back leaves at least
    `_LEAST_INK` of its ink: other maps push the ink out of the frame.
    """

    rotation_limit: float
    """Largest rotation, in radians."""
    scale_limit: float
    """Scales lie in [1 - limit, 1 + limit] and are the same along both axes."""
    shear_limit: float
    shift_limit: float
    """Largest shift along either axis, in pixels."""
    size: int
    """A, the number of alignments."""
    seed: int = 0

    @property
    def tracks(self) -> Tracks:
        """Tracks on which all positions are knots: no map lies between others."""
        number = math.gcd(self.size, _DRAWN_TRACKS)
        return Tracks(number, tuple(range(self.size // number)))

    def sought(self, images: Tensor) -> Tensor:
        """Return the images in black and white."""
        return (images > 0.5).to(images.dtype)

    def aligner(self, height: int, width: int, device: torch.device) -> AffineAligner:
        """Build the aligner of images of a size."""
        return AffineAligner(self, height, width, device)


_LEAST_INK = 0.85
"""Smallest share of an image's ink that a usable map leaves."""
_DRAWN_TRACKS = 25
"""Number of tracks, as in the published grid; only speed depends on it."""


class AffineAligner:
    """An aligner that samples images bilinearly where an affine map, or its inverse, sends the pixels."""

    def __init__(self, draws: AffineDraws, height: int, width: int, device: torch.device) -> None:
        maps = affine_maps(draws, height, width)
        self._maps, self._inverse = maps.to(device), torch.linalg.inv(maps).to(device)

    def all(self, levels: Tensor) -> Tensor:
        """Return every alignment of `levels` (N, C, H, W): (N, A, C, H, W) uint8."""
        return torch.stack([self._sample(self._repeat(image), self._maps) for image in levels]).to(torch.uint8)

    def usable(self, levels: Tensor) -> Tensor:
        """Return which maps keep enough of the ink of `levels` (N, C, H, W): (N, A) bool."""
        left = torch.stack([self._round_trip(image).flatten(1).sum(1) for image in levels.float()])
        usable = left >= _LEAST_INK * levels.float().flatten(1).sum(1, keepdim=True)
        # The map that keeps most ink is always used: a stroke at the frame's edge may leave no other.
        return usable.scatter_(1, left.argmax(1, keepdim=True), True)

    def back(self, levels: Tensor, alignment: Tensor) -> Tensor:
        """Move each of `levels` (N, C, H, W) by the inverse of its own `alignment` (N,): (N, C, H, W) uint8."""
        return self._sample(levels, self._inverse[alignment]).to(torch.uint8)

    def _round_trip(self, image: Tensor) -> Tensor:
        return self._sample(self._sample(self._repeat(image), self._maps), self._inverse)

    def _repeat(self, image: Tensor) -> Tensor:
        """Repeat one image (C, H, W) for every map: (A, C, H, W)."""
        return image.expand(len(self._maps), *image.shape)

    def _sample(self, levels: Tensor, maps: Tensor) -> Tensor:
        """Sample each of `levels` (A, C, H, W) by its own map (A, 3, 3), blank outside: float32 levels."""
        sampled = F.affine_grid(maps[:, :2], list(levels.shape), align_corners=False)
        return to_levels(F.grid_sample(levels.float(), sampled, align_corners=False))


def affine_maps(draws: AffineDraws, height: int, width: int) -> Tensor:
    """Return maps (A, 3, 3) float32 from positions in the moved image to positions in the image, in half sides."""
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
    """Stack 3 x 3 entries (A,) to matrices (A, 3, 3)."""
    return torch.stack([torch.stack(row, 1) for row in rows], 1)
