"""Clusters of the pixels that differ between two images, which the L0 attack moves as a whole.

Shapes: Q pairs of images, H rows, W columns, k clusters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.invariance.published import PAPER_SIZE

_CLUSTER_RADIUS, _CLUSTER_SAMPLES = 2.0, 5
"""Radius and least number of samples of DBSCAN, in pixels of images of `PAPER_SIZE`."""
MOST_CLUSTERS = 8
"""Number of clusters of an image that may move, the largest ones."""


def clusters(marked: Tensor) -> Tensor:
    """Find the clusters of marked pixels of every image: DBSCAN (Ester et al. 1996), radius and density scaled by size.

    Args:
        marked: (Q, H, W) bool.

    Returns:
        (Q, H, W) int32: a number of its own for every cluster of an image; 0 for pixels that are not marked or belong
        to no cluster. A pixel on the border of several clusters belongs to the one of the greatest number.
    """
    height, width = marked.shape[1:]
    scale = max(height, width) / PAPER_SIZE
    around = _disc(max(_CLUSTER_RADIUS * scale, math.sqrt(2)))
    crowd = sum(_shifted(marked.int(), *offset) for offset in around)
    core = marked & (crowd >= max(round(_CLUSTER_SAMPLES * scale**2), 1))
    numbers = core * torch.arange(1, height * width + 1, dtype=torch.int32, device=core.device).view(height, width)
    while True:
        spread = core * _greatest_around(numbers, around)
        if torch.equal(spread, numbers):
            return marked * _greatest_around(numbers, around)
        numbers = spread


def _disc(radius: float) -> list[tuple[int, int]]:
    """Return the offsets (down, right) of all pixels within the radius."""
    reach = range(-int(radius), int(radius) + 1)
    return [(down, right) for down in reach for right in reach if math.hypot(down, right) <= radius]


def _shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Shift `images` (Q, H, W) by whole pixels; zeros move in."""
    height, width = images.shape[1:]
    padded = F.pad(images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    return padded[:, max(-down, 0) : max(-down, 0) + height, max(-right, 0) : max(-right, 0) + width]


def _greatest_around(numbers: Tensor, around: list[tuple[int, int]]) -> Tensor:
    """Return (Q, H, W): the greatest of `numbers` at the given offsets from each pixel."""
    greatest = numbers
    for offset in around:
        greatest = torch.maximum(greatest, _shifted(numbers, *offset))
    return greatest


def number_by_size(numbers: Tensor) -> Tensor:
    """Number clusters (Q, H, W) from 1, the largest, to `MOST_CLUSTERS`, the others 0: (Q, H, W) uint8."""
    flat = numbers.flatten(1).long()
    sizes = torch.zeros(len(flat), flat.shape[1] + 1, dtype=torch.int64, device=flat.device)
    sizes.scatter_add_(1, flat, torch.ones_like(flat))
    sizes[:, 0] = 0
    # Of equally large clusters the lower number comes first, so that the order is the same everywhere.
    order = torch.argsort(sizes, dim=1, descending=True, stable=True)[:, :MOST_CLUSTERS]
    ranks = torch.zeros_like(sizes, dtype=torch.uint8)
    ranks.scatter_(
        1, order, torch.arange(1, order.shape[1] + 1, dtype=torch.uint8, device=flat.device).expand_as(order)
    )
    return (ranks.gather(1, flat) * (flat > 0)).view(numbers.shape)


def largest_subset(sizes: Tensor, allowed: Tensor) -> Tensor:
    """Choose the clusters, of `sizes` (Q, k), with the greatest sum that is at most `allowed` (Q,): (Q, k) bool."""
    count = sizes.shape[1]
    subsets = torch.arange(2**count, device=sizes.device)[:, None] >> torch.arange(count, device=sizes.device) & 1
    totals = (sizes[:, None] * subsets).sum(2)
    # Of equal totals the first subset is taken: few large clusters come before many small ones.
    ranked = torch.where(totals <= allowed[:, None], totals * len(subsets) - torch.arange(len(subsets)).to(totals), -1)
    return subsets[ranked.argmax(1)].bool()
