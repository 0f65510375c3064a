"""Invariance attacks: change an image towards its aligned nearest neighbour of another class.

Tramèr et al. 2020, "Fundamental Tradeoffs between Invariance and Sensitivity to Adversarial Perturbations", section 4
and its appendix.

Shapes: N sources, Q (source, target) pairs, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.invariance.alignments import WHITE
from trainer.invariance.class_index import Neighbours
from trainer.invariance.clusters import MOST_CLUSTERS, clusters, largest_subset, number_by_size

TIE = 1e-6
"""Tolerance of comparisons in pixel units of [0, 1]: far below one level, far above float32's rounding."""


class _InvarianceAttack(Protocol):
    """The invariance attack of one norm."""

    budgets: tuple[float, ...]
    """Budgets, ascending from 0, in the norm's unit, at which perturbations are labelled once and for all."""

    def plan(self, images: Tensor, aligned: Tensor) -> Tensor:
        """Prepare what every pair's perturbations are made from: (Q, C', H, W) uint8.

        Args:
            images: sources (Q, C, H, W) in [0, 1].
            aligned: (Q, C, H, W) uint8 levels, the neighbours moved over the sources.
        """
        ...

    def perturb(self, images: Tensor, plan: Tensor, *, epsilon: float | Tensor) -> Tensor:
        """Change `images` (Q, C, H, W) within a budget, one number or one per image (Q,); they stay in [0, 1]."""
        ...

    def cost(self, images: Tensor, perturbed: Tensor, plan: Tensor) -> Tensor:
        """Return the cost (Q,) by which, of several targets of one source, the cheapest is taken."""
        ...


class LinfInvariance:
    """The Linf attack: every pixel moves towards the neighbour's by at most epsilon, in pixel units."""

    budgets = (*(g / 20 for g in range(13)), 0.8, 1.0)

    def plan(self, images: Tensor, aligned: Tensor) -> Tensor:
        return aligned

    def perturb(self, images: Tensor, plan: Tensor, *, epsilon: float | Tensor) -> Tensor:
        """Move all pixels, except that a blank one never takes an ink so pale that it lies within the budget."""
        budget = _per_image(epsilon, images)
        wanted = plan.to(images.dtype) / WHITE - images
        stays = (images == 0) & (wanted <= budget + TIE)
        return torch.where(stays, images, images + wanted.clamp(-budget, budget)).clamp(0, 1)

    def cost(self, images: Tensor, perturbed: Tensor, plan: Tensor) -> Tensor:
        return ink_removed(images, perturbed)


class _L0Invariance:
    """The L0 attack: whole clusters of pixels take the neighbour's values; epsilon is the share that may change.

    The clusters are those of DBSCAN on the pixels that differ by more than half, as published. The paper chooses by a
    GAN which clusters move; here those move that change most pixels within the budget.
    """

    budgets = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)

    def plan(self, images: Tensor, aligned: Tensor) -> Tensor:
        """Return the neighbour with a last channel that numbers the clusters."""
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
        """Count the pixels that still differ from the neighbour by more than half."""
        return ((plan[:, :-1].to(images.dtype) / WHITE - perturbed).abs() > 0.5).any(1).sum((1, 2)).to(images.dtype)


INVARIANCE_ATTACKS: dict[str, _InvarianceAttack] = {"linf": LinfInvariance(), "l0": _L0Invariance()}
"""Attacks by norm."""


def _per_image(epsilon: float | Tensor, images: Tensor) -> Tensor:
    """Reshape a budget, one for all or one per image (Q,), to (1, 1, 1, 1) or (Q, 1, 1, 1), of the type of `images`."""
    return torch.as_tensor(epsilon, dtype=images.dtype, device=images.device).reshape(-1, 1, 1, 1)


def allowed_targets(classes: int, table: dict[int, tuple[int, ...]] | None = None) -> Tensor:
    """Return which class may be turned into which: (K, K) bool, every other one, or only those that `table` lists."""
    if table is None:
        return ~torch.eye(classes, dtype=torch.bool)
    allowed = torch.zeros(classes, classes, dtype=torch.bool)
    for source, targets in table.items():
        allowed[source, list(targets)] = True
    return allowed


def ink_removed(images: Tensor, perturbed: Tensor) -> Tensor:
    """Sum over pixels (Q,) the ink that `perturbed` (Q, C, H, W) has lost against `images`, in pixel units."""
    return (images - perturbed).clamp_min(0).flatten(1).sum(1)


def cheapest(neighbours: Neighbours, cost: Tensor, sources: int) -> Tensor:
    """Choose of each source's pairs the one of least `cost` (Q,), the first of equals: (N,) int64, -1 for none."""
    order = torch.argsort(cost, stable=True)
    order = order[torch.argsort(neighbours.source[order], stable=True)]
    by_source = neighbours.source[order]
    first = torch.ones_like(by_source, dtype=torch.bool)
    first[1:] = by_source[1:] != by_source[:-1]
    chosen = torch.full((sources,), -1, dtype=torch.int64, device=cost.device)
    chosen[by_source[first]] = order[first]
    return chosen
