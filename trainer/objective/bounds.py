"""Proven bounds of a classifier over all Linf perturbations of an image: intervals, and CROWN's linear bounds.

B images, (C, H, W) channels, height, width, K classes, M bounded quantities. A perturbed image lies in the box
[max(x - e, 0), min(x + e, 1)].

*Interval bound propagation* (Gowal et al. 2018, arXiv 1810.12715, section 3) carries a box through every layer: through
an affine layer exactly by centre and radius (their eq. 6), through a monotone one by its ends. It works for every model
whose layers it knows, whatever their wiring: the model is traced once by `torch.fx` and interpreted on boxes.

*CROWN* (Zhang et al. 2018, arXiv 1811.00866, theorem 3.2) carries a linear lower bound of the outputs back to the
image: every activation is replaced by a line below or above it, by the sign of its coefficient. It is tighter, dearer,
and written here for encoders that are a plain sequence of layers.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.grad import conv2d_input

from trainer.errors import InputError
from trainer.models import Classifier

_REFINED = 512
"""A layer of at most so many outputs gets CROWN's bounds before its activation; a larger one keeps the interval's."""

METHODS = ("interval", "crown")


class _Box(NamedTuple):
    """All tensors between two ends, entry by entry."""

    lower: Tensor
    upper: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> _Box:
        """Return the box behind a function that rises in every entry."""
        return _Box(change(self.lower), change(self.upper))


def image_box(images: Tensor, epsilon: Tensor | float) -> _Box:
    """Return the Linf ball around images (B, C, H, W) in [0, 1], cut to [0, 1]; epsilon in pixel units."""
    return _Box((images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1))


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


def certified_cross_entropy(model: Classifier, images: Tensor, labels: Tensor, epsilon: Tensor | float) -> Tensor:
    """Return the cross-entropy of the worst logits that the interval allows, () (Gowal et al. 2018, eq. 9)."""
    return F.cross_entropy(-worst_margins(model, images, labels, epsilon), labels)


@torch.no_grad()
def certified(model: Classifier, images: Tensor, labels: Tensor, epsilon: float, *, method: str = "interval") -> Tensor:
    """Return which images (B,) no perturbation of Linf size `epsilon` can turn into another class; a proof, not a test.

    It is computed in double precision, so that rounding is far below any margin that counts.

    Args:
        method: `interval`, or `crown` where the encoder is a sequence of layers.

    Raises:
        InputError: for a layer without bounds, an unknown method, or CROWN on another encoder.
    """
    if method not in METHODS:
        raise InputError(f"method = {method!r}: must be one of {', '.join(METHODS)}")
    bound = worst_margins if method == "interval" else crown_margins
    margins = bound(copy.deepcopy(model).double().eval(), images.double(), labels, epsilon)
    wrong = torch.arange(margins.shape[1], device=labels.device) != labels[:, None]
    return (margins > 0).logical_or(~wrong).all(1)


# ------------------------------------------------------------------------------------------------------------ intervals


def _embedding_box(model: Classifier, images: Tensor, epsilon: Tensor | float) -> _Box:
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
        return _through(self.fetch_attr(str(target)), *args)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in (operator.add, operator.iadd, torch.add):
            return _Box(*(left + right for left, right in zip(*args, strict=True)))
        if target is torch.flatten:
            box, *where = args
            return box.map(lambda end: torch.flatten(end, *where, **kwargs))
        raise InputError(f"no bounds are known for the operation {target}")


@singledispatch
def _through(layer: nn.Module, box: _Box) -> _Box:
    raise InputError(f"no bounds are known for the layer {type(layer).__name__}")


def _affine(box: _Box, centre_of: Callable[[Tensor], Tensor], radius_of: Callable[[Tensor], Tensor]) -> _Box:
    """Return the image of a box under an affine map: its centre moves by the map, its radius by the map's size."""
    centre, radius = centre_of((box.upper + box.lower) / 2), radius_of((box.upper - box.lower) / 2)
    return _Box(centre - radius, centre + radius)


@_through.register
def _(layer: nn.Linear, box: _Box) -> _Box:
    return _affine(box, layer, lambda radius: F.linear(radius, layer.weight.abs()))


@_through.register
def _(layer: nn.Conv2d, box: _Box) -> _Box:
    return _affine(box, layer, lambda radius: layer._conv_forward(radius, layer.weight.abs(), None))


