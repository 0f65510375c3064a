"""The front against closed forms, moocore and the definitions written out."""

from __future__ import annotations

import math
from typing import Any

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sweep.front.incremental import Front, Layers
from sweep.front.objectives import Objectives
from sweep.front.pareto import contributions, epsilon_indicator, front_mask, hypervolume, knee, ranks
from sweep.front.resampling import reflected_interval
from trainer.intervals import Interval


def objectives(dimensions: int, *, reference: float = 0.0, maximise: bool = True) -> Objectives:
    names = tuple(f"objective {i}" for i in range(dimensions))
    return Objectives(names, (maximise,) * dimensions, (reference,) * dimensions)


GAINS = objectives(2)
LOSSES = objectives(2, reference=1.1, maximise=False)

# Coarse values make ties, duplicates and points on the reference common.
coarse = st.integers(0, 6).map(lambda value: value / 4)
fine = st.integers(0, 1500).map(lambda value: value / 1000)


def clouds(*, low: int = 0, high: int = 25, dimensions: tuple[int, int] = (1, 4)):
    shapes = st.tuples(st.integers(low, high), st.integers(*dimensions))
    return shapes.flatmap(lambda shape: arrays(float, shape, elements=coarse | fine))


planes = clouds(dimensions=(2, 2))


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a >= b).all() and (a > b).any())


def definition_of_front(points: np.ndarray) -> list[bool]:
    return [not any(dominates(other, point) for other in points) for point in points]


def cloud(n: int, *, seed: int, dimensions: int = 2) -> np.ndarray:
    """Points near the positive part of a sphere."""
    generator = np.random.default_rng(seed)
    directions = np.abs(generator.standard_normal((n, dimensions)))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True) * generator.uniform(0.8, 1, (n, 1))


class TestObjectives:
    def test_turning_twice_changes_nothing_and_makes_more_better(self):
        mixed = Objectives(("accuracy", "cost"), (True, False), (0.0, 9.0))
        points = np.array([[0.5, 3.0], [0.0, 2.0]])
        np.testing.assert_array_equal(mixed.turn(points), [[0.5, -3.0], [0.0, -2.0]])
        np.testing.assert_array_equal(mixed.turn(mixed.turn(points)), points)
        np.testing.assert_array_equal(mixed.turned_reference, [0.0, -9.0])

    @pytest.mark.parametrize(
        ("points", "message"),
        [
            ([[0.1, math.nan]], "nan.*must be finite"),
            ([[0.1, 0.2], [math.inf, 0.2]], "inf.*must be finite"),
            ([0.1, 0.2], r"shape \(2,\): must be \(n, 2\)"),
            ([[0.1, 0.2, 0.3]], r"shape \(1, 3\)"),
        ],
        ids=["nan", "infinity", "flat", "wide"],
    )
    def test_what_has_no_place_on_a_front_is_refused(self, points, message):
        for function in (front_mask, ranks, hypervolume, contributions, knee):
            with pytest.raises(ValueError, match=message):
                function(points, GAINS)

    def test_a_front_refuses_nan(self):
        with pytest.raises(ValueError, match="must be finite"):
            Front(GAINS).add([0.1, math.nan])

    def test_each_objective_needs_all_three(self):
        with pytest.raises(ValueError, match="needs a name, a direction and a reference"):
            Objectives(("a", "b"), (True,), (0.0, 0.0))


