"""Confidence intervals of shares that were measured on n images. Needs no torch: the driver uses them too."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

from trainer.errors import InputError


class Interval(NamedTuple):
    """Bounds of a share."""

    low: float
    high: float


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a binomial share (Wilson 1927); (0, 1) if n is 0."""
    if not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n}: must be from 0 to {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Exactly 0 and 1 at the ends, which rounding would just miss.
    return Interval(0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half)
