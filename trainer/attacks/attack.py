"""Sensitivity attacks: small changes of an image that change the model's answer although not a person's.

Images lie in [0, 1] and stay there; budgets (epsilon) are in those pixel units. Attacks read a model through closures
on tensors, so anything that returns logits can be attacked. `fgsm` and `pgd` are lean enough to train with; an `Attack`
is for judging, by `worst_case`.

Shape letters: N images of a set, B of a batch, C channels, H rows, W columns, K classes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.attacks.logits import Logits

# ----------------------------------------------------------------------------------------- attacks to judge by


class Victim(NamedTuple):
    """What is attacked: a model and a whole set of images."""

    logits: Logits
    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    labels: Tensor
    """(N,) classes from 0 to K - 1."""


@dataclass(frozen=True)
class Attack:
    """A named search for images that the model gets wrong."""

    name: str
    rounds: int
    """Restarts (times target classes); an image that one round breaks is left out of the next."""
    run: Callable[[Victim, Tensor, int, torch.Generator], Tensor]
    """(victim, rows (B,) of the set to attack, number of the round, generator) to candidates (B, C, H, W).

    Random numbers are drawn for all N images and then picked by row, so that what one image meets doesn't depend on
    which others still stand, nor on the size of a batch."""


class Scores(NamedTuple):
    """How far an attack has come on each image."""

    loss: Tensor
    """(B,) what it maximises."""
    wrong: Tensor
    """(B,) bool: whether the model is already wrong."""


Objective = Callable[[Tensor, Tensor], Scores]
"""Perturbed images (B, C, H, W) and their rows in the set (B,) to scores; one call of the model gives both."""
