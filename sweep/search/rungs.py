"""Stopping trials early when several objectives count: asynchronous successive halving by non-dominated rank.

MO-ASHA (Schmucker et al., arXiv 2106.12639): a trial that reaches a rung is compared with all that reached it before.
The best 1/eta go on. Better is who stands on an earlier non-dominated front; inside a front, who is chosen earlier by
an epsilon-net, farthest first, on objectives measured in the rung's own extent. Unlike there, trials are stopped where
they stand instead of paused, and nobody on a rung's front is ever stopped.

To be behind early is not yet to be behind at the end, and how far the one tells of the other is different in every
sweep. So whoever is behind is stopped only if nothing speaks for its catching up: what finished trials changed by since
the same rung is added to what it brought, and if more than `stop_chance` of the sums would stand on the front of the
finished, it goes on. It is the bootstrap of a forecast's error, of the forecast that nothing changes: it needs no model
of a learning curve and takes in whatever all of them have in common. While too few have finished nobody is stopped.

What a trial brings to a rung is its mean over the second half of what it has trained so far: one epoch, judged on a few
hundred images, is noise for a good part.

Where something is required (`--require`), who fulfils it stands before who does not, and of these the one that breaks
it least comes first (Deb 2002): while nobody in a rung fulfils it, its front is whoever comes nearest.

Trials that differ in the seed alone are a group. It is ranked by its means over the trials that have reached the rung,
and once one of its trials is stopped all are, each at its next report.

`Rungs` is the whole of it, without Ray: what it decides depends on who stands in the rung, never on their order. Its
state is rebuilt from the decisions in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from search_spaces import Requirement
from sweep.front import Objectives
from sweep.ledger import TrialRecord
from sweep.search.rung import CHANGES, Decision, Observation, Rung, behind, group_key, required_names
from trainer.report import STRENGTH


class Rungs:
    """All rungs of a sweep, and what was decided in them.

    Args:
        levels: epochs at which trials are compared, ascending; see `rung_levels`.
        eta: of those that reach a rung the best 1/eta go on; below eta nobody is stopped.
        require: what counts for more than any objective.
        stop_chance: who is behind goes on if its chance of coming to the front is larger; 1 stops all who are behind.
    """

    def __init__(
        self,
        objectives: Objectives,
        *,
        levels: Sequence[int],
        eta: int,
        require: Sequence[Requirement] = (),
        stop_chance: float = 1.0,
    ) -> None:
        self.objectives, self.levels, self.eta, self.require = objectives, sorted(levels), eta, require
        self.stop_chance = stop_chance
        self.end = Rung(objectives, require)
        """Who finished, with what came of it."""
        self.rungs: dict[tuple[int, str], Rung] = {}
        self.leaders: dict[str, int] = {}
        """Of every group that was stopped, the trial with which it was."""
        self.decisions: dict[int, list[Decision]] = {}
        """By trial, in the order in which they were made."""
        self.heard: dict[int, dict[int, Observation]] = {}
        """What every trial under way said, by epoch, as far as a rung may still ask for it."""

    def decide(
        self,
        trial: int,
        group: str,
        epoch: int,
        values: Sequence[float],
        *,
        required: Mapping[str, float] | None = None,
        strength: str = "",
    ) -> Decision | None:
        """Compare a trial with its rung; None where it has not come to a rung that it was not compared in before.

        Args:
            group: equal for trials that differ in the seed alone; they are ranked together, by their mean.
            epoch: epochs trained so far, by the trial's own count.
            values: its objectives (d,), in their own units; not finite ranks last.
            required: its numbers that the requirements name.
            strength: what the values were measured with; only equal is compared with equal.
        """
        brought = tuple((name, float((required or {})[name])) for name in required_names(self.require))
        if group in self.leaders and not self.stopped(trial):
            leader = self.leaders[group]
            decision = next(each for each in self.decisions[leader] if each.stop)._replace(
                epoch=epoch, values=tuple(map(float, values)), required=brought, followed=leader
            )
            self.decisions.setdefault(trial, []).append(decision)
            return decision
        level = max((level for level in self.levels if level <= epoch), default=None)
        if level is None or any(decision.rung == level for decision in self.decisions.get(trial, ())):
            return None
        rung = self.rung(level, strength)
        rung.enter(group, trial, [*values, *dict(brought).values()])
        standing, chance = rung.standing(group), self.chance(rung, group)
        decision = Decision(
            rung=level,
            epoch=epoch,
            **standing._asdict(),
            stop=behind(standing, eta=self.eta) and chance <= self.stop_chance,
            chance=chance,
            changes=len(rung.changes),
            strength=strength,
            values=tuple(map(float, values)),
            required=brought,
        )
        self.decisions.setdefault(trial, []).append(decision)
        if decision.stop:
            self.leaders[group] = trial
        return decision

    def chance(self, rung: Rung, group: str) -> float:
        """Share of the finished trials by whose change since a rung a group that stands there would come to the front
        of the finished; 1 where it stands on it already, and while they are too few."""
        if len(rung.changes) < CHANGES or self.end.on_front(group):
            return 1.0
        brought = rung.means(group)
        return (
            float(self.end.would_lead(brought + np.array(rung.changes)).mean()) if np.isfinite(brought).all() else 0.0
        )

    def finish(self, trial: int, config: Mapping[str, Any], final: Mapping[str, Any]) -> None:
        """Take in what came of a trial, as its final report tells it."""
        group, numbers = group_key(config), self.numbers(final)
        # Without rungs nobody asks who finished, and ranking them takes time.
        if not self.levels or trial in self.end.trials.get(group, ()):
            return
        self.end.enter(group, trial, numbers)
        for decision in self.decisions.get(trial, ()):
            if decision.followed >= 0:
                continue
            rung = self.rung(decision.rung, decision.strength)
            if np.isfinite(change := np.subtract(numbers, rung.trials[group][trial])).all():
                rung.changes.append(change)

    def hear(self, trial: int, config: Mapping[str, Any], report: Mapping[str, Any]) -> Decision | None:
        """`decide` on the means of what a trial of a configuration has reported over the second half of its epochs, as
        far as they were judged with what the last one was."""
        epoch, said = report["epoch"], self.listen(trial, report)
        alike = [each.numbers for each in said.values() if each.strength == said[epoch].strength]
        means = [math.fsum(column) / len(alike) for column in zip(*alike, strict=True)]
        objectives = len(self.objectives.names)
        decision = self.decide(
            trial,
            group_key(config),
            epoch,
            means[:objectives],
            required=dict(zip(required_names(self.require), means[objectives:], strict=True)),
            strength=said[epoch].strength,
        )
        if decision is not None and decision.stop:
            self.forget(trial)
        return decision

    def listen(self, trial: int, report: Mapping[str, Any]) -> dict[int, Observation]:
        """Keep what a trial says, once for every epoch; what it said in the second half of its epochs so far."""
        epoch, said = report["epoch"], self.heard.get(trial, {})
        said[epoch] = Observation(self.numbers(report), str(report.get(STRENGTH, "")))
        self.heard[trial] = {each: said[each] for each in sorted(said) if epoch < 2 * each <= 2 * epoch}
        return self.heard[trial]

    def numbers(self, report: Mapping[str, Any]) -> tuple[float, ...]:
        """What of a report counts: objectives, then what requirements name."""
        return tuple(float(report[name]) for name in (*self.objectives.names, *required_names(self.require)))

    def forget(self, trial: int) -> None:
        """It will say nothing more."""
        self.heard.pop(trial, None)

    def rung(self, level: int, strength: str) -> Rung:
        """The one of a level, for what was measured with one strength."""
        return self.rungs.setdefault((level, strength), Rung(self.objectives, self.require))

    def stopped(self, trial: int) -> bool:
        return any(decision.stop for decision in self.decisions.get(trial, ()))

    def restore(self, records: Iterable[TrialRecord]) -> None:
        """Stand where the decisions in a ledger left off."""
        finished: list[TrialRecord] = []
        for record in records:
            if record.state == "finished" and record.result is not None:
                finished.append(record)
            for report in record.reports if record.state == "running" else ():
                self.listen(record.number, report)
            decisions = [Decision.from_dict(plain, self.objectives) for plain in record.decisions]
            self.decisions[record.number] = decisions
            for each in decisions:
                if each.followed >= 0:
                    continue
                rung = self.rung(each.rung, each.strength)
                rung.enter(group_key(record.config), record.number, [*each.values, *dict(each.required).values()])
                if each.stop:
                    self.leaders[group_key(record.config)] = record.number
        for record in sorted(finished, key=lambda each: (each.ended_as, each.number)):
            self.finish(record.number, record.config, record.result or {})


def rung_levels(*, grace_epochs: int, eta: int, epochs: int) -> list[int]:
    """grace, grace eta, grace eta^2, ... below `epochs`: at the end there is nothing left to save."""
    levels, level = [], grace_epochs
    while level < epochs:
        levels.append(level)
        level *= eta
    return levels
