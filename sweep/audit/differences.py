"""Differences of finalists between selection and audit, one change at a time, with intervals.

The steps: a stronger attack on the same model and images; the test split; models of fresh seeds; other judges. Their
sum is the whole difference. Where a step keeps the images, its variance is that of the images' differences (as in
McNemar's test); other images are independent samples; seeds and judges vary as Student's t says.

Shapes: n finalists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sweep.audit.measures import Terms

STEPS = ("stronger attack", "test split", "fresh seeds", "other judges")
"""Names of the changes from each stage to the next."""


class Stages(NamedTuple):
    """One number of one finalist at every stage: the terms of each model, mean over models."""

    selected: list[Terms]
    """Terms by trial of the configuration, on validation images, under the attacks that it was selected by."""
    attacked: list[Terms]
    """The same terms under the full set of attacks."""
    on_test: list[Terms]
    """The same terms on test images."""
    fresh: list[Terms]
    """Terms by fresh seed."""
    judged: list[list[Terms]]
    """Terms by judge and fresh seed, the first judge's the same as `fresh`."""

    @property
    def values(self) -> tuple[float, ...]:
        """The number at each of the five stages."""
        return (*map(_mean, self[:4]), float(np.mean([_mean(each) for each in self.judged])))

    @property
    def by_seed(self) -> np.ndarray:
        """The audited number (S,) of every fresh seed, mean over judges."""
        return np.array([[terms.value for terms in each] for each in self.judged]).mean(0)

    @property
    def by_judge(self) -> np.ndarray:
        """The audited number (J,) by every judge, mean over fresh seeds."""
        return np.array([[terms.value for terms in each] for each in self.judged]).mean(1)


class Difference(NamedTuple):
    """A difference of shares, above 0 for a gain, with its 95% interval."""

    value: float
    low: float
    high: float
    p_value: float
    """Two-sided p-value of no difference."""


class _Variance(NamedTuple):
    """A part of a squared standard error."""

    value: float
    freedom: float = math.inf
    """Degrees of freedom by which it was estimated."""


class Change(NamedTuple):
    """Differences of one number of one finalist."""

    values: tuple[float, ...]
    """The number at each stage."""
    steps: tuple[Difference, ...]
    """Differences from each stage to the next, in the order of `STEPS`."""
    total: Difference
    """Difference from the first stage to the last."""
    audited: Difference
    """The last, with its interval; its p value means nothing."""


def changes(finalists: Sequence[Stages]) -> list[Change]:
    """Return the differences of one number of every finalist.

    The spread over seeds is pooled over the finalists, which have few seeds each; with one seed it is left out, and so
    is that over judges with one judge.
    """
    spread = _pooled([stages.by_seed for stages in finalists])
    return [_change(stages, spread) for stages in finalists]


def _change(stages: Stages, spread: _Variance) -> Change:
    selected, attacked, on_test, fresh = (_influence(each) for each in stages[:4])
    judged = np.mean([_influence(each) for each in stages.judged], axis=0)
    seeds = _Variance(spread.value / len(stages.fresh), spread.freedom)
    judges = _spread_of_mean(stages.by_judge)
    count = len(stages.judged)
    first_judge = _Variance(judges.value * (count - 1), judges.freedom)
    values = stages.values
    steps = (
        _difference(values[1] - values[0], [_of_pairs(attacked, selected, values[1] - values[0])]),
        _difference(values[2] - values[1], [_of_images(attacked), _of_images(on_test)]),
        _difference(values[3] - values[2], [_of_pairs(fresh, on_test, values[3] - values[2]), seeds]),
        _difference(values[4] - values[3], [_of_pairs(judged, fresh, values[4] - values[3]), first_judge]),
    )
    audited = [_of_images(judged), seeds, judges]
    total = _difference(values[4] - values[0], [_of_images(selected), *audited])
    return Change(values, steps, total, _difference(values[4], audited))


def _mean(models: Sequence[Terms]) -> float:
    return float(np.mean([terms.value for terms in models]))


def _influence(models: Sequence[Terms]) -> np.ndarray:
    """Return the influence of each image on the mean over models."""
    return np.mean([terms.influence for terms in models], axis=0)


def _of_images(influence: np.ndarray) -> _Variance:
    """Return the variance of a mean of influences, at least what one image more might add: 0 of 300 is not surely 0."""
    count = len(influence)
    return _Variance(float(influence.var() / count + 1 / count**2))


def _of_pairs(after: np.ndarray, before: np.ndarray, value: float) -> _Variance:
    """Return the variance of a difference on the same images; 0 where nothing has changed at all."""
    if value == 0 and np.array_equal(after, before):
        return _Variance(0.0)
    return _of_images(after - before)


def _pooled(groups: Sequence[np.ndarray]) -> _Variance:
    """Return the variance within groups of values, and its degrees of freedom; 0 where no group has two."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(((group - group.mean()) ** 2).sum() for group in groups)
    return _Variance(float(squares / freedom), freedom) if freedom else _Variance(0.0)


def _spread_of_mean(values: np.ndarray) -> _Variance:
    """Return the variance of the mean of independent values; 0 of one."""
    one = _pooled([values])
    return _Variance(one.value / len(values), one.freedom)


def _difference(value: float, variances: Sequence[_Variance]) -> Difference:
    """Return a value with Student's interval; its degrees of freedom by Welch and Satterthwaite."""
    from scipy.special import stdtr, stdtrit

    known = [each for each in variances if each.value > 0]
    variance = sum(each.value for each in known)
    if not variance:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    slack = sum(each.value**2 / each.freedom for each in known)
    freedom = variance**2 / slack if slack else 1e9  # scipy has no infinitely many
    error = math.sqrt(variance)
    half = float(stdtrit(freedom, 0.975)) * error
    return Difference(value, value - half, value + half, 2 * float(stdtr(freedom, -abs(value) / error)))
