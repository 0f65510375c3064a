"""Recipes of the judge and the teacher: members, training and augmentation, by data set."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import DATASETS
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


@dataclass(frozen=True)
class Recipe:
    """A judge's members and their training. All fields are part of the keys of the cache."""

    thresholds: tuple[float, ...]
    """Threshold of each member: pixels above are ink, in pixel units; 0 stretches the image's own range instead."""
    epochs: int
    """Number of passes over the training images, at least."""
    width: int
    """Number of channels of the first layer."""
    uneven: UnevenInk | None = None
    """Uneven ink in the training images of members of threshold 0, which see how strong ink is."""
    confidence: float = 0.6
    """Least mean probability over the members at which an answer is given."""
    rotation: float = 0.25
    """Largest rotation of augmentation, in radians; the next three limits are shares of the image."""
    shear: float = 0.25
    scale: float = 0.15
    shift: float = 0.08
    learning_rate: float = 4e-3


RECIPES = {
    "digits": Recipe(thresholds=(0.25, 0.25, 0.0), epochs=60, width=16),
    "mnist": Recipe(thresholds=(0.12, 0.18, 0.24, 0.0, 0.0), epochs=6, width=16, uneven=UnevenInk(), confidence=0.7),
    "fashion_mnist": Recipe(thresholds=(0.0, 0.0, 0.0), epochs=6, width=16, rotation=0.1, shear=0.1),
    "cifar10": Recipe(thresholds=(0.0, 0.0, 0.0), epochs=10, width=32, rotation=0.1, shear=0.1),
}
"""Recipes by data set."""


def recipe_for(dataset: str) -> Recipe:
    """Return the recipe of a data set.

    Raises:
        InputError: for a data set without one.
    """
    if dataset not in RECIPES:
        raise InputError(f"no judge for data set {dataset!r}: {did_you_mean(dataset, DATASETS)}")
    return RECIPES[dataset]
