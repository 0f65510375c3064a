"""Regularisers of one's own, `regularizer: python:MODULE:FUNCTION`, and the properties that every regulariser has.

README.md has an example. Shape letters: B images of a batch, D embedding size, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.config import OWN_KNOBS, TrialConfig
from trainer.errors import InputError
from trainer.objective.regularizers import Embedded, regularizer, solver
from trainer.objective.terms import Knobs
from trainer.own_functions import check_own_knobs, fault_of_calls
from trainer.plugins import is_plugin

_IMAGES, _CLASSES, _WIDTH = 12, 3, 5
_Value = Callable[[Embedded, Embedded], Tensor]


def check_regularizer(config: TrialConfig) -> None:
    """Check the properties that every regulariser must have, on small random batches.

    It is one number of at least 0, finite, with a finite gradient, also where anchors and clean images are the same,
    where a batch has one class, and where no image is kept (0 there); the order of the images and those that are left
    out change nothing; and it draws no random numbers and changes no input.

    Args:
        config: names the regulariser, built in or one's own, and its knobs.

    Raises:
        InputError: naming the property that does not hold.
    """
    check_own_knobs(config)
    if fault := _fault(_value_of(config)):
        raise InputError(f"regularizer = {config.regularizer!r}: {fault}")


def why_regularizer_alone(config: TrialConfig) -> str:
    """Return why the configuration's own regulariser can't share a vectorised step; an empty text if it can."""
    if not (is_plugin(config.regularizer) and config.uses_regularizer):
        return ""
    value, sides = _value_of(config), [_batch(seed) for seed in (0, 1)]
    anchors, clean = (
        [torch.stack(column) for column in zip(*(pair[side] for pair in sides), strict=True)] for side in (0, 1)
    )
    try:
        stacked = torch.vmap(lambda a, c: value(Embedded(*a), Embedded(*c)))(anchors, clean)
    except Exception as error:  # noqa: BLE001 - vmap refuses in many ways what it can't vectorise
        reason = str(error.__cause__ or error).splitlines()[0][:100]
        return f"torch.vmap can't vectorise its regularizer ({reason})"
    same = torch.allclose(stacked, torch.stack([value(*pair) for pair in sides]), rtol=1e-3, atol=1e-5)
    return "" if same else "torch.vmap computes something else of its regularizer"


def _value_of(config: TrialConfig) -> _Value:
    """Return the regulariser of a configuration as a function of both sides."""
    knobs = Knobs.of(config, torch.device("cpu"))
    options: dict[str, Any] = {
        "classes": _CLASSES,
        "ground_metric": config.ground_metric,
        "mining": config.mining,
        "margin": knobs.margin,
        "solve": solver(config.transport, knobs.entropy, early_stop=False),
        "label_cost": knobs.label_cost,
        "negative_share": knobs.negative_share,
        "largest_class": _IMAGES,
        "own": {name: getattr(knobs, name) for name in ("margin", *OWN_KNOBS)},
    }
    return lambda anchors, clean: regularizer(config.regularizer, anchors, clean, **options).value


def _batch(seed: int) -> tuple[Embedded, Embedded]:
    """Return both sides of a random batch; of the anchors two are left out."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(2, _IMAGES, _WIDTH, generator=generator)
    labels = torch.randint(_CLASSES, (2, _IMAGES), generator=generator)
    keep = torch.ones(2, _IMAGES, dtype=torch.bool)
    keep[0, -2:] = False
    return Embedded(points[0], labels[0], keep[0]), Embedded(points[1], labels[1], keep[1])


def _fault(value: _Value) -> str:
    """Return which property does not hold, in words; an empty text if all do."""
    anchors, clean = _batch(0)
    unkept = anchors._replace(keep=torch.zeros(_IMAGES, dtype=torch.bool))
    cases = {
        "": (anchors, clean),
        " where anchors and clean images are the same": (clean, clean),
        " where all images have one class": tuple(
            each._replace(labels=torch.zeros_like(each.labels)) for each in (anchors, clean)
        ),
        " where no image is kept": (unkept, clean),
    }
    for where, (one, other) in cases.items():
        if fault := _fault_of_one(value, one, other):
            return f"{fault}{where}"
    anchors, clean = _batch(0)  # anew, since a wrong one may have changed it
    if fault := fault_of_calls(lambda: value(anchors, clean), [*anchors, *clean]):
        return fault
    first, nothing = value(anchors, clean), value(unkept, clean)
    order = torch.randperm(_IMAGES, generator=torch.Generator().manual_seed(1))
    shuffled = value(*(Embedded(*(field[order] for field in side)) for side in (anchors, clean)))  # type: ignore[index]
    moved = anchors._replace(points=torch.where(anchors.keep[:, None], anchors.points, 9.0))  # type: ignore[index]
    without = value(moved, clean)
    checks = {
        "depends on the order of the images": torch.allclose(first, shuffled, rtol=1e-3, atol=1e-5),
        "depends on images that are left out (keep)": torch.allclose(first, without, rtol=1e-3, atol=1e-5),
        f"is {nothing.item():g} where no image is kept, must be 0": nothing.abs().item() < 1e-6,
    }
    return next((fault for fault, holds in checks.items() if not holds), "")


def _fault_of_one(value: _Value, anchors: Embedded, clean: Embedded) -> str:
    """Return what is wrong with the value or the gradient of one batch."""
    points = [side.points.clone().requires_grad_() for side in (anchors, clean)]
    found = value(anchors._replace(points=points[0]), clean._replace(points=points[1]))
    if not isinstance(found, Tensor) or found.shape != ():
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        return f"returns {shape}, must return one number, a tensor of the shape ()"
    if not found.isfinite() or found < -1e-6:
        return f"is {found.item():g}, must be finite and at least 0"
    if not found.requires_grad:
        return "has no gradient"
    gradients = torch.autograd.grad(found, points, allow_unused=True)
    if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
        return "has a gradient that is not finite"
    return ""
