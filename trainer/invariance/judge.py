"""The judge: an ensemble that says which class a perturbed image shows, and abstains unless it is sure.

A person reads a pale stroke at once where a network trained on full contrast overlooks it, and yet overlooks pale marks
that belong to no stroke. So there are two kinds of members, and both have to be convinced. Some see the image in black
and white, each at a threshold of its own: they read every pale stroke, but clutter too. The others see how strong the
ink is. On large images, where a pale stroke has a shape of its own, they are trained on unevenly drawn ones: writing
may fade and break and still be what it was, while what shines through palely is no part of it. All are trained on
slanted, turned and shifted writing. The judge's answer is a proxy for what people would say.

There are two such ensembles, or roles, which share neither training images nor architecture: the `teacher` labels
training perturbations, the `judge` labels what trials are judged by. If one did both, a sweep would reward learning the
judge.

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
"""Label of an image on which no answer is given."""
ROLES = ("judge", "teacher")
_LABEL_BATCH = 1000
"""Images that are labelled at once."""


class Contrast(nn.Module):
    """A layer that makes images black and white at a threshold, or with threshold 0 stretches each to [0, 1]."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) of changed contrast, in [0, 1]."""
        if self.threshold > 0:
            return (images > self.threshold).to(images.dtype)
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return (images - low) / (high - low).clamp_min(1e-3)


def _judge_network(channels: int, size: int, classes: int, width: int) -> nn.Sequential:
    """Build three 3x3 convolutions with batch normalisation, pooled in between, then the average over a 2x2 grid."""
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
    """Build two strided 5x5 convolutions without normalisation, and a hidden layer."""
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
    """A judge's accuracy and coverage on clean images that it was not trained on."""

    accuracy: float
    """Share of right answers among those given, in [0, 1]."""
    coverage: float
    """Share of images that it answers, in [0, 1]."""
    size: int
    """Number of images."""


class Judge(nn.Module):
    """An ensemble that answers where its members together are confident, in either role."""

    def __init__(self, members: list[nn.Module], *, confidence: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.confidence = confidence
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def label(self, images: Tensor) -> Tensor:
        """Return the class (N,) int64 that `images` (N, C, H, W) in [0, 1] show; `ABSTAINS` where members doubt."""
        answers = [self._answers(part) for part in images.split(_LABEL_BATCH)]
        return torch.cat(answers) if answers else torch.empty(0, dtype=torch.int64, device=images.device)

    def _answers(self, images: Tensor) -> Tensor:
        """Return the answers (N,) to one batch: the class of greatest mean probability, if that suffices."""
        beliefs = torch.stack([member(images).softmax(1) for member in self.members]).mean(0)
        confidence, answers = beliefs.max(1)
        return torch.where(confidence >= self.confidence, answers, ABSTAINS)

    def quality(self, images: Tensor, labels: Tensor) -> Quality:
        """Measure accuracy and coverage on `images` (N, C, H, W) in [0, 1] whose `labels` (N,) are known."""
        answers = self.label(images)
        answered = answers != ABSTAINS
        right = (answers == labels)[answered].double()
        return Quality(right.mean().item() if len(right) else 0.0, answered.double().mean().item(), len(labels))


def build_judge(dataset: str, role: str, shape: tuple[int, ...], classes: int) -> Judge:
    """Build an untrained ensemble for images of `shape` (C, H, W).

    Raises:
        InputError: for an unknown data set or role.
    """
    if role not in _NETWORKS:
        raise InputError(f"no judge in the role {role!r}: {did_you_mean(role, ROLES)}")
    recipe = recipe_for(dataset)
    with torch.random.fork_rng(devices=[]):
        return Judge(
            [
                nn.Sequential(Contrast(threshold), _NETWORKS[role](shape[0], shape[1], classes, recipe.width))
                for threshold in recipe.thresholds
            ],
            confidence=recipe.confidence,
        )
