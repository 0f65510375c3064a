"""CROWN: bounds of a classifier's margins over all Linf perturbations of an image, by linear functions.

B images, (C, H, W) channels, height, width, K classes, M bounded quantities, N entries of a layer's output.

CROWN (Zhang et al. 2018, arXiv 1811.00866, theorem 3.2) carries a linear lower bound of the outputs back to the image:
every activation is replaced by a line below or above it, by the sign of its coefficient. It is tighter than intervals,
dearer, and written here for encoders that are a plain sequence of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from trainer.errors import InputError
from trainer.models import Classifier
from trainer.objective.bounds import Box, image_box, propagate_layer

_REFINED = 512
"""A layer of at most so many outputs gets CROWN's bounds before its activation; a larger one keeps the interval's."""


class _Step(NamedTuple):
    """A layer with the box that enters it."""

    layer: nn.Module
    box: Box


def crown_margins(
    model: Classifier, images: Tensor, labels: Tensor, epsilon: Tensor | float, *, refined: bool = True
) -> Tensor:
    """Return lower bounds (B, K) of logit y - logit k over the ball, by CROWN; 0 at k = y. Differentiable.

    Args:
        model: a classifier.
        images: (B, C, H, W) in [0, 1].
        labels: (B,).
        epsilon: Linf budget in pixel units.
        refined: whether bounds before activations are CROWN's too, for layers of at most 512 outputs; else all are the
            interval's (CROWN-IBP, Zhang et al. 2020, arXiv 1906.06316), which is cheap enough for training.

    Raises:
        InputError: for an encoder that is not a sequence of layers with known bounds.
    """
    if not isinstance(model.encoder, nn.Sequential):
        raise InputError(f"CROWN needs an encoder that is a sequence of layers, not {type(model.encoder).__name__}")
    image = image_box(images, epsilon)
    box, steps = image.map(lambda end: (end - model.mean) / model.std), list[_Step]()
    normalised = box
    layers = [*model.encoder, model.head]
    for layer in layers:
        steps.append(_Step(layer, box))
        box = propagate_layer(layer, box)
        if refined and layer is not model.head and isinstance(layer, nn.Linear) and layer.out_features <= _REFINED:
            box = _tightened(box, steps, normalised)
    classes = torch.eye(model.head.out_features, dtype=images.dtype, device=images.device)
    return _lower_bound(classes[labels][:, None, :] - classes, steps, normalised)


def _tightened(box: Box, steps: Sequence[_Step], normalised: Box) -> Box:
    """Return the smaller of a layer's interval (B, M) and CROWN's bounds for it."""
    batch, size = box.lower.shape
    every = torch.eye(size, dtype=box.lower.dtype, device=box.lower.device).expand(batch, -1, -1)
    lower, upper = _lower_bound(every, steps, normalised), -_lower_bound(-every, steps, normalised)
    return Box(torch.maximum(box.lower, lower), torch.minimum(box.upper, upper))


def _lower_bound(coefficients: Tensor, steps: Sequence[_Step], normalised: Box) -> Tensor:
    """Return the least value (B, M) of coefficients (B, M, N) times what the last step gives, over the input's box."""
    constant = coefficients.new_zeros(coefficients.shape[:2])
    for step in reversed(steps):
        coefficients, change = _back(step.layer, step.box, coefficients)
        constant = constant + change
    lower, upper = (end.unsqueeze(1) for end in normalised)
    return constant + (coefficients.clamp(min=0) * lower + coefficients.clamp(max=0) * upper).flatten(2).sum(2)


@singledispatch
def _back(layer: nn.Module, box: Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Return coefficients (B, M, ...) of the layer's input, and a constant (B, M), that bound from below."""
    raise InputError(f"CROWN knows no bounds for the layer {type(layer).__name__}")


@_back.register
def _(layer: nn.Linear, box: Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    return coefficients @ layer.weight, coefficients @ layer.bias


@_back.register
def _(layer: nn.Conv2d, box: Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    if layer.bias is None:
        constant = coefficients.new_zeros(coefficients.shape[:2])
    else:
        constant = (coefficients.sum((3, 4)) * layer.bias).sum(2)
    size = (layer.in_channels, *box.lower.shape[2:])
    back = conv2d_input(
        (coefficients.shape[0] * coefficients.shape[1], *size),
        layer.weight,
        coefficients.flatten(0, 1),
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
    )
    return back.view(*coefficients.shape[:2], *size), constant


@_back.register
def _(layer: nn.Flatten, box: Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    shaped = coefficients.reshape(*coefficients.shape[:2], *box.lower.shape[1:])
    return shaped, coefficients.new_zeros(coefficients.shape[:2])


@_back.register
def _(layer: nn.ReLU, box: Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    return _back_through_kink(torch.zeros_like(box.lower), box, coefficients)


@_back.register
def _(layer: nn.PReLU, box: Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    slope = layer.weight if len(layer.weight) == 1 else layer.weight.view(-1, *[1] * (box.lower.dim() - 2))
    return _back_through_kink(slope.expand_as(box.lower), box, coefficients)


def _back_through_kink(slope: Tensor, box: Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Bound x -> x right of 0 and slope x left of it (Zhang et al. 2018, table 2, for any slope).

    Between the ends of the box the chord lies on one side of it: above where the slope is at most 1, else below. On the
    other side lies any line through 0 with a slope between both; the nearer one to the longer side is taken.
    """
    lower, upper = box
    crossing = (lower < 0) & (upper > 0)
    chord = (upper - slope * lower) / (upper - lower).clamp(min=1e-12)
    offset = torch.where(crossing, upper - chord * upper, 0)
    touching = torch.where(upper > -lower, 1, slope)
    straight = torch.where(lower >= 0, 1, slope)
    convex = slope <= 1
    below = torch.where(crossing, torch.where(convex, touching, chord), straight)
    above = torch.where(crossing, torch.where(convex, chord, touching), straight)
    below_offset, above_offset = torch.where(convex, 0, offset), torch.where(convex, offset, 0)
    positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
    constant = positive * below_offset.unsqueeze(1) + negative * above_offset.unsqueeze(1)
    return positive * below.unsqueeze(1) + negative * above.unsqueeze(1), constant.flatten(2).sum(2)


@_back.register
def _(layer: nn.MaxPool2d, box: Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Bound a maximum from below by the entry whose own lower bound is the largest.

    From above it is that entry too where no other can exceed it, else the largest upper bound, a constant.
    """
    if layer.stride != layer.kernel_size or layer.dilation != 1:
        raise InputError(f"{layer}: CROWN bounds pooling over windows that do not overlap; use certified_method = ibp")
    size, shape = (layer.kernel_size, layer.stride, layer.padding), box.lower.shape
    largest, chosen = F.max_pool2d(box.lower, *size, return_indices=True)
    uppers = box.upper.flatten(2).scatter(2, chosen.flatten(2), -torch.inf).view(shape)
    sure = F.max_pool2d(uppers, *size) <= largest
    positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
    ceiling = torch.where(sure, 0, F.max_pool2d(box.upper, *size))
    kept = (positive + negative * sure.unsqueeze(1)).flatten(3)
    back = kept.new_zeros(*kept.shape[:3], shape[2] * shape[3])
    back.scatter_add_(3, chosen.flatten(2).unsqueeze(1).expand(kept.shape), kept)
    constant = (negative * ceiling.unsqueeze(1)).flatten(2).sum(2)
    return back.view(*kept.shape[:3], *shape[2:]), constant
