"""Schedules: what depends on how much of the training is done, the learning rate and the bounds that are computed."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

from trainer.config import TrialConfig

_RISE, _FIRST, _LAST = 0.3, 1 / 25, 1 / 250_000
"""One cycle: the share of training in which the rate rises, and where it begins and ends, in largest rates; the
defaults of `torch.optim.lr_scheduler.OneCycleLR`."""


def share_done(epoch: int, step: int, *, steps: int, epochs: int) -> float:
    """Return the share of the training that is done when a step begins, in [0, 1).

    Args:
        epoch: from 1.
        step: from 0, in the epoch.
        steps: of each epoch.
        epochs: of the whole training.
    """
    return (epoch - 1 + step / steps) / epochs


def learning_rate(config: TrialConfig, share: float) -> float:
    """Return the learning rate of a step that begins when this share of the training is done."""
    return config.learning_rate * _SCHEDULES[config.learning_rate_schedule](share)


def set_learning_rate(optimizer: Optimizer, rate: float | Tensor) -> None:
    """Let the next steps of an optimiser have this rate, a number or ()."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def config_of_epoch(config: TrialConfig, epoch: int) -> TrialConfig:
    """Return the configuration of an epoch, from 1: after the ramp CROWN counts for nothing, and is left out."""
    if (
        config.certified_method == "crown-ibp"
        and share_done(epoch, 0, steps=1, epochs=config.epochs) >= config.certified_ramp
    ):
        return config.replace(certified_method="ibp")
    return config


def _one_cycle(share: float) -> float:
    """Go up and down once along half waves of a cosine (Smith and Topin 2018)."""
    begin, end, part = (_FIRST, 1, share / _RISE) if share < _RISE else (1, _LAST, (share - _RISE) / (1 - _RISE))
    return end + (begin - end) * (1 + math.cos(math.pi * part)) / 2


def _piecewise(share: float) -> float:
    """Divide by 10 after half of training and again after three quarters (Rice et al. 2020)."""
    return 1 if share < 0.5 else 0.1 if share < 0.75 else 0.01


_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1,
    "one_cycle": _one_cycle,
    "piecewise": _piecewise,
}
"""Schedules by name, each from the share of training done to the share of the largest rate."""
