"""Whole sweeps, with real Ray and a real MLflow store: to a front, through kill -9 and Ctrl-C, and around failures."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow.entities import Run

from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.plan.plan_file import read_plan
from sweep.state.sweep_state import read_state
from sweep.tracking.store import connect
from tests.support.commands import PATIENCE, command, front, otsweep, start, wait_for
from tests.support.mlflow_stores import contents
from trainer.answers import Answers

SPACE = """
description: small enough for a test, with all that a real one has
trials: 5
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 3}
space:
  architecture: mlp
  batch_size: 50
  epochs: 4
  sensitivity_steps: 2
  regularizer: {choices: [none, triplet, ot_triplet]}
  cross_entropy_on: {choices: [clean, sensitivity]}
  sensitivity_epsilon: {low: 0.05, high: 0.3}
  sensitivity_weight: {low: 0.1, high: 2.0, when: {regularizer: [triplet, ot_triplet]}}
  invariance_weight: {low: 0.1, high: 2.0, when: {regularizer: [triplet, ot_triplet]}}
points:
  - preset: baseline
"""

SECONDS = ("train_seconds", "evaluation_seconds", "time")


@pytest.fixture(scope="module")
def storage(new_storage: Callable[[str], Path]) -> Path:
    """Return one storage folder for all sweeps here."""
    folder = new_storage("sweeps")
    (folder / "tiny.yaml").write_text(SPACE)
    return folder


def run_words(storage: Path, name: str) -> tuple[str, ...]:
    """Return a sweep in one slot, so that the order of results can't matter."""
    words = ("run", str(storage / "tiny.yaml"), "--name", name, "--max-concurrent", "1", "--seed", "3")
    return (*words, "--keep-models", "front" if name == "undisturbed" else "none")


