"""Trials that were judged on the same images, and their numbers had other images been drawn.

What a sweep measures depends on the images that it happened to draw, and all trials meet the same ones: an image that
is hard for one is mostly hard for the others. So images are drawn anew for all trials at once, each with all that was
made from it (the unit is the source, not the perturbed image), and what two trials have in common cancels out.

Shape letters: T trials, N images of the split, M perturbed images, K classes, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trainer.answers import invariance_terms

_DIGITS = 12
"""Decimals that are kept: trials with equal answers tie exactly, whatever the order of sums."""


def source_weights(images: int, *, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Return how often each of N images is drawn, (B, N): N of them with replacement in each draw."""
    return generator.multinomial(images, np.full(images, 1 / images), size=draws).astype(float)


@dataclass(frozen=True, eq=False)
class JudgedTrials:
    """The answers of T trials to the images that judge them all."""

    right: np.ndarray
    """(T, N) bool: right on the unperturbed image."""
    robust: np.ndarray
    """(T, N) bool: right under every sensitivity attack too."""
    perturbed: np.ndarray
    """(T, M) integers: the class answered on each perturbed image."""
    right_sources: np.ndarray
    """(T, M) bool: right on the unperturbed source of each."""
    source: np.ndarray
    """(M,) integers: position among the N images of the one that each was made from."""
    labels: np.ndarray
    """(M,) integers: class of that image."""
    shares: Mapping[str, np.ndarray]
    """Crowds by name, first that of the evaluation, each with the share (M, K) of it who give each answer."""
    others: Mapping[str, np.ndarray]
    """Further numbers (T,) by name, which answers do not tell: the same in every draw."""

    @property
    def images(self) -> int:
        """N."""
        return self.right.shape[1]

    def measure(self, names: Sequence[str], weights: np.ndarray) -> np.ndarray:
        """Return the named numbers (B, T, len(names)) of all trials in every draw.

        Args:
            names: fields of an epoch report, or `<crowd>/<field>`.
            weights: (B, N), how often each image is drawn; ones give the reported numbers.

        Raises:
            KeyError: for a number that neither answers nor `others` tell.
        """
        measured = np.empty((len(weights), len(self.right), len(names)))
        for column, name in enumerate(names):
            parts = self._parts(name)
            if parts is None:
                measured[:, :, column] = self.others[name]
                continue
            part, whole = parts
            drawn = weights if name in _OF_IMAGES else weights[:, self.source]
            measured[:, :, column] = _ratio(drawn @ part.T, drawn @ whole.T)
        return measured.round(_DIGITS)

    def _parts(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what a number sums over images, and what it divides by: (T, ...) and (T, ...) or (1, ...).

        None if answers do not tell it.
        """
        if name in _OF_IMAGES:
            return getattr(self, _OF_IMAGES[name]).astype(float), np.ones((1, self.images))
        crowd, _, field = name.rpartition("/")
        if field == "invariance_original_label" and not crowd:
            return self._kept.astype(float), np.ones((1, len(self.source)))
        shares = self.shares.get(crowd or next(iter(self.shares)))
        if shares is None or field not in ("invariance_accuracy", "invariance_stuck", "invariance_unchanged"):
            return None
        agreeing, changed = invariance_terms(self.perturbed, self.labels, shares.astype(float))
        if field == "invariance_accuracy":
            return agreeing, changed[None]
        unchanged = shares[np.arange(len(shares)), self.labels].astype(float)[None]
        if field == "invariance_unchanged":
            return self._kept * unchanged, unchanged
        return (self._kept & self.right_sources) * changed, self.right_sources * changed

    @cached_property
    def _kept(self) -> np.ndarray:
        """Images (T, M) bool to which a trial still gives the source's label."""
        return self.perturbed == self.labels


_OF_IMAGES = {"clean_accuracy": "right", "sensitivity_accuracy": "robust"}
"""Numbers that are shares of the N images, and the answers that they count."""


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the quotient (B, T); 0 where nothing that counts was drawn."""
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
