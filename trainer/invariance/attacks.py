"""Invariance attacks: change an image towards its aligned nearest neighbour of another class.

Tramèr et al. 2020, "Fundamental Tradeoffs between Invariance and Sensitivity to Adversarial Perturbations", section 4
and its appendix.

Shapes: N sources, Q (source, target) pairs, C channels, H rows, W columns, P = H W.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.invariance.alignments import PAPER_SIZE, WHITE
from trainer.invariance.neighbours import Neighbours

TIE = 1e-6
"""Slack of comparisons in [0, 1] pixel units: far under one level, far over float32's rounding."""

PAPER_TARGETS = {
    0: (4, 6, 8, 9),
    1: (4, 6, 7, 9),
    2: (8,),
    3: (8,),
    4: (8, 9),
    5: (3, 8),
    6: (0,),
    7: (2, 3),
    8: (3,),
    9: (3, 4, 5),
}
"""Digits that a digit may be turned into, as chosen by the paper's authors."""

_CLUSTER_RADIUS, _CLUSTER_SAMPLES = 2.0, 5
"""Of DBSCAN, in pixels of images of `PAPER_SIZE`."""
MOST_CLUSTERS = 8


class _InvarianceAttack(Protocol):
    """How an invariance norm perturbs."""

    budgets: tuple[float, ...]
    """Ascending from 0, in the norm's unit; what is shown at them is labelled once, and used for all between."""

    def plan(self, images: Tensor, aligned: Tensor) -> Tensor:
        """What every pair's perturbations are made from: (Q, C', H, W) uint8.

        Args:
            images: sources (Q, C, H, W) in [0, 1].
            aligned: (Q, C, H, W) uint8 levels, neighbours that lie over them.
        """
        ...

    def perturb(self, images: Tensor, plan: Tensor, *, epsilon: float | Tensor) -> Tensor:
        """`images` (Q, C, H, W) changed within a budget, one number or one per image (Q,): in [0, 1]."""
        ...

    def cost(self, images: Tensor, perturbed: Tensor, plan: Tensor) -> Tensor:
        """(Q,): of several targets of one source the one that costs least is taken."""
        ...


class LinfInvariance:
    """Every pixel moves towards the neighbour's by at most epsilon, in pixel units."""

    budgets = (*(g / 20 for g in range(13)), 0.8, 1.0)

    def plan(self, images: Tensor, aligned: Tensor) -> Tensor:
        return aligned

    def perturb(self, images: Tensor, plan: Tensor, *, epsilon: float | Tensor) -> Tensor:
        """A blank pixel never takes an ink so pale that it lies within the budget."""
        budget = _per_image(epsilon, images)
        wanted = plan.to(images.dtype) / WHITE - images
        stays = (images == 0) & (wanted <= budget + TIE)
        return torch.where(stays, images, images + wanted.clamp(-budget, budget)).clamp(0, 1)

    def cost(self, images: Tensor, perturbed: Tensor, plan: Tensor) -> Tensor:
        return ink_removed(images, perturbed)


class _L0Invariance:
    """Whole clusters of pixels take the neighbour's values; epsilon is the share of pixels that may change.

    The clusters are those of DBSCAN on the pixels that differ by more than half, as published. There the subset of
    clusters that is moved is chosen by a GAN; here it is the one that changes most pixels within the budget.
    """

    budgets = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)

    def plan(self, images: Tensor, aligned: Tensor) -> Tensor:
        """The neighbour, and a last channel that numbers the clusters."""
        differs = ((aligned.to(images.dtype) / WHITE - images).abs() > 0.5).any(1)
        return torch.cat([aligned, number_by_size(clusters(differs))[:, None]], 1)

    def perturb(self, images: Tensor, plan: Tensor, *, epsilon: float | Tensor) -> Tensor:
        numbers = plan[:, -1].long()
        sizes = F.one_hot(numbers.flatten(1), MOST_CLUSTERS + 1)[..., 1:].sum(1)
        allowed = _per_image(epsilon, images).flatten() * numbers[0].numel() + TIE
        moved = largest_subset(sizes, allowed.expand(len(sizes)))
        moves = F.pad(moved, (1, 0)).gather(1, numbers.flatten(1)).view_as(numbers)
        return torch.where(moves[:, None], plan[:, :-1].to(images.dtype) / WHITE, images)

    def cost(self, images: Tensor, perturbed: Tensor, plan: Tensor) -> Tensor:
        """Pixels that still differ from the neighbour by more than half."""
        return ((plan[:, :-1].to(images.dtype) / WHITE - perturbed).abs() > 0.5).any(1).sum((1, 2)).to(images.dtype)