@pytest.fixture(scope="module")
def undisturbed(storage: Path) -> subprocess.CompletedProcess[str]:
    done = otsweep(storage, *run_words(storage, "undisturbed"), own=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def numbers(storage: Path, name: str) -> dict[int, tuple[str, dict, list[dict]]]:
    """Return all that must agree between two sweeps: states, configurations and every number but times."""

    def timeless(record: TrialRecord) -> list[dict]:
        return [{key: value for key, value in report.items() if key not in SECONDS} for report in record.reports]

    trials = read_ledger(storage / name).trials
    return {number: (record.state, record.config, timeless(record)) for number, record in trials.items()}


def test_a_sweep_ends_with_its_front(storage: Path, undisturbed: subprocess.CompletedProcess[str]) -> None:
    said = undisturbed.stdout
    assert "5/5 done" in said
    assert re.search(r"front of \d among 5 finished trials, hypervolume 0\.\d{4}", said)
    for path in ("front.png", "ledger.parquet"):
        assert str(storage / "undisturbed" / path) in said
        assert (storage / "undisturbed" / path).stat().st_size > 1000
    assert "otsweep ui undisturbed" in said


def test_it_says_nothing_of_ray_or_mlflow(undisturbed: subprocess.CompletedProcess[str]) -> None:
    said = undisturbed.stdout + undisturbed.stderr
    for spam in ("Warning", "WARNING", "(pid=", "ray::", "INFO", "alembic", "Traceback"):
        assert spam not in said, said


def test_what_the_sweep_stands_on_is_kept(storage: Path, undisturbed: subprocess.CompletedProcess[str]) -> None:
    facts = json.loads((storage / "undisturbed" / "prepared.json").read_text())
    metadata = pq.read_schema(storage / "undisturbed" / "ledger.parquet").metadata
    assert metadata[b"data_fingerprint"].decode() == facts["data_fingerprint"]
    assert {b"plan_hash", b"code_version", b"judge_accuracy"} <= metadata.keys()
    assert "a proxy: its crowd is uncalibrated" in undisturbed.stdout
    assert re.search(r"of 1 \(0\.\d{4} to 0\.\d{4}, images resampled jointly\)", undisturbed.stdout)
    results = read_state(read_plan("undisturbed", storage=str(storage)))
    for number, record in results.finished.items():
        assert record.result is not None
        assert Answers.decode(record.result["answers"]).robust.mean() == record.result["sensitivity_accuracy"]
        assert all("answers" not in report for report in record.reports[:-1])
        assert 0 <= results.configuration_metrics(number)["p_front"] <= 1


def test_the_ledger_holds_every_report_of_every_trial(
    storage: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    table = pq.read_table(storage / "undisturbed" / "ledger.parquet").to_pylist()
    assert sorted({row["trial"] for row in table}) == [0, 1, 2, 3, 4]
    for number in range(5):
        rows = [row for row in table if row["trial"] == number]
        assert [row["epoch"] for row in rows if not row["final"]] == [1, 2, 3, 4]
        assert sum(row["final"] for row in rows) == 1
        assert {row["state"] for row in rows} == {"finished"}


def test_mlflow_has_one_parent_and_a_child_per_trial(
    storage: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    client = connect(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    query = "tags.`otsweep.sweep` = 'undisturbed' and tags.`otsweep.kind` = 'sweep'"
    [parent] = client.search_runs([experiment.experiment_id], query)
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert parent.info.status == "FINISHED"
    assert "| trial |" in parent.data.tags["mlflow.note.content"].replace("\N{NO-BREAK SPACE}", "")
    assert {file.path for file in client.list_artifacts(parent.info.run_id, "front")} >= {"front/front.png"}
    assert sorted(int(run.data.tags["otsweep.trial"]) for run in children) == [0, 1, 2, 3, 4]
    trials = read_ledger(storage / "undisturbed").trials
    for run in children:
        record = trials[int(run.data.tags["otsweep.trial"])]
        assert run.info.status == "FINISHED"
        assert run.data.params["regularizer"] == record.config["regularizer"]
        history = client.get_metric_history(run.info.run_id, "sensitivity_accuracy")
        told = [(r["epoch"], r["sensitivity_accuracy"]) for r in record.reports if not r["final"]]
        assert sorted((m.step, m.value) for m in history) == told
        assert record.result is not None
        assert run.data.metrics["sel_sens"] == record.result["sensitivity_accuracy"]
        assert 0 <= run.data.metrics["p_front"] <= 1
        assert "answers" not in run.data.metrics


def front_runs(storage: Path) -> list[Run]:
    """Return the runs in MLflow of the trials on the undisturbed sweep's front."""
    client = connect(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    query = "tags.`pareto.front` = 'true' and tags.`otsweep.sweep` = 'undisturbed'"
    return list(client.search_runs([experiment.experiment_id], query))


LOAD = """
import sys, mlflow, torch
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pytorch.load_model(sys.argv[2])
signature = mlflow.models.get_model_info(sys.argv[2]).signature
assert signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, 1, 8, 8), signature.inputs.to_dict()
torch.save(model(torch.load(sys.argv[3], weights_only=True)), sys.argv[4])
assert not {"trainer", "sweep", "search_spaces"} & sys.modules.keys()
"""


def test_the_fronts_models_load_without_this_code(
    storage: Path, undisturbed: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    import torch

    from trainer.training.model_file import load_model

    uri = f"sqlite:///{storage / 'mlflow.db'}"
    run = front_runs(storage)[0]
    [model] = connect(uri).search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
    )
    assert {each.key: each.value for each in model.metrics or []}["sel_sens"] == run.data.metrics["sel_sens"]
    assert [each.model_id for each in run.outputs.model_outputs] == [model.model_id]
    images, answers = tmp_path / "images.pt", tmp_path / "answers.pt"
    torch.save(torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0)), images)
    words = [sys.executable, "-c", LOAD, uri, f"models:/{model.model_id}", str(images), str(answers)]
    elsewhere = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    loaded = subprocess.run(words, cwd=tmp_path, env=elsewhere, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    ours = load_model(storage / "undisturbed" / "trials" / f"{int(run.data.tags['otsweep.trial']):04d}" / "model.pt")
    expected = ours(torch.load(images, weights_only=True)).logits
    torch.testing.assert_close(torch.load(answers, weights_only=True), expected, atol=1e-4, rtol=1e-4)


def test_only_the_front_has_models_and_galleries(storage: Path, undisturbed: subprocess.CompletedProcess[str]) -> None:
    client, runs = connect(f"sqlite:///{storage / 'mlflow.db'}"), front_runs(storage)
    for run in runs:
        assert "gallery.png" in [file.path for file in client.list_artifacts(run.info.run_id)]
    models = client.search_logged_models([runs[0].info.experiment_id])
    assert {model.source_run_id for model in models} == {run.info.run_id for run in runs}
    requirements = next((storage / "artifacts" / "tiny" / "models").rglob("requirements.txt")).read_text()
    assert re.fullmatch(r"torch==\S+\nmlflow==\S+\nnumpy==\S+", requirements.strip())


def test_front_works_from_the_ledger_alone(storage: Path, undisturbed: subprocess.CompletedProcess[str]) -> None:
    shown = front(storage, "undisturbed")
    results = [record.result for record in read_ledger(storage / "undisturbed").trials.values()]
    best = max(result["sensitivity_accuracy"] for result in results if result)
    assert shown["front"][0]["sensitivity_accuracy"] == best
    assert 0 < shown["hypervolume"] < 1
    table = otsweep(storage, "front", "undisturbed").stdout
    assert f"{best:.1%}" in table


def assert_mlflow_tells_the_ledger(storage: Path, name: str, folder: Path) -> None:
    """Compare MLflow with what an undisturbed writer makes of the same ledger."""
    fresh = otsweep(storage, "sync", name, "--mlflow-uri", f"sqlite:///{folder / 'fresh.db'}")
    assert fresh.returncode == 0, fresh.stdout + fresh.stderr
    assert contents(storage / "mlflow.db", name) == contents(folder / "fresh.db", name)


def reports_written(storage: Path, name: str) -> int:
    log = storage / name / "ledger" / "log.jsonl"
    return log.read_bytes().count(b'"reported"') if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_ui_serves_the_front_on_the_loopback_address_and_ends(
    storage: Path, undisturbed: subprocess.CompletedProcess[str], ending: signal.Signals
) -> None:
    words = command(storage, "ui", "undisturbed", "--port", "0", "--no-browser")
    with start(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        link = next(line for line in process.stdout if "http" in line).split()[-1]
        address = re.match(r"http://127\.0\.0\.1:\d+", link)
        assert address is not None
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(link, timeout=60) as answer:
            assert answer.status == 200
        process.send_signal(ending)
        assert process.wait(timeout=PATIENCE) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address[0]}/health", timeout=10)


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_the_undisturbed_front(
    storage: Path, undisturbed: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    """Kill the driver in the middle of a trial; `test_survival.py` kills at every other time."""
    name = "killed"
    driver = start(command(storage, *run_words(storage, name)), stdout=subprocess.DEVNULL)
    wait_for(lambda: reports_written(storage, name) >= 7, driver)
    driver.kill()
    driver.wait()
    before = numbers(storage, name)
    resumed = otsweep(storage, "resume", name)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert numbers(storage, name) == numbers(storage, "undisturbed")
    assert front(storage, name)["front"] == front(storage, "undisturbed")["front"]
    assert_mlflow_tells_the_ledger(storage, name, tmp_path)
    attempts = {number: record.attempts for number, record in read_ledger(storage / name).trials.items()}
    for number, (state, _, _) in before.items():
        assert attempts[number] == (1 if state == "finished" else 2)


@pytest.mark.slow
def test_random_draws_on_two_slots_survive_a_kill_too(storage: Path) -> None:
    """Draw at random, so that the order of results can't matter."""

    def words(name: str) -> tuple[str, ...]:
        return ("run", str(storage / "tiny.yaml"), "--name", name, "--max-concurrent", "2", "--sampler", "random")

    assert otsweep(storage, *words("two")).returncode == 0
    driver = start(command(storage, *words("two-killed")), stdout=subprocess.DEVNULL)
    wait_for(lambda: reports_written(storage, "two-killed") >= 9, driver)
    driver.kill()
    driver.wait()
    assert otsweep(storage, "resume", "two-killed").returncode == 0
    assert numbers(storage, "two-killed") == numbers(storage, "two")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(
    storage: Path, undisturbed: subprocess.CompletedProcess[str], ending: signal.Signals
) -> None:
    name = f"stopped-{ending.name}"
    words = command(storage, *run_words(storage, name))
    driver = start(words, own=ending == signal.SIGINT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: reports_written(storage, name) >= 6, driver)
    driver.send_signal(ending)
    said, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130, said
    assert f"otsweep resume {name}" in said
    assert "Traceback" not in said
    assert "SIGTERM received" not in said
    assert otsweep(storage, "resume", name).returncode == 0
    assert numbers(storage, name) == numbers(storage, "undisturbed")


@pytest.mark.slow
def test_a_failing_trial_is_told_and_the_sweep_goes_on(storage: Path) -> None:
    space = SPACE.replace("  - preset: baseline", "  - {preset: baseline, learning_rate: 10.0}")
    space = space.replace("points:", "points:\n  - {preset: baseline, batch_size: 5000}")
    (storage / "failing.yaml").write_text(space)
    done = otsweep(storage, "run", str(storage / "failing.yaml"), "--name", "failing", "--trials", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = read_ledger(storage / "failing").trials
    assert [trials[number].state for number in (0, 2)] == ["failed", "finished"]
    assert "batch_size = 5000: must be at most 300" in trials[0].reason
    assert trials[0].attempts == 1
    assert "trial 000 failed: batch_size = 5000" in done.stdout


@pytest.mark.slow
def test_no_worker_is_left_behind(undisturbed: subprocess.CompletedProcess[str]) -> None:
    """Wait for the workers of drivers that were killed above: they notice, and end within a minute or so."""
    deadline = time.monotonic() + PATIENCE
    while workers():
        assert time.monotonic() < deadline
        time.sleep(1)


WORKER = re.compile(r"ray::(\w*Trainable|PackedTrial)")
"""Name of a process in which a trial runs, also between two epochs."""


def workers() -> list[int]:
    """Return the processes with trials of these tests' sweeps: others on this machine have another storage."""
    rows = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines()
    pids = [row.split()[0] for row in rows if WORKER.search(row)]
    return [int(pid) for pid in pids if os.environ["OTSWEEP_STORAGE"].encode() in environment_of(pid)]


def environment_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
