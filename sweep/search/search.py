"""The search for the next configuration: Optuna's multi-objective samplers as a function of the sweep's history.

The sampler is seeded anew for every draw from (sweep seed, number), and the study holds nothing but what the ledger
holds. The state that a sampler keeps from draw to draw (the generation of NSGA-II and III and the parents it chose, the
position in a quasi-random sequence) is written into the ledger with the trial. So a search that is rebuilt from the
ledger after a crash proposes exactly what the killed one would have, in one slot and in several. In several slots the
order in which trials end decides what is known when a trial is drawn, as it does without a crash.

With several seeds a configuration is drawn once and run on every seed, in trials that follow one another. The sampler
gets the means over them once all have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from search_spaces import Requirement, Space
from sweep.front import Objectives
from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan, given_points, trials_at_first
from sweep.search.decision import NEW
from sweep.search.freeze_thaw import FreezeThaw
from sweep.search.optuna_internals import Window, contains, join_generation
from sweep.search.samplers import SAMPLERS, make_sampler, mix, population

_PRIOR = 1
"""Sets the random numbers of draws that follow a belief apart from those of the sampler."""


class _Proposal(NamedTuple):
    """A trial that is to be run."""

    number: int
    config: dict[str, Any]

    sampler_state: str
    """State of the sampler at the proposal, as JSON; empty for none."""

    reason: str = ""
    """Reason for which it is begun or thawed; empty where no rule chose it."""


class ParetoSearch:
    """Proposes interrupted trials first, then the given points, then what the prior or the sampler draws.

    The sampler gets the objectives of a configuration that finished. One that failed or was stopped early is marked as
    such, and its numbers never enter the sampler as if they were final. Benchmark `early_stopping` compares that with
    leaving stopped configurations out. A paused one counts as running.

    Args:
        configurations: number of configurations in the sweep.
        epochs: epochs of every trial; None for those of the configuration.
        seeds: number of trials, and so of trial numbers, of every configuration.
        require: requirements on a configuration's means; the sampler gets the amounts by which they are violated.
        points: configurations that are run without being drawn, by their numbers; None for the space's, from 0 on.
        other_space: number of the first configuration that was drawn from this space; the sampler is not told of
            those before that lie outside of it.
        history: trials of earlier runs of the sweep.
        enough: returns whether no new trial is to begin.
        thaw: rule that chooses between new and paused trials; None if no trial pauses.
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
        points: Mapping[int, Mapping[str, Any]] | None = None,
        other_space: int = 0,
        history: Iterable[TrialRecord] = (),
        enough: Callable[[], bool] = lambda: False,
        thaw: FreezeThaw | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.objectives, self.sampler, self.seed = space, objectives, sampler, seed
        self.configurations, self.seeds, self.require = configurations, seeds, require
        self.other_space = other_space
        self.points = dict(enumerate(space.points)) if points is None else points
        self.enough, self.thaw = enough, thaw
        self.fixed = {} if epochs is None else {"epochs": epochs}
        directions = [StudyDirection.MAXIMIZE if high else StudyDirection.MINIMIZE for high in objectives.maximise]
        kind = SAMPLERS[sampler]
        needed = {name for name, swept in space.swept.items() if kind.whole_only and not swept.when}
        self.window = Window(objectives, newest=kind.newest, needed=needed)
        self.study = optuna.create_study(directions=directions, storage=self.window, sampler=self._seeded(0))
        self._interrupted: list[_Proposal] = []
        self._open: dict[int, _OpenConfiguration] = {}
        """Configurations not all of whose trials have ended, by their number, which is also the study's."""
        self._next_number = 0
        records = {record.number: record for record in history}
        for number in range(max(records, default=-1) + 1):
            record = records.get(number)
            if record is None or (record.state == "running" and not record.config):
                self._interrupted.append(self.propose())
            else:
                self._restore(record)

    def suggest(self) -> _Proposal | None:
        """Return the next trial; None if none is to begin or go on, now or (`is_over`) at all."""
        proposal = self._interrupted.pop(0) if self._interrupted else None if self.enough() else self._follow()
        if self.thaw and proposal:
            self.thaw.start(proposal.number)
        return proposal

    @property
    def is_over(self) -> bool:
        """True if no trial will begin any more once `suggest` returned None: none runs that might pause."""
        return self.thaw is None or not self.thaw.live

    def pauses(self, number: int) -> bool:
        """Return whether a trial that has left its slot is paused."""
        return self.thaw is not None and number in self.thaw.paused

    def _follow(self) -> _Proposal | None:
        """Return a new trial, or a paused one if it is worth more; None if no slot is worth to be filled."""
        if self.thaw is None:
            return self.propose()
        choice = self.thaw.choose()
        if choice is None:
            return None
        proposal = self.propose() if choice.number == NEW else self._proposal(choice.number)
        return proposal._replace(reason=choice.reason)

    def propose(self) -> _Proposal:
        """Return a new trial: the next seed of an open configuration, else a given point, else a draw."""
        number, self._next_number = self._next_number, self._next_number + 1
        group = number // self.seeds
        if group not in self._open and group in self.points:
            self._add(group, self.points[group])
        elif group not in self._open:
            draws = group - sum(number < group for number in self.points)
            believed = self.space.believed(draws=draws, seed=mix(self.seed, group, _PRIOR))
            self._draw(group) if believed is None else self._add(group, believed)
        return self._proposal(number)

    def _proposal(self, number: int) -> _Proposal:
        """Return a trial of an open configuration."""
        group, replicate = divmod(number, self.seeds)
        configuration = self._open[group]
        config = {**configuration.config, **self.fixed, "seed": (self.seed + replicate) % 2**31}
        return _Proposal(number, config, configuration.sampler_state)

    def end(self, number: int, state: str, report: Mapping[str, Any] | None) -> None:
        """Take in the end of a trial, with its final report if it finished; the last one ends its configuration."""
        if self.thaw:
            self.thaw.end(number, finished=state == "finished")
        self._end(number, state, report)

    def _end(self, number: int, state: str, report: Mapping[str, Any] | None) -> None:
        group = number // self.seeds
        ends = self._open[group].ends
        ends[number] = (state, report)
        if len(ends) == self.seeds:
            self._tell(group, [state for state, _ in ends.values()], [report for _, report in ends.values() if report])
            del self._open[group]

    def _restore(self, record: TrialRecord) -> None:
        """Add a trial of an earlier run to the study, or to those that are to be continued."""
        self._next_number = record.number + 1
        group = record.number // self.seeds
        if group not in self._open:
            self._add(group, record.config, record.sampler_state)
        if record.state == "running":
            self._interrupted.append(_Proposal(record.number, record.config, record.sampler_state))
        elif record.state != "paused":
            self._end(record.number, record.state, record.result)

    def _seeded(self, group: int) -> BaseSampler:
        """Return the sampler as it draws one configuration."""
        seed = mix(self.seed, group) if SAMPLERS[self.sampler].reseeded else self.seed
        return make_sampler(self.sampler, seed, self.space, self.configurations)

    def _draw(self, group: int) -> None:
        """Open a configuration that the sampler draws, seeded for it alone."""
        before = self.window.attributes()
        self.study.sampler = self._seeded(group)
        config = self.space.sample(self.study.ask())
        self._open[group] = _OpenConfiguration(config, self.window.sampler_state(group, before), {})

    def _add(self, group: int, config: Mapping[str, Any], sampler_state: str | None = None) -> None:
        """Open a configuration that the sampler does not draw now, as far as the space can express it.

        Args:
            sampler_state: the state at its draw; None for a point that the sampler has never seen.
        """
        distributions = self.space.distributions(config)
        expressible = {name: each for name, each in distributions.items() if contains(each, config[name])}
        outside = group < self.other_space and group not in self.points and self._is_outside(config, expressible)
        attributes = self.window.restore(sampler_state or "")
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params={name: config[name] for name in expressible},
                distributions=expressible,
                system_attrs=attributes,
            )
        )
        if sampler_state is None:
            before = self.window.attributes()
            join_generation(self._seeded(group), self.study, self.window.get_trial(group))
            sampler_state = self.window.sampler_state(group, before)
        self._open[group] = _OpenConfiguration(dict(config), sampler_state, {}, outside)

    def _is_outside(self, config: Mapping[str, Any], expressible: Collection[str]) -> bool:
        """Return whether a configuration could not be drawn: a knob is outside of its range, or fixed otherwise."""
        return set(self.space.point(config)) != set(expressible)

    def _tell(self, group: int, states: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> None:
        """Tell the study a configuration's means if all its trials finished, else that one failed or was stopped."""
        if "failed" in states or self._open[group].outside:
            self.study.tell(group, state=TrialState.FAIL)
        elif len(reports) < self.seeds:
            self.study.tell(group, state=TrialState.PRUNED)
        else:
            excesses = [each.excess(fmean(report[each.name] for report in reports)) for each in self.require]
            if excesses:
                self.window.set_violations(group, excesses)
            self.study.tell(group, [fmean(report[name] for report in reports) for name in self.objectives.names])


class _OpenConfiguration(NamedTuple):
    """A configuration some of whose trials have not ended."""

    config: dict[str, Any]
    sampler_state: str

    ends: dict[int, tuple[str, Mapping[str, Any] | None]]
    """States and final reports of the trials that have ended, by number."""

    outside: bool = False
    """True if the space has changed since, so that it is not in it."""


def remarks(plan: SweepPlan) -> Iterator[str]:
    """Yield what the user should know about the plan's sampler before it costs anything."""
    given, first = given_points(plan), trials_at_first(plan) // plan.seeds
    if max(given, default=-1) >= plan.configurations:
        points, whole = len(given), f"--trials {(max(given) + 1) * plan.seeds} runs all"
        yield f"the first {plan.configurations} of {points} given points are run; {whole}"
    conditional = [name for name, swept in plan.space.swept.items() if swept.when]
    if not plan.space.swept or plan.sampler not in ("gp", "nsga2", "nsga3"):
        return
    if plan.sampler == "gp":
        yield "gp: a draw takes seconds, in which no trial begins; it learns from 10 trials on"
    else:
        yield f"{plan.sampler}: generations of {population(first)}, the first of them drawn at random"
    if conditional:
        yield f"{plan.sampler}: draws knobs with a condition at random: {', '.join(conditional)}"
