"""Stopping trials early when several objectives count: asynchronous successive halving by non-dominated rank.

MO-ASHA (Schmucker et al., arXiv 2106.12639): a trial that reaches a rung is compared with all that reached it before.
The best 1/eta go on. Better is who stands on an earlier non-dominated front; inside a front, who is chosen earlier by
an epsilon-net, farthest first, on objectives measured in the rung's own extent. Unlike there, trials are stopped where
they stand instead of paused, and nobody on a rung's front is ever stopped.

Where something is required (`--require`), who fulfils it stands before who does not, and of these the one that breaks
it least comes first (Deb 2002): while nobody in a rung fulfils it, its front is whoever comes nearest.

Trials that differ in the seed alone are a group. It is ranked by its means over the trials that have reached the rung,
and once one of its trials is stopped all are, each at its next report.

`Rungs` is the whole of it, without Ray: what it decides depends on who stands in the rung, never on their order. Its
state is rebuilt from the decisions in the ledger.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search_spaces.requirement import Requirement, violation
from sweep import pareto
from sweep.ledger import TrialRecord
from sweep.pareto import Objectives
from sweep.trainable import report_of

STRENGTH = "evaluation_strength"
"""Field of a report that says what its numbers were measured with, where that changes from epoch to epoch."""

REQUIRED = "required."
"""How the keys of what requirements name begin in a plain decision."""

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
    """What all of them were measured with; empty where all evaluations are equal."""

    values: tuple[float, ...]
    """The objectives that the trial brought to the rung, in their own units."""

    broken: str = ""
    """As in `Standing`."""

    required: tuple[tuple[str, float], ...] = ()
    """What it brought of the numbers that requirements name."""

    followed: int = -1
    """The trial of its group that was stopped before it, and whose standing this is; -1 for none."""

    @property
    def reason(self) -> str:
        """For people."""
        if self.followed >= 0:
            return f"stopped after epoch {self.epoch}: as trial {self.followed:03d} of its configuration was"
        others = " and ".join(f"{number:03d}" for number in self.dominated_by)
        return (
            f"stopped after epoch {self.epoch}: place {self.place + 1} of {self.competitors} at epoch {self.rung}"
            f"{', not ' + self.broken if self.broken else ''}{', dominated by ' + others if others else ''}"
        )

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


@dataclass
class Rung:
    """Who has reached a number of epochs: the numbers (d + c,) of every trial by group and number, objectives first,
    then what the requirements name."""

    groups: dict[str, dict[int, tuple[float, ...]]] = field(default_factory=dict)

    means: dict[str, list[float]] = field(default_factory=dict)
    """Of every group over its trials, exactly the same in whatever order they came."""

    def enter(self, group: str, trial: int, numbers: Sequence[float]) -> None:
        members = self.groups.setdefault(group, {})
        members[trial] = tuple(map(float, numbers))
        self.means[group] = [math.fsum(column) / len(members) for column in zip(*members.values(), strict=True)]

    def standing(self, group: str, objectives: Objectives, require: Sequence[Requirement]) -> Standing:
        means, names = np.array(list(self.means.values())), list(self.means)
        index, d = names.index(group), len(objectives.names)
        points, required = means[:, :d], [dict(zip(required_names(require), row, strict=True)) for row in means[:, d:]]
        violations = np.array([violation(require, numbers) for numbers in required])
        violations[~np.isfinite(means).all(axis=1)] = np.inf
        layers = layers_of(points, objectives, violations)
        beaten = sorted(min(self.groups[names[i]]) for i in dominators(index, points, objectives, violations))
        place = place_of(index, points, layers, objectives, violations)
        broken = " and ".join(str(each) for each in require if each.excess(required[index][each.name]) > 0)
        return Standing(int(layers[index]), place, len(means), tuple(beaten[:NAMED]), broken)


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
    """

    def __init__(
        self, objectives: Objectives, *, levels: Sequence[int], eta: int, require: Sequence[Requirement] = ()
    ) -> None:
        self.objectives, self.levels, self.eta, self.require = objectives, sorted(levels), eta, require
        self.rungs: dict[tuple[int, str], Rung] = {}
        self.leaders: dict[str, int] = {}
        """Of every group that was stopped, the trial with which it was."""
        self.decisions: dict[int, list[Decision]] = {}
        """By trial, in the order in which they were made."""

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
        rung = self.rungs.setdefault((level, strength), Rung())
        rung.enter(group, trial, [*values, *dict(brought).values()])
        standing = rung.standing(group, self.objectives, self.require)
        decision = Decision(
            rung=level,
            epoch=epoch,
            **standing._asdict(),
            stop=behind(standing, eta=self.eta),
            strength=strength,
            values=tuple(map(float, values)),
            required=brought,
        )
        self.decisions.setdefault(trial, []).append(decision)
        if decision.stop:
            self.leaders[group] = trial
        return decision

    def hear(self, trial: int, config: Mapping[str, Any], report: Mapping[str, Any]) -> Decision | None:
        """`decide` on what a trial of a configuration reports."""
        return self.decide(
            trial,
            group_key(config),
            report["epoch"],
            [report[name] for name in self.objectives.names],
            required={name: report[name] for name in required_names(self.require)},
            strength=report.get(STRENGTH, ""),
        )

    def stopped(self, trial: int) -> bool:
        return any(decision.stop for decision in self.decisions.get(trial, ()))

    def restore(self, records: Iterable[TrialRecord]) -> None:
        """Stand where the decisions in a ledger left off."""
        for record in records:
            decisions = [Decision.from_dict(plain, self.objectives) for plain in record.decisions]
            self.decisions[record.number] = decisions
            for each in decisions:
                if each.followed >= 0:
                    continue
                rung = self.rungs.setdefault((each.rung, each.strength), Rung())
                rung.enter(group_key(record.config), record.number, [*each.values, *dict(each.required).values()])
                if each.stop:
                    self.leaders[group_key(record.config)] = record.number


