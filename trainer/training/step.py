"""The visible training step: perturb, forward, loss, backward, update.

B images in a batch, (C, H, W) channels, height, width, K classes, D embedding size, L lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attacks import NORMS, Draws, Loss, cross_entropy_loss, fgsm, frozen, kl_loss, pgd
from trainer.config import TrialConfig
from trainer.data import Split
from trainer.errors import InputError
from trainer.invariance import TrainingPerturbation
from trainer.models import CnnEncoder, Prediction
from trainer.objective import Knobs, LossTerms, embedding_spread, gradient_shares, loss_terms, transport_attack_loss

PURPOSES = ("order", "attack")

LARGEST_SHARE = 1e6
"""A share of a cross-entropy gradient that has vanished has no upper end; a report must be finite."""


class Batch(NamedTuple):
    """One step's images: (B, C, H, W) in [0, 1] with labels (B,), and their invariance perturbations if used."""

    images: Tensor
    labels: Tensor
    invariance: TrainingPerturbation | None
    lanes: int = 1
    """Trials whose images these are, one trial's after the other's, equally many each."""


def random_stream(seed: int, purpose: str, epoch: int, device: torch.device) -> torch.Generator:
    """A trial's random numbers for one of `PURPOSES` in one epoch.

    Nothing is carried from one epoch to the next, so a resumed trial needs no generator state; and a stream that is
    left unused (an attack that is switched off) changes no other.
    """
    (state,) = np.random.SeedSequence([seed, PURPOSES.index(purpose), epoch]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state))


def check_batch_size(batch_size: int, images: int) -> None:
    """Raise InputError if there are fewer training images than one batch holds."""
    if batch_size > images:
        raise InputError(f"batch_size = {batch_size}: must be at most {images}, the number of training images")


