"""Optuna's multi-objective samplers, as a sweep makes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from search_spaces import Space

_GENERATIONS = 5
"""Generations of a sweep under NSGA-II and III, within the two bounds that follow."""
_SMALLEST_POPULATION, _LARGEST_POPULATION = 8, 50


class _Kind(NamedTuple):
    """A sampler's constructor, and the trials that it is shown."""

    make: Callable[[int, Space, int], BaseSampler]
    """Constructor from a seed, the space, and the number of configurations in the sweep."""

    newest: int = 500
    """Number of ended trials that it is shown: the front, up to half of them, and the newest others. So a draw costs no
    more after 10,000 trials than after this many."""

    whole_only: bool = False
    """Whether it is shown only trials that have every knob without a condition. These samplers learn of knobs that all
    trials have, and a given point may lie outside of the space."""

    reseeded: bool = True
    """Whether it is seeded anew for every draw; a sequence has the sweep's seed throughout."""


class _QuasiRandom(optuna.samplers.QMCSampler):
    """A scrambled Sobol sequence over all knobs. Knobs whose condition does not hold are passed over; Optuna's own
    sampler would take the knobs of the first finished trial, and draw the others at random."""

    def __init__(self, seed: int, space: Space) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self.knobs = {name: swept.domain.distribution() for name, swept in space.swept.items()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.knobs


def population(configurations: int) -> int:
    """Return the size of a generation. The first one is drawn at random, so a short sweep has small ones."""
    return min(max(configurations // _GENERATIONS, _SMALLEST_POPULATION), _LARGEST_POPULATION)


SAMPLERS: dict[str, _Kind] = {
    # Multivariate in groups, since spaces have conditions, and the knobs of one regulariser act together.
    "tpe": _Kind(
        lambda seed, space, configurations: optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True
        )
    ),
    "nsga2": _Kind(
        lambda seed, space, configurations: optuna.samplers.NSGAIISampler(
            seed=seed, population_size=population(configurations)
        ),
        whole_only=True,
    ),
    "nsga3": _Kind(
        lambda seed, space, configurations: optuna.samplers.NSGAIIISampler(
            seed=seed, population_size=population(configurations)
        ),
        whole_only=True,
    ),
    "gp": _Kind(
        lambda seed, space, configurations: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False),
        newest=100,
        whole_only=True,
    ),
    "random": _Kind(lambda seed, space, configurations: optuna.samplers.RandomSampler(seed=seed)),
    "qmc": _Kind(lambda seed, space, configurations: _QuasiRandom(seed, space), reseeded=False),
}


def make_sampler(name: str, seed: int, space: Space, configurations: int) -> BaseSampler:
    """Return the sampler of a name of `SAMPLERS`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name].make(seed, space, configurations)


def mix(*numbers: int) -> int:
    """Return one 32-bit seed made from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
