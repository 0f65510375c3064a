"""The objective of a trial: cross-entropy, regularisers on embeddings, norm penalty, TRADES term.

B images, K classes, D embedding size, N the most images that one class has.

    L = CE(g f(X_train), y) + w_s R(f(X_s), y ; f(X), y) + w_v R(f(X_v), y_v ; f(X), y) + w_n mean |f| + beta KL

In R(anchors ; clean) the anchors are the perturbed embeddings, as in TLA (Mao et al. 2019, eq. 4), and the clean ones
are what they are compared with. Row i of both comes from one source image. A clean image is never the positive of its
own perturbation: that match is nearly free and says nothing of the class. It can be the negative, where the
perturbation changed the label: telling those two apart is what an invariance attack tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import transport
from trainer.config import TrialConfig
from trainer.models import Prediction


class Knobs(NamedTuple):
    """What varies between trials of one structure, as 0-d tensors, so that such trials can be stacked."""

    sensitivity_weight: Tensor
    invariance_weight: Tensor
    norm_weight: Tensor
    trades_weight: Tensor
    margin: Tensor
    entropy: Tensor
    label_cost: Tensor
    sensitivity_epsilon: Tensor
    sensitivity_steps: Tensor | None = None
    """How many of the attack's steps are taken, where trials of several numbers are stacked; None takes all."""

    @classmethod
    def of(cls, config: TrialConfig, device: torch.device) -> Knobs:
        continuous = (name for name in cls._fields if name != "sensitivity_steps")
        return cls(*(torch.tensor(getattr(config, name), device=device) for name in continuous))


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


class LossTerms(NamedTuple):
    """The terms, () each and not yet weighted; None where the objective leaves one out, so that it costs nothing.

    Of stacked trials (L,) each: what follows from them here, the total and the gradients' norms, is so too.
    """

    cross_entropy: Tensor
    sensitivity: Tensor | None = None
    invariance: Tensor | None = None
    norm: Tensor | None = None
    trades: Tensor | None = None
    marginal_error: Tensor | None = None
    """No term of the loss: the worst of the transport problems behind it."""


WEIGHTED_TERMS = ("sensitivity", "invariance", "norm", "trades")


def total(terms: LossTerms, knobs: Knobs) -> Tensor:
    """The weighted sum, (); with nothing but the cross-entropy it is the cross-entropy itself."""
    loss = terms.cross_entropy
    for name in WEIGHTED_TERMS:
        term = getattr(terms, name)
        if term is not None:
            loss = loss + getattr(knobs, f"{name}_weight") * term
    return loss


def loss_terms(
    config: TrialConfig,
    knobs: Knobs,
    predictions: Mapping[str, Prediction],
    labels: Tensor,
    *,
    invariance_labels: Tensor | None = None,
    invariance_keep: Tensor | None = None,
    most: int | None = None,
) -> LossTerms:
    """Every term that the configuration asks for.

    Args:
        predictions: of the batch as `clean`, `sensitivity` and `invariance`, each where the objective looks at it.
        labels: (B,) of the clean and the sensitivity-perturbed images.
        invariance_labels: (B,) y_v.
        invariance_keep: (B,) bool, False where nobody knows y_v.
        most: at least N. Given, nothing here depends on a look at the data, as `torch.vmap` needs; None looks for
            N, and on a CPU for whether a transport is solved.
    """
    sides = {name: Embedded(getattr(seen, config.regularizer_on), labels) for name, seen in predictions.items()}
    if "invariance" in predictions:
        assert invariance_labels is not None
        sides["invariance"] = Embedded(sides["invariance"].points, invariance_labels, invariance_keep)
    penalties = {
        name: _penalty(config, knobs, sides[name], sides["clean"], predictions["clean"].logits.shape[1], most)
        for name in ("sensitivity", "invariance")
        if config.regularizer != "none" and getattr(config, f"{name}_weight") > 0
    }
    errors = [penalty.marginal_error for penalty in penalties.values() if penalty.marginal_error is not None]
    trained_on = sides[config.cross_entropy_on]
    return LossTerms(
        cross_entropy=cross_entropy(predictions[config.cross_entropy_on].logits, trained_on.labels, trained_on.keep),
        sensitivity=penalties["sensitivity"].value if "sensitivity" in penalties else None,
        invariance=penalties["invariance"].value if "invariance" in penalties else None,
        norm=embedding_norm([seen.embedding for seen in predictions.values()]) if config.norm_weight > 0 else None,
        trades=trades(predictions["clean"].logits, predictions["sensitivity"].logits)
        if config.trades_weight > 0
        else None,
        marginal_error=torch.stack(errors).amax() if errors else None,
    )


def _penalty(
    config: TrialConfig, knobs: Knobs, anchors: Embedded, clean: Embedded, classes: int, most: int | None
) -> Penalty:
    return regularizer(
        config.regularizer,
        anchors,
        clean,
        classes=classes,
        ground_metric=config.ground_metric,
        mining=config.mining,
        margin=knobs.margin,
        solve=solver(config.transport, knobs.entropy, looks=most is None),
        label_cost=knobs.label_cost,
        most=most,
    )