INVARIANCE_ATTACKS: dict[str, _InvarianceAttack] = {"linf": LinfInvariance(), "l0": _L0Invariance()}
"""By norm."""


def _per_image(epsilon: float | Tensor, images: Tensor) -> Tensor:
    """(1, 1, 1, 1) or (Q, 1, 1, 1): one budget, or one per image, against `images` (Q, C, H, W)."""
    return torch.as_tensor(epsilon, dtype=images.dtype, device=images.device).reshape(-1, 1, 1, 1)


def allowed_targets(classes: int, table: dict[int, tuple[int, ...]] | None = None) -> Tensor:
    """(K, K) bool: which class may be turned into which; every other class, or only those that `table` lists."""
    if table is None:
        return ~torch.eye(classes, dtype=torch.bool)
    allowed = torch.zeros(classes, classes, dtype=torch.bool)
    for source, targets in table.items():
        allowed[source, list(targets)] = True
    return allowed


def ink_removed(images: Tensor, perturbed: Tensor) -> Tensor:
    """(Q,): how much darker `perturbed` (Q, C, H, W) is than `images`, summed over the pixels that lost ink."""
    return (images - perturbed).clamp_min(0).flatten(1).sum(1)


def cheapest(neighbours: Neighbours, cost: Tensor, sources: int) -> Tensor:
    """(N,) int64: of each source's pairs the one of least `cost` (Q,), the first of equals; -1 for none."""
    order = torch.argsort(cost, stable=True)
    order = order[torch.argsort(neighbours.source[order], stable=True)]
    by_source = neighbours.source[order]
    first = torch.ones_like(by_source, dtype=torch.bool)
    first[1:] = by_source[1:] != by_source[:-1]
    chosen = torch.full((sources,), -1, dtype=torch.int64, device=cost.device)
    chosen[by_source[first]] = order[first]
    return chosen


def clusters(marked: Tensor) -> Tensor:
    """DBSCAN of the marked pixels of every image (Ester et al. 1996), the radius and density scaled with its size.

    Args:
        marked: (Q, H, W) bool.

    Returns:
        (Q, H, W) int32: a number of its own for every cluster of an image; 0 for pixels that are not marked or belong
        to none. A pixel on the border of several belongs to that of the greatest number.
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
    """Offsets (down, right) of all pixels within the radius."""
    reach = range(-int(radius), int(radius) + 1)
    return [(down, right) for down in reach for right in reach if math.hypot(down, right) <= radius]


def _shifted(images: Tensor, down: int, right: int) -> Tensor:
    """`images` (Q, H, W) moved by whole pixels, zeros moving in."""
    height, width = images.shape[1:]
    padded = F.pad(images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    return padded[:, max(-down, 0) : max(-down, 0) + height, max(-right, 0) : max(-right, 0) + width]


def _greatest_around(numbers: Tensor, around: list[tuple[int, int]]) -> Tensor:
    """(Q, H, W): the greatest of `numbers` at the given offsets from each pixel."""
    greatest = numbers
    for offset in around:
        greatest = torch.maximum(greatest, _shifted(numbers, *offset))
    return greatest


def number_by_size(numbers: Tensor) -> Tensor:
    """(Q, H, W) uint8: clusters numbered from 1, the largest, to `MOST_CLUSTERS`; the rest of them becomes 0."""
    flat = numbers.flatten(1).long()
    sizes = torch.zeros(len(flat), flat.shape[1] + 1, dtype=torch.int64, device=flat.device)
    sizes.scatter_add_(1, flat, torch.ones_like(flat))
    sizes[:, 0] = 0
    # Of equally large ones the lower number, so that the order is the same everywhere.
    order = torch.argsort(sizes, dim=1, descending=True, stable=True)[:, :MOST_CLUSTERS]
    ranks = torch.zeros_like(sizes, dtype=torch.uint8)
    ranks.scatter_(
        1, order, torch.arange(1, order.shape[1] + 1, dtype=torch.uint8, device=flat.device).expand_as(order)
    )
    return (ranks.gather(1, flat) * (flat > 0)).view(numbers.shape)


def largest_subset(sizes: Tensor, allowed: Tensor) -> Tensor:
    """(Q, k) bool: the clusters, of `sizes` (Q, k), whose sum is the greatest that `allowed` (Q,) permits."""
    count = sizes.shape[1]
    subsets = torch.arange(2**count, device=sizes.device)[:, None] >> torch.arange(count, device=sizes.device) & 1
    totals = (sizes[:, None] * subsets).sum(2)
    # Of equal totals the first subset: that of the fewest, largest clusters comes before those of smaller ones.
    ranked = torch.where(totals <= allowed[:, None], totals * len(subsets) - torch.arange(len(subsets)).to(totals), -1)
    return subsets[ranked.argmax(1)].bool()
