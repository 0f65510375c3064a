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

import bisect
import json
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from search_spaces import Space
from search_spaces.requirement import Requirement
from sweep import pareto
from sweep.ledger import TrialRecord
from sweep.pareto import Objectives
from sweep.plan import SweepPlan
from sweep.trainable import FAILURE, report_of

GENERATIONS = 5
"""Of a sweep's configurations under NSGA-II and III, where neither of the next two says otherwise."""
SMALLEST_POPULATION, LARGEST_POPULATION = 8, 50


class Kind(NamedTuple):
    """How a sampler is made, and what it is shown."""

    make: Callable[[int, Space, int], BaseSampler]
    """From a seed, the space, and how many configurations the sweep has."""

    newest: int = 500
    """How many of the trials that ended it is shown: the front, up to half of them, and the newest others. So a draw
    costs no more after 10,000 trials than after so many."""

    whole_only: bool = False
    """Shown are only trials that have every knob without a condition. A given point may lie outside of the space, and
    these samplers learn of knobs that all trials have."""

    reseeded: bool = True
    """Seeded anew for every draw; a sequence is one, with the sweep's seed."""


class QuasiRandom(optuna.samplers.QMCSampler):
    """A scrambled Sobol sequence over all knobs. Those whose condition does not hold are passed over; Optuna's own
    would take the knobs of the first finished trial, and draw the others at random."""

    def __init__(self, seed: int, space: Space) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self.knobs = {name: swept.domain.distribution() for name, swept in space.swept.items()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.knobs


def population(configurations: int) -> int:
    """Trials of a generation: the first is drawn at random, so a short sweep has small ones."""
    return min(max(configurations // GENERATIONS, SMALLEST_POPULATION), LARGEST_POPULATION)


SAMPLERS: dict[str, Kind] = {
    # Multivariate in groups: the spaces have conditions, and the knobs of one regulariser act together.
    "tpe": Kind(
        lambda seed, space, configurations: optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True
        )
    ),
    "nsga2": Kind(
        lambda seed, space, configurations: optuna.samplers.NSGAIISampler(
            seed=seed, population_size=population(configurations)
        ),
        whole_only=True,
    ),
    "nsga3": Kind(
        lambda seed, space, configurations: optuna.samplers.NSGAIIISampler(
            seed=seed, population_size=population(configurations)
        ),
        whole_only=True,
    ),
    "gp": Kind(
        lambda seed, space, configurations: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False),
        newest=100,
        whole_only=True,
    ),
    "random": Kind(lambda seed, space, configurations: optuna.samplers.RandomSampler(seed=seed)),
    "qmc": Kind(lambda seed, space, configurations: QuasiRandom(seed, space), reseeded=False),
}


def make_sampler(name: str, seed: int, space: Space, configurations: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name].make(seed, space, configurations)


class Window(InMemoryStorage):
    """A study of which samplers see what runs, the front, and of all else that ended the newest.

    What is seen depends on which trials ended, never on their order.
    """

    def __init__(self, kind: Kind, space: Space, objectives: Objectives) -> None:
        super().__init__()
        self.newest, self.objectives = kind.newest, objectives
        self.needed = {name for name, swept in space.swept.items() if kind.whole_only and not swept.when}
        self.running: list[int] = []
        self.ended: list[int] = []
        self.front: list[int] = []
        """Ascending, as those before."""

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        number = super().create_new_trial(study_id, template_trial)
        self.running.append(number)
        return number

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        changed = super().set_trial_state_values(trial_id, state, values)
        self.running.remove(trial_id)
        if state != TrialState.FAIL and self.needed <= self.get_trial(trial_id).params.keys():
            bisect.insort(self.ended, trial_id)
            if state == TrialState.COMPLETE:
                self.contend(trial_id)
        return changed

    def contend(self, number: int) -> None:
        """Enter a trial into the front, if it belongs there."""
        if any(excess > 0 for excess in self.get_trial(number).constraints.values()):
            return
        rivals = sorted([*self.front, number])
        mask = pareto.front_mask([self.get_trial(each).values for each in rivals], self.objectives)
        self.front = [each for each, on_front in zip(rivals, mask, strict=True) if on_front]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        kept = set(self.front[-(self.newest // 2) :])
        newest = self.ended[-self.newest :]
        newest = newest[max(0, len(newest) + len(kept.difference(newest)) - self.newest) :]
        shown = [self.get_trial(each) for each in sorted({*kept, *newest, *self.running})]
        return [trial for trial in shown if states is None or trial.state in states]


class Proposal(NamedTuple):
    """A trial that is to be run."""

    number: int
    config: dict[str, Any]

    noted: str
    """What the sampler wants to know of it later, as JSON; empty for nothing."""


class ParetoSearch(Searcher):
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
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.objectives, self.sampler, self.seed = space, objectives, sampler, seed
        self.configurations, self.seeds, self.require = configurations, seeds, require
        self.enough = enough
        self.fixed = {} if epochs is None else {"epochs": epochs}
        directions = [StudyDirection.MAXIMIZE if high else StudyDirection.MINIMIZE for high in objectives.maximise]
        self.window = Window(SAMPLERS[sampler], space, objectives)
        self.study = optuna.create_study(directions=directions, storage=self.window, sampler=self.seeded(0))
        self.study_id = self.window.get_study_id_from_name(self.study.study_name)
        self.interrupted: list[Proposal] = []
        self.begun: dict[int, Begun] = {}
        """Configurations not all of whose trials have ended, by their number, which is also the study's."""
        self.running: dict[str, int] = {}
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
            self.interrupted.append(Proposal(record.number, record.config, record.noted))
        else:
            self.take(record.number, record.state, record.result)

    def suggest(self, trial_id: str) -> Any:
        """What the next trial is given, or Ray Tune's word for the end."""
        if not self.interrupted and self.enough():
            return Searcher.FINISHED
        proposal = self.interrupted.pop(0) if self.interrupted else self.propose()
        self.running[trial_id] = proposal.number
        return proposal._asdict()

    def propose(self) -> Proposal:
        """The next number with its configuration: on the next seed what was begun, else a given point, else a draw."""
        number, self.next_number = self.next_number, self.next_number + 1
        group, replicate = divmod(number, self.seeds)
        if group not in self.begun and group < len(self.space.points):
            self.add(group, self.space.points[group])
        elif group not in self.begun:
            self.draw(group)
        begun = self.begun[group]
        config = {**begun.config, **self.fixed, "seed": (self.seed + replicate) % 2**31}
        return Proposal(number, config, begun.noted)

    def draw(self, group: int) -> None:
        """Ask the sampler, seeded for this configuration alone."""
        before = self.window.get_study_system_attrs(self.study_id)
        self.study.sampler = self.seeded(group)
        config = self.space.sample(self.study.ask())
        self.begun[group] = Begun(config, self.noted(group, before), {})

    def add(self, group: int, config: Mapping[str, Any], noted: str | None = None) -> None:
        """Enter a configuration that the sampler did not draw now, as far as the space can express it.

        Args:
            noted: what the sampler noted of it; None for a point that it sees for the first time.
        """
        distributions = self.space.distributions(config)
        expressible = {
            name: distribution for name, distribution in distributions.items() if contains(distribution, config[name])
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
        self.begun[group] = Begun(dict(config), noted, {})

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

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        report = report_of(result or {})
        final = report if report.get("final") else None
        state = "failed" if error or FAILURE in (result or {}) else "finished" if final else "stopped"
        self.take(self.running.pop(trial_id), state, final)

    def take(self, number: int, state: str, report: Mapping[str, Any] | None) -> None:
        """The end of a trial, with its final report if it finished; with the last one, of its configuration."""
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

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what a search is rebuilt from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""


class Begun(NamedTuple):
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


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a space's distribution has the value; a given point may lie outside of what is swept."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False


def mix(*numbers: int) -> int:
    """One 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
