"""Invariance attacks: change an image towards its aligned nearest neighbour of another class.

Tramèr et al. 2020, "Fundamental Tradeoffs between Invariance and Sensitivity to Adversarial Perturbations", section 4
and its appendix.

Shapes: N sources, Q (source, target) pairs, C channels, H rows, W columns, P = H W.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.invariance.alignments import WHITE
from trainer.invariance.class_index import Neighbours
from trainer.invariance.clusters import (
    MOST_CLUSTERS,
    clusters,
    largest_subset,
    number_by_size,
)

TIE = 1e-6
"""Slack of comparisons in [0, 1] pixel units: far under one level, far over float32's rounding."""


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
