"""Which configuration comes next: Optuna's multi-objective samplers as a function of the sweep's history.

The sampler is seeded anew for every trial from (sweep seed, trial number), and the study holds nothing but what the
ledger holds. So a search rebuilt from the ledger after a crash proposes exactly what the undisturbed one would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from search_spaces import Space
from sweep.ledger import TrialRecord
from sweep.pareto import Objectives
from sweep.trainable import FAILURE, report_of

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # Multivariate in groups: the spaces have conditions, and the knobs of one regulariser act together.
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def make_sampler(name: str, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed)


class ParetoSearch(Searcher):
    """Proposes interrupted trials first, then the given points, then what the sampler draws, until it is `enough`.

    A trial that finished is told with its objectives, one that failed or was stopped early as such: its numbers never
    enter the sampler as if they were final. Benchmark `early_stopping` compares that with leaving the stopped out.
    """

    def __init__(
        self,
        space: Space,
        objectives: Objectives,
        *,
        sampler: str,
        seed: int,
        epochs: int | None = None,
        history: Iterable[TrialRecord] = (),
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.objectives, self.sampler, self.seed = space, objectives, sampler, seed
        self.enough = enough
        self.fixed = {} if epochs is None else {"epochs": epochs}
        directions = [StudyDirection.MAXIMIZE if high else StudyDirection.MINIMIZE for high in objectives.maximise]
        self.study = optuna.create_study(directions=directions, sampler=make_sampler(sampler, seed))
        self.points = [self.complete(point) for point in space.points]
        self.interrupted: list[tuple[int, dict[str, Any]]] = []
        self.study_numbers: dict[int, int] = {}
        self.running: dict[str, int] = {}
        self.next_number = 0
        for record in sorted(history, key=lambda record: record.number):
            while self.next_number < record.number:
                self.interrupted.append(self.propose())
            self.remember(record)

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with what the plan adds to every trial."""
        return {**settings, **self.fixed, "seed": self.seed}

    def remember(self, record: TrialRecord) -> None:
        """Take a trial of an earlier run of this sweep into the study, or line it up to be gone on with."""
        self.next_number = record.number + 1
        self.add(record.number, record.config)
        if record.state == "running":
            self.interrupted.append((record.number, record.config))
        else:
            self.tell(
                record.number, record.result if record.state == "finished" else None, failed=record.state == "failed"
            )

    def suggest(self, trial_id: str) -> Any:
        """What the next trial is given, or Ray Tune's word for the end."""
        if not self.interrupted and self.enough():
            return Searcher.FINISHED
        number, config = self.interrupted.pop(0) if self.interrupted else self.propose()
        self.running[trial_id] = number
        return {"number": number, "config": config}

    def propose(self) -> tuple[int, dict[str, Any]]:
        """The next number with its configuration: a given point, or what the sampler draws."""
        number, self.next_number = self.next_number, self.next_number + 1
        if number >= len(self.points):
            return number, self.draw(number)
        self.add(number, self.points[number])
        return number, self.points[number]

    def draw(self, number: int) -> dict[str, Any]:
        """Ask the sampler, seeded for this trial alone."""
        self.study.sampler = make_sampler(self.sampler, mix(self.seed, number))
        trial = self.study.ask()
        config = self.complete(self.space.sample(trial))
        self.study_numbers[number] = trial.number
        return config

    def add(self, number: int, config: Mapping[str, Any]) -> None:
        """Enter a configuration that the sampler did not draw now, as far as the space can express it."""
        distributions = self.space.distributions(config)
        expressible = {
            name: distribution for name, distribution in distributions.items() if contains(distribution, config[name])
        }
        params = {name: config[name] for name in expressible}
        self.study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=expressible))
        self.study_numbers[number] = len(self.study.get_trials(deepcopy=False)) - 1

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        result = result or {}
        self.tell(self.running.pop(trial_id), report_of(result) or None, failed=error or FAILURE in result)

    def tell(self, number: int, report: Mapping[str, Any] | None, *, failed: bool) -> None:
        """The end of a trial: its objectives if it finished, else only that it failed or was stopped."""
        if failed:
            self.study.tell(self.study_numbers[number], state=TrialState.FAIL)
        elif report is not None and report["final"]:
            self.study.tell(self.study_numbers[number], [report[name] for name in self.objectives.names])
        else:
            self.study.tell(self.study_numbers[number], state=TrialState.PRUNED)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what a search is rebuilt from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a space's distribution has the value; a given point may lie outside of what is swept."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False


def mix(*numbers: int) -> int:
    """One 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
