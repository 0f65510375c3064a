"""Recipes of the judge and the teacher: members, training and augmentation, by data set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainer.config import DATASETS
from trainer.data import is_own
from trainer.errors import InputError
from trainer.words import did_you_mean


@dataclass(frozen=True)
class UnevenInk:
    """Limits of the uneven strength of ink within an image that changes nothing of what a person reads.

    Each limits a uniform draw of its own for every image. Shares lie in [0, 1].
    """

    faded: float = 0.9
    """Largest share of the image where ink is faded."""
    strength: float = 0.15
    """Least strength of faded ink, as a share of its own."""
    missing: float = 0.1
    """Largest share of the image where no ink is left."""
    pale: float = 0.2
    """Largest share of the image where another image shines through."""
    pale_strength: float = 0.3
    """Greatest strength of the other image's ink there."""
    specks: float = 0.05
    """Largest share of the image where another image stands in full."""


ANY = -1.0
"""Threshold of a member that learns black-and-white images at all thresholds, and can be asked at any."""


@dataclass(frozen=True)
class Recipe:
    """An ensemble's members and their training. All fields are part of the keys of the cache."""

    thresholds: tuple[float, ...]
    """Threshold of each member: pixels above are ink, in pixel units; `ANY` for one that is asked at all thresholds; 0
    for one that sees the image's own range, stretched."""
    epochs: int
    """Number of passes over the training images, at least."""
    width: int
    """Number of channels of the first layer."""
    uneven: UnevenInk | None = None
    """Uneven ink in the training images of members of threshold 0, which see how strong ink is."""
    confidence: float = 0.6
    """Least mean probability over the members at which the teacher gives an answer."""
    rotation: float = 0.25
    """Largest rotation of augmentation, in radians; the next three limits are shares of the image."""
    shear: float = 0.25
    scale: float = 0.15
    shift: float = 0.08
    learning_rate: float = 4e-3
    slope: float = 0.0
    """Slope that the initial weights are drawn for; the larger, the smaller they are."""


_PHOTOGRAPHS = {
    "fashion_mnist": Recipe(thresholds=(0.0, 0.0, 0.0), epochs=6, width=16, rotation=0.1, shear=0.1),
    "cifar10": Recipe(thresholds=(0.0, 0.0, 0.0), epochs=10, width=32, rotation=0.1, shear=0.1),
    "svhn": Recipe(thresholds=(0.0, 0.0, 0.0), epochs=6, width=32, rotation=0.1, shear=0.1),
}
_OWN = Recipe(thresholds=(0.0, 0.0, 0.0), epochs=10, width=16, rotation=0.1, shear=0.1)
"""For data of one's own, of which nothing is known: that its images are writing, or what may be turned."""
_WRITING_JUDGE = Recipe(thresholds=(ANY, ANY, ANY), epochs=8, width=16)
_WRITING_TEACHER = Recipe(thresholds=(0.25, 0.25, 0.0), epochs=6, width=16)
_SMOOTH: dict[str, Any] = {"rotation": 0.4, "shear": 0.4, "scale": 0.25, "shift": 0.12, "slope": math.sqrt(5)}
"""Wider augmentation and PyTorch's own small initial weights: both meet people's answers better."""
RECIPES = {
    "judge": {
        "digits": Recipe(thresholds=(ANY, ANY, ANY), epochs=60, width=16),
        "mnist": Recipe(thresholds=(ANY, ANY, ANY, 0.0, 0.0, 0.0), epochs=8, width=16, uneven=UnevenInk(), **_SMOOTH),
        "kmnist": _WRITING_JUDGE,
        "emnist": _WRITING_JUDGE,
        "usps": _WRITING_JUDGE,
        **_PHOTOGRAPHS,
    },
    "teacher": {
        "digits": Recipe(thresholds=(0.25, 0.25, 0.0), epochs=60, width=16),
        "mnist": Recipe(
            thresholds=(0.12, 0.18, 0.24, 0.0, 0.0), epochs=6, width=16, uneven=UnevenInk(), confidence=0.7
        ),
        "kmnist": _WRITING_TEACHER,
        "emnist": _WRITING_TEACHER,
        "usps": _WRITING_TEACHER,
        **_PHOTOGRAPHS,
    },
}
"""Recipes by role and data set."""
ROLES = tuple(RECIPES)
"""The ensembles, in the order in which they share the training images out: see `judge`."""


def recipe_for(dataset: str, role: str) -> Recipe:
    """Return the recipe of a data set in a role.

    Raises:
        InputError: for a data set without one, or an unknown role.
    """
    if role not in RECIPES:
        raise InputError(f"no judge in the role {role!r}: {did_you_mean(role, ROLES)}")
    if is_own(dataset):
        return _OWN
    if dataset not in RECIPES[role]:
        raise InputError(f"no judge for data set {dataset!r}: {did_you_mean(dataset, DATASETS)}")
    return RECIPES[role][dataset]
