"""A whole study of two arms on two seeds: undisturbed, and killed and stopped on its way, to the same verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.integration.test_ray_start import name_of
from tests.support.commands import PATIENCE, call, command, front, start, wait_for
from tests.support.ray_nodes import tree

STUDY = """
question: Does a triplet loss help?
evaluation: {dataset: digits, train_size: 200, validation_size: 60, eval_sensitivity_steps: 2, eval_final_steps: 2}
space:
  architecture: mlp
  batch_size: 50
  sensitivity_steps: 1
  sensitivity_ce_weight: {choices: [0.5, 1.0]}
  learning_rate: {low: 0.001, high: 0.01, log: true}
arms:
  none: {}
  triplet: {regularizer: triplet, sensitivity_weight: {low: 0.0, high: 1.0}}
effort: {trials: 3, epochs: 2}
seeds: 2
audit: {seeds: 2, finalists: 2, judges: 2, test_size: 60, steps: 4, queries: 20}
"""


def words(storage: Path, name: str) -> list[str]:
    (storage / "tiny.yaml").write_text(STUDY)
    return command(storage, "study", str(storage / "tiny.yaml"), "--name", name, "--max-concurrent", "1")


def found(storage: Path, name: str) -> dict[str, Any]:
    return json.loads((storage / name / "study.json").read_text()) | {"name": ""}


@pytest.fixture(scope="module")
def whole(new_storage: Callable[[str], Path]) -> tuple[Path, str]:
    """The storage of an undisturbed study, and what it said."""
    storage = new_storage("study")
    done = call(words(storage, "whole"))
    assert done.returncode == 0, done.stdout + done.stderr
    return storage, done.stdout


@pytest.mark.slow
def test_a_study_answers_its_question(whole: tuple[Path, str]) -> None:
    storage, said = whole
    assert "Does a triplet loss help?" in said
    assert "sweep 4 of 4 (none, seed 1): 3 trials" in said, "on the second seed the arms change places"
    result = found(storage, "whole")
    assert (result["seeds"], result["arms"], result["crowds"]) == ([0, 1], ["none", "triplet"], ["uncalibrated"])
    assert [len(each["course"]) for each in result["sweeps"]] == [3] * 4
    [difference] = result["differences"]
    mean = {
        arm: sum(each["hypervolumes"]["uncalibrated"] for each in result["sweeps"] if each["arm"] == arm) / 2
        for arm in result["arms"]
    }
    assert difference["estimate"] == pytest.approx(mean["triplet"] - mean["none"])
    assert set(difference["parts"]) == {"images", "training seeds", "judges"}
    assert difference["parts"]["images"] > 0
    assert "triplet: no difference was shown, " in said or "triplet: moves the front " in said
    assert all((storage / "whole" / name).stat().st_size > 5_000 for name in ("study.png", "study.html"))

    assert front(storage, "whole-triplet-1")["front"], "an arm's sweep is an ordinary sweep"
    again = call(command(storage, "study", "whole"), joins=False)
    assert again.returncode == 0
    assert said.count("± sd  minus control") == again.stdout.count("± sd  minus control") == 1
    pilot = call([*words(storage, "next"), "--pilot", "nothing"], joins=False)
    assert (pilot.returncode, "Traceback" in pilot.stderr) == (2, False)


@pytest.mark.slow
def test_a_study_is_a_run_in_mlflow_above_its_sweeps(whole: tuple[Path, str]) -> None:
    storage, _ = whole
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], "tags.`otsweep.kind` = 'study'")
    below = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert {each.info.run_name for each in below} == {
        f"whole-{arm}-{seed}" for arm in ("none", "triplet") for seed in (0, 1)
    }
    assert "Against none" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["difference/triplet/uncalibrated"] == found(storage, "whole")["differences"][0]["estimate"]


@pytest.mark.slow
def test_a_study_that_loses_ray_tells_the_command_that_resumes_it(new_storage: Callable[[str], Path]) -> None:
    """Lose it while a sweep runs; its processes are the study's own."""
    storage = new_storage("lost")
    driver = start(words(storage, "lost"), own=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = storage / "lost-none-0/ledger/log.jsonl"
    wait_for(lambda: log.exists() and b'"started"' in log.read_bytes(), driver)
    os.kill(next(pid for pid in tree(driver.pid) if name_of(pid) == "raylet"), signal.SIGKILL)
    out, err = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 1, out + err
    assert err.startswith("otsweep: failed: Ray is lost: "), err
    assert err.endswith(f"Nothing recorded is lost; to resume:\n  otsweep resume lost --storage {storage}\n"), err
    assert "lost-none-0" not in err


@pytest.mark.slow
def test_killed_and_stopped_on_its_way_a_study_comes_to_the_same_verdict(whole: tuple[Path, str]) -> None:
    storage, _ = whole
    name, resume = "hurt", command(storage, "resume", "hurt")

    def disturb(line: list[str], until: Callable[[], bool], number: int) -> subprocess.Popen[str]:
        process = start(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        wait_for(until, process)
        process.send_signal(number)
        return process

    log = storage / f"{name}-none-0/ledger/log.jsonl"
    first = disturb(words(storage, name), lambda: log.exists() and b'"ended"' in log.read_bytes(), signal.SIGKILL)
    first.communicate()
    other = storage / f"{name}-triplet-0/ledger/log.jsonl"
    second = disturb(resume, lambda: other.exists() and b'"report"' in other.read_bytes(), signal.SIGINT)
    said, _ = second.communicate()
    assert second.returncode == 130, said
    assert f"resume {name}" in said
    audit = storage / f"{name}-none-0/audit"
    third = disturb(resume, lambda: any(audit.glob("0*.json")), signal.SIGKILL)
    third.communicate()
    done = call(resume)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found(storage, name) == found(storage, "whole")
