"""Every sampler in a whole sweep on real Ray: what failed is told as failed, and what was proposed is proposed again by
a search that is rebuilt from the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from sweep.ledger.reading import read_ledger
from sweep.plan.plan import SAMPLERS
from sweep.plan.plan_file import read_plan
from tests.support.commands import otsweep
from tests.support.tuned_search import TunedSearch

SPACE = """
trials: 14
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 1}
space:
  architecture: mlp
  batch_size: 50
  epochs: 1
  cross_entropy_on: {choices: [clean, sensitivity]}
  sensitivity_steps: 1
  regularizer: none
  learning_rate: {low: 0.0001, high: 0.01, log: true}
  sensitivity_epsilon: {low: 0.0, high: 0.3, when: {cross_entropy_on: sensitivity}}
points:
  - {preset: baseline, learning_rate: 0.001, batch_size: 5000}
  - {preset: baseline, learning_rate: 0.005}
"""


@pytest.fixture(scope="module")
def storage(new_storage: Callable[[str], Path]) -> Path:
    folder = new_storage("samplers")
    (folder / "quick.yaml").write_text(SPACE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sweep_runs_to_its_front_and_could_be_rebuilt_at_any_trial(storage: Path, sampler: str) -> None:
    words = ("run", str(storage / "quick.yaml"), "--name", sampler, "--sampler", sampler, "--max-concurrent", "1")
    done = otsweep(storage, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "13 finished trials" in done.stdout
    assert "trial 000 failed: batch_size = 5000" in done.stdout
    assert not {"Warning", "WARNING", "[W "} & set(done.stderr.split())
    at_random = f"{sampler}: draws knobs with a condition at random: sensitivity_epsilon"
    assert (at_random in done.stdout) == (sampler in ("gp", "nsga2", "nsga3"))
    plan, trials = read_plan(sampler, storage=str(storage)), read_ledger(storage / sampler).trials
    # A draw by gp takes a second.
    for number in range(2, 14) if sampler != "gp" else (11, 13):
        rebuilt = TunedSearch(
            plan.space,
            plan.objectives,
            sampler=plan.sampler,
            seed=plan.seed,
            configurations=plan.configurations,
            history=[trials[earlier] for earlier in range(number)],
        )
        assert rebuilt.window.get_trial(0).state == TrialState.FAIL
        proposed = {"number": number, "config": trials[number].config, "sampler_state": trials[number].sampler_state}
        assert rebuilt.suggest("slot") == proposed
