"""Ranks over a sweep's course: right, the same whenever they are refreshed, and not too many."""

from __future__ import annotations

import math
import random

import pytest

from search_spaces.requirement import Requirement
from sweep.ledger.records import TrialRecord
from sweep.plan.objectives import OBJECTIVES
from sweep.state.rank_tracker import GROWTH, RankTracker
from sweep.state.sweep_state import SweepState
from tests.support import events

COUNT = 60
SWEEPS = [
    pytest.param(1, (), id="plain"),
    pytest.param(2, (), id="two-seeds"),
    pytest.param(1, (Requirement("clean_accuracy", True, 0.5),), id="required"),
    pytest.param(1, (Requirement("clean_accuracy", True, 2.0),), id="fulfilled-by-nobody"),
]


def sweep_of(seeds: int, require: tuple[Requirement, ...]) -> tuple[SweepState, list[int]]:
    """Return trials that have reported and not ended yet, on a coarse grid so that many tie, and an order of ends."""
    draw, trials = random.Random(0), {}
    for number in range(COUNT * seeds):
        accuracies = {name: draw.randint(0, 12) / 12 for name in (*OBJECTIVES.names, "clean_accuracy")}
        trials[number] = TrialRecord(number, reports=[{**accuracies, "epoch": 1, "final": True}])
    order = list(trials)
    draw.shuffle(order)
    return SweepState(OBJECTIVES, trials, total=len(trials), seeds=seeds, require=require), order


def end(state: SweepState, position: int, number: int) -> None:
    """End a trial, by a clock that is set back now and then."""
    state.apply(events.ended(number, "finished", time=1000.0 + position - 50 * (position % 7 == 6)))


def ranked_at() -> set[int]:
    """Return the numbers of finished configurations at which all are ranked."""
    counts, due = set(), 1
    while due <= COUNT:
        counts.add(due)
        due = math.ceil(GROWTH * due)
    return counts


@pytest.mark.parametrize(("seeds", "require"), SWEEPS)
def test_ranks_are_the_states_own(seeds: int, require: tuple[Requirement, ...]) -> None:
    """Compare the rank of each configuration that arrives; and all ranks where all are ranked, and at the end."""
    state, order = sweep_of(seeds, require)
    tracker = RankTracker(OBJECTIVES, seeds=seeds)
    for position, number in enumerate(order):
        end(state, position, number)
        tracker.refresh(state, over=position == len(order) - 1)
        ranks, whole = state.ranks(), list(state.configurations)
        noted = {first: tracker.noted[first][-1].rank for first in whole}
        if whole:
            assert noted[whole[-1]] == ranks[whole[-1]]
        if len(whole) in {*ranked_at(), COUNT} and whole[-1] == number - number % seeds:
            assert noted == {first: ranks[first] for first in whole}
    assert all(tracker.ranks_of(number, after=0)[-1].rank == rank for number, rank in state.ranks().items())


@pytest.mark.parametrize(("seeds", "require"), SWEEPS)
def test_the_same_is_noted_early_and_late(seeds: int, require: tuple[Requirement, ...]) -> None:
    """Refresh after every trial, now and then, or once for all."""
    state, order = sweep_of(seeds, require)
    trackers = {every: RankTracker(OBJECTIVES, seeds=seeds) for every in (1, 7, len(order))}
    for position, number in enumerate(order, 1):
        end(state, position, number)
        for every, tracker in trackers.items():
            if position % every == 0 or position == len(order):
                tracker.refresh(state, over=position == len(order))
    first, *others = (tracker.noted for tracker in trackers.values())
    assert all(other == first for other in others)
    for noted in first.values():
        assert [each.time for each in noted] == sorted(each.time for each in noted)
        assert [each.finished for each in noted] == sorted({each.finished for each in noted})


def test_what_is_noted_grows_with_the_trials_alone() -> None:
    """Count rankings of all at 1, 2, 3, 5, ...: their sizes sum to less than three times the last one."""
    assert {1, 2, 3, 5, 8, 12, 18, 27, 41} <= ranked_at()
    tracker = RankTracker(OBJECTIVES)
    tracker.refresh(ended_sweep(), over=True)
    assert sum(map(len, tracker.noted.values())) <= (1 + 3 + 1) * COUNT


def test_only_what_is_new_is_returned_again() -> None:
    tracker = RankTracker(OBJECTIVES)
    tracker.refresh(ended_sweep())
    for number in range(COUNT):
        noted = tracker.noted[number]
        assert tracker.ranks_of(number, after=0) == noted
        assert tracker.ranks_of(number, after=noted[0].finished) == noted[1:]
        assert tracker.ranks_of(number, after=COUNT) == []
    assert tracker.ranks_of(COUNT + 1, after=0) == []


def ended_sweep() -> SweepState:
    """Return a sweep of one seed all of whose trials have ended."""
    state, order = sweep_of(1, ())
    for position, number in enumerate(order):
        end(state, position, number)
    return state