class TestFrontAndRanks:
    @given(points=clouds())
    def test_front_is_what_nothing_dominates(self, points):
        assert front_mask(points, objectives(points.shape[1])).tolist() == definition_of_front(points)

    @given(points=clouds(low=1))
    def test_front_is_that_of_moocore(self, points):
        expected = moocore.is_nondominated(points, maximise=True, keep_weakly=True)
        assert front_mask(points, objectives(points.shape[1])).tolist() == expected.tolist()

    @given(points=clouds(low=1))
    def test_ranks_are_those_of_moocore(self, points):
        # moocore wants different points; equal ones tie here.
        different, inverse = np.unique(points, axis=0, return_inverse=True)
        expected = moocore.pareto_rank(different, maximise=True)[inverse.ravel()]
        assert ranks(points, objectives(points.shape[1])).tolist() == expected.tolist()

    @given(points=clouds())
    def test_domination_implies_a_better_rank_and_every_layer_is_a_front(self, points):
        given_ranks = ranks(points, objectives(points.shape[1]))
        for i, a in enumerate(points):
            for j, b in enumerate(points):
                assert not dominates(a, b) or given_ranks[i] < given_ranks[j]
        for layer in range(given_ranks.max(initial=-1) + 1):
            assert (
                definition_of_front(points[given_ranks >= layer])
                == (given_ranks[given_ranks >= layer] == layer).tolist()
            )

    def test_the_case_that_a_sort_permutation_gets_wrong(self):
        assert ranks([[3, 3], [1, 1], [2, 2]], objectives(2, maximise=False)).tolist() == [2, 0, 1]

    def test_equal_points_tie(self):
        points = [[0.5, 0.5], [0.2, 0.9], [0.5, 0.5], [0.1, 0.1]]
        assert front_mask(points, GAINS).tolist() == [True, True, True, False]
        assert ranks(points, GAINS).tolist() == [0, 0, 0, 1]

    def test_zero_has_no_sign(self):
        signed, unsigned = [[-0.0, 0.5], [0.0, 0.5], [-0.0, -0.0]], [[0.0, 0.5], [0.0, 0.5], [0.0, 0.0]]
        for scale in (GAINS, LOSSES):
            for function in (front_mask, ranks, contributions, hypervolume):
                np.testing.assert_array_equal(function(signed, scale), function(unsigned, scale))
            front = Front(scale)
            for point in signed:
                front.add(point)
            assert front.size == front_mask(unsigned, scale).sum()

    def test_no_points_have_no_front(self):
        for empty in ([], np.empty((0, 2))):
            assert front_mask(empty, GAINS).tolist() == []
            assert ranks(empty, GAINS).tolist() == []
            assert hypervolume(empty, GAINS) == 0
            assert contributions(empty, GAINS).tolist() == []
            assert knee(empty, GAINS) is None

    @given(points=planes, data=st.data())
    def test_everything_is_equivariant_under_permutation(self, points, data):
        order = np.array(data.draw(st.permutations(range(len(points)))), dtype=int)
        for function in (front_mask, ranks, contributions):
            np.testing.assert_array_equal(function(points[order], GAINS), function(points, GAINS)[order])
        assert hypervolume(points[order], GAINS) == hypervolume(points, GAINS)

    @given(points=planes, data=st.data())
    def test_directions_are_a_matter_of_sign(self, points, data):
        maximise = tuple(data.draw(st.tuples(st.booleans(), st.booleans())))
        signs = np.where(maximise, 1.0, -1.0)
        mixed = Objectives(("a", "b"), maximise, tuple(signs * 0.25))
        same = objectives(2, reference=0.25)
        for function in (front_mask, ranks, contributions, hypervolume, knee):
            np.testing.assert_array_equal(function(points * signs, mixed), function(points, same))

    @given(points=clouds(), data=st.data())
    def test_scaling_each_axis_changes_no_rank_and_scales_the_volume(self, points, data):
        d = points.shape[1]
        # Powers of two are exact: no rounding can make or break a tie.
        factors = 2.0 ** np.array(data.draw(st.lists(st.integers(-3, 3), min_size=d, max_size=d)))
        shift = Objectives(objectives(d).names, (True,) * d, tuple([0.5] * d * factors))
        np.testing.assert_array_equal(ranks(points * factors, shift), ranks(points, objectives(d)))
        scaled = hypervolume(points * factors, shift)
        assert scaled == pytest.approx(factors.prod() * hypervolume(points, objectives(d, reference=0.5)))


