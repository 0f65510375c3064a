"""TODO one line."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sweep.plan import SweepPlan

if TYPE_CHECKING:
    pass
from sweep.forecast.measured import BETWEEN_SECONDS, REPORT_SECONDS, STANDING, ProfileResult, TimedConfiguration
from sweep.forecast.quantities import EXPECTED, HIGH, HOUR, LOW, Span


class RungForecast(NamedTuple):
    """Where trials are compared, or where they end."""

    epoch: int
    reach: Span
    """How many come there."""


class _Schedule(NamedTuple):
    """Trials laid into slots."""

    seconds: float
    """From the first one's begin to the last one's end."""
    held: float
    """That they hold their slots, all together."""
    trials: int
    """How many begin."""


# ------------------------------------------------------------------------------------------------------------ epochs


def expected_rungs(plan: SweepPlan, slots: int) -> list[RungForecast]:
    """The rungs of the plan's stopper, and the end, with who comes there."""
    from sweep.search import rung_levels

    if plan.stopper != "asha":
        return []
    rungs, reach = [], Span(*[float(plan.trials)] * 3)
    for level in rung_levels(grace_epochs=plan.grace_epochs, eta=plan.eta, epochs=plan.epochs_per_trial):
        rungs.append(RungForecast(level, reach))
        reach = Span(*(survivors(count, plan, slots)[which] for which, count in enumerate(reach)))
    return [*rungs, RungForecast(plan.epochs_per_trial, reach)]


def survivors(count: float, plan: SweepPlan, slots: int) -> Span:
    """Of so many trials that come to a rung, how many go on.

    Of arrivals in random order so many are expected: the i-th to come is at any place among the i so far alike, and
    ceil(i / eta) places let it go on (see `scheduler.behind`). The best 1/eta would, were all ranked at once; and all
    do where none dominates another. Seeds of a configuration go on together. Unless all who are behind are stopped, the
    first go on whatever they bring, until enough have finished to tell what may become of them.
    """
    from sweep.search import CHANGES

    groups = max(1, round(count / plan.seeds))
    if groups < plan.eta:
        return Span(count, count, count)
    first = plan.eta if plan.stop_chance == 1 else max(plan.eta, slots + CHANGES)
    random_order = sum(1 if i < first else math.ceil(i / plan.eta) / i for i in range(1, groups + 1))
    return Span(
        min(count, plan.seeds * math.ceil(groups / plan.eta)), min(count, plan.seeds * random_order), float(count)
    )


def mean_epochs(plan: SweepPlan, rungs: Sequence[RungForecast]) -> Span:
    """Epochs of a trial on average, stopped ones among them."""
    if not rungs:
        return Span(*[float(plan.epochs_per_trial)] * 3)
    # Whoever comes to a rung has trained from the one before on.
    before = [0, *(rung.epoch for rung in rungs[:-1])]
    pairs = [(rung.epoch - epoch, rung.reach) for epoch, rung in zip(before, rungs, strict=True)]
    return Span(*(sum(epochs * reach[which] for epochs, reach in pairs) / plan.trials for which in range(3)))


# -------------------------------------------------------------------------------------------------------------- time


def length(timed: TimedConfiguration, epochs: float, which: int) -> float:
    """Seconds for which a trial of so many epochs holds its slot."""
    cost = timed.cost
    return cost.beginning + epochs * (cost.epoch(STANDING[which]) + REPORT_SECONDS) + BETWEEN_SECONDS


def may_be_drawn(measured: ProfileResult) -> list[TimedConfiguration]:
    """What was timed and may be drawn; where nothing is drawn, the points."""
    return [each for each in measured.timed if each.candidate.point is None] or measured.timed


def trial_lengths(plan: SweepPlan, measured: ProfileResult, epochs: float, which: int) -> list[float]:
    """Seconds of every trial, in the order in which they begin: the given points, then what is drawn."""
    whole = [length(each, epochs, which) for each in may_be_drawn(measured)]
    drawn = {LOW: [min(whole)], EXPECTED: _sampled(measured, epochs), HIGH: [max(whole)]}[which]
    points = {each.candidate.point: length(each, epochs, which) for each in measured.timed}
    configurations = [points.get(number, drawn[number % len(drawn)]) for number in range(plan.configurations)]
    return [seconds for seconds in configurations for _ in range(plan.seeds)]


def _sampled(measured: ProfileResult, epochs: float) -> list[float]:
    """Seconds of the configurations that were drawn as a sweep draws at its begin; without any, of all that may be."""
    drawn = [each for each in measured.timed if each.candidate.drawn]
    return [length(each, epochs, EXPECTED) for each in drawn or may_be_drawn(measured)]


def place(lengths: Sequence[float], slots: int, plan: SweepPlan, *, low: bool = False) -> _Schedule:
    """Trials one after the other, each into the slot that is free first, until one of the plan's budgets is spent.

    Args:
        lengths: of each trial, in seconds.
        low: whether the sweep ends as early as `--stop-when-flat` allows; else it never does.
    """
    earliest = plan.stop_when_flat + slots if plan.stop_when_flat and low else len(lengths)
    free, held, begun = [0.0] * slots, 0.0, 0
    for seconds in lengths[:earliest]:
        start = free[0]
        gpu_hours = plan.gpu_share * (held + seconds) / HOUR
        if (plan.max_hours and start >= plan.max_hours * HOUR) or (
            plan.max_gpu_hours and begun and gpu_hours > plan.max_gpu_hours
        ):
            break
        heapq.heapreplace(free, start + seconds)
        held, begun = held + seconds, begun + 1
    return _Schedule(max(free), held, begun)
