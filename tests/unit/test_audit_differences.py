"""Differences between selection and audit: variances in closed form, coverage in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sweep.audit.differences import Change, Stages, changes
from sweep.audit.measures import MEASURED, Terms
from sweep.state.judged import JudgedImages
from trainer.answers import Answers


def terms(flags: np.ndarray) -> Terms:
    return Terms(flags.astype(float), np.ones(len(flags)))


def share(successes: int, count: int = 300) -> np.ndarray:
    return np.arange(count) < successes


def test_another_attack_has_the_variance_of_mcnemars_test() -> None:
    before, after = terms(share(120)), terms(share(114))
    [found] = changes([Stages([before], [after], [after], [after], [[after]])])
    step = found.steps[0]
    assert step.value == pytest.approx(-6 / 300)
    # b = 6 images lost and none won: (b - b^2 / n) / n^2, and 1 / n^2 for one more that might be.
    half = 1.959964 * math.sqrt((6 - 36 / 300 + 1) / 300**2)
    assert (step.low, step.high) == pytest.approx((step.value - half, step.value + half), rel=1e-5)


def test_another_split_has_the_variance_of_two_binomials() -> None:
    before, after = terms(share(120)), terms(share(100, 250))
    [found] = changes([Stages([before], [before], [after], [after], [[after]])])
    half = 1.959964 * math.sqrt(0.4 * 0.6 / 300 + 1 / 300**2 + 0.4 * 0.6 / 250 + 1 / 250**2)
    assert found.steps[1].high == pytest.approx(half, rel=1e-5)
    assert found.steps[0] == (0, 0, 0, 1)
    assert found.steps[2][:3] == found.steps[3][:3] == (0, 0, 0)


def test_seeds_are_pooled_over_finalists_by_student() -> None:
    # On so many images only the seeds vary.
    count, groups = 10**6, ([0.50, 0.52, 0.54], [0.30, 0.31, 0.29])
    every = [[terms(share(round(value * count), count)) for value in group] for group in groups]
    found = changes([Stages([each[0]], [each[0]], [each[0]], each, [each]) for each in every])
    pooled = (0.02**2 + 0.01**2) / 2
    half = stats.t.ppf(0.975, 4) * math.sqrt(pooled / 3)
    for change in found:
        assert change.audited.high - change.audited.value == pytest.approx(half, rel=0.02)


def test_the_spread_of_judges_is_in_the_interval() -> None:
    count = 10**6
    judges = [[terms(share(round(value * count), count))] for value in (0.20, 0.24, 0.22)]
    first = judges[0]
    [found] = changes([Stages(first, first, first, first, judges)])
    assert found.values == pytest.approx((0.2, 0.2, 0.2, 0.2, 0.22))
    half = stats.t.ppf(0.975, 2) * 0.02 / math.sqrt(3)
    assert found.audited.high - found.audited.value == pytest.approx(half, rel=0.02)
    assert found.steps[3].value == pytest.approx(0.02)


def simulated(generator: np.random.Generator, loss: float) -> Change:
    """Return the change of a finalist whose models have true accuracies around 0.5, less a loss on fresh seeds."""

    def model(images: int, accuracy: float) -> Terms:
        return terms(generator.random(images) < accuracy + generator.normal(0, 0.03))

    own = generator.normal(0.5, 0.03)
    on_validation = terms(generator.random(300) < own)
    fresh = [model(300, 0.5 - loss) for _ in range(3)]
    stages = Stages([on_validation], [on_validation], [terms(generator.random(300) < own)], fresh, [fresh])
    others = [[model(300, 0.4) for _ in range(3)] for _ in range(7)]
    return changes([stages, *(Stages(each[:1], each[:1], each[:1], each, [each]) for each in others)])[0]


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_intervals_cover_the_true_difference(loss: float) -> None:
    generator = np.random.default_rng(0)
    found = [simulated(generator, loss).total for _ in range(400)]
    covered = np.mean([each.low <= -loss <= each.high for each in found])
    # Here the selected model is one of the seeds' distribution: its own luck is not in the interval.
    assert 0.9 <= covered <= 0.99


def test_invariance_is_counted_as_reports_do() -> None:
    crowd = np.array([[0.2, 0.8, 0.0], [0.6, 0.0, 0.4], [1.0, 0.0, 0.0]], dtype=np.float32)
    judged = JudgedImages(np.arange(3), np.zeros(3, dtype=np.int64), {"strict": crowd})
    yes = np.ones(3, dtype=bool)
    answers = Answers(yes, yes, np.array([1, 0, 1], dtype=np.uint8), yes)
    measured = MEASURED["invariance_accuracy"](answers, judged)
    assert measured.value == pytest.approx(0.8 / 1.2)
    # The delta method's influences are the derivative of the share in an image's weight.
    weights = np.eye(3) * 1e-6 + 1
    slope = (measured.resampled(weights) - measured.value) / 1e-6
    np.testing.assert_allclose(measured.influence / 3, slope, atol=1e-5)
