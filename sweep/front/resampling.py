"""Uncertainty of fronts: bootstrap and Student's intervals, probabilities of being on the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from search_spaces import Requirement
from sweep.front.draws import FrontDraws, draw_members, front_draws, hypervolume_draws
from sweep.front.judged_trials import JudgedTrials, source_weights
from sweep.front.objectives import Objectives
from trainer.intervals import Interval

_DRAWS = 1000


def resample_front(
    trials: JudgedTrials,
    objectives: Objectives,
    *,
    require: Sequence[Requirement] = (),
    seeds: int = 1,
    seed: int = 0,
    draws: int = _DRAWS,
) -> FrontDraws:
    """Return the fronts of n configurations, had other images been drawn for all of them and other seeds for each.

    Args:
        trials: T = n times `seeds` trials, those of a configuration in a row.
        require: configurations whose mean violates one of these in a draw are on no front of it.
        seeds: trials of a configuration.
        seed: of the draws: sweeps that were judged on the same images have the same images in each draw.
    """
    points, bounds = _draw_points(trials, objectives, require, seeds, seed, draws)
    return front_draws(points, objectives, excesses=bounds)


def _draw_points(
    trials: JudgedTrials, objectives: Objectives, require: Sequence[Requirement], seeds: int, seed: int, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the drawn points (B, n, d) of configurations, and by how much they violate c requirements (B, n, c)."""
    weights, members = _weights(trials.images, draws, seed), np.random.SeedSequence(seed).spawn(2)[1]
    d = len(objectives.names)
    measured = trials.measure([*objectives.names, *(each.name for each in require)], weights)
    measured[..., d:] = excesses(require, measured[..., d:])
    means = draw_members(measured.reshape(draws, -1, seeds, measured.shape[-1]), np.random.default_rng(members))
    return means[..., :d], means[..., d:]


@lru_cache(maxsize=1)
def _weights(images: int, draws: int, seed: int) -> np.ndarray:
    """Return the weights of the images, kept for the next of the sweeps that share them."""
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[0])
    weights = source_weights(images, draws=draws, generator=generator)
    weights.setflags(write=False)
    return weights


def excesses(require: Sequence[Requirement], numbers: np.ndarray) -> np.ndarray:
    """Return by how much numbers (..., c) violate c requirements, (..., c): `Requirement.excess` of each."""
    bounds, signs = np.array([each.bound for each in require]), np.where([each.at_least for each in require], 1, -1)
    return signs * (bounds - numbers) / np.where(bounds == 0, 1, np.abs(bounds))


def resampled_hypervolumes(
    sweeps: Sequence[JudgedTrials],
    objectives: Objectives,
    *,
    require: Sequence[Requirement] = (),
    seeds: int = 1,
    seed: int = 0,
    draws: int = _DRAWS,
    parts: Sequence[Objectives] = (),
) -> np.ndarray:
    """Return the hypervolumes (1 + P, S, B) of sweeps that were judged on the same images, under shared draws of these.

    Draws of seeds, where there are several, are each sweep's own.

    Args:
        parts: P further objectives, with other references: all are the first ones of `objectives`, equally many.
        require, seeds, seed, draws: those of `resample_front`.

    Raises:
        ValueError: if the sweeps were not judged on the same images.
    """
    for other in sweeps[1:]:
        if other.images != sweeps[0].images or not np.array_equal(other.source, sweeps[0].source):
            raise ValueError("sweeps that were judged on different images share no draws")
    volumes = []
    for each in sweeps:
        points, bounds = _draw_points(each, objectives, require, seeds, seed, draws)
        found = [hypervolume_draws(points, [objectives], excesses=bounds)]
        if parts:
            found.append(hypervolume_draws(points[..., : len(parts[0].names)], parts, excesses=bounds))
        volumes.append(np.concatenate(found))
    return np.stack(volumes, axis=1)


def reflected_interval(measured: float, drawn: np.ndarray, *, level: float = 0.95) -> Interval:
    """Return a bootstrap interval for the hypervolume of the trials' true values, not of the measured ones.

    A front is the best of noisy numbers, so its hypervolume is too large, and that of a resampled front is too large
    once more: the plain interval of the resampled values lies on the wrong side (in simulated sweeps it held the truth
    in 0 to 70%). Reflected at the measured value, as here, the interval takes the excess away, and may lie below that
    value altogether.

    Args:
        measured: the hypervolume as measured.
        drawn: (B,), in draws of what it was measured on: of `resample_front`.
    """
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(max(2 * measured - high, 0.0), max(2 * measured - low, 0.0))


def mean_intervals(samples: ArrayLike, *, level: float = 0.95) -> np.ndarray:
    """Return Student's intervals (n, d, 2), low and high, of n groups' means; `samples` (n, k, d), k at least 2."""
    from scipy.special import stdtrit

    samples = np.asarray(samples, dtype=float)
    k = samples.shape[1]
    half = stdtrit(k - 1, (1 + level) / 2) * samples.std(axis=1, ddof=1) / math.sqrt(k)
    means = samples.mean(axis=1)
    return np.stack([means - half, means + half], axis=-1)


def resample_seeds(
    samples: ArrayLike,
    objectives: Objectives,
    *,
    bounds: ArrayLike | None = None,
    seed: int,
    draws: int = _DRAWS,
) -> FrontDraws:
    """Return the fronts of n groups, had other seeds been drawn; the images stay as they are.

    It is for trials whose answers were not kept.

    Args:
        samples: objectives (n, k, d) of the groups' members.
        bounds: (n, k, c), by how much each member violates each of c constraints; a group whose mean violates one
            is on no front.
        seed: seed of the draws.
    """
    samples = np.asarray(samples, dtype=float)
    d = samples.shape[2]
    both = samples if bounds is None else np.concatenate([samples, np.asarray(bounds, dtype=float)], axis=2)
    means = draw_members(np.broadcast_to(both, (draws, *both.shape)), np.random.default_rng(seed))
    return front_draws(means[..., :d], objectives, excesses=means[..., d:])
