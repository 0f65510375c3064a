"""Parameter importance: what decides is found, what does not is not, and few trials are said to be few."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sweep.plan.plan import SweepPlan
from sweep.report.importance import CONTRIBUTION, importance_csv, importance_figure, importances, note
from sweep.state.sweep_state import SweepState
from tests.support.recorded_sweeps import recorded, results_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepPlan, SweepState]:
    plan = recorded("thousand", tmp_path_factory.mktemp("thousand"))
    return plan, results_of(plan)


def decided_by(results: SweepState, knob: str) -> SweepState:
    """Return the same trials, had this knob alone decided the sensitivity accuracy and chance the rest."""
    generator = np.random.default_rng(0)
    trials = {}
    for number, record in results.trials.items():
        final = {**record.reports[-1], "sensitivity_accuracy": min(1.0, record.config[knob])}
        final["invariance_accuracy"] = float(generator.random())
        trials[number] = dataclasses.replace(record, reports=[*record.reports[:-1], final])
    return SweepState(results.objectives, trials, total=results.total)


@pytest.mark.parametrize("knob", ["sensitivity_epsilon", "invariance_epsilon"])
def test_what_decides_is_found(thousand: tuple[SweepPlan, SweepState], knob: str) -> None:
    plan, results = thousand
    first, *rest = [each for each in importances(plan, decided_by(results, knob)) if each.target == "sensitivity"]
    assert first.parameter == knob
    assert first.share > 0.9
    assert first.share + sum(each.share for each in rest) == pytest.approx(1)


def test_every_target_and_every_parameter(thousand: tuple[SweepPlan, SweepState]) -> None:
    plan, results = thousand
    found = importances(plan, results)
    assert {each.target for each in found} == {"sensitivity", "invariance", CONTRIBUTION}
    assert {each.parameter for each in found} == set(plan.space.swept)
    used = {each.parameter: each.trials for each in found}
    assert used["sensitivity_epsilon"] == 1000
    assert 0 < used["sensitivity_weight"] < 1000
    assert importances(plan, results) == found


def test_few_trials_are_said_to_be_few(tmp_path: Path, thousand: tuple[SweepPlan, SweepState]) -> None:
    plan = recorded("digits24", tmp_path)
    results = results_of(plan)
    assert "24 trials are few: take it as a hint" in note(results)
    assert "few" not in note(thousand[1])
    found = importances(plan, results)
    assert importance_csv(found).splitlines()[0] == "parameter,target,share,trials"
    assert len(importance_figure(plan, results, found).axes) == 3
    few = SweepState(plan.objectives, dict(list(results.trials.items())[:5]), total=24)
    assert importances(plan, few) == []
