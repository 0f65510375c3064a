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

import itertools
import json
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search_spaces.requirement import Requirement, violation
from sweep import pareto
from sweep.ledger import TrialRecord
from sweep.pareto import Objectives
from sweep.trainable import report_of
from trainer.report import STRENGTH

REQUIRED = "required."
"""How the keys of what requirements name begin in a plain decision."""

ALIKE, ENOUGH = 1 / 3, 10
"""Rank correlation between two rungs below which it is an alarm, and trials from which on: at a third one pair of
trials in three changes its order, half way from every pair's staying to a coin's toss; of fewer than ten trials chance
alone moves it by a quarter and more."""

CHANGES, NEWEST = 4, 500
"""Finished trials that must have passed a rung before anybody is stopped in it, and how many of them count at most: the
newest, so that a decision's cost is bounded."""

NAMED = 3
"""Of all that dominate a stopped trial, how many its reason names."""


class Standing(NamedTuple):
    """Where a group of trials stands among all that reached a rung."""

    layer: int
    """Its non-dominated rank: 0 on the rung's front."""

    place: int
    """How many stand before it."""

    competitors: int
    """How many groups were compared, with its own."""

    dominated_by: tuple[int, ...]
    """Some trials that dominate it, ascending."""

    broken: str = ""
    """The requirements that it does not fulfil."""


class Decision(NamedTuple):
    """What was decided when a trial reached a rung, and why."""

    rung: int
    """Epochs that make the rung."""

    epoch: int
    """Of the report that was compared: later than the rung if the trial passed it without a word."""

    layer: int
    place: int
    competitors: int
    dominated_by: tuple[int, ...]
    """As in `Standing`."""

    stop: bool

    strength: str
    """What all of them were measured with, as `trainer.report.STRENGTH` says; empty where all evaluations are equal."""

    values: tuple[float, ...]
    """The objectives that the trial brought to the rung, in their own units: see `Rungs.hear`."""

    broken: str = ""
    """As in `Standing`."""

    required: tuple[tuple[str, float], ...] = ()
    """What it brought of the numbers that requirements name."""

    followed: int = -1
    """The trial of its group that was stopped before it, and whose standing this is; -1 for none."""

    chance: float = 1.0
    """Share of the changes below with which it would come to stand on the front of the finished; 1 for too few."""

    changes: int = 0
    """Finished trials that told what may change after the rung."""

    @property
    def reason(self) -> str:
        """For people."""
        if self.followed >= 0:
            return f"stopped after epoch {self.epoch}: as trial {self.followed:03d} of its configuration was"
        others = " and ".join(f"{number:03d}" for number in self.dominated_by)
        return (
            f"stopped after epoch {self.epoch}: place {self.place + 1} of {self.competitors} at epoch {self.rung}"
            f"{', not ' + self.broken if self.broken else ''}{', dominated by ' + others if others else ''}"
            f"{self.hope}"
        )

    @property
    def hope(self) -> str:
        """What finished trials tell of its end; empty while they are too few."""
        if self.changes < CHANGES:
            return ""
        return f"; {round(self.chance * self.changes)} of {self.changes} finished trials rose enough to save it"

    def to_dict(self, objectives: Objectives) -> dict[str, Any]:
        """Plain scalars, as the ledger takes them."""
        plain = self._asdict() | {"dominated_by": " ".join(map(str, self.dominated_by))}
        plain |= {REQUIRED + name: value for name, value in plain.pop("required")}
        return plain | dict(zip(objectives.names, plain.pop("values"), strict=True))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], objectives: Objectives) -> Decision:
        """What `to_dict` told."""
        fields = {name: plain[name] for name in cls._fields if name in plain}
        fields["dominated_by"] = tuple(map(int, plain["dominated_by"].split()))
        required = [key for key in plain if key.startswith(REQUIRED)]
        fields["required"] = tuple((key.removeprefix(REQUIRED), plain[key]) for key in required)
        return cls(**fields, values=tuple(plain[name] for name in objectives.names))


class Said(NamedTuple):
    """What a trial said after an epoch."""

    numbers: tuple[float, ...]
    """Objectives, then what requirements name."""

    strength: str
    """As in `Decision`."""


