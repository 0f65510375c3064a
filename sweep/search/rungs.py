"""Stop trials early when several objectives count: asynchronous successive halving by non-dominated rank.

MO-ASHA (Schmucker et al., arXiv 2106.12639): a trial that reaches a rung is compared with all that reached it before,
and the best 1/eta continue. A trial is better if it is on an earlier non-dominated front; within a front, if an
epsilon-net, farthest first, on objectives scaled to the rung's own extent, chooses it earlier. Unlike there, trials are
stopped instead of paused, and no trial on a rung's front is ever stopped.

To lag early is not yet to lag at the end, and how far the one predicts the other differs from sweep to sweep. So a
lagging trial is stopped only if nothing suggests that it will catch up: the changes of finished trials since the same
rung are added to what it brought, and if more than `stop_chance` of the sums would be on the front of the finished, it
continues. This is the bootstrap of a forecast's error, of the forecast that nothing changes. It needs no model of a
learning curve and takes in whatever all curves have in common. While too few trials have finished, none is stopped.

A trial brings to a rung its mean over the second half of the epochs that it has trained so far, because a single epoch,
judged on a few hundred images, is mostly noise.

With requirements (`--require`), a trial that fulfils them ranks before any that does not, and of these the one that
violates them least comes first (Deb 2002). While none in a rung fulfils them, the one that comes nearest is its front.

Trials that differ in the seed alone are a group. It is ranked by its means over the trials that have reached the rung,
and once one of its trials is stopped all are, each at its next report.

`Rungs` is the whole of it, without Ray. Its decisions depend on the trials in a rung, never on their order, and its
state is rebuilt from the decisions in the ledger.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from search_spaces import Requirement
from sweep.front import Objectives
from sweep.ledger import TrialRecord
from sweep.search.decision import CHANGES, Decision, RungPosition
from sweep.search.rung import Observation, Rung, group_key, lags, required_names
from trainer.report import STRENGTH

_UNTOLD = RungPosition(0, 0, 0, ())
"""Position in decisions that tell only whether a trial stops."""


class Rungs:
    """All rungs of a sweep, and the decisions made in them.

    Args:
        levels: epochs at which trials are compared; see `rung_levels`.
        eta: the best 1/eta of a rung continue; with fewer than eta in it none is stopped.
        require: requirements, which count for more than any objective.
        stop_chance: a lagging trial is stopped if its chance of reaching the front is at most this; 1 stops all.
        explain: whether decisions tell a trial's position and chance, or only whether it stops, in a fraction of the
            time.
        groups: keys of the trials' groups, as far as they are known.
        stops: False if trials are never stopped, but paused instead (`FreezeThaw`).
    """

    def __init__(
        self,
        objectives: Objectives,
        *,
        levels: Sequence[int],
        eta: int,
        require: Sequence[Requirement] = (),
        stop_chance: float = 1.0,
        explain: bool = True,
        groups: dict[int, str] | None = None,
        stops: bool = True,
    ) -> None:
        self.objectives, self.levels, self.eta, self.require = objectives, sorted(levels), eta, require
        self.stop_chance, self.explain, self.stops = stop_chance, explain, stops
        self._names = (*objectives.names, *required_names(require))
        self.end = Rung(objectives, require)
        """Trials that finished, with their final numbers."""
        self.rungs: dict[tuple[int, str], Rung] = {}
        self.leaders: dict[str, int] = {}
        """The first trial that was stopped, of every group with one."""
        self.decisions: dict[int, list[Decision]] = {}
        """Decisions about each trial, in the order in which they were made."""
        self.groups = {} if groups is None else groups
        """Group of each trial: making the key takes longer than most decisions."""
        self.observations: dict[int, dict[int, Observation]] = {}
        """Observations of every running trial by epoch, as far as a rung may still need them."""

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
        """Compare a trial with its rung; return None if it has reached no rung since the last comparison.

        Args:
            group: key that is equal for trials that differ in the seed alone; they are ranked by their means.
            epoch: epochs that the trial has trained.
            values: its objectives (d,), in their own units; what is not finite ranks last.
            required: its numbers that requirements name.
            strength: attack that the values were judged with; only equal attacks are compared.
        """
        brought = tuple((name, float((required or {})[name])) for name in required_names(self.require))
        if group in self.leaders and not self.stopped(trial):
            leader = self.leaders[group]
            decision = next(each for each in self.decisions[leader] if each.stop)._replace(
                epoch=epoch, values=tuple(map(float, values)), required=brought, followed=leader
            )
            self.decisions.setdefault(trial, []).append(decision)
            return decision
        if not self._is_due(trial, group, epoch):
            return None
        level = max(level for level in self.levels if level <= epoch)
        rung = self._rung(level, strength)
        rung.add(group, trial, [*values, *dict(brought).values()])
        position, chance = _UNTOLD, 1.0
        if self.explain:
            position, chance = rung.position(group), self._chance(rung, group)
            stop = lags(position, eta=self.eta) and chance <= self.stop_chance
        else:
            stop = rung.lags(group, eta=self.eta) and self._chance(rung, group) <= self.stop_chance
        decision = Decision(
            rung=level,
            epoch=epoch,
            **position._asdict(),
            stop=self.stops and stop,
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

    def _is_due(self, trial: int, group: str, epoch: int) -> bool:
        """Return whether a trial has reached a rung since the last comparison, or is to follow one of its group."""
        if group in self.leaders and not self.stopped(trial):
            return True
        reached = bisect.bisect_right(self.levels, epoch)
        level = self.levels[reached - 1] if reached else None
        return level is not None and all(decision.rung != level for decision in self.decisions.get(trial, ()))

    def _chance(self, rung: Rung, group: str) -> float:
        """Return the share of finished trials whose change since a rung would carry a group from there to their front.

        It is 1 if the group is on that front already, and while too few trials have finished.
        """
        if len(rung.changes) < CHANGES or self.end.on_front(group):
            return 1.0
        brought = rung.means(group)
        return float(self.end.would_lead(brought + rung.changes.rows).mean()) if np.isfinite(brought).all() else 0.0

    def finish(self, trial: int, config: Mapping[str, Any], final: Mapping[str, Any]) -> None:
        """Take in a trial's final report."""
        group, numbers = self._group(trial, config), self._numbers(final)
        # Without rungs no decision needs them, and ranking them takes time.
        if not self.levels or trial in self.end.trials.get(group, ()):
            return
        self.end.add(group, trial, numbers)
        for decision in self.decisions.get(trial, ()):
            if decision.followed >= 0:
                continue
            rung = self._rung(decision.rung, decision.strength)
            change = [after - before for after, before in zip(numbers, rung.trials[group][trial], strict=True)]
            rung.finish(group, trial, change)

    def observe(self, trial: int, config: Mapping[str, Any], report: Mapping[str, Any]) -> Decision | None:
        """Take in a trial's report and `decide` on its means over the second half of its epochs so far.

        Only epochs that were judged with the same attack as the last one count.
        """
        epoch, known = report["epoch"], self._add_report(trial, report)
        if not self._is_due(trial, self._group(trial, config), epoch):
            return None
        alike = [each.numbers for each in known.values() if each.strength == known[epoch].strength]
        means = [math.fsum(column) / len(alike) for column in zip(*alike, strict=True)]
        objectives = len(self.objectives.names)
        decision = self.decide(
            trial,
            self._group(trial, config),
            epoch,
            means[:objectives],
            required=dict(zip(required_names(self.require), means[objectives:], strict=True)),
            strength=known[epoch].strength,
        )
        if decision is not None and decision.stop:
            self.forget(trial)
        return decision

    def _add_report(self, trial: int, report: Mapping[str, Any]) -> dict[int, Observation]:
        """Add a report, in place of an earlier one of its epoch; return those of the second half of all epochs."""
        epoch, known = report["epoch"], self.observations.setdefault(trial, {})
        known[epoch] = Observation(self._numbers(report), str(report.get(STRENGTH, "")))
        for each in [each for each in known if not epoch < 2 * each <= 2 * epoch]:
            del known[each]
        return known

    def _numbers(self, report: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the objectives in a report, then the numbers that requirements name."""
        return tuple([float(report[name]) for name in self._names])

    def _group(self, trial: int, config: Mapping[str, Any]) -> str:
        if trial not in self.groups:
            self.groups[trial] = group_key(config)
        return self.groups[trial]

    def forget(self, trial: int) -> None:
        """Drop the observations of a trial that will report no more."""
        self.observations.pop(trial, None)

    def _rung(self, level: int, strength: str) -> Rung:
        """Return the rung of a level for trials that were judged with one attack."""
        if (level, strength) not in self.rungs:
            self.rungs[level, strength] = Rung(self.objectives, self.require)
        return self.rungs[level, strength]

    def stopped(self, trial: int) -> bool:
        """Return whether it was decided to stop a trial."""
        return any(decision.stop for decision in self.decisions.get(trial, ()))

    def restore(self, records: Iterable[TrialRecord]) -> None:
        """Rebuild the state from what a ledger holds."""
        finished: list[TrialRecord] = []
        for record in records:
            if record.state == "finished" and record.result is not None:
                finished.append(record)
            for report in record.reports if record.state == "running" else ():
                self._add_report(record.number, report)
            decisions = [Decision.from_dict(plain, self.objectives) for plain in record.decisions]
            self.decisions[record.number] = decisions
            for each in decisions:
                if each.followed >= 0:
                    continue
                rung = self._rung(each.rung, each.strength)
                group = self._group(record.number, record.config)
                rung.add(group, record.number, [*each.values, *dict(each.required).values()])
                if each.stop:
                    self.leaders[group] = record.number
        for record in sorted(finished, key=lambda each: (each.ended_as, each.number)):
            self.finish(record.number, record.config, record.result or {})


def rung_levels(*, grace_epochs: int, eta: int, epochs: int) -> list[int]:
    """Return grace, grace eta, grace eta^2, ... below `epochs`: at the end nothing is left to save."""
    levels, level = [], grace_epochs
    while level < epochs:
        levels.append(level)
        level *= eta
    return levels
