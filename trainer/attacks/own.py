"""A training attack of one's own, `sensitivity_attack: python:MODULE:FUNCTION`: called, and held to its budget.

Shape letters: B images of a batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.attacks.draws import Draws, uniform
from trainer.attacks.logits import Logits
from trainer.attacks.norms import Budget, norm_named, per_image
from trainer.errors import InputError
from trainer.plugins import call_plugin

_KNOB = "sensitivity_attack"
_SLACK = 1e-5
"""Distance beyond the ball that rounding may cause, in pixel units and as a share of the budget."""


def own_attack(
    name: str,
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    epsilon: Budget,
    steps: int,
    step_size: Budget,
    generator: Draws,
    knobs: Mapping[str, Tensor],
) -> Tensor:
    """Return the images as an attack of one's own perturbs them.

    Args:
        name: `python:MODULE:FUNCTION`.
        logits: the model, images (B, C, H, W) to logits (B, K).
        images: (B, C, H, W) in [0, 1].
        labels: (B,) classes from 0 to K - 1.
        norm: a name in `NORMS`.
        epsilon, step_size, knobs: () each, or (B,), which the attack is given as (B, 1, 1, 1).
        steps: number of gradient steps, at least 1.
        generator: draws the numbers that the attack asks for. If there are several, the images belong to several
            models, so that the attack must ask for the logits of all of them at once.

    Returns:
        Perturbed images (B, C, H, W) in [0, 1], inside the ball, without a graph.

    Raises:
        InputError: naming the attack, for whatever it raises, or returns that is no such images.
    """
    own = images.clone()
    unchanged = own._version

    def answer(given: Tensor) -> Tensor:
        if not isinstance(generator, torch.Generator) and len(given) != len(images):
            raise InputError(
                f"{_KNOB} = {name!r}: asks for the logits of {len(given)} images, must ask for those of all "
                f"{len(images)} at once, as it declares per_image"
            )
        return logits(given)

    with torch.enable_grad():
        found = call_plugin(
            _KNOB,
            name,
            answer,
            own,
            labels,
            epsilon=per_image(epsilon),
            steps=steps,
            step_size=per_image(step_size),
            norm=norm,
            random=lambda shape: uniform(shape, images, generator),
            knobs={knob: per_image(value) for knob, value in knobs.items()},
        )
    fault = "changes its images in place" if own._version != unchanged else _fault(found, images, norm, epsilon)
    if fault:
        raise InputError(f"{_KNOB} = {name!r}: {fault}")
    return found.detach()


def _fault(found: object, images: Tensor, norm: str, epsilon: Budget) -> str:
    """Return why something is no perturbation of the images, in words; an empty text if it is one."""
    if not isinstance(found, Tensor):
        return f"returns {type(found).__name__}, must return a tensor"
    ours, theirs = ((each.shape, each.dtype, each.device) for each in (images, found))
    if ours != theirs:
        (shape, dtype, device), (other, otype, where) = ours, theirs
        return f"returns {tuple(other)} of {otype} on {where}, must return {tuple(shape)} of {dtype} on {device}"
    found = found.detach()
    if not found.isfinite().all():
        return "returns numbers that are not finite"
    low, high = (float(bound) for bound in torch.aminmax(found))
    if low < 0 or high > 1:
        return f"returns numbers from {low:g} to {high:g}, must lie in [0, 1]"
    moved = norm_named(norm).size(found - images).flatten()
    allowed = torch.as_tensor(epsilon, dtype=moved.dtype, device=moved.device).expand_as(moved)
    beyond = moved - allowed
    worst = int(beyond.argmax())
    if beyond[worst] > _SLACK * (1 + allowed[worst]):
        return (
            f"moves an image by {moved[worst].item():g} ({norm}), must move it by at most {allowed[worst].item():g} "
            "(epsilon)"
        )
    return ""
