"""TODO one line."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import DATASETS
from trainer.errors import InputError
from trainer.words import did_you_mean


@dataclass(frozen=True)
class UnevenInk:
    """How ink may differ in strength within an image without changing what a person reads.

    Each limits a uniform draw of its own for every image.
    """

    faded: float = 0.9
    """Share of the image where ink is faded, at most; so are `missing`, `pale` and `specks`."""
    strength: float = 0.15
    """What is left of faded ink, at least."""
    missing: float = 0.1
    """Where no ink is left."""
    pale: float = 0.2
    """Where another image shines through."""
    pale_strength: float = 0.3
    """Of the other image's ink, at most."""
    specks: float = 0.05
    """Where another image stands in full."""


@dataclass(frozen=True)
class Recipe:
    """How an oracle's members are made."""

    thresholds: tuple[float, ...]
    """One member each: pixels above are ink, in pixel units; 0 stretches the image's own range instead."""
    epochs: int
    width: int
    """Channels of the first layer."""
    uneven: UnevenInk | None = None
    """What members that see how strong ink is, those of threshold 0, are trained to see past."""
    confidence: float = 0.6
    """Least probability, averaged over the members, of an answer."""
    rotation: float = 0.25
    """Limit of augmentation, in radians; the next three are shares of the image."""
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


def recipe_for(dataset: str) -> Recipe:
    """The recipe of a data set.

    Raises:
        InputError: for a data set that none is known for.
    """
    if dataset not in RECIPES:
        raise InputError(f"no oracle for data set {dataset!r}: {did_you_mean(dataset, DATASETS)}")
    return RECIPES[dataset]