def cross_entropy(logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
    """Mean over the images kept, (); 0 if none is. Logits (B, K), labels (B,), keep (B,) bool."""
    if keep is None:
        return F.cross_entropy(logits, labels)
    return mean_where(F.cross_entropy(logits, labels, reduction="none"), keep)


def embedding_norm(embeddings: list[Tensor]) -> Tensor:
    """Mean Euclidean norm over all embeddings (B, D) of the step, ()."""
    return torch.cat(embeddings).norm(dim=1).mean()


def trades(clean_logits: Tensor, perturbed_logits: Tensor) -> Tensor:
    """KL(clean || perturbed) of the predictions (B, K), mean over images, (); Zhang et al. 2019, eq. 5."""
    clean, perturbed = clean_logits.log_softmax(1), perturbed_logits.log_softmax(1)
    return (clean.exp() * (clean - perturbed)).sum() / len(clean)  # F.kl_div's own operations; vmap has no rule for it


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
        return Penalty(triplet(distance, anchors, clean, margin=margin, mining=mining), None)
    if name == "sinkhorn":
        return sinkhorn(COSTS[ground_metric], anchors, clean, label_cost=label_cost, solve=solve)
    cost = COSTS[ground_metric](anchors.points, clean.points)
    return ot_triplet(cost, anchors, clean, classes=classes, margin=margin, solve=solve, most=most)


def solver(name: str, entropy: Tensor | float, *, looks: bool = True) -> transport.Solver:
    """Of transport problems, by its name in the configuration: `entropic`, or `exact` by POT.

    The first ends early on a CPU, where it `looks` whether it may.
    """
    if name == "exact":
        return transport.exact_transport
    if looks:
        return partial(transport.entropic_transport, entropy=entropy)
    return partial(transport.entropic_transport, entropy=entropy, tolerance=None)


Cost = Callable[[Tensor, Tensor], Tensor]
DISTANCES: dict[str, Cost] = {"cosine": transport.cosine_cost, "euclidean": transport.euclidean_distance}
COSTS: dict[str, Cost] = {"cosine": transport.cosine_cost, "euclidean": transport.squared_euclidean_cost}


def triplet(
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


def sinkhorn(
    ground_cost: Cost, anchors: Embedded, clean: Embedded, *, label_cost: Tensor | float, solve: transport.Solver
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


def ot_triplet(
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


def transport_attack_loss(
    model_logits: Callable[[Tensor], Tensor], clean_logits: Tensor, *, lanes: int = 1
) -> Callable[[Tensor], Tensor]:
    """What the feature-scattering attack maximises (Zhang and Wang 2019, eq. 4): images (B, C, H, W) -> (B,), each
    image's share of the transport of the perturbed logits to the clean ones (B, K), cost 1 - cosine, entropy 0.01.

    Images of several `lanes` lie one lane after the other, equally many each, and are transported within their own.
    """

    def shares(images: Tensor) -> Tensor:
        sides = zip(model_logits(images).chunk(lanes), clean_logits.chunk(lanes), strict=True)
        cost = torch.stack([transport.cosine_cost(perturbed, clean) for perturbed, clean in sides])
        even = torch.ones_like(cost[..., 0])
        plan = transport.entropic_transport(cost, even, even, entropy=0.01).plan
        # By the envelope theorem (see `entropic_transport`) the fixed plan gives the value's exact gradient.
        return (plan * cost).sum(2).flatten()

    return shares


class Spread(NamedTuple):
    """What shape the cloud of embeddings has; both measures are blind to its scale. () each, or (L,) of L clouds."""

    rank: Tensor
    """() effective rank, in [1, min(B, D)]: exp of the entropy of the shares of the singular values (Roy and Vetterli
    2007, eq. 4) of the centred embeddings; 0 if they all coincide."""

    spread: Tensor
    """() share of the mean squared norm that is variance, in [0, 1]: 0 where all embeddings coincide or vanish."""

    @property
    def collapsed(self) -> Tensor:
        """Whether the embeddings fell into one point or onto one line, where ten classes can't be told apart; bool."""
        return (self.rank < LEAST_RANK) | (self.spread < LEAST_SPREAD)


LEAST_RANK = 1.5
LEAST_SPREAD = 0.01
"""Alarms. A classifier of K classes that works has an effective rank near min(K - 1, D) and a spread near 1."""


@torch.no_grad()
def embedding_spread(embedding: Tensor) -> Spread:
    """Effective rank and spread of embeddings (..., B, D)."""
    # A NaN fails the trial by its loss, with a reason; here it would only stop the decomposition.
    embedding = embedding.nan_to_num()
    centred = embedding - embedding.mean(-2, keepdim=True)
    mean_square = embedding.square().sum(-1).mean(-1)
    variance = centred.square().sum(-1).mean(-1)
    spread = torch.where(mean_square > transport.NO_DIRECTION**2, variance / mean_square, 0)
    singular = torch.linalg.svdvals(centred)
    shares = singular / singular.sum(-1, keepdim=True)
    rank = torch.special.entr(shares).sum(-1).exp()
    return Spread(torch.where(spread > 0, rank, 0), spread)


def gradient_shares(terms: LossTerms, knobs: Knobs, parameters: Iterable[Tensor]) -> dict[str, Tensor]:
    """Each weighted term's gradient norm over the cross-entropy's, () by name: which term steers.

    The graph of the terms is kept, so that they can still be stepped on.

    Args:
        parameters: of stacked trials, terms (L,), each of shape (L, ...).
    """
    parameters = list(parameters)

    def norm(term: Tensor) -> Tensor:
        gradients = torch.autograd.grad(term.sum(), parameters, retain_graph=True, allow_unused=True)
        return torch.cat([g.reshape(*term.shape, -1) for g in gradients if g is not None], -1).norm(dim=-1)

    reference = norm(terms.cross_entropy).clamp(min=torch.finfo().tiny)
    return {
        name: norm(getattr(knobs, f"{name}_weight") * getattr(terms, name)) / reference
        for name in WEIGHTED_TERMS
        if getattr(terms, name) is not None
    }
