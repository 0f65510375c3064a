"""Parts of what MLflow holds of a sweep: one that fails is told once, all others are written, and the parent ends."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run

from sweep.cli.commands import main
from sweep.ledger.records import TrialRecord
from sweep.plan.paths import PLAN
from sweep.plan.plan import SweepPlan
from sweep.plan.plan_file import plan_text
from sweep.tracking.tracker import Tracker
from sweep.tracking.writer import Writer, sync
from tests.support import events
from tests.support.mlflow_stores import contents
from tests.support.recorded_sweeps import recorded, results_of

TRIALS = 3


@pytest.fixture
def plan(tmp_path: Path, empty_store: Path) -> SweepPlan:
    """The first trials of a recorded sweep, with a store that holds nothing."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    plan = recorded("digits24", tmp_path, trials=TRIALS)
    (plan.folder / PLAN).write_text(plan_text(plan))
    return plan


def store_of(plan: SweepPlan) -> dict[str, Any]:
    return contents(Path(plan.storage) / "mlflow.db", plan.name)


def no_word(message: str) -> None:
    pytest.fail(f"said: {message}")


def parent_of(plan: SweepPlan) -> Run:
    client = mlflow.MlflowClient(plan.mlflow_uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    [parent] = client.search_runs(experiments, "tags.`otsweep.kind` = 'sweep'")
    return parent


def test_an_artifact_store_that_takes_nothing_costs_the_files_alone(
    plan: SweepPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()
    client = mlflow.MlflowClient(plan.mlflow_uri)
    client.create_experiment("digits", artifact_location=(blocked / "artifacts").as_uri())
    said: list[str] = []
    tracker = Tracker(plan, results_of(plan), said.append)
    tracker.start()
    tracker.write_pass()
    tracker.close(complete=True)
    whole = store_of(plan)
    assert [line.partition(" (")[0] for line in said] == [
        f"MLflow lacks the front's files at file://{blocked}/artifacts"
    ]
    assert said[0].endswith("`otsweep sync digits24` writes it once that is mended")
    assert parent_of(plan).info.status == "FINISHED"
    assert main(["sync", plan.name, "--storage", plan.storage]) == 1
    assert "MLflow lacks the front's files" in capsys.readouterr().err
    blocked.unlink()
    sync(plan, plan.mlflow_uri, log=no_word)
    assert client.list_artifacts(parent_of(plan).info.run_id, "front")
    assert store_of(plan).keys() == whole.keys()


def test_a_trial_whose_run_refuses_it_costs_that_trial_alone(plan: SweepPlan) -> None:
    state = results_of(plan)
    with contextlib.closing(Writer(plan, plan.mlflow_uri, log=no_word)) as writer:
        writer.open(state)
        writer.trials.write(TrialRecord(1).apply(events.started(1, state.trials[1].config)), state)
    with contextlib.closing(sqlite3.connect(Path(plan.storage) / "mlflow.db")) as store, store:
        store.execute("update params set value = 'another' where key = 'margin'")
    said: list[str] = []
    tracker = Tracker(plan, state, said.append)
    tracker.write_pass()
    assert list(tracker.waiting) == [1]
    assert tracker.writer is not None
    tracker.writer.close()
    assert sync(plan, plan.mlflow_uri, log=said.append)[1] is False
    assert [line.partition(" (")[0] for line in said] == ["MLflow lacks trial 001"]
    found = store_of(plan)
    assert {name: each[1][0] for name, each in found.items()} == {
        "sweep ": "FINISHED",
        "trial 0": "FINISHED",
        "trial 1": "RUNNING",
        "trial 2": "FINISHED",
    }


@pytest.mark.slow
def test_what_was_deleted_on_the_page_is_restored_and_said(plan: SweepPlan) -> None:
    sync(plan, plan.mlflow_uri, log=no_word)
    whole, parent = store_of(plan), parent_of(plan)
    client = mlflow.MlflowClient(plan.mlflow_uri)
    said: list[str] = []
    client.delete_experiment(parent.info.experiment_id)
    assert sync(plan, plan.mlflow_uri, log=said.append)[1]
    assert said == ["MLflow's experiment 'digits' had been deleted: it is restored"]
    client.delete_run(parent.info.run_id)
    assert sync(plan, plan.mlflow_uri, log=said.append)[1]
    assert said[1:] == ["the run of digits24 had been deleted in MLflow: it is restored"]
    assert store_of(plan) == whole
