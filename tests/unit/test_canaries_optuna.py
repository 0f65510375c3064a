"""Everything undocumented of Optuna that `sweep.search.optuna_internals` uses: one test per symbol or assumption.

A failure names the symbol, what it is for and the versions that had it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from search_spaces.reading import load_space
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SAMPLERS
from sweep.search import optuna_internals as internals
from sweep.search.samplers import make_sampler

pytestmark = pytest.mark.canary

RANGE = FloatDistribution(0.0, 1.0)


def told(symbol: str, purpose: str) -> str:
    """Return the message of a failure."""
    tried = ", ".join(internals.TRIED_VERSIONS)
    return f"{symbol} ({purpose}) is not in Optuna {optuna.__version__} as it was in {tried}"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Silence Optuna's own lines."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def study_in(storage: InMemoryStorage, sampler: str = "random") -> optuna.Study:
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MAXIMIZE]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = make_sampler(sampler, 0, load_space("digits"), 24)
    return optuna.create_study(directions=directions, storage=storage, sampler=made)


def test_what_a_distribution_contains() -> None:
    symbol, purpose = "BaseDistribution._contains", "given points outside of what is swept"
    assert hasattr(RANGE, "_contains"), told(symbol, purpose)
    found = [internals.contains(RANGE, value) for value in (0.5, 1.5, "text")]
    assert found == [True, False, False], told(symbol, purpose)
    choices = CategoricalDistribution(("a", "b"))
    assert [internals.contains(choices, value) for value in "ac"] == [True, False], told(symbol, purpose)


@pytest.mark.parametrize("method", ["create_new_study", "create_new_trial", "set_trial_state_values", "get_all_trials"])
def test_methods_of_the_storage_that_are_overridden(method: str) -> None:
    symbol = f"optuna.storages.InMemoryStorage.{method}"
    assert method in vars(InMemoryStorage), told(symbol, "which trials a sampler sees")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_read_trials_from_the_storage(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each sampler draw once more after twelve trials of which the storage shows four."""
    storage = internals.Window(OBJECTIVES, newest=4)
    study = study_in(storage, sampler)
    for number in range(12):
        params = {"x": number / 12}
        study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions={"x": RANGE}))
        study.tell(number, [number / 12, 1 - number / 12])
    asked: list[int] = []
    real = internals.Window.get_all_trials

    def get_all_trials(self: internals.Window, *arguments: Any, **options: Any) -> Any:
        asked.append(1)
        return real(self, *arguments, **options)

    monkeypatch.setattr(internals.Window, "get_all_trials", get_all_trials)
    study.ask({"x": RANGE})
    symbol = f"{type(study.sampler).__name__} by InMemoryStorage.get_all_trials"
    assert asked or sampler == "random", told(symbol, "which trials a sampler sees")
    assert len(study.get_trials(deepcopy=False)) <= 5, told("Study.get_trials", "which trials a sampler sees")


def test_a_trials_id_in_memory_is_its_number() -> None:
    storage = InMemoryStorage()
    study = study_in(storage)
    for _ in range(3):
        study.ask()
    found = [storage.get_trial(number).number for number in range(3)]
    assert found == [0, 1, 2], told("InMemoryStorage.get_trial", "trials by their numbers")


def test_the_attribute_with_a_trials_violations() -> None:
    symbol, purpose = f"system attribute {internals.CONSTRAINTS!r}", "requirements that samplers learn of"
    storage = internals.Window(OBJECTIVES, newest=100)
    study = study_in(storage)
    for excess in (0.5, -0.5):
        study.ask()
        storage.set_violations(len(study.trials) - 1, [excess])
    constraints = [list(trial.constraints.values()) for trial in study.get_trials(deepcopy=False)]
    assert constraints == [[0.5], [-0.5]], told(symbol, purpose)
    for number in range(2):
        study.tell(number, [1.0 - number, 1.0 - number])
    assert [trial.number for trial in study.best_trials] == [1], told(symbol, purpose)


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3"])
def test_the_generation_of_a_trial_that_was_not_drawn(sampler: str) -> None:
    symbol, purpose = "NSGAIISampler.get_trial_generation", "given points that can have children"
    storage = internals.Window(OBJECTIVES, newest=100)
    study = study_in(storage, sampler)
    study.add_trial(create_trial(state=TrialState.RUNNING, params={"x": 0.5}, distributions={"x": RANGE}))
    before = storage.attributes()
    assert storage.sampler_state(0, before) == ""
    internals.join_generation(study.sampler, study, storage.get_trial(0))
    attributes = storage.get_trial(0).system_attrs
    assert [value for key, value in attributes.items() if "generation" in key] == [0], told(symbol, purpose)
    assert "generation" in storage.sampler_state(0, before), told("FrozenTrial.system_attrs", "the sampler's state")


def test_the_attributes_of_a_study_are_copied() -> None:
    symbol, purpose = "InMemoryStorage.get_study_system_attrs", "the sampler's state since the last draw"
    storage = internals.Window(OBJECTIVES, newest=100)
    study = study_in(storage, "qmc")
    before = storage.attributes()
    study.ask({"x": RANGE})
    state = storage.sampler_state(0, before)
    assert '"study": {"' in state, told(symbol, purpose)
    again = internals.Window(OBJECTIVES, newest=100)
    study_in(again, "qmc")
    assert again.restore(state) == storage.get_trial(0).system_attrs, told(symbol, purpose)
    assert again.attributes() == storage.attributes(), told(symbol, purpose)
