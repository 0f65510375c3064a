"""The training step, in order: perturb, pass forward, compute the loss term by term, diagnose, update.

Shape letters: B images of a batch, D embedding size, T stacked trials.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.attacks import Draws
from trainer.config import TrialConfig
from trainer.models import Classifier
from trainer.objective import (
    Knobs,
    LossTerms,
    certified_cross_entropy,
    embedding_spread,
    gradient_shares,
    loss_terms,
)
from trainer.training.batches import Batch
from trainer.training.views import batch_views, clean_pass, predict_views

LARGEST_SHARE = 1e6
"""Upper bound of a reported gradient share: it has none itself where the cross-entropy's gradient has vanished, and
reports must be finite."""


class Step(NamedTuple):
    """The outcome of one forward pass over a batch and its perturbations, with its graph."""

    terms: LossTerms
    """The loss term by term."""

    embedding: Tensor
    """(B, D) of the images that the (first) cross-entropy sees; (T, B, D) of stacked trials."""


def make_optimizer(model: nn.Module, config: TrialConfig) -> torch.optim.Optimizer:
    """Return AdamW with decoupled weight decay, or SGD with momentum, fused into one kernel."""
    shared: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum, **shared)
    return torch.optim.AdamW(model.parameters(), **shared)


def forward(
    model: nn.Module,
    batch: Batch,
    config: TrialConfig,
    knobs: Knobs,
    generator: Draws,
    *,
    largest_class: int | None = None,
) -> Step:
    """Perturb what the objective needs, pass all of it through the model, and compute the loss term by term.

    Args:
        model: images (B, C, H, W) in [0, 1] to a `Prediction`.
        batch: B images.
        config: the structure of the objective.
        knobs: () each; those of this step (`Knobs.at`).
        generator: draws the attack's random starts.
        largest_class: at least as many images as one class has on either side; None looks at the batch, which means
            waiting for a GPU.
    """
    clean = clean_pass(model, batch, config)
    views = batch_views(model, batch, config, knobs, generator, clean)
    predictions = predict_views(model, views, clean, precision=config.precision)
    terms = loss_terms(
        config,
        knobs,
        predictions,
        batch.labels,
        invariance_labels=None if batch.invariance is None else batch.invariance.labels,
        invariance_keep=None if batch.invariance is None else batch.invariance.keep,
        largest_class=largest_class,
    )
    if config.certified_ce_weight > 0:
        assert isinstance(model, Classifier)
        budget = knobs.certified_epsilon, knobs.certified_share
        worst = certified_cross_entropy(model, batch.images, batch.labels, *budget, method=config.certified_method)
        terms = terms._replace(certified_ce=worst)
    return Step(terms, predictions[config.cross_entropy_views[0]].embedding)


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step of the optimiser down the gradient of `loss`; only the parameters' gradients are computed."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"] if p.requires_grad])
    optimizer.step()


def detach(terms: LossTerms) -> LossTerms:
    """Return the values without the graphs, which hold a step's memory."""
    return LossTerms._make(None if term is None else term.detach() for term in terms)


def summarise(history: list[LossTerms]) -> dict[str, Any]:
    """Return every term's mean over an epoch and the largest marginal error, as plain numbers.

    Of T stacked trials each is a list of T. The device is waited for once.
    """
    numbers: dict[str, Tensor] = {}
    for name, values in zip(LossTerms._fields, zip(*history, strict=True), strict=True):
        if values[0] is not None:
            column = torch.stack(values)
            numbers |= {name: column.amax(0)} if name == "marginal_error" else {f"loss/{name}": column.mean(0)}
    return dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))


def diagnose(step: Step, model: nn.Module, knobs: Knobs) -> dict[str, Tensor]:
    """Measure which term dominates the gradient and whether the embeddings have collapsed; () or (T,) each, by name.

    The graph and every `.grad` stay as they are.
    """
    # Both measures are blind to scale; the squares of a diverging model's embeddings would overflow before its loss.
    embedding = step.embedding.detach()
    largest = embedding.abs().amax((-2, -1), keepdim=True)
    cloud = embedding_spread(embedding / largest.clamp(min=1))
    shares = gradient_shares(step.terms, knobs, model.parameters())
    return {
        **{f"gradient_share/{name}": share.clamp(max=LARGEST_SHARE) for name, share in shares.items()},
        "embedding_rank": cloud.rank,
        "embedding_spread": cloud.spread,
        "collapsed": cloud.collapsed.float(),
    }
