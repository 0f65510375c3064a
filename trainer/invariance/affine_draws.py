"""TODO one line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.invariance.alignments import Tracks, to_levels


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
