"""The regularisers R(anchors ; clean) that compare perturbed with clean embeddings: triplet, sinkhorn, ot_triplet.

Shape letters: B images of a batch, D embedding size, K classes, N the most images that one class has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.objective import transport
from trainer.plugins import call_plugin, is_plugin


class Embedded(NamedTuple):
    """One of the two sides that a regulariser compares: anchors or clean images."""

    points: Tensor
    """(B, D) embeddings, or logits (B, K)."""

    labels: Tensor
    """(B,) int64 in [0, K)."""

    keep: Tensor | None = None
    """(B,) bool; False leaves an image out, as its label is in doubt. None keeps all."""


class Penalty(NamedTuple):
    """The outcome of a regulariser."""

    value: Tensor
    """(), with its gradient; at least 0."""

    marginal_error: Tensor | None
    """() the largest of its transport problems, in [0, 2]; None if nothing is transported."""


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen values, (); 0, with zero gradient, if none is. Both (B,)."""
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
    negative_share: Tensor | float = 0.0625,
    largest_class: int | None = None,
    own: Mapping[str, Tensor] | None = None,
) -> Penalty:
    """Compute R(anchors ; clean).

    Args:
        name: `triplet`, `sinkhorn` or `ot_triplet`, or `python:MODULE:FUNCTION`.
        anchors, clean: row i of both comes from one source image.
        classes: K.
        ground_metric: `cosine`, or `euclidean`, which is squared where it is a transport cost.
        mining: `hard` or `semihard`, the negatives of `triplet`.
        margin: m of `triplet` and `ot_triplet`, in units of the ground metric.
        solve: solver of `sinkhorn` and `ot_triplet`; entropic with entropy 0.05 if not given.
        label_cost: added to the cost of `sinkhorn` between different labels.
        negative_share: rho of `ot_triplet`, in (0, 1].
        largest_class: at least N; None finds N in the data.
        own: knobs of a regulariser of one's own, () each.
    """
    if is_plugin(name):
        value = call_plugin("regularizer", name, anchors, clean, cost=COSTS[ground_metric], knobs=own or {})
        return Penalty(value, None)
    solve = solve or solver("entropic", 0.05)
    if name == "triplet":
        distance = DISTANCES[ground_metric](anchors.points, clean.points)
        return Penalty(_triplet(distance, anchors, clean, margin=margin, mining=mining), None)
    if name == "sinkhorn":
        return _sinkhorn(COSTS[ground_metric], anchors, clean, label_cost=label_cost, solve=solve)
    cost = COSTS[ground_metric](anchors.points, clean.points)
    rows = group_by_class(anchors, classes, largest_class)
    columns = group_by_class(clean, classes, largest_class)
    return _ot_triplet(cost, anchors, clean, rows, columns, margin=margin, share=negative_share, solve=solve)


def solver(name: str, entropy: Tensor | float, *, early_stop: bool = True) -> transport.Solver:
    """Return the solver of transport problems that a configuration names: `entropic`, or `exact` by POT.

    Args:
        name: the knob `transport`.
        entropy: of the entropic solver, in units of the cost.
        early_stop: whether the entropic solver may look at its error and stop early, which it does on a CPU.
    """
    if name == "exact":
        return transport.exact_transport
    if early_stop:
        return partial(transport.entropic_transport, entropy=entropy)
    return partial(transport.entropic_transport, entropy=entropy, tolerance=None)


_Cost = Callable[[Tensor, Tensor], Tensor]
"""A map of points (n, D) and (m, D) to what lies between each pair, (n, m)."""

DISTANCES: dict[str, _Cost] = {"cosine": transport.cosine_cost, "euclidean": transport.euclidean_distance}
"""Distances that `triplet` compares, by ground metric."""

COSTS: dict[str, _Cost] = {"cosine": transport.cosine_cost, "euclidean": transport.squared_euclidean_cost}
"""Costs of transport, by ground metric."""


