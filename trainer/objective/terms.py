"""The objective of a trial: cross-entropy, regularisers on embeddings, norm penalty, TRADES term.

Shape letters: B images of a batch, C channels, H rows, W columns, K classes, D embedding size, N the most images that
one class has, T stacked trials.

    L = a_c CE(X, y) + a_s CE(X_s, y) + a_v CE(X_v, y_v)
        + w_s R(f(X_s), y ; f(X), y) + w_v R(f(X_v), y_v ; f(X), y) + w_n mean |f| + beta KL
        + r a_b CE(worst logits around X, y) + (1 - r) a_b CE(X, y)

A term of weight 0 is left out and costs nothing. The certified term, over the ball of r times its budget, comes in
along a ramp: r grows from 0 to 1, and what it does not have yet goes to the clean images (Gowal et al. 2018).

In R(anchors ; clean) the anchors are the perturbed embeddings, as in TLA (Mao et al. 2019, eq. 4); they are compared
with the clean ones. Row i of both comes from one source image. A clean image is never the positive of its own
perturbation: that match is nearly free and says nothing about the class. It can be the negative, if the perturbation
changed the label: an invariance attack tests whether the model tells these two apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import OWN_KNOBS, TrialConfig
from trainer.models import Prediction
from trainer.objective import transport
from trainer.objective.regularizers import Embedded, mean_where, regularizer, solver


class Knobs(NamedTuple):
    """The continuous knobs of a trial, as tensors, so that trials of one structure can be stacked. () or (T,) each."""

    clean_ce_weight: Tensor
    sensitivity_ce_weight: Tensor
    invariance_ce_weight: Tensor
    sensitivity_weight: Tensor
    invariance_weight: Tensor
    norm_weight: Tensor
    trades_weight: Tensor
    margin: Tensor
    entropy: Tensor
    label_cost: Tensor
    negative_share: Tensor
    label_smoothing: Tensor
    own_a: Tensor
    own_b: Tensor
    own_c: Tensor
    sensitivity_epsilon: Tensor
    sensitivity_step_size: Tensor
    certified_ce_weight: Tensor
    certified_epsilon: Tensor
    certified_ramp: Tensor
    certified_share: Tensor
    """r, the share of the ramp that is done at this step; 1 unless `at` says otherwise."""
    sensitivity_steps: Tensor | None = None
    """Steps of the attack that each trial takes, int64, if stacked trials take different numbers; None takes all."""

    @classmethod
    def of(cls, config: TrialConfig, device: torch.device) -> Knobs:
        """Return the knobs of one configuration, () each."""
        names = (name for name in cls._fields if name not in ("certified_share", "sensitivity_steps"))
        values = {name: getattr(config, name) for name in names} | {"certified_share": 1.0}
        return cls(**{name: torch.tensor(value, device=device) for name, value in values.items()})

    @classmethod
    def stacked(cls, configs: Sequence[TrialConfig], device: torch.device) -> Knobs:
        """Return the knobs of the configurations of stacked trials, (T,) each."""
        columns = zip(cls._fields, zip(*(cls.of(config, device) for config in configs), strict=True), strict=True)
        knobs = cls(**{name: torch.stack(column) for name, column in columns if column[0] is not None})
        steps = [config.sensitivity_steps for config in configs]
        return knobs if len(set(steps)) == 1 else knobs._replace(sensitivity_steps=torch.tensor(steps, device=device))

    def at(self, done: Tensor) -> Knobs:
        """Return the knobs of a step before which the share `done` of the training was done, () or (T,) in [0, 1].

        Both the certified term's weight and its budget grow linearly (Gowal et al. 2018, section 4).
        """
        share = torch.where(self.certified_ramp > 0, (done / self.certified_ramp).clamp(max=1), 1)
        return self._replace(
            clean_ce_weight=self.clean_ce_weight + (1 - share) * self.certified_ce_weight,
            certified_ce_weight=share * self.certified_ce_weight,
            certified_epsilon=share * self.certified_epsilon,
            certified_share=share,
        )


class LossTerms(NamedTuple):
    """The terms, not yet weighted, () each or (T,); None if the objective leaves one out, so that it costs nothing."""

    clean_ce: Tensor | None = None
    sensitivity_ce: Tensor | None = None
    invariance_ce: Tensor | None = None
    sensitivity: Tensor | None = None
    invariance: Tensor | None = None
    norm: Tensor | None = None
    trades: Tensor | None = None
    certified_ce: Tensor | None = None
    marginal_error: Tensor | None = None
    """The largest marginal error of the transport problems, in [0, 2]; not a term of the loss."""


CROSS_ENTROPIES = ("clean_ce", "sensitivity_ce", "invariance_ce")
"""The cross-entropies, of which a configuration has at least one; the weight of each is the knob `<term>_weight`."""

OTHER_TERMS = ("sensitivity", "invariance", "norm", "trades", "certified_ce")
"""Every other term; its weight is the knob `<term>_weight`."""


def total_loss(terms: LossTerms, knobs: Knobs, names: Sequence[str] = (*CROSS_ENTROPIES, *OTHER_TERMS)) -> Tensor:
    """Return the weighted sum of the named terms that are there, () or (T,)."""
    weighted = [getattr(knobs, f"{name}_weight") * term for name in names if (term := getattr(terms, name)) is not None]
    return functools.reduce(torch.add, weighted)


def loss_terms(
    config: TrialConfig,
    knobs: Knobs,
    predictions: Mapping[str, Prediction],
    labels: Tensor,
    *,
    invariance_labels: Tensor | None = None,
    invariance_keep: Tensor | None = None,
    largest_class: int | None = None,
    early_stop: bool = True,
) -> LossTerms:
    """Compute every term that the configuration asks for, but the certified one, which needs more than predictions.

    Args:
        config: the structure of the objective.
        knobs: () each.
        predictions: of the views `clean`, `sensitivity` and `invariance` of the batch, each if the objective uses it.
        labels: (B,) of the clean and the sensitivity-perturbed images.
        invariance_labels: (B,) y_v.
        invariance_keep: (B,) bool, False where y_v is in doubt.
        largest_class: at least N; None finds N in the data.
        early_stop: whether a CPU may end a transport as soon as it is solved, which `torch.vmap` can't.
    """
    sides = {name: Embedded(getattr(seen, config.regularizer_on), labels) for name, seen in predictions.items()}
    if "invariance" in predictions:
        assert invariance_labels is not None
        sides["invariance"] = Embedded(sides["invariance"].points, invariance_labels, invariance_keep)
    solve = solver(config.transport, knobs.entropy, early_stop=early_stop)
    penalties = {
        name: regularizer(
            config.regularizer,
            sides[name],
            sides["clean"],
            classes=predictions["clean"].logits.shape[1],
            ground_metric=config.ground_metric,
            mining=config.mining,
            margin=knobs.margin,
            solve=solve,
            label_cost=knobs.label_cost,
            negative_share=knobs.negative_share,
            largest_class=largest_class,
            own={name: getattr(knobs, name) for name in ("margin", *OWN_KNOBS)},
        )
        for name in ("sensitivity", "invariance")
        if config.regularizer != "none" and getattr(config, f"{name}_weight") > 0
    }
    errors = [penalty.marginal_error for penalty in penalties.values() if penalty.marginal_error is not None]
    smoothing = knobs.label_smoothing if config.label_smoothing > 0 else None
    cross_entropies = {
        f"{name}_ce": cross_entropy(predictions[name].logits, sides[name].labels, sides[name].keep, smoothing)
        for name in config.cross_entropy_views
    }
    return LossTerms(
        **cross_entropies,
        sensitivity=penalties["sensitivity"].value if "sensitivity" in penalties else None,
        invariance=penalties["invariance"].value if "invariance" in penalties else None,
        norm=embedding_norm([seen.embedding for seen in predictions.values()]) if config.norm_weight > 0 else None,
        trades=trades(predictions["clean"].logits, predictions["sensitivity"].logits)
        if config.trades_weight > 0
        else None,
        marginal_error=torch.stack(errors).amax() if errors else None,
    )


def cross_entropy(
    logits: Tensor, labels: Tensor, keep: Tensor | None = None, smoothing: Tensor | None = None
) -> Tensor:
    """Return the mean over the images kept, (); 0 if none is.

    Args:
        logits: (B, K).
        labels: (B,).
        keep: (B,) bool; None keeps all.
        smoothing: () share of each label that is spread over all classes; None is none. `F.cross_entropy` takes a
            number only, which can't differ between stacked trials.
    """
    if keep is None and smoothing is None:
        return F.cross_entropy(logits, labels)
    losses = F.cross_entropy(logits, labels, reduction="none")
    if smoothing is not None:
        losses = torch.lerp(losses, -logits.log_softmax(1).mean(1), smoothing)
    return losses.mean() if keep is None else mean_where(losses, keep)


def embedding_norm(embeddings: list[Tensor]) -> Tensor:
    """Return the mean Euclidean norm over all embeddings (B, D) of the step, ()."""
    return torch.cat(embeddings).norm(dim=1).mean()


def trades(clean_logits: Tensor, perturbed_logits: Tensor) -> Tensor:
    """Return KL(clean || perturbed) of the predictions (B, K), mean over images, () (Zhang et al. 2019, eq. 5)."""
    clean, perturbed = clean_logits.log_softmax(1), perturbed_logits.log_softmax(1)
    return (clean.exp() * (clean - perturbed)).sum() / len(clean)  # as F.kl_div, for which vmap has no rule


def transport_attack_loss(
    model_logits: Callable[[Tensor], Tensor], clean_logits: Tensor, *, trials: int = 1
) -> Callable[[Tensor], Tensor]:
    """Return the loss that the feature-scattering attack maximises (Zhang and Wang 2019, eq. 4).

    It maps images (B, C, H, W) to (B,), each image's share of the transport cost between the perturbed and the clean
    logits, at cost 1 - cosine and entropy 0.01.

    Args:
        model_logits: maps images (B, C, H, W) in [0, 1] to logits (B, K).
        clean_logits: (B, K).
        trials: number of stacked trials; the images lie trial after trial, equally many each, and are transported
            within their own trial.
    """

    def shares(images: Tensor) -> Tensor:
        sides = zip(model_logits(images).chunk(trials), clean_logits.chunk(trials), strict=True)
        cost = torch.stack([transport.cosine_cost(perturbed, clean) for perturbed, clean in sides])
        even = torch.ones_like(cost[..., 0])
        plan = transport.entropic_transport(cost, even, even, entropy=0.01).plan
        # By the envelope theorem (see `entropic_transport`) the fixed plan gives the value's exact gradient.
        return (plan * cost).sum(2).flatten()

    return shares
