"""The course of a sweep: how many epochs its trials train, how long each takes, and how they fill the slots."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

from sweep.forecast.measured import BETWEEN_SECONDS, REPORT_SECONDS, STANDING, ProfileResult, TimedConfiguration
from sweep.forecast.quantities import EXPECTED, HIGH, HOUR, LOW, Span
from sweep.plan import SweepPlan


class RungForecast(NamedTuple):
    """An epoch at which trials are compared or, the last, at which they end."""

    epoch: int
    reach: Span
    """Number of trials that reach it."""


class _Schedule(NamedTuple):
    """Trials laid into slots."""

    seconds: float
    """Time from the first trial's begin to the last one's end."""
    slot_seconds: float
    """Time that the trials hold their slots, all together."""
    trials: int
    """Number of trials that begin."""


def expected_rungs(plan: SweepPlan, slots: int) -> list[RungForecast]:
    """Return the rungs of the plan's stopper, and the end, with the number of trials that reach each."""
    from sweep.search import rung_levels

    if plan.stopper == "none":
        return []
    rungs, reach = [], Span(*[float(plan.trials)] * 3)
    for level in rung_levels(grace_epochs=plan.grace_epochs, eta=plan.eta, epochs=plan.epochs_per_trial):
        rungs.append(RungForecast(level, reach))
        reach = Span(*(survivors(count, plan, slots)[which] for which, count in enumerate(reach)))
    return [*rungs, RungForecast(plan.epochs_per_trial, reach)]


def survivors(count: float, plan: SweepPlan, slots: int) -> Span:
    """Return how many of so many trials that reach a rung go on.

    Expected: arrivals in random order. The i-th to arrive has each rank among the i so far with the same probability,
    and ceil(i / eta) ranks let it go on (see `sweep.search.behind`). Low: the best 1/eta, as if all were ranked at
    once. High: all, as where none dominates another. Seeds of a configuration go on together. Unless all that are
    behind are stopped, the first go on whatever they report, until enough have finished to predict the others.

    Where trials pause, all but those may without which no end can be forecast. As many as above go on all the same: in
    sweeps of 24 to 120 random draws from recorded trials that was at most 13% too few epochs, over two orders.
    """
    from sweep.search import CHANGES

    groups = max(1, round(count / plan.seeds))
    if groups < plan.eta:
        return Span(count, count, count)
    pauses = plan.stopper == "thaw"
    first = plan.eta if plan.stop_chance == 1 and not pauses else max(plan.eta, slots + CHANGES)
    random_order = sum(1 if i < first else math.ceil(i / plan.eta) / i for i in range(1, groups + 1))
    best = CHANGES if pauses else plan.seeds * math.ceil(groups / plan.eta)
    return Span(min(count, best), min(count, plan.seeds * random_order), float(count))


def mean_epochs(plan: SweepPlan, rungs: Sequence[RungForecast]) -> Span:
    """Return the epochs of a trial on average, stopped trials among them."""
    if not rungs:
        return Span(*[float(plan.epochs_per_trial)] * 3)
    # A trial that reaches a rung has trained since the one before.
    before = [0, *(rung.epoch for rung in rungs[:-1])]
    pairs = [(rung.epoch - epoch, rung.reach) for epoch, rung in zip(before, rungs, strict=True)]
    return Span(*(sum(epochs * reach[which] for epochs, reach in pairs) / plan.trials for which in range(3)))


def length(timed: TimedConfiguration, epochs: float, which: int) -> float:
    """Return the seconds for which a trial of so many epochs holds its slot; `which` is LOW, EXPECTED or HIGH."""
    cost = timed.cost
    once = cost.beginning + STANDING[which] * cost.finishing + BETWEEN_SECONDS
    return once + epochs * (cost.epoch(STANDING[which]) + REPORT_SECONDS)


def may_be_drawn(measured: ProfileResult) -> list[TimedConfiguration]:
    """Return what was timed and may be drawn; where nothing is drawn, the points."""
    return [each for each in measured.timed if each.candidate.point is None] or measured.timed


def trial_lengths(plan: SweepPlan, measured: ProfileResult, epochs: float, which: int) -> list[float]:
    """Return the seconds of every trial, in the order in which they begin: the given points, then what is drawn.

    What is drawn is the cheapest or the dearest that may be, or is expected to be like the draws that were timed.
    """
    possible = may_be_drawn(measured)
    sampled = [each for each in measured.timed if each.candidate.drawn] or possible
    drawn = [length(each, epochs, which) for each in (sampled if which == EXPECTED else possible)]
    drawn = {LOW: [min(drawn)], EXPECTED: drawn, HIGH: [max(drawn)]}[which]
    points = {each.candidate.point: length(each, epochs, which) for each in measured.timed}
    configurations = [points.get(number, drawn[number % len(drawn)]) for number in range(plan.configurations)]
    return [seconds for seconds in configurations for _ in range(plan.seeds)]


def fill_slots(
    lengths: Sequence[float], slots: int, plan: SweepPlan, *, epochs: float = 0.0, low: bool = False
) -> _Schedule:
    """Start trials one after the other, each in the slot that is free first, until one of the plan's budgets is spent.

    Args:
        lengths: seconds of each trial.
        epochs: epochs that a trial trains on average; 0 for all of them.
        low: whether the sweep ends as early as `--stop-when-flat` allows; else it never does.
    """
    per_trial = epochs or plan.epochs_per_trial
    # A paused trial leaves the epochs that it did not train to others; before one that is stopped they are kept free.
    begun_with = per_trial if plan.stopper == "thaw" else plan.epochs_per_trial
    earliest = plan.stop_when_flat + slots if plan.stop_when_flat and low else len(lengths)
    free, slot_seconds, begun = [0.0] * slots, 0.0, 0
    for seconds in lengths[:earliest]:
        start = free[0]
        gpu_hours = plan.gpu_share * (slot_seconds + seconds) / HOUR
        if (
            (plan.max_hours and start >= plan.max_hours * HOUR)
            or (plan.max_gpu_hours and begun and gpu_hours > plan.max_gpu_hours)
            or (plan.budget_epochs and begun * per_trial + begun_with > plan.budget_epochs)
        ):
            break
        heapq.heapreplace(free, start + seconds)
        slot_seconds, begun = slot_seconds + seconds, begun + 1
    return _Schedule(max(free), slot_seconds, begun)
