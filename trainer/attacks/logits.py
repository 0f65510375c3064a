"""Ways to read a classifier: left as it was found, in batches, right or wrong, by how much.

Shape letters: N images of a set, B of a batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.precision import exact_products

Logits = Callable[[Tensor], Tensor]
"""Function from images (B, C, H, W) to logits (B, K)."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Hold a model in evaluation mode, its parameters without gradients; restore every module and parameter after."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


@contextmanager
def judged(model: nn.Module) -> Iterator[nn.Module]:
    """Hold a model as `frozen` does, on a device that rounds no product: answers are those of a CPU."""
    with frozen(model), exact_products():
        yield model


@torch.no_grad()
def predict(logits: Logits, images: Tensor, *, batch_size: int) -> Tensor:
    """Return the logits (N, K) of images (N, C, H, W), computed a batch at a time."""
    return torch.cat([logits(batch) for batch in images.split(batch_size)])


def is_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Return where (B,) the largest of the logits (B, K) is not at the label (B,)."""
    return logits.argmax(1) != labels


def logit_at(logits: Tensor, classes: Tensor) -> Tensor:
    """Return one logit (B,) of each row (B, K): that of the class (B,) given for it."""
    return logits.gather(1, classes[:, None]).squeeze(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the label's logit minus the largest other one (B,): below 0 where the answer is wrong."""
    return logit_at(logits, labels) - logits.scatter(1, labels[:, None], -math.inf).amax(1)


@torch.no_grad()
def likely_target(logits: Logits, images: Tensor, labels: Tensor, number: int) -> Tensor:
    """Return the wrong class (B,) of the `number`-th largest logit, counted from 0, on images (B, C, H, W)."""
    answer = logits(images)
    ranking = answer.scatter(1, labels[:, None], -math.inf).argsort(dim=1, descending=True, stable=True)
    return ranking[:, number % (answer.shape[1] - 1)]