def _triplet(
    distance: Tensor, anchors: Embedded, clean: Embedded, *, margin: Tensor | float, mining: str = "hard"
) -> Tensor:
    """Compute the batch-hard triplet loss (Hermans et al. 2017, eq. 5), ().

    mean_i [ max_{j != i, y_j = y_i} D_ij - min_{y_j != y_i} D_ij + m ]_+, over anchors with a positive and a negative.

    Semi-hard mining takes the nearest negative beyond the positive, or the farthest if none is beyond: always taking
    the nearest pulls embeddings that are still mixed into one point (Schroff et al. 2015, section 3.2).

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
    """Compute the debiased divergence between the two clouds, with `label_cost` added between different labels.

    Without that cost an attack that swaps two classes inside the batch costs nothing, as transport ignores labels. With
    it the clean side must hold the anchors' mass of each class, or mass would have to cross from class to class, and
    the divergence of a perfect classifier would fall as its classes merge. Anchors without a clean image of their class
    take no part.
    """

    def cost(x: Embedded, y: Embedded) -> Tensor:
        return ground_cost(x.points, y.points) + label_cost * (x.labels[:, None] != y.labels)

    a = _kept(anchors) & (_of_same_class(anchors, clean) > 0)
    b = _kept(clean) * _of_same_class(clean, anchors) / _of_same_class(clean, clean).clamp(min=1)
    solved = transport.sinkhorn_divergence(
        cost(anchors, clean)[None],
        cost(anchors, anchors)[None],
        cost(clean, clean)[None],
        a.to(anchors.points.dtype)[None],
        b.to(clean.points.dtype)[None],
        solve=solve,
    )
    return Penalty(solved.value[0], solved.marginal_error[0])


def _of_same_class(side: Embedded, other: Embedded) -> Tensor:
    """Return how many images kept of the other side have each image's class, (B,) int64."""
    return ((side.labels[:, None] == other.labels) & _kept(other)).sum(1)


def _ot_triplet(
    cost: Tensor,
    anchors: Embedded,
    clean: Embedded,
    rows: _ClassRows,
    columns: _ClassRows,
    *,
    margin: Tensor | float,
    share: Tensor | float,
    solve: transport.Solver,
) -> Penalty:
    """Compute mean_i [ D+_i - D-_i + m ]_+ over anchors, (), whose pairs transport chooses as mining does in `triplet`.

    D+_i and D-_i are the costs of anchor i averaged by its rows of two plans, through which no gradient passes. Per
    class c, with mass 1 for each anchor, the positive plan is balanced transport to the clean images of c, where no
    image is matched to its own perturbation; the negative plan is partial transport to the clean images of the other
    classes, of whose mass only the share rho is used. It is a balanced problem with one more row, at cost 0, for the
    rest of their mass: n / rho - n beside n anchors. All classes are solved at once, in one call for each side.

    Args:
        cost: (B, B), anchors by row.
        rows, columns: anchors and clean images by class.
        margin: m, in units of the cost.
        share: rho, in (0, 1]: at 1 the plan is balanced and must spread; towards 0 it is the nearest image.
    """
    to_all = cost[rows.number]
    to_own = to_all.gather(2, columns.number[:, None, :].expand(-1, rows.number.shape[1], -1))
    itself = rows.number[:, :, None] == columns.number[:, None, :]
    weights = rows.present.to(cost.dtype)
    within = solve(to_own.detach(), weights, columns.present.to(cost.dtype), forbidden=itself)

    classes = torch.arange(len(weights), device=cost.device)
    others = (clean.labels != classes[:, None]) & _kept(clean)
    unused = weights.sum(1, keepdim=True) * (1 / share - 1)
    between = solve(F.pad(to_all.detach(), (0, 0, 0, 1)), torch.cat([weights, unused], 1), others.to(cost.dtype))
    positive, negative = _row_means(within.plan, to_own), _row_means(between.plan[:, :-1], to_all)
    usable = rows.present & (within.solvable & between.solvable)[:, None]
    value = mean_where((positive - negative + margin).relu(), usable)
    return Penalty(value, torch.maximum(within.marginal_error, between.marginal_error).amax())


def _row_means(plan: Tensor, cost: Tensor) -> Tensor:
    """Return each row's cost averaged by its row of the plan, (K, N) of (K, N, M); 0 for a row without mass."""
    return (plan * cost).sum(-1) / plan.sum(-1).clamp(min=torch.finfo(plan.dtype).tiny)


class _ClassRows(NamedTuple):
    """The rows of one side by class."""

    number: Tensor
    """(K, N) int64, the rows of each class, and others where a class has fewer."""
    present: Tensor
    """(K, N) bool, which of these entries are rows of the class."""


def group_by_class(side: Embedded, classes: int, largest_class: int | None = None) -> _ClassRows:
    """Return the rows of each class; N is `largest_class` if given, which must then be large enough."""
    members = (side.labels == torch.arange(classes, device=side.labels.device)[:, None]) & _kept(side)
    if largest_class is None:
        largest_class = max(1, int(members.sum(1).max()))
    index = members.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :largest_class]
    return _ClassRows(index, members.gather(1, index))


def _kept(side: Embedded) -> Tensor:
    """Return which images are kept, (B,) bool."""
    return torch.ones_like(side.labels, dtype=torch.bool) if side.keep is None else side.keep