@_through.register
def _(layer: nn.BatchNorm2d, box: _Box) -> _Box:
    if layer.training or layer.running_var is None:
        raise InputError("bounds need batch normalisation in eval mode, with running statistics")
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    return _affine(box, layer, lambda radius: radius * scale.abs()[:, None, None])


@_through.register(nn.ReLU)
@_through.register(nn.MaxPool2d)
@_through.register(nn.AvgPool2d)
@_through.register(nn.AdaptiveAvgPool2d)
@_through.register(nn.Flatten)
@_through.register(nn.Identity)
def _(layer: nn.Module, box: _Box) -> _Box:
    return box.map(lambda end: F.relu(end) if isinstance(layer, nn.ReLU) else layer(end))


@_through.register
def _(layer: nn.PReLU, box: _Box) -> _Box:
    """Bound a function that may fall left of 0: its extremes lie at the ends, or at 0 where that is inside."""
    ends = torch.stack([layer(box.lower), layer(box.upper)])
    crossing = (box.lower < 0) & (box.upper > 0)
    lower, upper = ends.amin(0), ends.amax(0)
    return _Box(torch.where(crossing, lower.clamp(max=0), lower), torch.where(crossing, upper.clamp(min=0), upper))


# ---------------------------------------------------------------------------------------------------------------- CROWN


class _Step(NamedTuple):
    """A layer with the box that enters it."""

    layer: nn.Module
    box: _Box


def crown_margins(model: Classifier, images: Tensor, labels: Tensor, epsilon: Tensor | float) -> Tensor:
    """Return lower bounds (B, K) of logit y - logit k over the ball, by CROWN; 0 at k = y.

    Bounds before activations are CROWN's too for layers of at most 512 outputs, else the interval's (CROWN-IBP).

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
        box = _through(layer, box)
        if layer is not model.head and isinstance(layer, nn.Linear) and layer.out_features <= _REFINED:
            box = _tightened(box, steps, normalised)
    classes = torch.eye(model.head.out_features, dtype=images.dtype, device=images.device)
    return _lower_bound(classes[labels][:, None, :] - classes, steps, normalised)


def _tightened(box: _Box, steps: Sequence[_Step], normalised: _Box) -> _Box:
    """Return the smaller of a layer's interval (B, M) and CROWN's bounds for it."""
    batch, size = box.lower.shape
    every = torch.eye(size, dtype=box.lower.dtype, device=box.lower.device).expand(batch, -1, -1)
    lower, upper = _lower_bound(every, steps, normalised), -_lower_bound(-every, steps, normalised)
    return _Box(torch.maximum(box.lower, lower), torch.minimum(box.upper, upper))


def _lower_bound(coefficients: Tensor, steps: Sequence[_Step], normalised: _Box) -> Tensor:
    """Return the least value (B, M) of coefficients (B, M, N) times what the last step gives, over the input's box."""
    constant = coefficients.new_zeros(coefficients.shape[:2])
    for step in reversed(steps):
        coefficients, change = _back(step.layer, step.box, coefficients)
        constant = constant + change
    lower, upper = (end.unsqueeze(1) for end in normalised)
    return constant + (coefficients.clamp(min=0) * lower + coefficients.clamp(max=0) * upper).flatten(2).sum(2)


@singledispatch
def _back(layer: nn.Module, box: _Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Return coefficients (B, M, ...) of the layer's input, and a constant (B, M), that bound from below."""
    raise InputError(f"CROWN knows no bounds for the layer {type(layer).__name__}")


@_back.register
def _(layer: nn.Linear, box: _Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    return coefficients @ layer.weight, coefficients @ layer.bias


@_back.register
def _(layer: nn.Conv2d, box: _Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
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
def _(layer: nn.Flatten, box: _Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    shaped = coefficients.reshape(*coefficients.shape[:2], *box.lower.shape[1:])
    return shaped, coefficients.new_zeros(coefficients.shape[:2])


@_back.register
def _(layer: nn.ReLU, box: _Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    return _back_through_kink(torch.zeros_like(box.lower), box, coefficients)


@_back.register
def _(layer: nn.PReLU, box: _Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    slope = layer.weight if len(layer.weight) == 1 else layer.weight.view(-1, *[1] * (box.lower.dim() - 2))
    return _back_through_kink(slope.expand_as(box.lower), box, coefficients)


def _back_through_kink(slope: Tensor, box: _Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
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
def _(layer: nn.MaxPool2d, box: _Box, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Bound a maximum from below by the entry whose own lower bound is the largest.

    From above it is that entry too where no other can exceed it, else the largest upper bound, a constant.
    """
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
