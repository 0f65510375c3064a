"""Checks that images and logits can be attacked at all: range, shape, and logits rather than probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.errors import InputError, TrialFailed


def check_images(images: Tensor) -> None:
    """Check that images are (N, C, H, W), at least one, of a floating type and in [0, 1].

    Raises:
        InputError: if they are not.
    """
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise InputError(f"images: {tuple(images.shape)} of {images.dtype}; must be (N, C, H, W) of a floating type")
    low, high = (float(bound) for bound in torch.aminmax(images))
    if not (low >= 0 and high <= 1):
        raise InputError(f"images range from {low:g} to {high:g}: must lie in [0, 1] (normalise inside the model)")


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Check that logits (N, K) can be attacked and that labels (N,) fit them.

    Raises:
        InputError: for labels outside the classes, or probabilities instead of logits.
        TrialFailed: for logits that are not finite.
    """
    if not torch.isfinite(logits).all():
        raise TrialFailed("the model's logits on clean images are not finite")
    size, classes = logits.shape
    if labels.shape != (size,):
        raise InputError(f"labels: {tuple(labels.shape)}; must be one per image, ({size},)")
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise InputError(f"labels range from {low} to {high}: the model has classes 0 to {classes - 1}")
    if _looks_like_probabilities(logits):
        raise InputError(
            "the model returns probabilities (every row lies in [0, 1] and sums to 1): "
            "an attack needs logits, because gradients through a softmax that is applied twice vanish"
        )


def _looks_like_probabilities(logits: Tensor) -> bool:
    """Return whether every row of (N, K) lies in [0, 1] and sums to 1."""
    in_range = logits.min() >= 0 and logits.max() <= 1
    return bool(in_range) and bool(((logits.sum(1) - 1).abs() < 1e-3).all())
