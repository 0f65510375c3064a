"""Training batches: whole batches in a seeded random order, each image beside its invariance perturbation.

Shape letters: N training images, B images of a batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.config import TrialConfig
from trainer.data import Split
from trainer.errors import InputError
from trainer.invariance import Prepared, TrainingPerturbation

PURPOSES = ("order", "attack", "augment", "network")
"""Uses of random numbers in training; each has a stream of its own. A new one goes to the end, or the
streams of others would change."""


class Batch(NamedTuple):
    """One step's images."""

    images: Tensor
    """(B, C, H, W) in [0, 1]."""
    labels: Tensor
    """(B,) int64."""
    invariance: TrainingPerturbation | None
    """The invariance perturbations of the images, if the objective uses them."""
    trials: int = 1
    """Number of stacked trials; the batch holds B images of each, trial after trial."""


def random_stream(seed: int, purpose: str, epoch: int) -> torch.Generator:
    """Return the generator of a trial's random numbers for one of `PURPOSES` in one epoch, the same for every device.

    Every epoch has a new stream, so a resumed trial needs no generator state. Streams are independent, so an attack
    that is switched off and draws nothing changes no other number.
    """
    (state,) = np.random.SeedSequence([seed, PURPOSES.index(purpose), epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def check_batch_size(batch_size: int, images: int) -> None:
    """Raise InputError if there are fewer training images than one batch holds."""
    if batch_size > images:
        raise InputError(f"batch_size = {batch_size}: must be at most {images}, the number of training images")


def shuffled_rows(images: int, *, batch_size: int, generator: torch.Generator) -> Tensor:
    """Return the rows of the training images that each step sees: (steps, batch_size), whole batches only.

    Raises:
        InputError: if there are fewer images than one batch holds.
    """
    check_batch_size(batch_size, images)
    order = torch.randperm(images, generator=generator)
    return order[: images - images % batch_size].view(-1, batch_size)


def batch_at(train: Split, invariance: TrainingPerturbation | None, rows: Tensor) -> Batch:
    """Return the training images of some rows (B,), with their invariance perturbations."""
    perturbed = None if invariance is None else TrainingPerturbation(*(field[rows] for field in invariance))
    return Batch(train.images[rows], train.labels[rows], perturbed)


def find_largest_class(
    labels: Tensor, rows_of_trials: Sequence[Tensor], perturbations: Sequence[TrainingPerturbation] | None
) -> int:
    """Return the most images that one class has on either side of any step of any trial, with one look at the data.

    Given that number no step has to look, so that none waits for a GPU.

    Args:
        labels: (N,) of the training images.
        rows_of_trials: of each trial, (steps, B) rows of the images.
        perturbations: X_v and y_v of all training images, one per trial, if the objective uses them.
    """

    def largest(labels: Tensor, keep: Tensor) -> Tensor:
        members = torch.zeros(len(labels), int(labels.max()) + 1, dtype=torch.int64, device=labels.device)
        return members.scatter_add_(1, labels, keep.long()).amax()

    counts = [largest(labels[rows], torch.ones_like(rows)) for rows in rows_of_trials]
    if perturbations is not None:
        counts += [largest(p.labels[rows], p.keep[rows]) for p, rows in zip(perturbations, rows_of_trials, strict=True)]
    return int(torch.stack(counts).amax())


def training_perturbation(config: TrialConfig, prepared: Prepared, device: torch.device) -> TrainingPerturbation | None:
    """Return X_v and y_v of all training images at the trial's budget; None if the objective does not use them."""
    if not config.uses_invariance:
        return None
    perturbed = prepared.perturbations(config.invariance_norm).at(config.invariance_epsilon)
    return TrainingPerturbation(*(field.to(device) for field in perturbed))


def to_device(split: Split, device: torch.device) -> Split:
    """Return the split with its tensors on the device."""
    return Split(split.images.to(device), split.labels.to(device))