def batches(
    train: Split, invariance: TrainingPerturbation | None, *, batch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """The training images in random order; the last incomplete batch is left out, so that all have one shape.

    Raises:
        InputError: if there are fewer images than one batch holds.
    """
    check_batch_size(batch_size, len(train.labels))
    for chosen in shuffled(len(train.labels), batch_size=batch_size, generator=generator):
        perturbed = None if invariance is None else TrainingPerturbation(*(field[chosen] for field in invariance))
        yield Batch(train.images[chosen], train.labels[chosen], perturbed)


def shuffled(images: int, *, batch_size: int, generator: torch.Generator) -> Tensor:
    """Which images each step sees: (steps, batch_size), whole batches alone."""
    order = torch.randperm(images, generator=generator, device=generator.device)
    return order[: images - images % batch_size].view(-1, batch_size)


def placed(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on its device, in the form that is fastest there."""
    if device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # pooling is vectorised over channels that lie side by side
        for module in model.modules():
            if isinstance(module, CnnEncoder):
                module.lean = True
    return model.to(device)


def make_optimizer(model: nn.Module, config: TrialConfig) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay, fused into one kernel."""
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


class CleanPass(NamedTuple):
    """A pass over the images as they are that the attack and the objective share, with its graph."""

    images: Tensor
    """(B, C, H, W), what an attack differentiates by."""
    prediction: Prediction


def clean_pass(model: nn.Module, batch: Batch, config: TrialConfig) -> CleanPass | None:
    """The shared pass; None where the attack starts elsewhere (PGD), or the objective has no use for the clean images,
    or batch normalisation answers otherwise in the attack's eval mode than in the joint pass."""
    needed_by_attack = config.uses_sensitivity and (is_fgsm(config) or config.sensitivity_objective != "cross_entropy")
    if not (needed_by_attack and uses_clean(config)) or _normalises_batches(model):
        return None
    images = batch.images.detach().requires_grad_(is_fgsm(config))
    return CleanPass(images, model(images))


def is_fgsm(config: TrialConfig) -> bool:
    """Whether the training attack is one step from the image itself."""
    return config.sensitivity_steps == 1 and config.sensitivity_objective == "cross_entropy"


def _normalises_batches(model: nn.Module) -> bool:
    """Whether an image's prediction depends on the model's mode and on the other images of the pass."""
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def views(
    model: nn.Module,
    batch: Batch,
    config: TrialConfig,
    knobs: Knobs,
    generator: Draws,
    clean: CleanPass | None = None,
) -> dict[str, Tensor]:
    """The batch in every form that the objective looks at, (B, C, H, W) in [0, 1] by name; no other is worth a pass."""
    seen: dict[str, Tensor] = {}
    if uses_clean(config):
        seen["clean"] = batch.images
    if config.uses_sensitivity:
        seen["sensitivity"] = sensitivity_images(model, batch, config, knobs, generator, clean)
    if config.uses_invariance:
        assert batch.invariance is not None
        seen["invariance"] = batch.invariance.images
    return seen


def uses_clean(config: TrialConfig) -> bool:
    """Whether the objective has any term on the images as they are; plain PGD training has none."""
    compared = config.regularizer != "none" and max(config.sensitivity_weight, config.invariance_weight) > 0
    return config.cross_entropy_on == "clean" or compared or config.trades_weight > 0 or config.norm_weight > 0


def sensitivity_images(
    model: nn.Module,
    batch: Batch,
    config: TrialConfig,
    knobs: Knobs,
    generator: Draws,
    clean: CleanPass | None = None,
) -> Tensor:
    """X_s: the batch perturbed against the model as it is now, in eval mode. (B, C, H, W) in [0, 1]."""
    with frozen(model):
        loss = _attack_loss(model, batch, config, clean)
        norm = NORMS[config.sensitivity_norm]
        if is_fgsm(config):
            return fgsm(loss, batch.images, norm=norm, epsilon=knobs.sensitivity_epsilon)
        return pgd(
            loss,
            batch.images,
            norm=norm,
            epsilon=knobs.sensitivity_epsilon,
            steps=config.sensitivity_steps,
            taken=knobs.sensitivity_steps,
            generator=generator,
        )


def _attack_loss(model: nn.Module, batch: Batch, config: TrialConfig, clean: CleanPass | None) -> Loss:
    """What the training attack maximises, (B, C, H, W) -> (B,).

    KL and transport have zero gradient at the clean image, so they always start from a random point.
    """
    if config.sensitivity_objective == "cross_entropy":
        if clean is not None:
            return _linearised(clean, batch.labels)
        return cross_entropy_loss(lambda images: model(images).logits, batch.labels)
    with torch.no_grad():
        answers: Prediction = model(batch.images) if clean is None else clean.prediction
    attacks = {"kl": kl_loss, "transport": partial(transport_attack_loss, lanes=batch.lanes)}
    return attacks[config.sensitivity_objective](lambda images: model(images).logits, answers.logits.detach())


def _linearised(clean: CleanPass, labels: Tensor) -> Loss:
    """The cross-entropy's slope at the clean images, which is all that FGSM sees of it."""
    cross_entropy = F.cross_entropy(clean.prediction.logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(cross_entropy, clean.images, retain_graph=True)
    return lambda images: (gradient * images).flatten(1).sum(1)


class Step(NamedTuple):
    """What one forward pass over a batch and its perturbations gives; everything with its graph."""

    terms: LossTerms

    embedding: Tensor
    """(B, D) of the images that the cross-entropy sees; (L, B, D) of stacked trials."""


def forward(model: nn.Module, batch: Batch, config: TrialConfig, knobs: Knobs, generator: torch.Generator) -> Step:
    """Perturb what the objective needs, pass all of it through the model, then the loss term by term."""
    clean = clean_pass(model, batch, config)
    seen = views(model, batch, config, knobs, generator, clean)
    predictions = predict_views(model, seen, clean, lanes=batch.lanes)
    terms = loss_terms(
        config,
        knobs,
        predictions,
        batch.labels,
        invariance_labels=None if batch.invariance is None else batch.invariance.labels,
        invariance_keep=None if batch.invariance is None else batch.invariance.keep,
    )
    return Step(terms, predictions[config.cross_entropy_on].embedding)


def predict_views(
    model: nn.Module, seen: dict[str, Tensor], clean: CleanPass | None, *, lanes: int = 1
) -> dict[str, Prediction]:
    """What the model says of every view, the clean pass where there was one.

    Batch normalisation (`resnet18`) takes its statistics over a joint pass: clean and perturbed images of a step are
    normalised alike, by the mixture that the running statistics also learn and the model is judged with. The attacks
    themselves see the running statistics. Other models answer alike in one pass or several.
    """
    known = {} if clean is None else {"clean": clean.prediction}
    rest = {name: images for name, images in seen.items() if name not in known}
    if not _normalises_batches(model) and all(images.is_cpu for images in rest.values()):
        return known | {name: model(images) for name, images in rest.items()}  # a joint pass outgrows the caches
    by_lane = [images.unflatten(0, (lanes, -1)) for images in rest.values()]
    joint: Prediction = model(torch.cat(by_lane, 1).flatten(0, 1))
    parts = zip(*(side.unflatten(0, (lanes, -1)).chunk(len(rest), 1) for side in joint), strict=True)
    return known | {
        name: Prediction(*(side.flatten(0, 1) for side in part)) for name, part in zip(rest, parts, strict=True)
    }


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of the optimiser down the gradient of `loss`; nothing but the parameters' gradients is computed."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"] if p.requires_grad])
    optimizer.step()


def detached(terms: LossTerms) -> LossTerms:
    """The values without the graphs that hold a step's memory."""
    return LossTerms._make(None if term is None else term.detach() for term in terms)


def summarise(history: list[LossTerms]) -> dict[str, Any]:
    """Over an epoch the mean of every term, and the largest marginal error, as plain numbers, or of stacked trials as
    lists of L; one synchronisation for all of them."""
    numbers: dict[str, Tensor] = {}
    for name, values in zip(LossTerms._fields, zip(*history, strict=True), strict=True):
        if values[0] is not None:
            column = torch.stack(values)
            numbers |= {name: column.amax(0)} if name == "marginal_error" else {f"loss/{name}": column.mean(0)}
    return dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))


def diagnose(step: Step, model: nn.Module, knobs: Knobs) -> dict[str, Tensor]:
    """Which term steers, and whether the embeddings have collapsed; leaves the graph and `.grad` as they are."""
    # Both measures are blind to scale; the squares of a diverging model's embeddings would overflow before its loss.
    embedding = step.embedding.detach()
    largest = embedding.abs().amax((-2, -1), keepdim=True)
    shape = embedding_spread(embedding / largest.clamp(min=1))
    shares = gradient_shares(step.terms, knobs, model.parameters())
    return {
        **{f"gradient_share/{name}": share.clamp(max=LARGEST_SHARE) for name, share in shares.items()},
        "embedding_rank": shape.rank,
        "embedding_spread": shape.spread,
        "collapsed": shape.collapsed.float(),
    }
