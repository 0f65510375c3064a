"""The price of a study: a forecast per arm, times the seeds, and the audits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from sweep.engine import Progress, ray_session
from sweep.forecast import HOUR, OTHER_WORK, Forecast, Span, in_time, make_forecast, profile_plan
from sweep.plan import Step, StudyPlan
from sweep.report import duration, plain_table

_JUDGING = 1.5
"""Time of the attacks and checks on an audited model over that of its training, about: so an audit of 8 finalists on 3
seeds takes three times a sweep of 24 trials, which is what audits aim at."""
_TIMING_SECONDS = 8.0
"""Seconds of timing for each arm."""


@dataclass(frozen=True)
class _StudyPrice:
    """The price of a study: seconds, of all seeds together."""

    plan: StudyPlan
    forecasts: dict[str, Forecast]
    """Forecasts of one sweep, by arm."""

    @property
    def seeds(self) -> int:
        return len(self.plan.study.seeds)

    def sweeps(self, arm: str) -> Span:
        """Return the time of an arm's sweeps."""
        hours, forecast = self.plan.study.effort.hours, self.forecasts[arm]
        if hours:
            each = Span(*[HOUR * hours] * 3).plus(forecast.starting_seconds + forecast.ending_seconds)
            return each.times(self.seeds)
        return forecast.wall_seconds.times(self.seeds)

    def audits(self, arm: str) -> Span:
        """Return the time of its audits."""
        options, forecast = self.plan.audit_options, self.forecasts[arm]
        finalists = min(options.finalists, self.plan.study.effort.trials or options.finalists)
        # Trained and judged on every fresh seed, and the sweep's own model judged.
        trials = finalists * (options.seeds * (1 + _JUDGING) + _JUDGING)
        return forecast.trial_seconds.times(trials / forecast.slots * self.seeds)

    @property
    def total(self) -> Span:
        each = [self.sweeps(arm) for arm in self.forecasts] + [self.audits(arm) for arm in self.forecasts]
        return Span(*(sum(values) for values in zip(*each, strict=True)))

    def notes(self) -> Iterator[str]:
        """Yield what a person should know of it."""
        arms = self.forecasts.items()
        first = next(iter(self.forecasts.values()))
        if first.preparation:
            missing = ", ".join(first.preparation)
            yield f"\nNot counted, once for each of the {self.seeds} splits: {missing}"
        remarks = [remark for forecast in self.forecasts.values() for remark in forecast.remarks]
        yield from dict.fromkeys(remark for remark in remarks if not remark.startswith(OTHER_WORK))
        if any(remark.startswith(OTHER_WORK) for remark in remarks):
            each = ((self.sweeps(arm).expected + self.audits(arm).expected) / one.slowness for arm, one in arms)
            idle = sum(each)
            yield f"{OTHER_WORK}: on an idle machine all would take about {duration(idle)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON takes them."""
        arms = {
            arm: {
                "sweep": forecast.to_dict(),
                "sweeps_seconds": self.sweeps(arm)._asdict(),
                "audits_seconds": self.audits(arm)._asdict(),
            }
            for arm, forecast in self.forecasts.items()
        }
        return {"arms": arms, "seeds": self.seeds, "wall_seconds": self.total._asdict()}


def price_study(plan: StudyPlan, progress: Progress) -> _StudyPrice:
    """Time a little of every arm on the first seed, in one Ray session.

    Raises:
        InputError, OtsweepError: as `profile_plan`.
    """
    forecasts = {}
    with ray_session():
        for arm in plan.study.arms:
            sweep = plan.sweep_plan(Step(arm, plan.study.seeds[0]))

            def show(stage: str, done: int, total: int, arm: str = arm) -> None:
                progress(f"{arm}: {stage}", done, total)

            forecasts[arm] = make_forecast(sweep, profile_plan(sweep, show, seconds=_TIMING_SECONDS))
    return _StudyPrice(plan, forecasts)


def price_table(price: _StudyPrice) -> Table:
    """Return the price as a table for a terminal, a row per arm."""
    table = plain_table("arm", "sweeps", "audits, about", left=[0])
    for arm in price.forecasts:
        table.add_row(arm, in_time(price.sweeps(arm)), in_time(price.audits(arm)))
    table.add_row("all", in_time(price.total), "")
    return table
