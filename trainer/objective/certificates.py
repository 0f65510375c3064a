"""Certified training and certificates: what the bounds of intervals and of CROWN are used for.

B images, N images of a set, (C, H, W) channels, height, width, K classes.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import InputError
from trainer.models import Classifier
from trainer.objective.bounds import worst_margins
from trainer.objective.crown import crown_margins

METHODS = ("interval", "crown")


def certified_cross_entropy(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    epsilon: Tensor | float,
    share: Tensor | float = 1.0,
    *,
    method: str = "ibp",
) -> Tensor:
    """Return the cross-entropy of the worst logits that the bounds allow in the ball, () (Gowal et al. 2018, eq. 9).

    Args:
        model: a classifier; batch normalisation in eval mode.
        images: (B, C, H, W) in [0, 1].
        labels: (B,).
        epsilon: () Linf budget in pixel units.
        share: () share of the ramp that is done, in [0, 1].
        method: `ibp` for intervals; `crown-ibp` for CROWN's last bound over intervals at the ramp's begin, which passes
            into intervals by its end (Zhang et al. 2020, arXiv 1906.06316, eq. 12, with beta = 1 - share).
    """
    margins = worst_margins(model, images, labels, epsilon)
    if method == "crown-ibp":
        crown = crown_margins(model, images, labels, epsilon, refined=False)
        margins = (1 - share) * crown + share * margins
    return F.cross_entropy(-margins, labels)


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
    return _least(bound(_in_double(model), images.double(), labels, epsilon), labels) > 0


@torch.no_grad()
def certified_images(
    model: Classifier, images: Tensor, labels: Tensor, epsilon: float, *, batch_size: int = 32
) -> Tensor:
    """Return which images (N,) are proven robust, by intervals and, where the encoder allows it, by CROWN.

    CROWN costs many times an interval. So it looks at what the intervals leave open, the widest margin first, and ends
    with the first batch in which it proves nothing: what is left then counts as not proven. Through convolutions its
    bounds before activations would take seconds an image, and the intervals' are taken (CROWN-IBP).

    Args:
        model: a classifier, left as it was found.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        epsilon: Linf budget in pixel units.
        batch_size: images per pass of CROWN.
    """
    model, images = _in_double(model), images.double()
    pairs = zip(images.split(256), labels.split(256), strict=True)
    least = torch.cat([_least(worst_margins(model, *pair, epsilon), pair[1]) for pair in pairs])
    proven = least > 0
    if isinstance(model.encoder, nn.Sequential):
        refined = not any(isinstance(layer, nn.Conv2d) for layer in model.encoder)
        order = least.argsort(descending=True, stable=True)
        for rows in order[~proven[order]].split(batch_size):
            margins = crown_margins(model, images[rows], labels[rows], epsilon, refined=refined)
            proven[rows] = _least(margins, labels[rows]) > 0
            if not proven[rows].any():
                break
    return proven


def _in_double(model: Classifier) -> Classifier:
    """Return a copy in double precision and eval mode."""
    return copy.deepcopy(model).double().eval()


def _least(margins: Tensor, labels: Tensor) -> Tensor:
    """Return the least margin over the wrong classes, (B,), of margins (B, K)."""
    return margins.scatter(1, labels[:, None], torch.inf).amin(1)