class TestHypervolume:
    @pytest.mark.parametrize(
        ("curve", "expected"),
        [
            (lambda x: 1 - np.sqrt(x), 1.1**2 - 1 / 3),
            (lambda x: 1 - x**2, 1.1**2 - 2 / 3),
            (lambda x: np.sqrt(1 - x**2), 1.1**2 - math.pi / 4),
        ],
        ids=["ZDT1", "ZDT2", "DTLZ2"],
    )
    def test_of_a_sampled_curve_tends_to_its_closed_form_from_below(self, curve, expected):
        errors = []
        for n in (100, 1_000, 10_000):
            x = np.linspace(0, 1, n)
            errors.append(expected - hypervolume(np.c_[x, curve(x)], LOSSES))
        assert 0 < errors[2] < 0.2 * errors[1] < 0.04 * errors[0]
        assert errors[2] < 2e-4

    def test_of_a_sphere_octant_tends_to_its_closed_form(self):
        angles = np.linspace(0, math.pi / 2, 25)
        a, b = (grid.ravel() for grid in np.meshgrid(angles, angles))
        points = np.c_[np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)]
        assert hypervolume(points, objectives(3)) == pytest.approx(math.pi / 6, rel=0.06)

    def test_of_boxes_by_inclusion_and_exclusion(self):
        assert hypervolume([[1, 2, 3, 4]], objectives(4)) == 24
        assert hypervolume([[1, 2, 3], [3, 2, 1]], objectives(3)) == 6 + 6 - 2
        assert hypervolume([[2], [5], [3]], objectives(1, reference=1.0)) == 4

    @given(points=clouds(low=1, high=12), reference=coarse)
    def test_is_that_of_moocore(self, points, reference):
        d = points.shape[1]
        if d == 1:
            expected = max(points.max() - reference, 0)
        else:
            expected = moocore.hypervolume(points, ref=[reference] * d, maximise=True)
        assert hypervolume(points, objectives(d, reference=reference)) == pytest.approx(expected, abs=1e-12)

    @given(points=clouds(low=1), data=st.data())
    def test_a_dominated_point_changes_nothing(self, points, data):
        d = points.shape[1]
        worse = points[data.draw(st.integers(0, len(points) - 1))] - [data.draw(coarse) for _ in range(d)]
        more = np.vstack([points, worse])
        assert hypervolume(more, objectives(d)) == hypervolume(points, objectives(d))

    @given(points=planes, data=st.data())
    def test_grows_by_what_a_new_point_contributes(self, points, data):
        new = np.array([data.draw(coarse), data.draw(coarse)])
        more = np.vstack([points, new])
        gain = hypervolume(more, GAINS) - hypervolume(points, GAINS)
        assert gain >= 0
        assert contributions(more, GAINS)[-1] == pytest.approx(gain, abs=1e-12)

    @given(points=clouds(high=10), reference=coarse)
    def test_contribution_is_what_leaving_the_point_out_costs(self, points, reference):
        scale = objectives(points.shape[1], reference=reference)
        total = hypervolume(points, scale)
        expected = [total - hypervolume(np.delete(points, i, axis=0), scale) for i in range(len(points))]
        np.testing.assert_allclose(contributions(points, scale), expected, atol=1e-12)


class TestKnee:
    def test_is_the_corner_of_a_bent_front(self):
        points = np.array([[0.0, 1.0], [0.8, 0.9], [0.9, 0.5], [1.0, 0.0], [0.5, 0.5]])
        assert knee(points, GAINS) == 1

    @given(seed=st.integers(0, 50), factors=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)))
    def test_does_not_depend_on_units(self, seed, factors):
        points = cloud(30, seed=seed)
        assert knee(points * factors + [3.0, -2.0], GAINS) == knee(points, GAINS)

    @given(points=planes)
    def test_lies_on_the_front_beyond_every_line_between_its_ends(self, points):
        index = knee(points, GAINS)
        front = points[front_mask(points, GAINS)]
        if index is None:
            return
        assert front_mask(points, GAINS)[index]
        low, high = front.min(axis=0), front.max(axis=0)
        assert ((points[index] - low) / (high - low)).sum() > 1

    @given(shares=st.lists(st.floats(0, 1), max_size=20), low=st.floats(0, 0.4), high=st.floats(0.5, 1))
    def test_rounding_does_not_bend_a_straight_front(self, shares, low, high):
        x = low + (high - low) * np.array([0.0, *shares, 1.0])
        assert knee(np.column_stack([x, 1 - 0.7 * x]), GAINS) is None

    @pytest.mark.parametrize(
        "points",
        [
            [[0.5, 0.5]],
            [[0.5, 0.5], [0.5, 0.5]],
            [[0.0, 1.0], [1.0, 0.0]],
            [[0.0, 0.9], [0.1, 0.8], [0.3, 0.6], [0.9, 0.0]],
            [[0.0, 1.0], [0.1, 0.2], [1.0, 0.0]],
        ],
        ids=["single", "equal", "two", "straight", "bent inwards"],
    )
    def test_a_front_without_a_bend_has_none(self, points):
        assert knee(points, GAINS) is None


