"""TODO one line."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.invariance.augmentation import augment, draw_unevenly
from trainer.invariance.judge import (
    ROLES,
    Judge,
    build_judge,
)
from trainer.invariance.recipes import Recipe, UnevenInk, recipe_for
from trainer.parallel import map_on_threads

TRAINING_BATCH = 128
_LEAST_STEPS = 300
"""Of training on few images: they are passed over more often, or the members stay in doubt of everything."""

_Progress = Callable[[int, int], None]


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


def training_passes(recipe: Recipe, images: int) -> int:
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
    recipe: Recipe,
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
