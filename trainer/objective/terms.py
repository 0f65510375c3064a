"""The objective of a trial: cross-entropy, regularisers on embeddings, norm penalty, TRADES term.

B images, K classes, D embedding size, N the most images that one class has.

    L = CE(g f(X_train), y) + w_s R(f(X_s), y ; f(X), y) + w_v R(f(X_v), y_v ; f(X), y) + w_n mean |f| + beta KL

In R(anchors ; clean) the anchors are the perturbed embeddings, as in TLA (Mao et al. 2019, eq. 4), and the clean ones
are what they are compared with. Row i of both comes from one source image. A clean image is never the positive of its
own perturbation: that match is nearly free and says nothing of the class. It can be the negative, where the
perturbation changed the label: telling those two apart is what an invariance attack tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import TrialConfig
from trainer.models import Prediction
from trainer.objective import transport
from trainer.objective.regularizers import Embedded, Penalty, mean_where, regularizer, solver


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