def rung_levels(*, grace_epochs: int, eta: int, epochs: int) -> list[int]:
    """grace, grace eta, grace eta^2, ... below `epochs`: at the end there is nothing left to save."""
    levels, level = [], grace_epochs
    while level < epochs:
        levels.append(level)
        level *= eta
    return levels


def group_key(config: Mapping[str, Any]) -> str:
    """Equal for trials that differ in the seed alone."""
    return json.dumps({name: value for name, value in config.items() if name != "seed"}, sort_keys=True)


def layers_of(points: np.ndarray, objectives: Objectives, violations: np.ndarray | None = None) -> np.ndarray:
    """Ranks (n,) of points (n, d) by constrained domination: 0 on the front; what is not finite comes after all the
    rest."""
    violations = np.zeros(len(points)) if violations is None else violations
    finite = np.isfinite(points).all(axis=1) & np.isfinite(violations)
    layers = np.zeros(len(points), dtype=int)
    layers[finite] = pareto.constrained_ranks(points[finite], violations[finite], objectives)
    layers[~finite] = layers[finite].max(initial=-1) + 1
    return layers


def place_of(
    index: int,
    points: np.ndarray,
    layers: np.ndarray,
    objectives: Objectives,
    violations: np.ndarray | None = None,
) -> int:
    """How many of the points (n, d) stand before one: all of better layers, and of its own layer those that the
    epsilon-net takes before it. Equal points tie, and so do those that break the requirements equally."""
    before, own = int((layers < layers[index]).sum()), np.flatnonzero(layers == layers[index])
    feasible = np.ones(len(points), dtype=bool) if violations is None else violations <= 0
    if not np.isfinite(points[index]).all() or not feasible[index]:
        return before
    # Among the feasible, and in their extent alone.
    gains = extents(np.where(feasible[:, None], points, np.nan), objectives)
    different, counts = np.unique(gains[own], axis=0, return_counts=True)
    order = farthest_first(different)
    me = int(np.flatnonzero((different[order] == gains[index]).all(axis=1))[0])
    return before + int(counts[order[:me]].sum())


def extents(points: np.ndarray, objectives: Objectives) -> np.ndarray:
    """Gains (n, d) in units of the extent of all finite points: from 0, the worst, to 1, the best."""
    finite = np.isfinite(points).all(axis=1)
    gains = np.full(points.shape, np.nan)
    gains[finite] = objectives.turn(points[finite])
    low, high = gains[finite].min(axis=0), gains[finite].max(axis=0)
    return (gains - low) / np.where(high > low, high - low, 1.0)


def farthest_first(shares: np.ndarray) -> np.ndarray:
    """An order (m,) of different points (m, d) in [0, 1], ascending, of which every beginning covers them well.

    The first is the one with the largest sum, each next the one farthest from all before it (algorithm 2 of Schmucker
    et al.; Gonzalez 1985). Where two are as far, the one that comes first by value: nothing depends on who came first.
    """
    order = [int(shares.sum(axis=1).argmax())]
    gaps = np.full(len(shares), np.inf)
    while len(order) < len(shares):
        gaps = np.minimum(gaps, ((shares - shares[order[-1]]) ** 2).sum(axis=1))
        gaps[order] = -1.0
        order.append(int(gaps.argmax()))
    return np.array(order)


def dominators(index: int, points: np.ndarray, objectives: Objectives, violations: np.ndarray) -> np.ndarray:
    """Which of the points (n, d) dominate one, by violations (n,) and else by the objectives; none where it is not
    finite."""
    if not np.isfinite(points[index]).all() or not np.isfinite(violations[index]):
        return np.array([], dtype=int)
    gains = points * np.where(objectives.maximise, 1.0, -1.0)
    better = (gains >= gains[index]).all(axis=1) & (gains > gains[index]).any(axis=1) & (violations[index] == 0)
    return np.flatnonzero(np.where(violations == violations[index], better, violations < violations[index]))


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