class TestEpsilonIndicator:
    @given(a=clouds(low=1, dimensions=(3, 3)), b=clouds(low=1, dimensions=(3, 3)))
    def test_is_that_of_moocore(self, a, b):
        expected = moocore.epsilon_additive(a, ref=b, maximise=True)
        assert epsilon_indicator(a, b, objectives(3)) == pytest.approx(expected, abs=1e-12)

    @given(points=clouds(low=1), shift=st.floats(-1, 1))
    def test_of_a_shifted_front_is_the_shift(self, points, shift):
        scale = objectives(points.shape[1])
        assert epsilon_indicator(points, points + shift, scale) == pytest.approx(shift, abs=1e-12)

    def test_needs_points(self):
        with pytest.raises(ValueError, match="at least one point"):
            epsilon_indicator([], [[0, 0]], GAINS)


class TestGrowingFront:
    @given(points=clouds(), reference=coarse)
    def test_equals_the_front_of_all_at_every_step(self, points, reference):
        scale = objectives(points.shape[1], reference=reference)
        front = Front(scale)
        for i, point in enumerate(points):
            seen = points[: i + 1]
            mask = front_mask(seen, scale)
            assert front.add(point) == mask[-1]
            assert front.size == mask.sum()
            assert front.hypervolume == hypervolume(seen, scale)
            np.testing.assert_array_equal(front.points, np.unique(seen[mask], axis=0))

    @given(points=planes, data=st.data())
    def test_does_not_depend_on_the_order_to_the_last_bit(self, points, data):
        one, other = Front(LOSSES), Front(LOSSES)
        for point in points:
            one.add(point)
        for i in data.draw(st.permutations(range(len(points)))):
            other.add(points[i])
        assert (one.hypervolume, one.size) == (other.hypervolume, other.size)
        np.testing.assert_array_equal(one.points, other.points)


class TestGrowingLayers:
    @given(clouds(high=40), st.randoms(use_true_random=False))
    def test_equal_what_sorting_anew_finds(self, points, random):
        """After every point that comes, and after every one that goes again."""
        these = objectives(points.shape[1], maximise=False)
        layers, held = Layers(these), []
        for point in points:
            layers.add(point)
            held.append(point)
            self.compare(layers, np.array(held), these)
        random.shuffle(held)
        while held:
            layers.remove(held.pop())
            self.compare(layers, np.array(held).reshape(-1, points.shape[1]), these)
        assert len(layers) == 0

    def compare(self, layers: Layers, points: np.ndarray, these: Objectives) -> None:
        expected = ranks(points, these)
        assert [layers.layer(point) for point in points] == expected.tolist()
        assert len(layers) == expected.max(initial=-1) + 1
        for k in range(len(layers)):
            different, counts = layers.members(k)
            found = sorted(map(tuple, np.repeat(different, counts, axis=0).tolist()))
            assert found == sorted(map(tuple, points[expected == k].tolist()))
            assert layers.size(k) == (expected < k).sum()


def binomial_interval(points: np.ndarray, sizes: Any, generator: np.random.Generator, *, draws: int) -> Interval:
    drawn = np.array([hypervolume(generator.binomial(sizes, points) / sizes, GAINS) for _ in range(draws)])
    return reflected_interval(hypervolume(points, GAINS), drawn)


class TestInterval:
    def test_is_the_same_for_the_same_generator_and_not_for_another(self):
        points = cloud(20, seed=1) * 0.9
        one, same, other = (
            binomial_interval(points, [300, 90], np.random.default_rng(seed), draws=50) for seed in (0, 0, 1)
        )
        assert one == same != other

    def test_narrows_with_the_number_of_examples_and_closes_on_the_measured(self):
        points = cloud(20, seed=2) * 0.9
        widths = []
        for n in (100, 10_000, 1_000_000):
            interval = binomial_interval(points, n, np.random.default_rng(0), draws=200)
            widths.append(interval.high - interval.low)
        assert widths[0] > 5 * widths[1] > 25 * widths[2]
        assert interval.low < hypervolume(points, GAINS) < interval.high

    @pytest.mark.slow
    def test_holds_the_truth_about_as_often_as_it_says(self):
        sizes, truth = np.array([300, 92]), cloud(24, seed=3) * [0.6, 0.5] + 0.1
        generator, held = np.random.default_rng(0), 0
        for _ in range(60):
            measured = generator.binomial(sizes, truth) / sizes
            interval = binomial_interval(measured, sizes, generator, draws=150)
            held += interval.low <= hypervolume(truth, GAINS) <= interval.high
        assert held / 60 > 0.75
