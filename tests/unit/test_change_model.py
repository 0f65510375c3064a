"""The forecast of a trial's change: its errors, what it learns from, and when it learns nothing."""

from __future__ import annotations

import numpy as np
import pytest

from sweep.search.change_model import ChangeModel
from sweep.search.rung import group_key

COUNT = 40


def trials(seed: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return numbers (40, 2), groups, and changes (40, 2) that follow from the numbers, from knobs and from chance."""
    generator = np.random.default_rng(seed)
    numbers, rates = generator.random((COUNT, 2)), 10 ** generator.uniform(-4, -1, COUNT)
    words = generator.choice(["a", "b"], COUNT)
    groups = [
        group_key({"rate": float(rate), "word": str(word), "same": 1}) for rate, word in zip(rates, words, strict=True)
    ]
    changes = np.column_stack([0.5 - 0.8 * numbers[:, 0], 0.3 * (words == "a") + 0.1 * np.log10(rates)])
    return numbers, groups, changes + 0.01 * generator.standard_normal((COUNT, 2))


def test_errors_are_those_on_trials_that_were_left_out() -> None:
    numbers, groups, changes = trials()
    model = ChangeModel(numbers, groups, changes)
    assert model._weights is not None
    # The noise is not kept: it is what makes the weights right.
    gram = model._kernel(model._apart(numbers, model._places), model._lengths)
    targets = changes - changes.mean(axis=0)
    [noise] = [each for each in (0.1, 0.3, 1.0) if np.allclose((gram + each * np.eye(COUNT)) @ model._weights, targets)]
    for left_out in range(0, COUNT, 7):
        kept = np.arange(COUNT) != left_out
        weights = np.linalg.solve(gram[np.ix_(kept, kept)] + noise * np.eye(COUNT - 1), targets[kept])
        assert targets[left_out] - gram[left_out, kept] @ weights == pytest.approx(model.errors[left_out], abs=1e-6)


def test_it_learns_from_numbers_and_from_knobs_of_both_kinds() -> None:
    model, (numbers, groups, changes) = ChangeModel(*trials()), trials(1)
    off = ((model(numbers, groups) - changes) ** 2).mean(axis=0)
    assert (off < 0.3 * changes.var(axis=0)).all()
    expected = (model.errors**2).mean(axis=0)
    assert (expected < 4 * off).all()
    assert (off < 4 * expected).all()


def test_one_forecast_is_as_many_together() -> None:
    numbers, groups, _ = trials(1)
    model = ChangeModel(*trials())
    together = model(numbers, groups)
    assert model(numbers[3:4], groups[3:4])[0] == pytest.approx(together[3], abs=1e-9)


@pytest.mark.parametrize("count", [1, 7])
def test_from_few_trials_it_is_their_changes_themselves(count: int) -> None:
    numbers, groups, changes = trials()
    model = ChangeModel(numbers[:count], groups[:count], changes[:count])
    assert model(numbers[:count], groups[:count]) + model.errors == pytest.approx(changes[:count])


def test_from_chance_it_learns_little() -> None:
    (numbers, groups, _), (others, strangers, _) = trials(), trials(1)
    off = []
    for seed in range(10):
        changes = np.random.default_rng([seed, 1]).standard_normal((COUNT, 2))
        model = ChangeModel(numbers, groups, changes)
        off.append(float(((model(others, strangers) - changes.mean(axis=0)) ** 2).mean()))
    assert np.median(off) < 0.05
    assert max(off) < 0.5


def test_without_any_trial_no_change_is_forecast() -> None:
    model = ChangeModel(np.empty((0, 2)), [], np.empty((0, 2)))
    assert (model(np.ones((3, 2)), ["{}"] * 3) == 0).all()
    assert model.errors.tolist() == [[0, 0]]


def test_units_do_not_matter() -> None:
    numbers, groups, changes = trials()
    there = ChangeModel(numbers * [10, 100], groups, changes * [1, 1000])
    assert there.errors / [1, 1000] == pytest.approx(ChangeModel(numbers, groups, changes).errors)
