"""Proven bounds of a classifier over all Linf perturbations of an image, by intervals.

B images, (C, H, W) channels, height, width, K classes, D embedding size. A perturbed image lies in the box
[max(x - e, 0), min(x + e, 1)].

*Interval bound propagation* (Gowal et al. 2018, arXiv 1810.12715, section 3) carries a box through every layer: through
an affine layer exactly by centre and radius (their eq. 6), through a monotone one by its ends. It works for every model
whose layers it knows, whatever their wiring: the model is traced once by `torch.fx` and interpreted on boxes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from trainer.errors import InputError
from trainer.models import Classifier


class Box(NamedTuple):
    """All tensors between two ends, entry by entry."""

    lower: Tensor
    upper: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Box:
        """Return the box behind a function that rises in every entry."""
        return Box(change(self.lower), change(self.upper))


def image_box(images: Tensor, epsilon: Tensor | float) -> Box:
    """Return the Linf ball around images (B, C, H, W) in [0, 1], cut to [0, 1]; epsilon in pixel units."""
    return Box((images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1))


def worst_margins(model: Classifier, images: Tensor, labels: Tensor, epsilon: Tensor | float) -> Tensor:
    """Return lower bounds (B, K) of logit y - logit k over the ball, by intervals; 0 at k = y. Differentiable.

    The head and the difference are one affine map (Gowal et al. 2018, section 3, "elision of the last layer").
    """
    box = _embedding_box(model, images, epsilon)
    centre, radius = (box.upper + box.lower) / 2, (box.upper - box.lower) / 2
    weight, bias = model.head.weight, model.head.bias
    difference = weight[labels][:, None, :] - weight  # (B, K, D)
    lowest = torch.einsum("bkd,bd->bk", difference, centre) - torch.einsum("bkd,bd->bk", difference.abs(), radius)
    return lowest + (bias[labels][:, None] - bias)


def _embedding_box(model: Classifier, images: Tensor, epsilon: Tensor | float) -> Box:
    """Return bounds of the embedding (B, D).

    Raises:
        InputError: for a layer whose bounds are not known, or batch normalisation in training mode.
    """
    box = image_box(images, epsilon).map(lambda image: (image - model.mean) / model.std)
    return _Propagation(_traced(model.encoder)).run(box)


def _traced(encoder: nn.Module) -> fx.GraphModule:
    """Return the encoder as a graph of the same layers and parameters; traced once."""
    graph = encoder.__dict__.get("_bounds_graph")
    if graph is None:
        lean, encoder.__dict__["lean"] = encoder.__dict__.get("lean"), False
        graph = fx.symbolic_trace(encoder if list(encoder.children()) else nn.Sequential(encoder))
        del encoder.__dict__["lean"]
        if lean is not None:
            encoder.__dict__["lean"] = lean
        encoder.__dict__["_bounds_graph"] = graph  # past nn.Module's own table: no second owner of the parameters
    return graph


class _Propagation(fx.Interpreter):
    """Runs a traced network on boxes."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return propagate_layer(self.fetch_attr(str(target)), *args)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in (operator.add, operator.iadd, torch.add):
            return Box(*(left + right for left, right in zip(*args, strict=True)))
        if target is torch.flatten:
            box, *where = args
            return box.map(lambda end: torch.flatten(end, *where, **kwargs))
        raise InputError(f"no bounds are known for the operation {target}")


@singledispatch
def propagate_layer(layer: nn.Module, box: Box) -> Box:
    raise InputError(f"no bounds are known for the layer {type(layer).__name__}")


def _affine(box: Box, centre_of: Callable[[Tensor], Tensor], radius_of: Callable[[Tensor], Tensor]) -> Box:
    """Return the image of a box under an affine map: its centre moves by the map, its radius by the map's size."""
    centre, radius = centre_of((box.upper + box.lower) / 2), radius_of((box.upper - box.lower) / 2)
    return Box(centre - radius, centre + radius)


@propagate_layer.register
def _(layer: nn.Linear, box: Box) -> Box:
    return _affine(box, layer, lambda radius: F.linear(radius, layer.weight.abs()))


@propagate_layer.register
def _(layer: nn.Conv2d, box: Box) -> Box:
    return _affine(box, layer, lambda radius: layer._conv_forward(radius, layer.weight.abs(), None))


@propagate_layer.register
def _(layer: nn.BatchNorm2d, box: Box) -> Box:
    if layer.training or layer.running_var is None:
        raise InputError("bounds need batch normalisation in eval mode, with running statistics")
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    return _affine(box, layer, lambda radius: radius * scale.abs()[:, None, None])


@propagate_layer.register(nn.ReLU)
@propagate_layer.register(nn.MaxPool2d)
@propagate_layer.register(nn.AvgPool2d)
@propagate_layer.register(nn.AdaptiveAvgPool2d)
@propagate_layer.register(nn.Flatten)
@propagate_layer.register(nn.Identity)
def _(layer: nn.Module, box: Box) -> Box:
    return box.map(lambda end: F.relu(end) if isinstance(layer, nn.ReLU) else layer(end))


@propagate_layer.register
def _(layer: nn.PReLU, box: Box) -> Box:
    """Bound a function that may fall left of 0: its extremes lie at the ends, or at 0 where that is inside."""
    ends = torch.stack([layer(box.lower), layer(box.upper)])
    crossing = (box.lower < 0) & (box.upper > 0)
    lower, upper = ends.amin(0), ends.amax(0)
    return Box(torch.where(crossing, lower.clamp(max=0), lower), torch.where(crossing, upper.clamp(min=0), upper))
