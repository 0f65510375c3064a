"""MLflow: what is written twice is there once, and a store that is away holds nothing up."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from search_spaces import load_space
from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan, make_plan, write_plan
from sweep.results import Results
from sweep.tracking import Tracker, connect, free_port, page
from trainer.config import InputError, TrialConfig


def report(epoch: int, *, final: bool = False, robust: float = 0.5) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "final": final,
        "clean_accuracy": 0.9,
        "sensitivity_accuracy": robust,
        "invariance_accuracy": 1 - robust,
        "invariance_stuck": 0.1,
        "time": 1_700_000_000.0 + epoch,
    }


def record(number: int, state: str = "finished") -> TrialRecord:
    config = TrialConfig(sensitivity_epsilon=number / 10, seed=3).to_dict()
    reports = [report(1), report(2), report(2, final=True, robust=0.3 + number / 10)]
    trial = TrialRecord(number, config, 3, state, started=1_700_000_000.0, attempts=1)
    trial.reports = reports if state == "finished" else reports[:1]
    trial.ended = None if state == "running" else 1_700_000_010.0
    trial.reason = "on purpose" if state == "failed" else ""
    return trial


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests here: making one takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def plan(store: Path, request: pytest.FixtureRequest) -> SweepPlan:
    plan = make_plan(load_space("digits"), name=f"s{abs(hash(request.node.name)) % 10**9}", storage=str(store))
    write_plan(plan)
    return plan


def tracked(plan: SweepPlan, *records: TrialRecord, said: list[str] | None = None) -> Tracker:
    results = Results(plan.objectives, {trial.number: trial for trial in records}, total=plan.trials)
    tracker = Tracker(plan, results, (said if said is not None else []).append)
    tracker.client = connect(plan.mlflow_uri)
    return tracker


def contents(plan: SweepPlan) -> dict[str, Any]:
    """Everything of a sweep that the store holds, by run name."""
    client = connect(plan.mlflow_uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    parents = client.search_runs([experiment.experiment_id], f"tags.`otsweep.sweep` = '{plan.name}'")
    runs = list(parents)
    for parent in parents:
        runs += client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return {
        f"{place} {run.info.run_name}": (
            run.info.status,
            run.info.end_time,
            dict(run.data.params),
            {k: v for k, v in run.data.tags.items() if k != "mlflow.note.content"},
            {
                key: [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
        )
        for place, run in enumerate(sorted(runs, key=lambda run: str(run.info.run_name)))
    }


def test_a_second_writer_changes_nothing(plan: SweepPlan) -> None:
    records = record(0), record(1), record(2, "failed")
    tracked(plan, *records).finish(complete=True)
    first = contents(plan)
    tracked(plan, *records).finish(complete=True)
    assert contents(plan) == first
    assert len(first) == 4


def test_status_reason_and_chosen_numbers(plan: SweepPlan) -> None:
    tracked(plan, record(0), record(1, "failed"), record(2, "running")).finish(complete=False)
    finished, failed, running, parent = contents(plan).values()
    assert [run[0] for run in (finished, failed, running, parent)] == ["FINISHED", "FAILED", "RUNNING", "KILLED"]
    assert failed[3]["otsweep.reason"] == "on purpose"
    assert finished[4]["sel_sens"] == [(0, 0.3, 1_700_000_002_000)]
    assert [step for step, _, _ in finished[4]["clean_accuracy"]] == [1, 2]
    assert finished[2]["sensitivity_epsilon"] == "0.0"
    assert finished[3]["pareto.front"] == "true"


def test_an_interrupted_sweep_is_taken_up_in_the_same_runs(plan: SweepPlan) -> None:
    tracked(plan, record(0), record(1, "running")).finish(complete=False)
    before = contents(plan)
    tracked(plan, record(0), record(1), record(2)).finish(complete=True)
    after = contents(plan)
    assert len(before) == 3
    assert len(after) == 4
    assert {run[0] for run in after.values()} == {"FINISHED"}


def test_the_description_is_the_front(plan: SweepPlan) -> None:
    tracker = tracked(plan, record(0), record(1))
    tracker.finish(complete=True)
    assert tracker.parent is not None
    note = tracker.client.get_run(tracker.parent).data.tags["mlflow.note.content"]
    assert note.startswith("digits: front of 2 among 2 finished trials")
    assert f"[001](#/runs/{tracker.runs[1]})" in note.replace("#/experiments/1/runs", "#/runs")
    assert page("http://host", plan).startswith("http://host/#/experiments/")


def test_a_sweep_that_never_began_leaves_no_run(plan: SweepPlan) -> None:
    tracked(plan, record(0)).finish(complete=True)
    silent = tracked(plan)
    silent.plan = make_plan(load_space("digits"), name="never", storage=plan.storage)
    silent.finish(complete=False)
    assert contents(silent.plan) == {}


def test_a_store_that_goes_away_is_said_once_and_holds_nothing_up(plan: SweepPlan) -> None:
    said: list[str] = []
    tracker = tracked(plan, record(0), said=said)

    def refuse() -> None:
        raise OSError("database is locked")

    assert not tracker.attempt(refuse)
    assert not tracker.attempt(refuse)
    assert said == ["MLflow does not take results at the moment (database is locked); going on"]
    assert tracker.attempt(tracker.write_pass)
    assert len(contents(plan)) == 2


def test_a_server_that_is_not_there_is_refused_quickly() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match="no MLflow store answers at http://127.0.0.1:9: nothing listens there"):
        connect("http://127.0.0.1:9")
    assert time.monotonic() - start < 30


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: can't be used"):
            free_port(port)
    assert free_port(0) > 0


def test_the_writer_has_a_thread_of_its_own(plan: SweepPlan) -> None:
    results = Results(plan.objectives, {0: record(0)}, total=1)
    tracker = Tracker(plan, results, lambda message: None)
    tracker.start()
    tracker.wait_connected()
    assert tracker.thread is not threading.current_thread()
    tracker.close(complete=True)
    assert not tracker.thread.is_alive()
    assert len(contents(plan)) == 2
