"""TODO one line."""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Space
from sweep.front import Objectives, front_mask

_GENERATIONS = 5
"""Of a sweep's configurations under NSGA-II and III, where neither of the next two says otherwise."""
_SMALLEST_POPULATION, _LARGEST_POPULATION = 8, 50


class _Kind(NamedTuple):
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


class _QuasiRandom(optuna.samplers.QMCSampler):
    """A scrambled Sobol sequence over all knobs. Those whose condition does not hold are passed over; Optuna's own
    would take the knobs of the first finished trial, and draw the others at random."""

    def __init__(self, seed: int, space: Space) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self.knobs = {name: swept.domain.distribution() for name, swept in space.swept.items()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.knobs


def population(configurations: int) -> int:
    """Trials of a generation: the first is drawn at random, so a short sweep has small ones."""
    return min(max(configurations // _GENERATIONS, _SMALLEST_POPULATION), _LARGEST_POPULATION)


SAMPLERS: dict[str, _Kind] = {
    # Multivariate in groups: the spaces have conditions, and the knobs of one regulariser act together.
    "tpe": _Kind(
        lambda seed, space, configurations: optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True
        )
    ),
    "nsga2": _Kind(
        lambda seed, space, configurations: optuna.samplers.NSGAIISampler(
            seed=seed, population_size=population(configurations)
        ),
        whole_only=True,
    ),
    "nsga3": _Kind(
        lambda seed, space, configurations: optuna.samplers.NSGAIIISampler(
            seed=seed, population_size=population(configurations)
        ),
        whole_only=True,
    ),
    "gp": _Kind(
        lambda seed, space, configurations: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False),
        newest=100,
        whole_only=True,
    ),
    "random": _Kind(lambda seed, space, configurations: optuna.samplers.RandomSampler(seed=seed)),
    "qmc": _Kind(lambda seed, space, configurations: _QuasiRandom(seed, space), reseeded=False),
}


def make_sampler(name: str, seed: int, space: Space, configurations: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name].make(seed, space, configurations)


class Window(InMemoryStorage):
    """A study of which samplers see what runs, the front, and of all else that ended the newest.

    What is seen depends on which trials ended, never on their order.
    """

    def __init__(self, kind: _Kind, space: Space, objectives: Objectives) -> None:
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
        mask = front_mask([self.get_trial(each).values for each in rivals], self.objectives)
        self.front = [each for each, on_front in zip(rivals, mask, strict=True) if on_front]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        kept = set(self.front[-(self.newest // 2) :])
        newest = self.ended[-self.newest :]
        newest = newest[max(0, len(newest) + len(kept.difference(newest)) - self.newest) :]
        shown = [self.get_trial(each) for each in sorted({*kept, *newest, *self.running})]
        return [trial for trial in shown if states is None or trial.state in states]


def mix(*numbers: int) -> int:
    """One 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