class Rung:
    """Who has reached a number of epochs: groups by key, ranked by the means of their trials."""

    def __init__(self, objectives: Objectives, require: Sequence[Requirement]) -> None:
        self.objectives, self.require = objectives, require
        self.trials: dict[str, dict[int, tuple[float, ...]]] = {}
        """Of every group the numbers (d + c,) of its trials: objectives, then what the requirements name."""
        self.rows: dict[str, int] = {}
        """Of every group its place in the three that follow, which have room for more."""
        self.points = np.empty((len(objectives.names), 0))
        self.violations, self.leads = np.empty(0), np.empty(0, dtype=int)
        self.layers = pareto.Layers(objectives)
        """Of the groups that fulfil what is required."""
        self.changes: deque[np.ndarray] = deque(maxlen=NEWEST)
        """By what the numbers (d + c,) of trials that finished have changed since."""

    def enter(self, group: str, trial: int, numbers: Sequence[float]) -> None:
        members = self.trials.setdefault(group, {})
        row = self.rows.setdefault(group, len(self.rows))
        if row == self.points.shape[1]:
            self.points, self.violations, self.leads = map(with_room, (self.points, self.violations, self.leads))
        elif members and self.violations[row] == 0:
            self.layers.remove(self.points[:, row])
        members[trial] = tuple(map(float, numbers))
        means = self.means(group)
        self.points[:, row], required = means[: len(self.points)], self.required(means)
        self.violations[row] = violation(self.require, required) if np.isfinite(means).all() else np.inf
        self.leads[row] = min(members)
        if self.violations[row] == 0:
            self.layers.add(self.points[:, row])

    def means(self, group: str) -> list[float]:
        """Over a group's trials (d + c,): exactly the same in whatever order they came."""
        members = self.trials[group]
        return [math.fsum(column) / len(members) for column in zip(*members.values(), strict=True)]

    def required(self, means: Sequence[float]) -> dict[str, float]:
        """What a group's numbers are by the names that requirements know them by."""
        return dict(zip(required_names(self.require), means[len(self.objectives.names) :], strict=True))

    def standing(self, group: str) -> Standing:
        row, count = self.rows[group], len(self.rows)
        layer, place = self.place(row)
        required = self.required(self.means(group))
        broken = " and ".join(str(each) for each in self.require if each.excess(required[each.name]) > 0)
        return Standing(layer, place, count, tuple(np.sort(self.leads[self.dominators(row)])[:NAMED].tolist()), broken)

    def place(self, row: int) -> tuple[int, int]:
        """Its layer, and how many stand before it: all of better layers, and of its own those that the epsilon-net
        takes before it. Equal points tie, and so do those that break the requirements equally."""
        violations, own = self.violations[: len(self.rows)], self.violations[row]
        if own > 0:
            better = violations[violations < own]
            return len(self.layers) + len(np.unique(better[better > 0])), len(better)
        layer = self.layers.layer(self.points[:, row])
        different, counts = self.layers.members(layer)
        feasible = self.points[:, : len(self.rows)][:, violations == 0]
        low, high = feasible.min(axis=1), feasible.max(axis=1)
        # In units of the extent of all who fulfil what is required: from 0, the worst, to 1, the best.
        shares = self.objectives.turn(different) - np.minimum(*self.objectives.turn(np.stack([low, high])))
        order = farthest_first(shares / np.where(high > low, high - low, 1.0))
        me = int(np.flatnonzero((different[order] == self.points[:, row]).all(axis=1))[0])
        return layer, self.layers.size(layer) + int(counts[order[:me]].sum())

    def dominators(self, row: int) -> np.ndarray:
        """The rows that dominate one; none for what is not finite."""
        violations, own = self.violations[: len(self.rows)], self.violations[row]
        if own > 0:
            return np.flatnonzero(violations < own) if np.isfinite(own) else np.array([], dtype=int)
        gains = self.points[:, : len(self.rows)] * np.where(self.objectives.maximise, 1.0, -1.0)[:, None]
        mine = gains[:, row, None]
        return np.flatnonzero((gains >= mine).all(axis=0) & (gains > mine).any(axis=0) & (violations == 0))

    def on_front(self, group: str) -> bool:
        """Whether a group has come here and stands on the front."""
        row = self.rows.get(group)
        return row is not None and self.violations[row] == 0 and self.layers.layer(self.points[:, row]) == 0

    def would_lead(self, numbers: np.ndarray) -> np.ndarray:
        """Which of some finite numbers (n, d + c) would stand on the front (n,); where nobody fulfils what is required,
        which would break it no more than anybody does."""
        points, rest = np.split(numbers, [len(self.objectives.names)], axis=1)
        required = dict(zip(required_names(self.require), rest.T, strict=True))
        excesses = [np.maximum(each.excess(required[each.name]), 0.0) for each in self.require]
        violations = np.sum([np.zeros(len(numbers)), *excesses], axis=0)
        if not len(self.layers):
            return violations <= self.violations[: len(self.rows)].min(initial=np.inf)
        front, gains = self.objectives.turn(self.layers.members(0)[0])[:, None], self.objectives.turn(points)
        dominated = ((front >= gains).all(axis=2) & (front > gains).any(axis=2)).any(axis=0)
        return (violations == 0) & ~dominated


def with_room(rows: np.ndarray) -> np.ndarray:
    """The same (..., n) with as many again to come."""
    return np.concatenate([rows, np.zeros((*rows.shape[:-1], max(rows.shape[-1], 64)), rows.dtype)], axis=-1)


