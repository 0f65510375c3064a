"""The terms in which attacks are written: victim, attack, and the objective that an attack maximises.

A sensitivity attack changes an image a little, so that the model's answer changes although a person's does not. Images
lie in [0, 1] and stay there; budgets (epsilon) are in those pixel units. Attacks read a model through closures on
tensors, so anything that returns logits can be attacked.

Shape letters: N images of a set, B of a batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.attacks.logits import Logits


class Victim(NamedTuple):
    """A model and the whole set of images on which it is attacked."""

    logits: Logits
    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    labels: Tensor
    """(N,) classes from 0 to K - 1."""


@dataclass(frozen=True)
class Attack:
    """A named search for images that the model gets wrong, for judging a model by `worst_case`."""

    name: str
    rounds: int
    """Restarts (times target classes); an image that one round breaks is left out of the next."""
    run: Callable[[Victim, Tensor, int, torch.Generator], Tensor]
    """Function of (victim, rows (B,) of the set to attack, number of the round, generator) to candidates (B, C, H, W).

    Random numbers are drawn for all N images and then picked by row, so that an image meets the same numbers whichever
    others are still right, and whatever the size of a batch."""


class Scores(NamedTuple):
    """An attack's progress on each image."""

    loss: Tensor
    """(B,) the loss that the attack maximises."""
    wrong: Tensor
    """(B,) bool: True where the model is already wrong."""
    logits: Tensor | None = None
    """(B, K) of the model; None where the loss itself rises through 0 as the answer becomes wrong."""


Objective = Callable[[Tensor, Tensor], Scores]
"""Function from perturbed images (B, C, H, W) and their rows in the set (B,) to scores, by one call of the model."""
