"""Audited numbers as quotients of sums over images, from the answers that are kept; so their images can be resampled.

Shapes: N images of a split, M perturbed images of its judging set, K classes, R models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sweep.state import JudgedImages
from trainer.answers import Answers, invariance_terms


class Terms(NamedTuple):
    """A share: the sum of `part` over the sum of `whole`, one term an image."""

    part: np.ndarray
    """(N,) or (M,) float64."""
    whole: np.ndarray
    """The same shape; 1 for a plain share of images."""

    @property
    def value(self) -> float:
        """The share, in [0, 1]; 0 of nothing."""
        total = self.whole.sum()
        return float(self.part.sum() / total) if total > 0 else 0.0

    @property
    def influence(self) -> np.ndarray:
        """Influence of each image: by how much it moves the share, times their number (delta method); its mean is 0."""
        return (self.part - self.value * self.whole) / max(self.whole.mean(), 1e-12)

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """Return the share (B,) under weights (B, N) of the images."""
        return (weights @ self.part) / np.maximum(weights @ self.whole, 1e-12)


def _plain(flags: np.ndarray) -> Terms:
    return Terms(flags.astype(float), np.ones(len(flags)))


def _invariance(answers: Answers, judged: JudgedImages) -> Terms:
    """Return the terms of the invariance accuracy by the evaluation's crowd."""
    crowd = next(iter(judged.shares.values())).astype(float)
    return Terms(*invariance_terms(answers.perturbed, judged.labels, crowd))


MEASURED: dict[str, Callable[[Answers, JudgedImages], Terms]] = {
    "sensitivity_accuracy": lambda answers, judged: _plain(answers.robust),
    "invariance_accuracy": _invariance,
    "clean_accuracy": lambda answers, judged: _plain(answers.right),
}
"""Report fields that can be compared with what was selected, since the answers behind each are kept."""

PERTURBED = ("invariance_accuracy",)
"""Those of them whose images are those of the judging set, and which a judge decides."""
