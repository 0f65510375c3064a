"""TODO one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.objective import transport


class Embedded(NamedTuple):
    """One side of a regulariser."""

    points: Tensor
    """(B, D) embeddings, or logits (B, K)."""

    labels: Tensor
    """(B,) int64 in [0, K)."""

    keep: Tensor | None = None
    """(B,) bool; False leaves an image out (nobody knows what it shows). None keeps all."""


class Penalty(NamedTuple):
    """A regulariser's value, () with its gradient, and how well its transport problems were solved."""

    value: Tensor
    marginal_error: Tensor | None
    """() the largest of the problems' (see `transport.Transport`); None where nothing is transported."""


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values, (); 0, with zero gradient, if none is. Both (B,)."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)


def regularizer(
    name: str,
    anchors: Embedded,
    clean: Embedded,
    *,
    classes: int,
    ground_metric: str = "cosine",
    mining: str = "hard",
    margin: Tensor | float = 0.05,
    solve: transport.Solver | None = None,
    label_cost: Tensor | float = 1.0,
    most: int | None = None,
) -> Penalty:
    """R(anchors ; clean) by its name in the configuration: `triplet`, `sinkhorn` or `ot_triplet`."""
    solve = solve or solver("entropic", 0.05)
    if name == "triplet":
        distance = DISTANCES[ground_metric](anchors.points, clean.points)
        return Penalty(_triplet(distance, anchors, clean, margin=margin, mining=mining), None)
    if name == "sinkhorn":
        return _sinkhorn(COSTS[ground_metric], anchors, clean, label_cost=label_cost, solve=solve)
    cost = COSTS[ground_metric](anchors.points, clean.points)
    return _ot_triplet(cost, anchors, clean, classes=classes, margin=margin, solve=solve, most=most)


def solver(name: str, entropy: Tensor | float, *, looks: bool = True) -> transport.Solver:
    """Of transport problems, by its name in the configuration: `entropic`, or `exact` by POT.

    The first ends early on a CPU, where it `looks` whether it may.
    """
    if name == "exact":
        return transport.exact_transport
    if looks:
        return partial(transport.entropic_transport, entropy=entropy)
    return partial(transport.entropic_transport, entropy=entropy, tolerance=None)


_Cost = Callable[[Tensor, Tensor], Tensor]
DISTANCES: dict[str, _Cost] = {"cosine": transport.cosine_cost, "euclidean": transport.euclidean_distance}
COSTS: dict[str, _Cost] = {"cosine": transport.cosine_cost, "euclidean": transport.squared_euclidean_cost}


def _triplet(
    distance: Tensor, anchors: Embedded, clean: Embedded, *, margin: Tensor | float, mining: str = "hard"
) -> Tensor:
    """Batch-hard triplet loss (Hermans et al. 2017, eq. 5), ().

    mean_i [ max_{j != i, y_j = y_i} D_ij - min_{y_j != y_i} D_ij + m ]_+, over anchors with a positive and a negative.

    Semi-hard mining takes the nearest negative beyond the positive, and the farthest where none is beyond: the nearest
    of all pulls embeddings that are still mixed into one point (Schroff et al. 2015, section 3.2).

    Args:
        distance: (B, B), anchors by row.
    """
    same = anchors.labels[:, None] == clean.labels
    itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
    present = _kept(clean)
    positive, negative = same & ~itself & present, ~same & present
    farthest_positive = distance.masked_fill(~positive, -torch.inf).amax(1)
    if mining == "semihard":
        beyond = negative & (distance > farthest_positive[:, None])
        nearest_beyond = distance.masked_fill(~beyond, torch.inf).amin(1)
        farthest_negative = distance.masked_fill(~negative, -torch.inf).amax(1)
        chosen_negative = torch.where(beyond.any(1), nearest_beyond, farthest_negative)
    else:
        chosen_negative = distance.masked_fill(~negative, torch.inf).amin(1)
    usable = positive.any(1) & negative.any(1) & _kept(anchors)
    gap = torch.where(usable, farthest_positive, 0) - torch.where(usable, chosen_negative, 0)
    return mean_where((gap + margin).relu(), usable)


def _sinkhorn(
    ground_cost: _Cost, anchors: Embedded, clean: Embedded, *, label_cost: Tensor | float, solve: transport.Solver
) -> Penalty:
    """Debiased divergence between the two clouds, with `label_cost` added between different labels.

    Without it an attack that swaps two classes inside the batch costs nothing: transport alone is blind to who is who.
    """

    def cost(x: Embedded, y: Embedded) -> Tensor:
        return ground_cost(x.points, y.points) + label_cost * (x.labels[:, None] != y.labels)

    solved = transport.sinkhorn_divergence(
        cost(anchors, clean)[None],
        cost(anchors, anchors)[None],
        cost(clean, clean)[None],
        _kept(anchors).to(anchors.points.dtype)[None],
        _kept(clean).to(clean.points.dtype)[None],
        solve=solve,
    )
    return Penalty(solved.value[0], solved.marginal_error[0])


def _ot_triplet(
    cost: Tensor,
    anchors: Embedded,
    clean: Embedded,
    *,
    classes: int,
    margin: Tensor | float,
    solve: transport.Solver,
    most: int | None = None,
) -> Penalty:
    """sum_c [ OT(anchors of c, clean of c) - OT(anchors of c, clean of other classes) + m ]_+

    A class takes part if its anchors have a plan to their own class, no image matched to its own perturbation, and one
    to the others. All classes are solved at once, in one call for either side.

    Args:
        cost: (B, B), anchors by row.
        most: at least N; None looks for it.
    """
    anchor_index, anchor_there = by_class(anchors, classes, most)
    clean_index, clean_there = by_class(clean, classes, most)
    to_all = cost[anchor_index]
    to_own = to_all.gather(2, clean_index[:, None, :].expand(-1, anchor_index.shape[1], -1))
    others = (clean.labels != torch.arange(classes, device=cost.device)[:, None]) & _kept(clean)
    weights = anchor_there.to(cost.dtype)
    itself = anchor_index[:, :, None] == clean_index[:, None, :]
    within = solve(to_own, weights, clean_there.to(cost.dtype), apart=itself)
    between = solve(to_all, weights, others.to(cost.dtype))
    usable = within.solvable & between.solvable
    value = torch.where(usable, within.value - between.value + margin, 0).relu().sum()
    return Penalty(value, torch.maximum(within.marginal_error, between.marginal_error).amax())


def by_class(side: Embedded, classes: int, most: int | None = None) -> tuple[Tensor, Tensor]:
    """The rows of each class side by side: indices (K, N), and where there is one, bool (K, N).

    N is `most` where given, and must then be large enough.
    """
    members = (side.labels == torch.arange(classes, device=side.labels.device)[:, None]) & _kept(side)
    if most is None:
        most = max(1, int(members.sum(1).max()))
    index = members.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return index, members.gather(1, index)


def _kept(side: Embedded) -> Tensor:
    """(B,) bool."""
    return torch.ones_like(side.labels, dtype=torch.bool) if side.keep is None else side.keep
