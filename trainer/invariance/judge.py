"""The judge, which says what a crowd of people would read in a perturbed image, and the teacher, which labels.

People disagree about a pale stroke, and how many see it grows with its strength. So the judge has members that read
images in black and white, asked at a dozen thresholds, each a viewer who sees ink from that strength on, and members
that see how strong the ink is: on large images these are trained on unevenly drawn ones, where writing may fade and
break and still be what it was, while what shines through palely is no part of it. A `Crowd` says which share of its
people looks in which way. All members are trained on slanted, turned and shifted writing. The shares are a proxy for
people.

The teacher labels training perturbations: one answer where its members together are confident, else none. The two roles
share neither training images nor architecture: if one ensemble did both, a sweep would reward learning the judge.

Shapes: N images, C channels, H rows, W columns, K classes, R readings of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.crowds import THRESHOLDS, Crowd
from trainer.invariance.readings import Readings
from trainer.invariance.recipes import ANY, Recipe, recipe_for

ABSTAINS = -1
"""Label of an image on which the teacher gives no answer, or people did not agree."""
_COARSE = 14
"""Side, in pixels, that the judge's networks bring large images to at once."""
_BATCH = 1000
"""Images that are looked at at once."""


class Contrast(nn.Module):
    """A layer that makes images black and white at a threshold, or with threshold 0 stretches each to [0, 1].

    With threshold `ANY` it leaves images as they are: then they come in black and white.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) of changed contrast, in [0, 1]."""
        if self.threshold == ANY:
            return images
        if self.threshold > 0:
            return (images > self.threshold).to(images.dtype)
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return (images - low) / (high - low).clamp_min(1e-3)


def _judge_network(channels: int, sides: tuple[int, int], classes: int, width: int) -> nn.Sequential:
    """Build a 5x5 and two 3x3 convolutions with batch normalisation, then the average over a 2x2 grid.

    On large images the first has a stride, which makes the network look coarsely: so it meets people's answers better
    than at full resolution, at a third of the cost.
    """
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, stride=max(1, min(sides) // _COARSE), padding=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 4 * width, 3, padding=1),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * width, classes),
    )


def _teacher_network(channels: int, sides: tuple[int, int], classes: int, width: int) -> nn.Sequential:
    """Build two strided 5x5 convolutions without normalisation, and a hidden layer."""
    rows, columns = (-(-side // 4) for side in sides)
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(width, 2 * width, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(2 * width * rows * columns, 8 * width),
        nn.GELU(),
        nn.Linear(8 * width, classes),
    )


class Quality(NamedTuple):
    """The answers of a judge's crowd to clean images that the judge was not trained on."""

    accuracy: float
    """Share of images whose label more of the crowd give than any other class, in [0, 1]."""
    agreement: float
    """Mean share of the crowd who give the image's label, in [0, 1]."""
    size: int
    """Number of images."""


class Judge(nn.Module):
    """An ensemble that says which share of a crowd would read which class in an image."""

    def __init__(self, members: list[nn.Module], thresholds: tuple[float, ...]) -> None:
        """Take the members in the order of their `thresholds`, each `ANY` or 0 (see `Recipe`)."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self._thresholds = thresholds
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def read(self, images: Tensor) -> Readings:
        """Return what each way of looking at `images` (N, C, H, W) in [0, 1] reads in them."""
        values = [self._read(part) for part in images.split(_BATCH)]
        return Readings(torch.cat(values, 1), thresholds=ANY in self._thresholds, ink=0 in self._thresholds)

    def _read(self, images: Tensor) -> Tensor:
        """Return the readings (R, N, K) of one batch."""
        in_black, by_strength = (
            [member for member, own in zip(self.members, self._thresholds, strict=True) if own == kind]
            for kind in (ANY, 0)
        )
        views = [((images > threshold).to(images.dtype), in_black) for threshold in THRESHOLDS if in_black]
        views += [(images, by_strength)] if by_strength else []
        return torch.stack(
            [torch.stack([member(seen).softmax(1) for member in members]).mean(0) for seen, members in views]
        )

    def shares(self, images: Tensor, crowd: Crowd) -> Tensor:
        """Return the share (N, K) of a crowd who would give each answer to `images` (N, C, H, W) in [0, 1]."""
        return self.read(images).shares(crowd)

    def quality(self, images: Tensor, labels: Tensor, crowd: Crowd) -> Quality:
        """Compare a crowd's answers to `images` (N, C, H, W) in [0, 1] with their known `labels` (N,)."""
        shares = self.shares(images, crowd)
        right, given = (shares.argmax(1) == labels).double(), shares.gather(1, labels[:, None]).double()
        return Quality(right.mean().item(), given.mean().item(), len(labels))


class Teacher(nn.Module):
    """An ensemble that answers where its members together are confident."""

    def __init__(self, members: list[nn.Module], *, confidence: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.confidence = confidence
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def label(self, images: Tensor) -> Tensor:
        """Return the class (N,) int64 that `images` (N, C, H, W) in [0, 1] show; `ABSTAINS` where members doubt."""
        answers = [self._answers(part) for part in images.split(_BATCH)]
        return torch.cat(answers) if answers else torch.empty(0, dtype=torch.int64, device=images.device)

    def _answers(self, images: Tensor) -> Tensor:
        """Return the answers (N,) to one batch: the class of greatest mean probability, if that suffices."""
        beliefs = torch.stack([member(images).softmax(1) for member in self.members]).mean(0)
        confidence, answers = beliefs.max(1)
        return torch.where(confidence >= self.confidence, answers, ABSTAINS)


def build_judge(dataset: str, shape: tuple[int, ...], classes: int) -> Judge:
    """Build an untrained judge for images of `shape` (C, H, W).

    Raises:
        InputError: for an unknown data set.
    """
    recipe = recipe_for(dataset, "judge")
    return Judge(_build_members(recipe, _judge_network, shape, classes), recipe.thresholds)


def build_teacher(dataset: str, shape: tuple[int, ...], classes: int) -> Teacher:
    """Build an untrained teacher for images of `shape` (C, H, W).

    Raises:
        InputError: for an unknown data set.
    """
    recipe = recipe_for(dataset, "teacher")
    return Teacher(_build_members(recipe, _teacher_network, shape, classes), confidence=recipe.confidence)


def _build_members(
    recipe: Recipe, build: Callable[..., nn.Module], shape: tuple[int, ...], classes: int
) -> list[nn.Module]:
    """Build a recipe's members, each with its own look at the image; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        return [
            nn.Sequential(Contrast(threshold), build(shape[0], (shape[1], shape[2]), classes, recipe.width))
            for threshold in recipe.thresholds
        ]
