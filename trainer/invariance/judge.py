"""The calibrated oracle: an ensemble that says what a perturbed image now shows, and abstains unless it is sure.

A person reads a pale stroke at once where a network trained on full contrast overlooks it; and yet overlooks pale marks
that belong to no stroke. So there are two kinds of members, and both have to be convinced. To some a mark is a mark:
they see the image in black and white, each at a threshold of its own, and so read every pale stroke, but also clutter.
The others see how strong the ink is. On large images, where a pale stroke has a shape of its own, they are trained on
unevenly drawn ones: writing may fade and break and still be what it was, while what shines through palely is no part of
it. All are trained on slanted, turned and shifted writing. What the oracle says is a proxy for what people would say.

Two roles that share neither training images nor architecture: the `teacher` labels training perturbations, the `judge`
labels what trials are judged by. Were they one, a sweep would reward learning the judge.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.errors import InputError
from trainer.invariance.recipes import recipe_for
from trainer.words import did_you_mean

ABSTAINS = -1
ROLES = ("judge", "teacher")
_LABEL_BATCH = 1000


class Contrast(nn.Module):
    """Black and white above a threshold; with threshold 0, the image's own range stretched to [0, 1]."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        if self.threshold > 0:
            return (images > self.threshold).to(images.dtype)
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return (images - low) / (high - low).clamp_min(1e-3)


def _judge_network(channels: int, size: int, classes: int, width: int) -> nn.Sequential:
    """Three 3x3 convolutions with batch normalisation, pooled in between, then the average over a 2x2 grid."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
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


def _teacher_network(channels: int, size: int, classes: int, width: int) -> nn.Sequential:
    """Two strided 5x5 convolutions, no normalisation, and a hidden layer."""
    side = -(-size // 4)
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(width, 2 * width, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(2 * width * side * side, 8 * width),
        nn.GELU(),
        nn.Linear(8 * width, classes),
    )


_NETWORKS = {"judge": _judge_network, "teacher": _teacher_network}


class Quality(NamedTuple):
    """What is known of an oracle from clean images that it was not trained on."""

    accuracy: float
    """Share right where it answers."""
    coverage: float
    """Share of images where it answers."""
    size: int


class Judge(nn.Module):
    """An ensemble that answers where its members together are confident."""

    def __init__(self, members: list[nn.Module], *, confidence: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.confidence = confidence
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def label(self, images: Tensor) -> Tensor:
        """(N,) int64 class that `images` (N, C, H, W) in [0, 1] show; `ABSTAINS` where the members are in doubt."""
        answers = [self._answers(part) for part in images.split(_LABEL_BATCH)]
        return torch.cat(answers) if answers else torch.empty(0, dtype=torch.int64, device=images.device)

    def _answers(self, images: Tensor) -> Tensor:
        beliefs = torch.stack([member(images).softmax(1) for member in self.members]).mean(0)
        confidence, answers = beliefs.max(1)
        return torch.where(confidence >= self.confidence, answers, ABSTAINS)

    def quality(self, images: Tensor, labels: Tensor) -> Quality:
        """Accuracy and coverage on `images` (N, C, H, W) in [0, 1] whose `labels` (N,) are known."""
        answers = self.label(images)
        answered = answers != ABSTAINS
        right = (answers == labels)[answered].double()
        return Quality(right.mean().item() if len(right) else 0.0, answered.double().mean().item(), len(labels))


def build_judge(dataset: str, role: str, shape: tuple[int, ...], classes: int) -> Judge:
    """An untrained oracle for images of `shape` (C, H, W).

    Raises:
        InputError: for an unknown data set or role.
    """
    if role not in _NETWORKS:
        raise InputError(f"no oracle with the role {role!r}: {did_you_mean(role, ROLES)}")
    recipe = recipe_for(dataset)
    with torch.random.fork_rng(devices=[]):
        return Judge(
            [
                nn.Sequential(Contrast(threshold), _NETWORKS[role](shape[0], shape[1], classes, recipe.width))
                for threshold in recipe.thresholds
            ],
            confidence=recipe.confidence,
        )
