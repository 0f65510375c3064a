"""The visible training step: perturb, forward, loss, backward, update.

B images in a batch, (C, H, W) channels, height, width, K classes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer import losses, sensitivity
from trainer.config import InputError, TrialConfig
from trainer.data import Split
from trainer.losses import Knobs, LossTerms
from trainer.models import Prediction
from trainer.preparation import TrainingPerturbation


class Batch(NamedTuple):
    """One step's images: (B, C, H, W) in [0, 1] with labels (B,), and their invariance perturbations if used."""

    images: Tensor
    labels: Tensor
    invariance: TrainingPerturbation | None


class Randomness:
    """Every random stream of a trial as a function of (seed, epoch, purpose).

    Nothing is carried from one epoch to the next, so a resumed trial needs no generator state, and leaving one stream
    unused (an attack that is switched off) changes no other.
    """

    PURPOSES = ("order", "attack")

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def generator(self, purpose: str, epoch: int, device: torch.device) -> torch.Generator:
        key = np.random.SeedSequence([self._seed, self.PURPOSES.index(purpose), epoch])
        return torch.Generator(device).manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def batches(
    train: Split, invariance: TrainingPerturbation | None, *, batch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """The training images in random order; the last incomplete batch is left out, so that all have one shape.

    Raises:
        InputError: if there are fewer images than one batch holds.
    """
    count = len(train.labels)
    if batch_size > count:
        raise InputError(f"batch_size = {batch_size}: must be at most {count}, the number of training images")
    order = torch.randperm(count, generator=generator, device=generator.device)
    for chosen in order[: count - count % batch_size].split(batch_size):
        perturbed = None if invariance is None else TrainingPerturbation(*(field[chosen] for field in invariance))
        yield Batch(train.images[chosen], train.labels[chosen], perturbed)


def make_optimizer(model: nn.Module, config: TrialConfig) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay, fused into one kernel."""
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def sensitivity_images(
    model: nn.Module, batch: Batch, config: TrialConfig, knobs: Knobs, generator: torch.Generator
) -> Tensor:
    """X_s: the batch perturbed against the model as it is now, in eval mode. (B, C, H, W) in [0, 1]."""
    with sensitivity.frozen(model):
        loss = attack_loss(model, batch, config.sensitivity_objective)
        norm = sensitivity.NORMS[config.sensitivity_norm]
        if config.sensitivity_steps == 1 and config.sensitivity_objective == "cross_entropy":
            return sensitivity.fgsm(loss, batch.images, norm=norm, epsilon=knobs.sensitivity_epsilon)
        return sensitivity.pgd(
            loss,
            batch.images,
            norm=norm,
            epsilon=knobs.sensitivity_epsilon,
            steps=config.sensitivity_steps,
            generator=generator,
        )


def attack_loss(model: nn.Module, batch: Batch, objective: str) -> sensitivity.Loss:
    """What the training attack maximises, (B, C, H, W) -> (B,).

    KL and transport have zero gradient at the clean image, so they always start from a random point.
    """
    if objective == "cross_entropy":
        return sensitivity.cross_entropy_loss(lambda images: model(images).logits, batch.labels)
    with torch.no_grad():
        clean: Prediction = model(batch.images)
    if objective == "kl":
        return sensitivity.kl_loss(lambda images: model(images).logits, clean.logits)
    return losses.transport_attack_loss(lambda images: model(images).logits, clean.logits)


class Step(NamedTuple):
    """What one forward pass over a batch and its perturbations gives; everything with its graph."""

    terms: LossTerms

    embedding: Tensor
    """(B, D) of the clean images."""


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of the optimiser down the gradient of `loss`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def forward(model: nn.Module, batch: Batch, config: TrialConfig, knobs: Knobs, generator: torch.Generator) -> Step:
    """Perturb what the objective needs, one pass of the model over all of it, then the loss term by term."""
    parts = {"clean": batch.images}
    if config.uses_sensitivity:
        parts["sensitivity"] = sensitivity_images(model, batch, config, knobs, generator)
    if config.uses_invariance:
        assert batch.invariance is not None
        parts["invariance"] = batch.invariance.images
    joint: Prediction = model(torch.cat(list(parts.values())))
    predictions = {
        name: Prediction(logits, embedding)
        for name, logits, embedding in zip(
            parts, joint.logits.chunk(len(parts)), joint.embedding.chunk(len(parts)), strict=True
        )
    }
    terms = losses.loss_terms(
        config,
        knobs,
        predictions,
        batch.labels,
        invariance_labels=None if batch.invariance is None else batch.invariance.labels,
        invariance_keep=None if batch.invariance is None else batch.invariance.keep,
    )
    return Step(terms, predictions["clean"].embedding)


def diagnose(step: Step, model: nn.Module, knobs: Knobs) -> dict[str, Tensor]:
    """Which term steers, and whether the embeddings have collapsed; leaves the graph and `.grad` as they are."""
    shape = losses.embedding_spread(step.embedding.detach())
    shares = losses.gradient_shares(step.terms, knobs, model.parameters())
    return {
        **{f"gradient_share/{name}": share for name, share in shares.items()},
        "embedding_rank": shape.rank,
        "embedding_spread": shape.spread,
        "collapsed": torch.as_tensor(float(shape.collapsed)),
    }
