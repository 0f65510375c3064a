"""The views of a batch that the objective needs: clean, sensitivity-perturbed, invariance-perturbed; and their passes.

Shape letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attacks import NORMS, Draws, Loss, cross_entropy_loss, fgsm, frozen, kl_loss, own_attack, pgd
from trainer.config import OWN_KNOBS, TrialConfig
from trainer.models import Prediction
from trainer.objective import Knobs, transport_attack_loss
from trainer.plugins import is_plugin
from trainer.precision import rounded_passes
from trainer.training.batches import Batch


class CleanPass(NamedTuple):
    """A pass over the clean images that the attack and the objective share, with its graph."""

    images: Tensor
    """(B, C, H, W), the leaf that FGSM differentiates by."""
    prediction: Prediction
    """The model's answer to these images."""


def clean_pass(model: nn.Module, batch: Batch, config: TrialConfig) -> CleanPass | None:
    """Return the pass that attack and objective can share, or None where they can't.

    They can't if the attack starts elsewhere (PGD), if the objective does not use the clean images or rounds its
    passes, or if batch normalisation makes the attack's eval mode answer differently from the joint pass.
    """
    reads_clean = config.is_fgsm or config.sensitivity_objective != "cross_entropy"
    needed_by_attack = config.uses_sensitivity and reads_clean and not is_plugin(config.sensitivity_attack)
    if not (needed_by_attack and config.uses_clean) or config.precision == "bfloat16" or _normalises_batches(model):
        return None
    images = batch.images.detach().requires_grad_(config.is_fgsm)
    return CleanPass(images, model(images))


def _normalises_batches(model: nn.Module) -> bool:
    """Return whether an image's prediction depends on the model's mode and on the other images of the pass."""
    return getattr(model, "mode_matters", False) or any(isinstance(each, nn.BatchNorm2d) for each in model.modules())


def batch_views(
    model: nn.Module,
    batch: Batch,
    config: TrialConfig,
    knobs: Knobs,
    generator: Draws,
    clean: CleanPass | None = None,
) -> dict[str, Tensor]:
    """Return the views that the objective uses, and no others: images (B, C, H, W) in [0, 1] by name."""
    views: dict[str, Tensor] = {}
    if config.uses_clean:
        views["clean"] = batch.images
    if config.uses_sensitivity:
        views["sensitivity"] = sensitivity_images(model, batch, config, knobs, generator, clean)
    if config.uses_invariance:
        assert batch.invariance is not None
        views["invariance"] = batch.invariance.images
    return views


def sensitivity_images(
    model: nn.Module,
    batch: Batch,
    config: TrialConfig,
    knobs: Knobs,
    generator: Draws,
    clean: CleanPass | None = None,
) -> Tensor:
    """Perturb the batch against the model as it is now, in eval mode: X_s (B, C, H, W) in [0, 1]."""
    with frozen(model):
        if is_plugin(config.sensitivity_attack):
            return own_attack(
                config.sensitivity_attack,
                lambda images: model(images).logits,
                batch.images,
                batch.labels,
                norm=config.sensitivity_norm,
                epsilon=knobs.sensitivity_epsilon,
                steps=config.sensitivity_steps,
                step_size=_step_size(config, knobs),
                generator=generator,
                knobs={name: getattr(knobs, name) for name in OWN_KNOBS},
            )
        loss = _attack_loss(model, batch, config, clean)
        norm = NORMS[config.sensitivity_norm]
        if config.is_fgsm:
            return fgsm(loss, batch.images, norm=norm, epsilon=knobs.sensitivity_epsilon)
        return pgd(
            loss,
            batch.images,
            norm=norm,
            epsilon=knobs.sensitivity_epsilon,
            steps=config.sensitivity_steps,
            taken=knobs.sensitivity_steps,
            step_size=_step_size(config, knobs),
            generator=generator,
        )


def knobs_of_images(knobs: Knobs, images: int) -> Knobs:
    """Return the knobs of stacked trials, (T,) each, with those that attacks read repeated for each image, (T B,).

    Args:
        knobs: those of T trials.
        images: B.
    """
    names = ("sensitivity_epsilon", "sensitivity_step_size", "sensitivity_steps", *OWN_KNOBS)
    given = {name: value for name in names if (value := getattr(knobs, name)) is not None}
    return knobs._replace(**{name: value.repeat_interleave(images) for name, value in given.items()})


def _step_size(config: TrialConfig, knobs: Knobs) -> Tensor:
    """Return the length of a step of PGD: the knob, if it is not 0 and reaches the edge of the ball in all steps."""
    steps = config.sensitivity_steps if knobs.sensitivity_steps is None else knobs.sensitivity_steps
    epsilon, given = knobs.sensitivity_epsilon, knobs.sensitivity_step_size
    return torch.where(given > 0, torch.maximum(given, epsilon / steps), 2.5 * epsilon / steps)


def _attack_loss(model: nn.Module, batch: Batch, config: TrialConfig, clean: CleanPass | None) -> Loss:
    """Return what the training attack maximises, (B, C, H, W) -> (B,).

    KL and transport have zero gradient at the clean image, so PGD starts them from a random point.
    """
    if config.sensitivity_objective == "cross_entropy":
        if clean is not None:
            return _linearised(clean, batch.labels)
        return cross_entropy_loss(lambda images: model(images).logits, batch.labels)
    with torch.no_grad():
        prediction: Prediction = model(batch.images) if clean is None else clean.prediction
    losses = {"kl": kl_loss, "transport": partial(transport_attack_loss, trials=batch.trials)}
    return losses[config.sensitivity_objective](lambda images: model(images).logits, prediction.logits.detach())


def _linearised(clean: CleanPass, labels: Tensor) -> Loss:
    """Return the cross-entropy's linear part at the clean images, which is all that FGSM uses."""
    cross_entropy = F.cross_entropy(clean.prediction.logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(cross_entropy, clean.images, retain_graph=True)
    return lambda images: (gradient * images).flatten(1).sum(1)


def predict_views(
    model: nn.Module,
    views: dict[str, Tensor],
    clean: CleanPass | None,
    *,
    precision: str = "float32",
    trials: int = 1,
) -> dict[str, Prediction]:
    """Return the model's predictions of every view; the clean view's come from the clean pass where there was one.

    Batch normalisation (`resnet18`) takes its statistics over a joint pass: the clean and perturbed images of a step
    are normalised alike, by the mixture that the running statistics also learn and the model is evaluated with. The
    attacks use the running statistics. Other models answer alike in one pass or several.
    """
    known = {} if clean is None else {"clean": clean.prediction}
    rest = {name: images for name, images in views.items() if name not in known}
    if not _normalises_batches(model) and all(images.is_cpu for images in rest.values()):
        # A joint pass would outgrow the caches.
        return known | {name: _predict(model, images, precision) for name, images in rest.items()}
    unfolded = [images.unflatten(0, (trials, -1)) for images in rest.values()]
    joint = _predict(model, torch.cat(unfolded, 1).flatten(0, 1), precision)
    parts = zip(*(side.unflatten(0, (trials, -1)).chunk(len(rest), 1) for side in joint), strict=True)
    return known | {
        name: Prediction(*(side.flatten(0, 1) for side in part)) for name, part in zip(rest, parts, strict=True)
    }


def _predict(model: nn.Module, images: Tensor, precision: str) -> Prediction:
    """Return the model's answer to images, which a rounded pass gives in the type of the images all the same."""
    with rounded_passes(images.device, precision):
        prediction = model(images)
    return Prediction(*(side.to(images.dtype) for side in prediction))
