"""Everything that this project uses of Optuna beyond its documented interface.

Optuna promises none of this, so that a new version may change it. Each item has a test in
`tests/unit/test_canaries_optuna.py` that says what broke.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweep.front import Objectives, front_mask

TRIED_VERSIONS = ("5.0.0",)
"""Optuna versions with which everything here was tried."""

CONSTRAINTS = "constraints"
"""System attribute of a trial with the amounts by which it violates each constraint; at most 0 where it does not."""


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a distribution has a value; a given point may lie outside of what is swept."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False


class Window(InMemoryStorage):
    """The storage of one study, of which samplers see the running trials, the front, and the newest of the ended.

    All samplers read trials by `get_all_trials`; in this storage a trial's id is its number. What is seen depends on
    which trials ended, never on their order.

    Args:
        objectives: of the study.
        newest: number of ended trials that samplers see: the front, up to half of them, and the newest others.
        needed: parameters that a trial must have to be seen once it has ended.
    """

    def __init__(self, objectives: Objectives, *, newest: int, needed: Iterable[str] = ()) -> None:
        super().__init__()
        self.objectives, self.newest, self.needed = objectives, newest, set(needed)
        self._study = -1
        self._running: list[int] = []
        self._ended: list[int] = []
        self._front: list[int] = []
        """Trials on the front; ascending, like the running and the ended."""

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        self._study = super().create_new_study(directions, study_name)
        return self._study

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        number = super().create_new_trial(study_id, template_trial)
        self._running.append(number)
        return number

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        changed = super().set_trial_state_values(trial_id, state, values)
        self._running.remove(trial_id)
        if state != TrialState.FAIL and self.needed <= self.get_trial(trial_id).params.keys():
            bisect.insort(self._ended, trial_id)
            if state == TrialState.COMPLETE:
                self._contend(trial_id)
        return changed

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        kept = set(self._front[-(self.newest // 2) :])
        newest = self._ended[-self.newest :]
        newest = newest[max(0, len(newest) + len(kept.difference(newest)) - self.newest) :]
        # Thousands may be open if trials pause; it is never so many that run.
        shown = [self.get_trial(each) for each in sorted({*kept, *newest, *self._running[-self.newest :]})]
        return [trial for trial in shown if states is None or trial.state in states]

    def set_violations(self, number: int, excesses: Sequence[float]) -> None:
        """Let samplers know by how much a trial violates each constraint; it must not have ended yet."""
        self.set_trial_system_attr(number, CONSTRAINTS, list(excesses))

    def attributes(self) -> dict[str, Any]:
        """Return what the sampler has left with the study."""
        return self.get_study_system_attrs(self._study)

    def sampler_state(self, number: int, before: Mapping[str, Any]) -> str:
        """Return as JSON what the sampler left with a trial, and with the study since `before`; empty for nothing."""
        study = {key: value for key, value in self.attributes().items() if before.get(key) != value}
        state = {"trial": self.get_trial(number).system_attrs, "study": study}
        return json.dumps(state) if any(state.values()) else ""

    def restore(self, sampler_state: str) -> dict[str, Any]:
        """Give the study back what `sampler_state` told, and return what is the trial's."""
        state = json.loads(sampler_state or "{}")
        for key, value in state.get("study", {}).items():
            self.set_study_system_attr(self._study, key, value)
        return state.get("trial", {})

    def _contend(self, number: int) -> None:
        """Add a trial to the front if it belongs there."""
        if any(excess > 0 for excess in self.get_trial(number).constraints.values()):
            return
        rivals = sorted([*self._front, number])
        mask = front_mask([self.get_trial(each).values for each in rivals], self.objectives)
        self._front = [each for each, on_front in zip(rivals, mask, strict=True) if on_front]


def join_generation(sampler: BaseSampler, study: optuna.Study, trial: FrozenTrial) -> None:
    """Put a trial that a genetic sampler did not draw into the generation that it would draw now.

    Only so can the trial have children.
    """
    if isinstance(sampler, optuna.samplers.NSGAIISampler | optuna.samplers.NSGAIIISampler):
        sampler.get_trial_generation(study, trial)
