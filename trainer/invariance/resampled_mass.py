"""Intervals of the changed mass and the effective size of a judging set: how surely it measures.

The changed mass is the sum over the perturbed images of the share of the crowd who see a change, and the effective size
the number of equally weighted images that would measure as surely, (sum of shares)^2 / (sum of their squares).

Shapes: M perturbed images, S sources.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trainer.intervals import Interval
from trainer.invariance.perturbations import JudgingSet

_DRAWS = 1000
_BLOCK = 100
"""Bootstrap samples that are drawn at once."""


class _ChangedMass(NamedTuple):
    """The changed mass and the effective size, each with the 95% of a bootstrap over sources."""

    share: float
    """Changed mass per perturbed image, in [0, 1]."""
    share_interval: Interval
    effective_size: float
    effective_interval: Interval


def changed_mass(judging: JudgingSet, *, seed: int = 0) -> _ChangedMass:
    """Measure the changed mass of a judging set; whole sources are drawn with replacement."""
    changed = judging.changed.double().cpu().numpy()
    _, source = np.unique(judging.source_index.cpu().numpy(), return_inverse=True)
    ones = np.ones_like(changed)
    sums = np.stack([np.bincount(source, weights) for weights in (ones, changed, changed**2)], 1)  # (S, 3)
    generator, count = np.random.default_rng(seed), len(sums)
    equal = np.full(count, 1 / count)
    drawn = np.concatenate([generator.multinomial(count, equal, _BLOCK) @ sums for _ in range(_DRAWS // _BLOCK)])
    share, size = _numbers(sums.sum(0)[None])
    shares, sizes = _numbers(drawn)
    return _ChangedMass(share.item(), _interval(shares), size.item(), _interval(sizes))


def _numbers(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return changed shares (n,) and effective sizes (n,) from sums (n, 3) of ones, shares and squared shares."""
    images, changed, squares = sums.T
    return changed / images, changed**2 / np.maximum(squares, np.finfo(float).tiny)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return Interval(low, high)
