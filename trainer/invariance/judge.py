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

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.config import DATASETS
from trainer.errors import InputError
from trainer.parallel import map_on_threads
from trainer.words import did_you_mean

ABSTAINS = -1
ROLES = ("judge", "teacher")
TRAINING_BATCH = 128
_LEAST_STEPS = 300
"""Of training on few images: they are passed over more often, or the members stay in doubt of everything."""
_LABEL_BATCH = 1000
_CELLS = 8
"""Of random regions, along each side of an image."""
_EDGE = 4.0
"""How steeply regions end."""

_Progress = Callable[[int, int], None]


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
class _Recipe:
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
    "digits": _Recipe(thresholds=(0.25, 0.25, 0.0), epochs=60, width=16),
    "mnist": _Recipe(thresholds=(0.12, 0.18, 0.24, 0.0, 0.0), epochs=6, width=16, uneven=UnevenInk(), confidence=0.7),
    "fashion_mnist": _Recipe(thresholds=(0.0, 0.0, 0.0), epochs=6, width=16, rotation=0.1, shear=0.1),
    "cifar10": _Recipe(thresholds=(0.0, 0.0, 0.0), epochs=10, width=32, rotation=0.1, shear=0.1),
}


def recipe_for(dataset: str) -> _Recipe:
    """The recipe of a data set.

    Raises:
        InputError: for a data set that none is known for.
    """
    if dataset not in RECIPES:
        raise InputError(f"no oracle for data set {dataset!r}: {did_you_mean(dataset, DATASETS)}")
    return RECIPES[dataset]


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


def training_half(count: int, role: str) -> slice:
    """The training images that a role may see: the judge the even ones, the teacher the odd ones."""
    return slice(ROLES.index(role), count, 2)


def train_judge(
    dataset: str,
    role: str,
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
    seed: int,
    progress: _Progress = lambda done, total: None,
) -> Judge:
    """Train every member on the role's half of the training images.

    Args:
        dataset: names the recipe.
        role: `judge` or `teacher`.
        images: the whole training split, (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        classes: K.
        seed: with the role and the member decides initial weights, order of images and augmentation.
        progress: told epochs done and epochs in all, over all members.
    """
    recipe = recipe_for(dataset)
    own = training_half(len(labels), role)
    oracle = build_judge(dataset, role, tuple(images.shape[1:]), classes).to(images.device)
    done, total = itertools.count(1), training_passes(recipe, len(labels[own])) * len(oracle.members)

    def train(number: int) -> None:
        generator = torch.Generator(images.device).manual_seed(_member_seed(seed, role, number))
        uneven = recipe.uneven if recipe.thresholds[number] == 0 else None
        train_member(oracle.members[number], images[own], labels[own], recipe, uneven, generator, tell)

    def tell() -> None:
        progress(next(done), total)

    map_on_threads(train, range(len(oracle.members)))
    return oracle.eval().requires_grad_(False)


def training_passes(recipe: _Recipe, images: int) -> int:
    """How often so many images are passed over."""
    return max(recipe.epochs, -(-_LEAST_STEPS // -(-images // TRAINING_BATCH)))


def _member_seed(seed: int, role: str, number: int) -> int:
    """A seed of its own for every member of every role."""
    return int(np.random.SeedSequence([seed, ROLES.index(role), number]).generate_state(1)[0])


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Kaiming-uniform weights and zero biases from `generator`: construction draws from the global state."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def train_member(
    member: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: _Recipe,
    uneven: UnevenInk | None,
    generator: torch.Generator,
    tell: Callable[[], None],
) -> None:
    """Minimise cross-entropy on augmented images, the learning rate rising and falling once; `tell` every epoch."""
    _initialise(member, generator)
    member.train().requires_grad_(True)
    steps, epochs = -(-len(labels) // TRAINING_BATCH), training_passes(recipe, len(labels))
    optimizer = torch.optim.AdamW(member.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps * epochs)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator, device=generator.device)
        for chosen in order.split(TRAINING_BATCH):
            seen = augment(images[chosen], recipe, generator)
            if uneven:
                seen = draw_unevenly(seen, uneven, generator)
            loss = F.cross_entropy(member(seen), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        tell()


def augment(images: Tensor, recipe: _Recipe, generator: torch.Generator) -> Tensor:
    """Each of `images` (N, C, H, W) rotated, sheared, scaled and shifted at random, bilinearly; blank outside."""
    draw = torch.rand(6, len(images), generator=generator, device=images.device) * 2 - 1
    angle, shear = recipe.rotation * draw[0], recipe.shear * draw[1]
    scale = 1 + recipe.scale * draw[2:4]
    shift = 2 * recipe.shift * draw[4:6]
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack(
        [
            torch.stack([cos / scale[0], (shear - sin) / scale[0], shift[0]], 1),
            torch.stack([sin / scale[1], cos / scale[1], shift[1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def draw_unevenly(images: Tensor, uneven: UnevenInk, generator: torch.Generator) -> Tensor:
    """Each of `images` (N, C, H, W) in [0, 1] faded, broken and cluttered by another, in random regions."""
    others, count = images.roll(1, 0), len(images)

    def draw() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator, device=images.device)

    def somewhere(share: Tensor) -> Tensor:
        return regions(share, images.shape[2:], generator)

    faded = somewhere(uneven.faded * draw()) * (1 - uneven.strength) * draw()
    # In half of the images nothing is missing, in half nothing shines through, in half nothing stands in full.
    missing, pale, specks = (
        somewhere(most * (2 * draw() - 1).clamp_min(0)) for most in (uneven.missing, uneven.pale, uneven.specks)
    )
    own = images * (1 - faded) * (1 - missing)
    clutter = others * torch.maximum(pale * uneven.pale_strength * draw(), specks)
    return torch.maximum(own, clutter)


def regions(share: Tensor, size: torch.Size, generator: torch.Generator) -> Tensor:
    """(N, 1, H, W) in [0, 1]: 1 in smooth random regions that take about `share` (N, 1, 1, 1) of an image of `size`."""
    noise = torch.randn(len(share), 1, _CELLS, _CELLS, generator=generator, device=share.device)
    smooth = F.interpolate(noise, size=tuple(size), mode="bicubic", align_corners=True)
    smooth = smooth / smooth.std((1, 2, 3), keepdim=True)
    # Of a normal distribution the wanted share lies above its quantile; infinite, and so nothing, for a share of 0.
    return ((smooth - torch.special.ndtri(1 - share)) * _EDGE + 0.5).clamp(0, 1)
