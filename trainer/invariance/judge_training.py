"""Training of the judge and the teacher, each on its half of the training images.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.invariance.augmentation import augment, black_and_white, draw_unevenly
from trainer.invariance.recipes import ANY, ROLES, Recipe, recipe_for
from trainer.parallel import map_on_threads

_TRAINING_BATCH = 128
"""Images of a training step."""
_LEAST_STEPS = 300
"""Least number of training steps: few images are passed over more often, or the members would doubt everything."""

_Progress = Callable[[int, int], None]
"""Function of (done, total)."""


def training_half(count: int, role: str) -> slice:
    """Return which of `count` training images a role may see: the judge the even ones, the teacher the odd ones."""
    return slice(ROLES.index(role), count, 2)


def training_rows(count: int, role: str, *, seed: int, repeat: int) -> Tensor:
    """Return the training images (n,) int64 that a role learns from: its half, or a bootstrap sample of that half.

    Args:
        count: number of training images.
        role: `judge` or `teacher`.
        seed: decides the sample.
        repeat: 0 for the half itself; above, the number of the bootstrap sample, as large and with replacement.
    """
    half = torch.arange(count)[training_half(count, role)]
    if not repeat:
        return half
    drawn = np.random.default_rng([seed, ROLES.index(role), repeat]).integers(len(half), size=len(half))
    return half[torch.from_numpy(np.sort(drawn))]


def train_ensemble(
    members: Sequence[nn.Module],
    dataset: str,
    role: str,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    repeat: int = 0,
    progress: _Progress = lambda done, total: None,
) -> None:
    """Train every member on the role's half of the training images.

    Args:
        members: those of the untrained judge or teacher, in the order of the recipe's thresholds.
        dataset: names the recipe, with the role.
        role: `judge` or `teacher`.
        images: the whole training split, (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        seed: with the role and the member decides initial weights, order of images and augmentation.
        repeat: above 0 for another ensemble of the role, with a seed of its own and on a bootstrap sample of the half.
        progress: called with epochs done and epochs in all, over all members.

    Raises:
        InputError: for an unknown data set or role.
    """
    recipe = recipe_for(dataset, role)
    own = training_rows(len(labels), role, seed=seed, repeat=repeat)
    images, labels = images[own], labels[own]
    done, total = itertools.count(1), _training_passes(recipe, len(labels)) * len(members)

    def train(number: int) -> None:
        generator = torch.Generator(images.device).manual_seed(_member_seed(seed, role, number, repeat))
        threshold = recipe.thresholds[number]
        _train_member(members[number], images, labels, recipe, threshold, generator, on_epoch)
        members[number].eval().requires_grad_(False)

    def on_epoch() -> None:
        progress(next(done), total)

    map_on_threads(train, range(len(members)))


def _training_passes(recipe: Recipe, images: int) -> int:
    """Return the number of epochs on so many images."""
    return max(recipe.epochs, -(-_LEAST_STEPS // -(-images // _TRAINING_BATCH)))


def _member_seed(seed: int, role: str, number: int, repeat: int) -> int:
    """Derive a seed of its own for every member of every role and repeat; the first repeat's are the older ones."""
    later = [repeat] if repeat else []
    return int(np.random.SeedSequence([seed, ROLES.index(role), number, *later]).generate_state(1)[0])


def _initialise(network: nn.Module, slope: float, generator: torch.Generator) -> None:
    """Draw Kaiming-uniform weights from `generator`, as construction draws from the global state; clear biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=slope, generator=generator)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def _train_member(
    member: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    threshold: float,
    generator: torch.Generator,
    on_epoch: Callable[[], None],
) -> None:
    """Minimise cross-entropy on augmented images, the learning rate rising and falling once.

    Args:
        member: an ensemble's member; its weights are drawn anew.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        recipe: epochs, augmentation and learning rate.
        threshold: the member's, of the recipe's; decides in which contrast it learns.
        generator: seeds weights, order and augmentation.
        on_epoch: called after every epoch.
    """
    _initialise(member, recipe.slope, generator)
    member.train().requires_grad_(True)
    steps, epochs = -(-len(labels) // _TRAINING_BATCH), _training_passes(recipe, len(labels))
    optimizer = torch.optim.AdamW(member.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps * epochs)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator, device=generator.device)
        for chosen in order.split(_TRAINING_BATCH):
            seen = augment(images[chosen], recipe, generator)
            if threshold == ANY:
                seen = black_and_white(seen, generator)
            elif threshold == 0 and recipe.uneven:
                seen = draw_unevenly(seen, recipe.uneven, generator)
            loss = F.cross_entropy(member(seen), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        on_epoch()
