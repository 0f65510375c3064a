"""Random changes of the training images, drawn and made on the device before an attack sees them.

Shape letters: B images of a batch (T stacked trials' one after the other), C channels, H rows, W columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.attacks import Draws, uniform
from trainer.config import TrialConfig
from trainer.training.batches import Batch

_PADDING = 4
"""Black pixels on each side from which a crop may take, the custom for images of 32 pixels a side."""


def augment(batch: Batch, config: TrialConfig, generator: Draws) -> Batch:
    """Return the batch after the trial's augmentation; an image and its invariance perturbation change alike.

    So row i of both still comes from one image, and no perturbation leaves its budget. Nothing is drawn for `none`.
    """
    if config.augmentation == "none":
        return batch
    draws = uniform((len(batch.images), 3), batch.images, generator)
    top, left = (draws[:, :2] * (2 * _PADDING + 1)).long().clamp(max=2 * _PADDING).T
    flip = draws[:, 2] < 0.5
    changed = batch._replace(images=_crop_and_flip(batch.images, top, left, flip))
    if batch.invariance is None:
        return changed
    images = _crop_and_flip(batch.invariance.images, top, left, flip)
    return changed._replace(invariance=batch.invariance._replace(images=images))


def _crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Return each image (B, C, H, W) cropped at its corner of the padded one, then flipped left to right.

    Args:
        top, left: (B,) int64, the corner, from 0 to twice the padding.
        flip: (B,) bool.
    """
    height, width = (torch.arange(side, device=images.device) for side in images.shape[2:])
    rows = top[:, None] + height
    columns = left[:, None] + torch.where(flip[:, None], width.flip(0), width)
    padded = F.pad(images, (_PADDING,) * 4)
    image, channel = (torch.arange(count, device=images.device) for count in images.shape[:2])
    return padded[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
