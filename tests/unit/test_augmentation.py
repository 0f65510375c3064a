"""The augmentation of training images: what is drawn, what it does, and that a perturbation changes with its image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from trainer.attacks import uniform
from trainer.config import TrialConfig
from trainer.invariance import TrainingPerturbation
from trainer.training.augmentation import augment
from trainer.training.batches import Batch

CROP_FLIP = TrialConfig(augmentation="crop_flip")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_batch(count: int = 16, *, trials: int = 1) -> Batch:
    images = torch.rand(count, 3, 6, 5, generator=seeded(count))
    labels = torch.arange(count)
    return Batch(images, labels, TrainingPerturbation(1 - images, labels + 1, labels % 5 != 0), trials=trials)


def perturbed_images(batch: Batch) -> Tensor:
    assert batch.invariance is not None
    return batch.invariance.images


def one_by_one(images: Tensor, draws: Tensor) -> Tensor:
    """Return torchvision's pad, crop and flip of each image."""

    def change(image: Tensor, draw: Tensor) -> Tensor:
        corner = (draw[:2] * 9).int().tolist()
        cropped = functional.crop(functional.pad(image, [4]), *corner, *image.shape[1:])
        return functional.horizontal_flip(cropped) if draw[2] < 0.5 else cropped

    return torch.stack([change(*pair) for pair in zip(images, draws, strict=True)])


def test_images_are_cropped_and_flipped_as_by_torchvision() -> None:
    batch = a_batch()
    draws = uniform((16, 3), batch.images, seeded())
    changed = augment(batch, CROP_FLIP, seeded())
    assert torch.equal(changed.images, one_by_one(batch.images, draws))
    assert torch.equal(perturbed_images(changed), one_by_one(perturbed_images(batch), draws))
    assert not torch.equal(changed.images, batch.images)


def test_every_crop_and_both_directions_occur_equally_often() -> None:
    count = 81 * 2 * 100
    images = torch.zeros(1, 1, 9, 9)
    images[..., 4, 4], images[..., 4, 5] = 1, 0.5  # the mark stays inside, and shows the direction
    batch = Batch(images.expand(count, -1, -1, -1), torch.zeros(count, dtype=torch.int64), None)
    changed = augment(batch, CROP_FLIP, seeded()).images
    kinds, frequencies = changed.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 81 * 2
    assert 50 < frequencies.min() <= frequencies.max() < 150  # five standard deviations


def test_a_perturbation_stays_with_its_image_and_within_its_budget() -> None:
    batch = a_batch(64)
    near = (batch.images + 0.3 * (2 * torch.rand(batch.images.shape, generator=seeded(1)) - 1)).clamp(0, 1)
    labels = batch.labels + 1
    changed = augment(batch._replace(invariance=TrainingPerturbation(near, labels, labels > 3)), CROP_FLIP, seeded())
    assert (perturbed_images(changed) - changed.images).abs().max() <= 0.3 + 1e-6
    assert changed.invariance is not None
    assert torch.equal(changed.invariance.labels, labels)
    assert torch.equal(changed.invariance.keep, labels > 3)
    assert torch.equal(changed.labels, batch.labels)


def test_stacked_trials_draw_what_each_draws_alone() -> None:
    whole = augment(a_batch(12, trials=3), CROP_FLIP, [seeded(seed) for seed in range(3)])
    batch = a_batch(12)
    for seed in range(3):
        part = slice(4 * seed, 4 * seed + 4)
        alone = augment(Batch(batch.images[part], batch.labels[part], None), CROP_FLIP, seeded(seed))
        assert torch.equal(whole.images[part], alone.images)


@pytest.mark.parametrize("settings", [{}, {"sensitivity_ce_weight": 1.0}])
def test_without_augmentation_nothing_is_drawn_or_copied(settings: dict[str, Any]) -> None:
    generator, batch = seeded(), a_batch()
    before = generator.get_state()
    assert augment(batch, TrialConfig(**settings), generator) is batch
    assert torch.equal(generator.get_state(), before)
