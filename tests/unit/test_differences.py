"""Differences between sides: against scipy's tests, by what must hold of any two sides, and by simulation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from sweep.front.differences import detectable, difference, holm, seeds_needed
from tests.benchmarks.false_positives import NULL, PLANTED, Case, claims

number = st.floats(0, 1, allow_subnormal=False)
sides = st.integers(1, 5).flatmap(
    lambda k: st.tuples(st.lists(number, min_size=k, max_size=k), st.lists(number, min_size=k, max_size=k))
)


def draws_around(side: np.ndarray, generator: np.random.Generator, common: np.ndarray, *, own: float) -> np.ndarray:
    """Draws (k, B) of a side's numbers (k,): each moves by what is common (B,) and by what is its own."""
    return side[:, None] + common + own * generator.standard_normal((len(side), len(common)))


@pytest.mark.parametrize("paired", [True, False])
def test_without_draws_it_is_student_s_test(paired: bool) -> None:
    generator = np.random.default_rng(0)
    for a, b in ([generator.normal(size=5), 3 * generator.normal(size=5)], [np.arange(2.0), np.array([3.0, 5.5])]):
        known: Any = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
        found = difference(a, b, paired=paired, level=0.9)
        assert (found.p_value, found.degrees) == pytest.approx((known.pvalue, known.df))
        assert found.interval == pytest.approx(tuple(known.confidence_interval(0.9)))
        assert found.covers == "sweeps"


@hypothesis.given(sides, st.booleans(), st.booleans(), st.integers(0, 99))
def test_sides_swapped_the_sign_swaps_and_interval_and_p_agree(
    both: tuple[list[float], list[float]], paired: bool, drawn: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    a, b = map(np.array, both)
    common = 0.1 * generator.standard_normal(20)
    resampled = [draws_around(side, generator, share * common, own=0.05) for side, share in ((a, 1), (b, 0.2))]
    known = resampled if drawn else [None, None]
    there = difference(a, b, resampled_a=known[0], resampled_b=known[1], paired=paired)
    back = difference(b, a, resampled_a=known[1], resampled_b=known[0], paired=paired)
    assert (back.estimate, back.p_value, back.claim) == (-there.estimate, there.p_value, there.claim)
    assert (there.interval is None) == (there.covers == "")
    if there.interval is not None:
        assert back.interval == (-there.interval.high, -there.interval.low)
    if there.p_value is not None and there.interval is not None:
        assert there.claim == (not there.interval.low <= 0 <= there.interval.high) == (there.p_value < 0.05)


@hypothesis.given(st.lists(number, min_size=1, max_size=5), st.booleans())
def test_identical_sides_are_not_different(side: list[float], paired: bool) -> None:
    draws = draws_around(np.array(side), np.random.default_rng(0), np.linspace(0, 1, 9), own=0.1)
    found = difference(side, side, resampled_a=draws, resampled_b=draws, paired=paired)
    assert (found.estimate, found.claim) == (0, False)


def test_what_is_not_known_is_not_claimed() -> None:
    alone = difference([1.0], [0.0], paired=True)
    assert (alone.interval, alone.p_value, alone.claim) == (None, None, False)
    assert alone.needed == "at least two, better five, sweeps a side on different seeds"
    draws = np.random.default_rng(0).normal(1.0, 0.01, (1, 1000))
    sources = difference([1.0], [0.0, 0.1], resampled_a=draws, resampled_b=np.zeros((2, 1000)), paired=False)
    assert (sources.covers, sources.p_value, sources.claim) == ("sources", None, False)
    assert sources.interval == pytest.approx((0.95 - 0.0196, 0.95 + 0.0196), abs=0.002)
    same = difference([1.0, 1.0], [0.5, 0.5], paired=True)
    assert (same.claim, same.needed) == (False, "sweeps a side that differ from one another")


@pytest.mark.parametrize("paired", [True, False])
def test_what_sweeps_share_is_counted_once_and_what_is_theirs_not_again(paired: bool) -> None:
    """Check the part that is shared against its closed form, whatever each sweep has of its own."""
    generator, count = np.random.default_rng(1), 20_000
    a, b = np.array([0.3, 0.5, 0.4]), np.array([0.2, 0.3, 0.4, 0.1])[: 3 if paired else 4]
    for own in (0.0, 0.2):
        common = generator.standard_normal((2, count)) * [[0.1], [0.05]]
        resampled = [draws_around(side, generator, each, own=own) for side, each in zip((a, b), common, strict=True)]
        found = difference(a, b, resampled_a=resampled[0], resampled_b=resampled[1], paired=paired)
        assert found.shared == pytest.approx(math.hypot(0.1, 0.05), rel=0.05)
        same = [draws_around(side, generator, common[0], own=own) for side in (a, b)]
        found = difference(a, b, resampled_a=same[0], resampled_b=same[1], paired=paired)
        assert found.shared == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("k_a", "k_b", "paired"), [(3, 3, True), (5, 5, True), (2, 3, False), (5, 5, False)], ids=str)