def required_names(require: Iterable[Requirement]) -> list[str]:
    """The numbers that requirements name, each once."""
    return list(dict.fromkeys(each.name for each in require))


def behind(standing: Standing, *, eta: int) -> bool:
    """Whether it is neither on the rung's front nor among the best 1/eta, where at least eta are there to compare."""
    among_best = standing.place * eta < standing.competitors
    return standing.competitors >= eta and standing.layer > 0 and not among_best


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
        self.heard: dict[int, dict[int, Said]] = {}
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

    def listen(self, trial: int, report: Mapping[str, Any]) -> dict[int, Said]:
        """Keep what a trial says, once for every epoch; what it said in the second half of its epochs so far."""
        epoch, said = report["epoch"], self.heard.get(trial, {})
        said[epoch] = Said(self.numbers(report), str(report.get(STRENGTH, "")))
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


class Agreement(NamedTuple):
    """How far a rung orders trials as the next one does."""

    lower: int
    upper: int
    """Epochs of both; the upper may be the end, where the final report counts."""

    objective: str

    correlation: float
    """Kendall's tau-b over the trials that came to both: 1 for the same order, 0 for chance."""

    trials: int

    strengths: tuple[str, ...]
    """What most of them were judged with there; empty where all evaluations are equal."""

    @property
    def low(self) -> bool:
        """Whether it is an alarm."""
        return self.trials >= ENOUGH and self.correlation < ALIKE


def agreements(
    trials: Iterable[TrialRecord], objectives: Objectives, *, levels: Sequence[int], epochs: int
) -> list[Agreement]:
    """Between each rung and the next, for every objective; none where fewer than two trials differ in it.

    Whoever was stopped between two rungs counts in neither: of those that stay the order is harder to keep.
    """
    from scipy.stats import kendalltau

    records, found = list(trials), []
    for lower, upper in itertools.pairwise([*levels, epochs]):
        both = [(at(record, lower, epochs), at(record, upper, epochs)) for record in records]
        both = [(early, late) for early, late in both if early and late]
        if len(both) < 2:
            continue
        strengths = [usual_strength(side) for side in zip(*both, strict=True)]
        for name in objectives.names:
            early, late = np.array([[report[name] for report in pair] for pair in both]).T
            if np.ptp(early) > 0 and np.ptp(late) > 0:
                tau = float(np.asarray(kendalltau(early, late))[0])
                found.append(Agreement(lower, upper, name, tau, len(both), tuple(strengths)))
    return found


def usual_strength(reports: Iterable[Mapping[str, Any]]) -> str:
    """What most of some reports were measured with."""
    return Counter(str(report.get(STRENGTH, "")) for report in reports).most_common(1)[0][0]


def at(record: TrialRecord, epoch: int, epochs: int) -> dict[str, Any] | None:
    """What a trial said after an epoch; at the last one what it said finally."""
    if epoch == epochs:
        return record.result
    return next((each for each in record.reports if each["epoch"] == epoch and not each["final"]), None)


def group_key(config: Mapping[str, Any]) -> str:
    """Equal for trials that differ in the seed alone."""
    return json.dumps({name: value for name, value in config.items() if name != "seed"}, sort_keys=True)


def farthest_first(shares: np.ndarray) -> np.ndarray:
    """An order (m,) of different points (m, d) in [0, 1], ascending, of which every beginning covers them well.

    The first is the one with the largest sum, each next the one farthest from all before it (algorithm 2 of Schmucker
    et al.; Gonzalez 1985). Where two are as far, the one that comes first by value: nothing depends on who came first.
    """
    order, columns = [int(shares.sum(axis=1).argmax())], shares.T.copy()
    gaps = np.full(len(shares), np.inf)
    while len(order) < len(shares):
        last = order[-1]
        gaps = np.minimum(gaps, ((columns - columns[:, last, None]) ** 2).sum(axis=0))
        gaps[last] = -np.inf  # and so it stays
        order.append(int(gaps.argmax()))
    return np.array(order)


class MultiObjectiveASHA(FIFOScheduler):
    """`Rungs` as Ray Tune asks it. Holds no state of its own: whoever holds the same `rungs` knows every decision."""

    def __init__(self, rungs: Rungs) -> None:
        super().__init__()
        self.rungs = rungs

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        self.rungs.hear(number, trial.config["config"], report_of(result))
        # Also for a trial that was brought back after its stop was decided and before it took effect.
        return TrialScheduler.STOP if self.rungs.stopped(number) else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        number, report = trial.config["number"], report_of(result)
        # Also comes with what a trial said last that failed, or for which there was no time any more.
        if report.get("final"):
            self.rungs.finish(number, trial.config["config"], report)
        self.rungs.forget(number)
