"""Ranks as they are told while a sweep goes on: right, the same whoever tells them, and not too many."""

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
    """Trials that have reported and not ended yet, and an order in which to end them. On a coarse grid: many tie."""
    draw, trials = random.Random(0), {}
    for number in range(COUNT * seeds):
        accuracies = {name: draw.randint(0, 12) / 12 for name in (*OBJECTIVES.names, "clean_accuracy")}
        trials[number] = TrialRecord(number, reports=[{**accuracies, "epoch": 1, "final": True}])
    order = list(trials)
    draw.shuffle(order)
    return SweepState(OBJECTIVES, trials, total=len(trials), seeds=seeds, require=require), order


def end(results: SweepState, place: int, number: int) -> None:
    """One after another, by a clock that is set back now and then."""
    results.apply(events.ended(number, "finished", time=1000.0 + place - 50 * (place % 7 == 6)))


def ranked_at() -> set[int]:
    """At how many finished configurations all are ranked."""
    counts, due = set(), 1
    while due <= COUNT:
        counts.add(due)
        due = math.ceil(GROWTH * due)
    return counts


@pytest.mark.parametrize(("seeds", "require"), SWEEPS)
def test_ranks_are_the_results_own(seeds: int, require: tuple[Requirement, ...]) -> None:
    """Of one that arrives at once; of all where all are ranked, and at the end."""
    results, order = sweep_of(seeds, require)
    standings = RankTracker(results)
    for place, number in enumerate(order):
        end(results, place, number)
        standings.catch_up(over=place == len(order) - 1)
        ranks, whole = results.ranks(), list(results.configurations)
        told = {first: standings.told[first][-1].rank for first in whole}
        if whole:
            assert told[whole[-1]] == ranks[whole[-1]]
        if len(whole) in {*ranked_at(), COUNT} and whole[-1] == number - number % seeds:
            assert told == {first: ranks[first] for first in whole}
    assert all(standings.of(number, after=0)[-1].rank == rank for number, rank in results.ranks().items())


@pytest.mark.parametrize(("seeds", "require"), SWEEPS)
def test_the_same_is_told_early_and_late(seeds: int, require: tuple[Requirement, ...]) -> None:
    """After every trial, now and then, or once for all."""
    results, order = sweep_of(seeds, require)
    tellers = {every: RankTracker(results) for every in (1, 7, len(order))}
    for place, number in enumerate(order, 1):
        end(results, place, number)
        for every, standings in tellers.items():
            if place % every == 0 or place == len(order):
                standings.catch_up(over=place == len(order))
    first, *others = (standings.told for standings in tellers.values())
    assert all(other == first for other in others)
    for told in first.values():
        assert [each.time for each in told] == sorted(each.time for each in told)
        assert [each.finished for each in told] == sorted({each.finished for each in told})


def test_what_is_told_grows_with_the_trials_alone() -> None:
    """Rankings of all at 1, 2, 3, 5, ...: their sizes sum to less than three times the last one."""
    assert {1, 2, 3, 5, 8, 12, 18, 27, 41} <= ranked_at()
    results, order = sweep_of(1, ())
    standings = RankTracker(results)
    for place, number in enumerate(order):
        end(results, place, number)
    standings.catch_up(over=True)
    assert sum(map(len, standings.told.values())) <= (1 + 3 + 1) * COUNT


def test_only_what_is_new_is_told_again() -> None:
    results, order = sweep_of(1, ())
    for place, number in enumerate(order):
        end(results, place, number)
    standings = RankTracker(results)
    standings.catch_up()
    for number in order:
        told = standings.told[number]
        assert standings.of(number, after=0) == told
        assert standings.of(number, after=told[0].finished) == told[1:]
        assert standings.of(number, after=COUNT) == []
    assert standings.of(COUNT + 1, after=0) == []
