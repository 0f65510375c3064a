"""The hypervolume that a point would add: against the difference of two hypervolumes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.front.objectives import Objectives
from sweep.front.pareto import hypervolume, improvements

CASES = [
    Objectives(("a",), (True,), (1.0,)),
    Objectives(("a", "b"), (True, True), (0.0, 0.0)),
    Objectives(("a", "b"), (False, True), (5.0, 1.0)),
    Objectives(("a", "b"), (False, False), (5.0, 5.0)),
    Objectives(("a", "b", "c"), (True, False, True), (0.0, 5.0, 1.0)),
]

# Few different values: ties, and points on the reference's edges, come often.
numbers = st.integers(0, 6).map(float)


def points_of(d: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.tuples(*[numbers] * d), max_size=12).map(lambda rows: np.array(rows).reshape(-1, d))


@pytest.mark.parametrize("objectives", CASES, ids=lambda each: f"{each.names} {each.maximise}")
@given(data=st.data())
def test_it_is_the_difference_of_two_hypervolumes(objectives: Objectives, data: st.DataObject) -> None:
    d = len(objectives.names)
    front, points = data.draw(points_of(d)), data.draw(points_of(d))
    before = hypervolume(front, objectives)
    expected = [hypervolume(np.vstack([front, point]), objectives) - before for point in points]
    assert improvements(points, front, objectives) == pytest.approx(expected, abs=1e-12)


def test_a_point_that_adds_nothing_adds_exactly_nothing() -> None:
    generator = np.random.default_rng(0)
    front = generator.random((200, 2))
    objectives = Objectives(("a", "b"), (True, True), (0.0, 0.0))
    assert (improvements(front, front, objectives) == 0).all()
    assert (improvements(front - 1e-9, front, objectives) == 0).all()
    assert (improvements(front + 1e-9, front, objectives) > 0).sum() < 20
