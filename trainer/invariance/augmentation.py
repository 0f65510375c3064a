"""Random changes of training images for the judge: slant, turn, shift, thresholds, and uneven ink.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.crowds import LARGEST_THRESHOLD, LEAST_THRESHOLD
from trainer.invariance.recipes import Recipe, UnevenInk

_CELLS = 8
"""Number of noise cells along each side of an image, which random regions are made from."""
_EDGE = 4.0
"""Steepness of the edges of regions."""


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Rotate, shear, scale and shift each of `images` (N, C, H, W) at random, bilinearly; blank outside."""
    draw = torch.rand(6, len(images), generator=generator, device=images.device) * 2 - 1
    angle, shear = recipe.rotation * draw[0], recipe.shear * draw[1]
    scale = 1 + recipe.scale * draw[2:4]
    shift = 2 * recipe.shift * draw[4:6]
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack(
        [
            torch.stack([cos / scale[0], (shear - sin) / scale[0], shift[0]], 1),
            torch.stack([sin / scale[1], cos / scale[1], shift[1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def draw_unevenly(images: Tensor, uneven: UnevenInk, generator: torch.Generator) -> Tensor:
    """Draw the ink of `images` (N, C, H, W) in [0, 1] unevenly: faded, missing, cluttered by another, in regions."""
    others, count = images.roll(1, 0), len(images)

    def draw() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator, device=images.device)

    def somewhere(share: Tensor) -> Tensor:
        return regions(share, images.shape[2:], generator)

    faded = somewhere(uneven.faded * draw()) * (1 - uneven.strength) * draw()
    # In half of the images nothing is missing, in half nothing shines through, in half nothing stands in full.
    missing, pale, specks = (
        somewhere(most * (2 * draw() - 1).clamp_min(0)) for most in (uneven.missing, uneven.pale, uneven.specks)
    )
    own = images * (1 - faded) * (1 - missing)
    clutter = others * torch.maximum(pale * uneven.pale_strength * draw(), specks)
    return torch.maximum(own, clutter)


def black_and_white(images: Tensor, generator: torch.Generator) -> Tensor:
    """Make each of `images` (N, C, H, W) in [0, 1] black and white at a random threshold."""
    drawn = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    return (images > LEAST_THRESHOLD + (LARGEST_THRESHOLD - LEAST_THRESHOLD) * drawn).to(images.dtype)


def regions(share: Tensor, size: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw smooth regions (N, 1, H, W), 1 inside, on about a `share` (N, 1, 1, 1) of images of `size` (H, W)."""
    noise = torch.randn(len(share), 1, _CELLS, _CELLS, generator=generator, device=share.device)
    smooth = F.interpolate(noise, size=tuple(size), mode="bicubic", align_corners=True)
    smooth = smooth / smooth.std((1, 2, 3), keepdim=True)
    # The wanted share of a normal distribution lies above this quantile; for a share of 0 it is infinite.
    return ((smooth - torch.special.ndtri(1 - share)) * _EDGE + 0.5).clamp(0, 1)