@pytest.mark.parametrize("shared", [0.0, 0.5, 2.0])
def test_equal_sides_are_called_different_about_as_often_as_said(
    k_a: int, k_b: int, paired: bool, shared: float
) -> None:
    generator, common, claims = np.random.default_rng(0), np.random.default_rng(1).standard_normal(400), 0
    for _ in range(600):
        a, b = generator.standard_normal(k_a) + shared * generator.standard_normal(), generator.standard_normal(k_b)
        resampled = a[:, None] + shared * common, np.repeat(b[:, None], len(common), axis=1)
        claims += difference(a, b, resampled_a=resampled[0], resampled_b=resampled[1], paired=paired).claim
    # Binomial bounds of 2% and 7%, three standard deviations wide.
    assert 0.005 * 600 <= claims <= 0.085 * 600


@pytest.mark.parametrize("case", [NULL[0], NULL[3], NULL[6]], ids=str)
def test_equal_sweeps_are_called_different_about_as_often_as_said(case: Case) -> None:
    """Simulate sweeps down to answers, as the benchmark does on more: at most 7%, three standard deviations wide."""
    count, found = claims(case, 60)
    assert count <= (11 if min(case.sweeps) > 1 else 0)
    # Equal sides differ by nothing but luck, to either side.
    assert {each.estimate > 0 for each in found} == {True, False}


def test_sweeps_of_a_better_population_are_called_better() -> None:
    count, found = claims(PLANTED, 30)
    assert count >= 15
    assert all(each.estimate > 0 for each in found if each.claim)


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """Marcus, Peritz and Gabriel 1976: reject where every intersection is rejected."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    generator = np.random.default_rng(0)
    for m in (1, 2, 3, 5):
        p_values = generator.uniform(0, 0.4, m).round(2)
        subsets = [s for size in range(1, m + 1) for s in itertools.combinations(range(m), size)]
        closed = [max(min(1, len(s) * min(p_values[list(s)])) for s in subsets if i in s) for i in range(m)]
        assert holm(p_values) == pytest.approx(closed)
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm([0.1, 1.1])


@pytest.mark.parametrize("k", [2, 3, 5, 10])
def test_a_detectable_difference_is_shown_four_times_in_five(k: int) -> None:
    generator = np.random.default_rng(k)
    true = detectable(0.3, k)
    samples = generator.normal(true, 0.3, (20_000, k))
    tested: Any = stats.ttest_1samp(samples, 0.0, axis=1)
    assert (tested.pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert seeds_needed(0.3, true * 1.001) == k


def test_what_all_share_limits_what_any_number_of_seeds_shows() -> None:
    assert detectable(1.0, 4, shared=0.5) == pytest.approx(detectable(1.0, 4) * math.sqrt(2))
    assert [seeds_needed(1.0, 0.5, shared=shared) for shared in (0.0, 0.1, 0.2)] == [34, 49, None]
    with pytest.raises(ValueError, match="above 0"):
        seeds_needed(1.0, 0.0)
    with pytest.raises(ValueError, match="at least 2"):
        detectable(1.0, 1)


@pytest.mark.parametrize(
    ("a", "b", "more", "said"),
    [
        ([1.0, 2.0], [1.0], {"paired": True}, "as many on both where paired"),
        ([], [], {"paired": True}, "must be"),
        ([1.0], [1.0], {"paired": True, "resampled_a": [[1.0, 2.0]]}, "draws of one side alone"),
        ([1.0], [1.0], {"paired": True, "resampled_a": [[1, 2]], "resampled_b": [[1, 2, 3]]}, "B at least 2"),
        ([math.nan], [1.0], {"paired": True}, "finite"),
    ],
    ids=["pairs", "empty", "one side", "draws", "nan"],
)
def test_what_does_not_fit_is_refused(a: list, b: list, more: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        difference(a, b, **more)
