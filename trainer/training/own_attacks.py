"""The properties of a training attack, built in or one's own, and whether one's own can share a vectorised step.

Shape letters: B images of a batch, C channels, H rows, W columns, K classes, T stacked trials.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import TrialConfig
from trainer.errors import InputError
from trainer.models import Prediction
from trainer.objective import Knobs
from trainer.own_functions import check_own_knobs, fault_of_calls
from trainer.plugins import is_plugin, load_plugin
from trainer.training.batches import Batch
from trainer.training.views import knobs_of_images, sensitivity_images

_IMAGES = 12
_CPU = torch.device("cpu")


class _Linear(nn.Module):
    """Random linear classifiers of coarse images, T stacked: images (T B, C, H, W) to a `Prediction`."""

    def __init__(self, shape: tuple[int, int, int], classes: int, seeds: Sequence[int]) -> None:
        super().__init__()
        size = (16 * shape[0], classes)
        weights = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.weights = nn.Parameter(torch.stack(weights))

    def forward(self, images: Tensor) -> Prediction:
        coarse = F.adaptive_avg_pool2d(images, 4).flatten(1)
        logits = (coarse.unflatten(0, (len(self.weights), -1)) @ self.weights).flatten(0, 1)
        return Prediction(logits, coarse)


def check_attack(config: TrialConfig, *, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10) -> None:
    """Check the properties that every training attack must have, on a small random batch and a random linear model.

    It returns finite images in [0, 1], of the shape and type of those that it was given, and inside its ball; they
    follow from its arguments and its random stream alone; and it changes none of its arguments. One that declares
    `per_image` perturbs an image in the same way whichever others are in the batch.

    Args:
        config: names the attack, built in or one's own, its budget and its knobs.
        shape: (C, H, W) of the images.
        classes: K.

    Raises:
        InputError: naming the property that does not hold.
    """
    check_own_knobs(config)
    batch = _batch(shape, classes, seed=0)
    knobs, model = Knobs.of(config, _CPU), _Linear(shape, classes, [0])
    fault = fault_of_calls(
        lambda: sensitivity_images(model, batch, config, knobs, _streams(0)[0]), [batch.images, batch.labels]
    )
    if not fault and _is_per_image(config):
        order = torch.randperm(_IMAGES, generator=torch.Generator().manual_seed(1))

        def perturb(rows: Tensor) -> Tensor:
            part, streams = Batch(batch.images[rows], batch.labels[rows], None), _streams(0)
            return sensitivity_images(model, part, config, knobs, [streams[row] for row in rows])

        pairs = [perturb(rows) for rows in order.split(2)]
        if not torch.allclose(torch.cat(pairs), perturb(order), atol=1e-4):
            fault = "declares per_image, and perturbs an image in another way among other images"
    if fault:
        raise InputError(f"sensitivity_attack = {config.sensitivity_attack!r}: {fault}")


def why_attack_alone(config: TrialConfig, *, shape: tuple[int, int, int], classes: int) -> str:
    """Return why the configuration's own attack can't share a vectorised step; an empty text if it can."""
    if not (is_plugin(config.sensitivity_attack) and config.uses_sensitivity):
        return ""
    if not _is_per_image(config):
        return "its sensitivity_attack does not declare per_image"
    configs = [config, config.replace(sensitivity_epsilon=config.sensitivity_epsilon / 2)]
    batches = [_batch(shape, classes, seed) for seed in (0, 1)]
    alone = [
        sensitivity_images(_Linear(shape, classes, [seed]), batch, each, Knobs.of(each, _CPU), _streams(seed)[0])
        for seed, (each, batch) in enumerate(zip(configs, batches, strict=True))
    ]
    images, labels = (torch.cat(column) for column in zip(*(batch[:2] for batch in batches), strict=True))
    both = Batch(images, labels, None, trials=2)
    knobs = knobs_of_images(Knobs.stacked(configs, _CPU), _IMAGES)
    streams = [_streams(seed)[0] for seed in (0, 1)]
    try:
        together = sensitivity_images(_Linear(shape, classes, [0, 1]), both, config, knobs, streams)
    except InputError as error:
        return f"its attack can't have a budget for each image, (B, 1, 1, 1): {str(error.__cause__ or error)[:100]}"
    same = torch.allclose(together, torch.cat(alone), atol=1e-4)
    return "" if same else "its attack perturbs otherwise with a budget for each image, (B, 1, 1, 1)"


def _is_per_image(config: TrialConfig) -> bool:
    """Return whether an attack of one's own declares that it perturbs each image whatever the others are."""
    name = config.sensitivity_attack
    return is_plugin(name) and bool(getattr(load_plugin("sensitivity_attack", name), "per_image", False))


def _batch(shape: tuple[int, int, int], classes: int, seed: int) -> Batch:
    """Return random images, many of whose pixels are 0 or 1 as those of digits are, and random labels."""
    generator = torch.Generator().manual_seed(seed)
    images = (2 * torch.rand(_IMAGES, *shape, generator=generator) - 0.5).clamp(0, 1)
    return Batch(images, torch.randint(classes, (_IMAGES,), generator=generator), None)


def _streams(seed: int) -> list[torch.Generator]:
    """Return a random stream for each image."""
    return [torch.Generator().manual_seed(1000 * seed + number) for number in range(_IMAGES)]
