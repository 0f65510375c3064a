"""Pauses and thaws with real Ray: the numbers of thawed trials, their one checkpoint, kill -9, and the replay."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from tests.support.commands import command, otsweep, start, wait_for

SPACE = """
description: small trials of which most are worse than the best
trials: 12
evaluation: {dataset: digits, train_size: 200, validation_size: 100, eval_sensitivity_steps: 2}
space:
  architecture: mlp
  batch_size: 50
  epochs: 8
  sensitivity_steps: 1
  regularizer: none
  cross_entropy_on: {choices: [clean, sensitivity]}
  sensitivity_epsilon: {low: 0.02, high: 0.4}
"""

THAW = ("--stopper", "thaw", "--grace-epochs", "1")
SECONDS = ("train_seconds", "evaluation_seconds", "time")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def storage(new_storage: Callable[[str], Path]) -> Path:
    folder = new_storage("thaw")
    (folder / "small.yaml").write_text(SPACE)
    return folder


def words(storage: Path, name: str, *options: str) -> tuple[str, ...]:
    """Return a sweep whose draws do not depend on results."""
    plain = ("run", str(storage / "small.yaml"), "--name", name, "--seed", "3", "--sampler", "random")
    return (*plain, "--keep-models", "none", *options)


@pytest.fixture(scope="module")
def undisturbed(storage: Path) -> subprocess.CompletedProcess[str]:
    """Return a sweep in six slots: two trials pause while the first four go on, and all others then have to as well."""
    done = otsweep(storage, *words(storage, "undisturbed", *THAW, "--cpus-per-trial", "0.33"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def trials_of(storage: Path, name: str) -> dict[int, TrialRecord]:
    ledger = read_ledger(storage / name)
    assert ledger.warnings == []
    return ledger.trials


def numbers(record: TrialRecord) -> list[dict[str, Any]]:
    """Return the reports of a trial, but for times."""
    return [{key: value for key, value in report.items() if key not in SECONDS} for report in record.reports]


def checkpoints(storage: Path, name: str, number: int) -> list[str]:
    return [path.name for path in (storage / name / "trials" / f"{number:04d}").glob("checkpoint-*")]


def test_a_sweep_pauses_and_thaws_and_says_why(storage: Path, undisturbed: subprocess.CompletedProcess[str]) -> None:
    trials = trials_of(storage, "undisturbed")
    assert len(trials) == 12
    # Whether all are thawed in the end hangs on which of them come first.
    assert {record.state for record in trials.values()} <= {"finished", "stopped"}
    paused = [record for record in trials.values() if any(each["pause"] for each in record.decisions)]
    thawed = [record for record in trials.values() if record.attempts > 1]
    assert thawed
    assert {record.number for record in thawed} <= {record.number for record in paused}
    for record in trials.values():
        pauses = [each for each in record.decisions if each["pause"]]
        assert record.attempts == len(pauses) + (record.state == "finished")
        assert all(each["reason"].startswith("paused after epoch") for each in pauses)
        assert all(each["reason"] for each in record.begun)
        # The report with which a thawed trial begins is in the ledger already.
        assert record.replaced == ()
        if record.state == "stopped":
            assert record.reason == f"never thawed; {pauses[-1]['reason']}"
            assert record.reports[-1]["epoch"] == pauses[-1]["epoch"]
            assert checkpoints(storage, "undisturbed", record.number) == [f"checkpoint-{pauses[-1]['epoch']:06d}.pt"]
    assert " paused" in undisturbed.stdout


def test_a_thawed_trial_has_the_numbers_of_an_uninterrupted_one(
    storage: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    done = otsweep(storage, *words(storage, "whole", "--cpus-per-trial", "0.33"))
    assert done.returncode == 0, done.stdout + done.stderr
    whole, trials = trials_of(storage, "whole"), trials_of(storage, "undisturbed")
    thawed = [number for number, record in trials.items() if record.attempts > 1 and record.state == "finished"]
    assert thawed
    for number, record in trials.items():
        assert record.config == whole[number].config
        assert numbers(record) == numbers(whole[number])[: len(record.reports)]


def test_a_replay_tells_every_choice(storage: Path, undisturbed: subprocess.CompletedProcess[str]) -> None:
    trials = trials_of(storage, "undisturbed")
    told = json.loads(otsweep(storage, "replay", "undisturbed", "--format", "json").stdout)["choices"]
    assert [each["time"] for each in told] == sorted(each["time"] for each in told)
    begun = {
        record.number: [each["what"] for each in told if each["trial"] == record.number] for record in trials.values()
    }
    for record in trials.values():
        assert begun[record.number].count("pauses") == sum(each["pause"] for each in record.decisions)
        assert begun[record.number].count("is thawed") == record.attempts - 1
        assert begun[record.number][0] == "begins"
    said = otsweep(storage, "replay", "undisturbed").stdout
    assert "Who had a slot, and why" in said
    assert "is thawed" in said


def facts(storage: Path, name: str) -> dict[int, tuple[Any, ...]]:
    """Return everything that must agree between two sweeps."""
    return {
        number: (record.state, record.reason, record.config, record.decisions, numbers(record))
        for number, record in trials_of(storage, name).items()
    }


def test_a_sweep_killed_amid_pauses_decides_as_an_undisturbed_one(storage: Path) -> None:
    """In one slot the order of results can't matter."""
    options = (*THAW, "--max-concurrent", "1", "--stop-chance", "1")
    done = otsweep(storage, *words(storage, "single", *options))
    assert done.returncode == 0, done.stdout + done.stderr
    log = storage / "killed" / "ledger" / "log.jsonl"
    driver = start(command(storage, *words(storage, "killed", *options)), stdout=subprocess.DEVNULL)
    wait_for(lambda: log.exists() and log.read_bytes().count(b'"pause":true') >= 2, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert any(record.state == "paused" for record in trials_of(storage, "killed").values())
    resumed = otsweep(storage, "resume", "killed")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert facts(storage, "killed") == facts(storage, "single")


def test_no_more_is_trained_than_the_budget_of_epochs(storage: Path) -> None:
    for name, stopper in {"budget": THAW, "plain": ()}.items():
        done = otsweep(storage, *words(storage, name, *stopper, "--budget-epochs", "45", "--max-concurrent", "2"))
        assert done.returncode == 0, done.stdout + done.stderr
        trials = trials_of(storage, name)
        trained = sum(max(each["epoch"] for each in record.reports) for record in trials.values())
        assert 45 - 2 * 8 < trained <= 45
        assert {record.state for record in trials.values()} <= {"finished", "stopped"}


def test_a_larger_budget_of_epochs_extends_a_sweep_that_is_over(storage: Path) -> None:
    done = otsweep(storage, *words(storage, "more", *THAW, "--budget-epochs", "20", "--max-concurrent", "1"))
    assert done.returncode == 0, done.stdout + done.stderr
    before = trials_of(storage, "more")
    done = otsweep(storage, "resume", "more", "--storage", str(storage), "--budget-epochs", "40")
    assert done.returncode == 0, done.stdout + done.stderr
    after = trials_of(storage, "more")
    assert len(after) > len(before)
    assert 20 < sum(max(each["epoch"] for each in record.reports) for record in after.values()) <= 40
