"""A judge's readings of images in each way of looking at them, mixed into the answers of a crowd.

Shapes: N images, K classes, R ways of looking at an image.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from trainer.crowds import THRESHOLDS, Crowd


class Readings(NamedTuple):
    """Probabilities that each way of looking at images gives."""

    values: Tensor
    """(R, N, K): first those at `THRESHOLDS`, if the judge has such members, then that of the ink's strength."""
    thresholds: bool
    """True if there are those at thresholds."""
    ink: bool
    """True if there is that of the ink's strength."""

    def of(self, chosen: Tensor) -> Self:
        """Return the readings of the `chosen` images (S,) int64 alone."""
        return self._replace(values=self.values[:, chosen])

    def shares(self, crowd: Crowd) -> Tensor:
        """Return the share (N, K) of a crowd who give each answer."""
        return self.mix(torch.tensor(crowd.numbers, dtype=torch.float64)).float()

    def mix(self, numbers: Tensor) -> Tensor:
        """Return the shares (N, K) that a crowd's `numbers` (4,) float64 give, in double precision."""
        threshold, concentration, strength, lapse = numbers
        if not (self.thresholds and self.ink):
            strength = torch.full_like(strength, float(self.ink))
        weights = []
        if self.thresholds:
            at = torch.tensor(THRESHOLDS, dtype=numbers.dtype)
            below, above = threshold * concentration - 1, (1 - threshold) * concentration - 1
            weights.append((1 - strength) * torch.softmax(below * at.log() + above * (1 - at).log(), 0))
        if self.ink:
            weights.append(strength[None])
        shares = torch.einsum("r,rnk->nk", torch.cat(weights), self.values.double())
        return (1 - lapse) * shares + lapse / self.values.shape[2]
