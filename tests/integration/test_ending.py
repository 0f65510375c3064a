"""Sweeps that end before their last trial: by a hypervolume that no longer grows, and by their time."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from search_spaces.reading import load_space
from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.plan.from_options import make_plan
from sweep.plan.objectives import OBJECTIVES
from sweep.search.budget import Budget
from sweep.state.sweep_state import SweepState
from tests.support import events
from tests.support.commands import call, command, otsweep, start, wait_for

SPACE = """
trials: 30
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 1}
space:
  architecture: mlp
  batch_size: 50
  epochs: 1
  cross_entropy_on: clean
  regularizer: none
  learning_rate: {low: 0.0001, high: 0.0002}
points:
  - {preset: baseline, learning_rate: 0.01}
"""


def ended(number: int, value: float, *, state: str = "finished", at: int | None = None) -> TrialRecord:
    report = {"epoch": 1, "final": True, "sensitivity_accuracy": value, "invariance_accuracy": value}
    return TrialRecord(
        number, {}, 0, state, started=0.0, ended=at, ended_as=number if at is None else at, reports=[report]
    )


def results_of(*records: TrialRecord) -> SweepState:
    return SweepState(OBJECTIVES, {record.number: record for record in records}, total=50)


def test_growth_is_that_of_the_last_trials_as_they_ended() -> None:
    found = results_of(ended(0, 0.5), ended(1, 0.4), ended(2, 0.5, at=-1), ended(3, 0.8))
    assert found.volumes == [0.25, 0.25, 0.25, pytest.approx(0.64)]
    assert found.growth(1) == pytest.approx(1 - 0.25 / 0.64)
    assert found.growth(3) == pytest.approx(1 - 0.25 / 0.64)
    assert found.growth(4) == 1.0, "fewer trials than asked for"


def test_what_was_stopped_counts_and_what_failed_does_not() -> None:
    found = results_of(ended(0, 0.5), ended(1, 0.9, state="stopped"), ended(2, 0.9, state="failed"))
    assert found.volumes == [0.25, 0.25]
    assert found.growth(1) == 0.0


def test_nothing_is_no_front_that_has_converged() -> None:
    found = results_of(*[ended(number, 0.0) for number in range(9)])
    assert found.growth(3) == 1.0


def test_results_that_came_one_by_one_grow_as_those_that_were_loaded() -> None:
    records = [ended(number, value) for number, value in enumerate([0.2, 0.5, 0.4, 0.6])]
    live = results_of()
    for record in records:
        live.trials[record.number] = TrialRecord(record.number, started=0.0, reports=record.reports)
        live.apply(events.ended(record.number, "finished", time=float(record.number)))
    assert live.volumes == results_of(*records).volumes


def test_enough_is_a_flat_front_or_a_spent_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = results_of(*[ended(number, 0.5) for number in range(6)])
    space = load_space("digits")

    def budget(concurrent: int = 1, **options: float) -> Budget:
        return Budget(make_plan(space, storage=str(tmp_path), **options), flat, concurrent)

    assert not budget().enough()
    assert budget(stop_when_flat=5).enough()
    assert not budget(stop_when_flat=6).enough()

    flat.trials[0] = dataclasses.replace(flat.trials[0], slot_seconds=1800.0)
    timed = budget(2, max_hours=0.5)
    assert not timed.enough(), "half an hour in two slots is a quarter"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 901)
    assert timed.enough()
    assert budget(max_hours=0.5).enough()


@pytest.mark.slow
def test_a_sweep_ends_when_its_front_is_flat_also_after_a_kill(new_storage: Callable[[str], Path]) -> None:
    storage = new_storage("flat")
    (storage / "flat.yaml").write_text(SPACE)

    def words(name: str) -> list[str]:
        options = ["--max-concurrent", "1", "--stop-when-flat", "4"]
        return command(storage, "run", str(storage / "flat.yaml"), "--name", name, *options)

    def configs(name: str) -> list[tuple]:
        trials = read_ledger(storage / name).trials.values()
        return [(record.state, record.config, record.result and record.result["clean_accuracy"]) for record in trials]

    done = call(words("whole"))
    assert done.returncode == 0, done.stdout + done.stderr
    ran = len(configs("whole"))
    assert 5 <= ran < 30
    assert f"Ended after {ran} of 30 trials, as the plan has it; hypervolume +0.0% over the last 4." in done.stdout

    killed, log = start(words("killed"), stdout=subprocess.DEVNULL), storage / "killed/ledger/log.jsonl"
    wait_for(lambda: log.exists() and log.read_bytes().count(b'"ended"') >= 3, killed)
    killed.kill()
    killed.wait()
    for _ in range(2):
        assert otsweep(storage, "resume", "killed").returncode == 0
        assert json.dumps(configs("killed")) == json.dumps(configs("whole"))
