"""Which configuration comes next: Optuna's multi-objective samplers as a function of the sweep's history.

The sampler is seeded anew for every draw from (sweep seed, number), the study holds nothing but what the ledger holds,
and what a sampler notes for later when it draws (the generation of NSGA-II and III and the parents it chose, the place
in a quasi-random sequence) is written into the ledger with the trial. So a search rebuilt from the ledger after a crash
proposes exactly what the killed one would have, in one slot and in several. In several slots the order in which
results come in decides what is known when a trial is drawn, as it does without a crash.

With several seeds a configuration is drawn once and run on every seed, in trials that follow one another; the sampler
is told the means over them, once all have ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from search_spaces import Requirement, Space
from sweep.front import Objectives
from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.search.samplers import SAMPLERS, Window, make_sampler, mix, population


class _Proposal(NamedTuple):
    """A trial that is to be run."""

    number: int
    config: dict[str, Any]

    noted: str
    """What the sampler wants to know of it later, as JSON; empty for nothing."""


class ParetoSearch:
    """Proposes interrupted trials first, then the given points, then what the sampler draws, until it is `enough`.

    A configuration that finished is told with its objectives, one that failed or was stopped early as such: its numbers
    never enter the sampler as if they were final. Benchmark `early_stopping` compares that with leaving the stopped
    out.

    Args:
        configurations: how many the sweep has in all.
        seeds: how many trials, and so numbers, every configuration has.
        require: what a configuration's means must fulfil; the sampler is told by how much they do not.
    """

    def __init__(
        self,
        space: Space,
        objectives: Objectives,
        *,
        sampler: str,
        seed: int,
        configurations: int = 24,
        epochs: int | None = None,
        seeds: int = 1,
        require: Sequence[Requirement] = (),
        history: Iterable[TrialRecord] = (),
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.objectives, self.sampler, self.seed = space, objectives, sampler, seed
        self.configurations, self.seeds, self.require = configurations, seeds, require
        self.enough = enough
        self.fixed = {} if epochs is None else {"epochs": epochs}
        directions = [StudyDirection.MAXIMIZE if high else StudyDirection.MINIMIZE for high in objectives.maximise]
        self.window = Window(SAMPLERS[sampler], space, objectives)
        self.study = optuna.create_study(directions=directions, storage=self.window, sampler=self.seeded(0))
        self.study_id = self.window.get_study_id_from_name(self.study.study_name)
        self.interrupted: list[_Proposal] = []
        self.begun: dict[int, _OpenConfiguration] = {}
        """Configurations not all of whose trials have ended, by their number, which is also the study's."""
        self.next_number = 0
        records = {record.number: record for record in history}
        for number in range(max(records, default=-1) + 1):
            record = records.get(number)
            if record is None or (record.state == "running" and not record.config):
                self.interrupted.append(self.propose())
            else:
                self.remember(record)

    def seeded(self, group: int) -> BaseSampler:
        """The sampler as it draws one configuration."""
        seed = mix(self.seed, group) if SAMPLERS[self.sampler].reseeded else self.seed
        return make_sampler(self.sampler, seed, self.space, self.configurations)

    def remember(self, record: TrialRecord) -> None:
        """Take a trial of an earlier run of this sweep into the study, or line it up to be gone on with."""
        self.next_number = record.number + 1
        group = record.number // self.seeds
        if group not in self.begun:
            self.add(group, record.config, record.noted)
        if record.state == "running":
            self.interrupted.append(_Proposal(record.number, record.config, record.noted))
        else:
            self.end(record.number, record.state, record.result)

    def suggest(self) -> _Proposal | None:
        """Return the next trial; None once no more is to begin."""
        if not self.interrupted and self.enough():
            return None
        return self.interrupted.pop(0) if self.interrupted else self.propose()

    def propose(self) -> _Proposal:
        """The next number with its configuration: on the next seed what was begun, else a given point, else a draw."""
        number, self.next_number = self.next_number, self.next_number + 1
        group, replicate = divmod(number, self.seeds)
        if group not in self.begun and group < len(self.space.points):
            self.add(group, self.space.points[group])
        elif group not in self.begun:
            self.draw(group)
        begun = self.begun[group]
        config = {**begun.config, **self.fixed, "seed": (self.seed + replicate) % 2**31}
        return _Proposal(number, config, begun.noted)

    def draw(self, group: int) -> None:
        """Ask the sampler, seeded for this configuration alone."""
        before = self.window.get_study_system_attrs(self.study_id)
        self.study.sampler = self.seeded(group)
        config = self.space.sample(self.study.ask())
        self.begun[group] = _OpenConfiguration(config, self.noted(group, before), {})

    def add(self, group: int, config: Mapping[str, Any], noted: str | None = None) -> None:
        """Enter a configuration that the sampler did not draw now, as far as the space can express it.

        Args:
            noted: what the sampler noted of it; None for a point that it sees for the first time.
        """
        distributions = self.space.distributions(config)
        expressible = {
            name: distribution for name, distribution in distributions.items() if _contains(distribution, config[name])
        }
        params = {name: config[name] for name in expressible}
        notes = json.loads(noted or "{}")
        for key, value in notes.get("study", {}).items():
            self.window.set_study_system_attr(self.study_id, key, value)
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=expressible,
                system_attrs=notes.get("trial", {}),
            )
        )
        if noted is None:
            noted = self.join_generation(group)
        self.begun[group] = _OpenConfiguration(dict(config), noted, {})

    def join_generation(self, group: int) -> str:
        """A given point is of the generation that would be drawn now, so that it can have children; what is noted."""
        before = self.window.get_study_system_attrs(self.study_id)
        sampler = self.seeded(group)
        if isinstance(sampler, optuna.samplers.NSGAIISampler | optuna.samplers.NSGAIIISampler):
            sampler.get_trial_generation(self.study, self.window.get_trial(group))
        return self.noted(group, before)

    def noted(self, group: int, before: Mapping[str, Any]) -> str:
        """What the sampler left with a trial, and with the study since `before`."""
        study = self.window.get_study_system_attrs(self.study_id)
        notes = {
            "trial": self.window.get_trial(group).system_attrs,
            "study": {key: value for key, value in study.items() if before.get(key) != value},
        }
        return json.dumps(notes) if any(notes.values()) else ""

    def end(self, number: int, state: str, report: Mapping[str, Any] | None) -> None:
        """Take in the end of a trial, with its final report if it finished; with the last one, of its configuration."""
        group = number // self.seeds
        ends = self.begun[group].ends
        ends[number] = (state, report)
        if len(ends) == self.seeds:
            self.tell(group, [state for state, _ in ends.values()], [report for _, report in ends.values() if report])
            del self.begun[group]

    def tell(self, group: int, states: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> None:
        """The end of a configuration: its means if all its trials finished, else only that one failed or was
        stopped."""
        if "failed" in states:
            self.study.tell(group, state=TrialState.FAIL)
        elif len(reports) < self.seeds:
            self.study.tell(group, state=TrialState.PRUNED)
        else:
            excesses = [each.excess(fmean(report[each.name] for report in reports)) for each in self.require]
            if excesses:
                self.window.set_trial_system_attr(group, "constraints", excesses)
            self.study.tell(group, [fmean(report[name] for report in reports) for name in self.objectives.names])


class _OpenConfiguration(NamedTuple):
    """A configuration some of whose trials have not ended."""

    config: dict[str, Any]
    noted: str

    ends: dict[int, tuple[str, Mapping[str, Any] | None]]
    """State and final report by trial."""


def remarks(plan: SweepPlan) -> Iterator[str]:
    """What the user should know of the plan's sampler, before it costs anything."""
    points = len(plan.space.points)
    if points > plan.configurations:
        whole = f"--trials {points * plan.seeds} runs all"
        yield f"the first {plan.configurations} of {points} given points are run; {whole}"
    conditional = [name for name, swept in plan.space.swept.items() if swept.when]
    if not plan.space.swept or plan.sampler not in ("gp", "nsga2", "nsga3"):
        return
    if plan.sampler == "gp":
        yield "gp: a draw takes seconds, in which no trial begins; it learns from 10 trials on"
    else:
        yield f"{plan.sampler}: generations of {population(plan.configurations)}, the first of them drawn at random"
    if conditional:
        yield f"{plan.sampler}: draws knobs with a condition at random: {', '.join(conditional)}"


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a space's distribution has the value; a given point may lie outside of what is swept."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False
