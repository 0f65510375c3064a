"""A forecast of how a trial changes from a rung to its end, by its numbers there and its configuration.

It is kernel ridge regression (a Gaussian process's mean) on the finished trials' changes, with a constant. How far off
it may be is not assumed: it is what it would have erred on each finished trial, had that one been left out (Rasmussen
and Williams 2006, equation 5.12). Lengths and noise are those with the smallest such errors. Unless these are clearly
smaller than the errors of the mean change, that is the forecast; forecast and errors then are the changes themselves.

It is a function of the finished trials in their order, without chance, so that a sweep that is resumed has the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

_FEWEST = 8
"""Finished trials before which nothing is learned from numbers and configurations."""

_LENGTHS = (0.5, 1.0, 2.0, 4.0, np.inf)
"""Lengths that are tried for numbers and for configurations, in units of the root of the trials' median squared
distance; infinite leaves them out."""

_NOISES = (0.1, 0.3, 1.0)
"""Variances that are tried of what can't be forecast, in units of the variance of what can."""

_CONSTANT = 100.0
"""Variance of the constant, in the same units: so large that the mean change costs nothing."""

_CLEARLY = 0.9
"""Share of the mean change's squared errors that the chosen errors may be at most."""


class ChangeModel:
    """The forecast from the trials that have finished.

    Args:
        numbers: what each of them brought to the rung (m, d), finite.
        groups: keys of their configurations, as `group_key` makes them.
        changes: what was added until their ends (m, d); with m = 0 no change is forecast.
    """

    def __init__(self, numbers: np.ndarray, groups: Sequence[str], changes: np.ndarray) -> None:
        self._mean = changes.mean(axis=0) if len(changes) else np.zeros(changes.shape[1])
        self.errors = changes - self._mean if len(changes) else np.zeros((1, changes.shape[1]))
        """Errors (m, d) that a forecast may have, each as likely as the others; at least one."""
        self._weights: np.ndarray | None = None
        """Weights (m, d) of the finished trials in a forecast; None where it is the mean change."""
        if len(changes) >= _FEWEST:
            self._numbers, self._scale = numbers, _spread(numbers)
            self._encoder = _Encoder(groups)
            self._places = self._encoder(groups)
            self._learn()

    def __call__(self, numbers: np.ndarray, groups: Sequence[str]) -> np.ndarray:
        """Return the changes (n, d) that are forecast for trials that brought numbers (n, d) to the rung."""
        if self._weights is None:
            return np.broadcast_to(self._mean, numbers.shape)
        apart = self._apart(numbers, self._encoder(groups))
        covariances = self._kernel(apart, self._lengths)
        # Not a product of matrices, whose last digits would depend on how many trials are looked at together.
        return self._mean + (covariances[:, :, None] * self._weights).sum(axis=1)

    def _learn(self) -> None:
        """Choose the lengths and the noise with the smallest errors."""
        apart = self._apart(self._numbers, self._places)
        self._medians = [float(np.median(each[each > 0])) if (each > 0).any() else 1.0 for each in apart]
        spread, m = _spread(self.errors), len(self.errors)
        targets = self.errors / spread
        # Had it been left out, a trial would have been m / (m - 1) times as far from the mean.
        best = _CLEARLY * float(((targets * m / (m - 1)) ** 2).sum())
        for lengths in itertools.product(_LENGTHS, repeat=2):
            values, vectors = np.linalg.eigh(self._kernel(apart, lengths))
            turned = vectors.T @ targets
            for noise in _NOISES:
                inverse = 1 / (np.maximum(values, 0) + noise)
                weights = vectors @ (inverse[:, None] * turned)
                left_out = weights / (vectors**2 @ inverse)[:, None]
                if (error := float((left_out**2).sum())) < best:
                    best, self._lengths = error, lengths
                    self._weights, self.errors = weights * spread, left_out * spread

    def _apart(self, numbers: np.ndarray, places: np.ndarray) -> list[np.ndarray]:
        """Return squared distances (n, m) to the finished trials, by numbers (n, d) and by places (n, k)."""
        pairs = (numbers / self._scale, self._numbers / self._scale), (places, self._places)
        return [((one[:, None] - other) ** 2).sum(axis=2) for one, other in pairs]

    def _kernel(self, apart: list[np.ndarray], lengths: tuple[float, ...]) -> np.ndarray:
        """Return covariances (n, m), of which near trials have more."""
        shares = (
            each / (median * length**2) for each, median, length in zip(apart, self._medians, lengths, strict=True)
        )
        return np.exp(-sum(shares) / 2) + _CONSTANT


class _Encoder:
    """Configurations as places in a cube, by what the finished trials' configurations were.

    A number stands at the share of finished trials below it, so that no unit and no logarithm matters. Of a word, two
    different ones are as far apart as the ends of that range.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        self._ranges: dict[str, np.ndarray] = {}
        self._words: dict[str, list[str]] = {}
        configs = [_config_of(group) for group in groups]
        for name in configs[0]:
            values = [config.get(name) for config in configs]
            words = sorted(set(map(repr, values)))
            if len(words) == 1:
                continue
            if all(isinstance(value, int | float) for value in values):
                self._ranges[name] = np.sort(np.array(values, dtype=float))
            else:
                self._words[name] = words

    def __call__(self, groups: Sequence[str]) -> np.ndarray:
        """Return places (n, k) of configurations."""
        configs = [_config_of(group) for group in groups]
        columns = [np.zeros(len(configs))]
        for name, known in self._ranges.items():
            values = np.array([config[name] for config in configs], dtype=float)
            below = np.searchsorted(known, values, "left") + np.searchsorted(known, values, "right")
            columns.append(below / (2 * len(known)))
        for name, words in self._words.items():
            values = [repr(config.get(name)) for config in configs]
            columns += [np.array([value == word for value in values]) / np.sqrt(2) for word in words]
        return np.column_stack(columns)


@lru_cache(maxsize=10_000)
def _config_of(group: str) -> dict[str, Any]:
    return json.loads(group)


def _spread(columns: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each column, 1 where all rows are equal."""
    found = columns.std(axis=0)
    return np.where(found > 0, found, 1.0)
