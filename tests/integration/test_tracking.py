"""MLflow: what is written twice is there once, what a page needs is there, and the writer takes a small share."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from sweep.audit.results import sealed
from sweep.plan.plan import SweepPlan
from sweep.state.sweep_state import SweepState
from sweep.tracking import tracker as tracker_module
from sweep.tracking.links import FRONT, view_key, view_label, view_link
from sweep.tracking.mlflow_internals import LONGEST_VIEW, PAGE_VERSION, VIEW_TAG
from sweep.tracking.parent_run import ParentRun
from sweep.tracking.server import free_port, page
from sweep.tracking.store import connect
from sweep.tracking.tracker import TIME_SHARE, Tracker
from sweep.tracking.views import MOST_SWEEPS, NAMES, outdated, view_tags
from sweep.tracking.writer import Writer, is_over, sync
from tests.integration.test_model_export import audited
from tests.support import events
from tests.support.mlflow_stores import blanked, contents
from tests.support.recorded_sweeps import recorded, replay, results_of
from trainer.config import TrialConfig
from trainer.errors import InputError

TRIALS = 5


def no_word(message: str) -> None:
    pytest.fail(f"said: {message}")


@pytest.fixture
def plan(tmp_path: Path, empty_store: Path) -> SweepPlan:
    """The first trials of a recorded sweep, with a store that holds nothing."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return recorded("digits24", tmp_path, trials=TRIALS)


@contextlib.contextmanager
def writing(plan: SweepPlan, state: SweepState) -> Iterator[Writer]:
    """A writer that has asked the store what it holds."""
    with contextlib.closing(Writer(plan, plan.mlflow_uri, log=no_word)) as writer:
        writer.open(state)
        yield writer


def store_of(plan: SweepPlan) -> dict[str, Any]:
    return contents(Path(plan.storage) / "mlflow.db", plan.name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_store, folder / "mlflow.db")
    plan = recorded("digits24", folder, trials=TRIALS)
    sync(plan, plan.mlflow_uri, log=no_word)
    return store_of(plan)


def test_a_second_writer_changes_nothing(plan: SweepPlan, undisturbed: dict[str, Any]) -> None:
    for _ in range(2):
        sync(plan, plan.mlflow_uri, log=no_word)
        assert store_of(plan) == undisturbed
    assert len(undisturbed) == 1 + TRIALS


TABLES = ("experiments", "runs", "tags", "params", "metrics", "latest_metrics", "inputs", "datasets")


def rows_of(database: Path) -> dict[str, list[str]]:
    """Every column of every row that has to do with runs; identifiers and the times of writing are blanked."""
    with contextlib.closing(sqlite3.connect(database)) as store:
        store.row_factory = sqlite3.Row
        names = dict(map(tuple, store.execute("select run_uuid, name from runs")))
        found = {}
        for table in TABLES:
            rows = [dict(row) for row in store.execute(f"select * from {table}")]
            shown = [str({key: row[key] for key in row if key not in WRITTEN}) for row in rows]
            for run, name in names.items():
                shown = [text.replace(run, name) for text in shown]
            found[table] = sorted(map(blanked, shown))
    return found


WRITTEN = {"creation_time", "last_update_time", "dataset_uuid", "input_uuid", "source_id"}


def test_inserted_runs_are_those_that_calls_make(
    plan: SweepPlan, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = results_of(plan).trials
    for number, ending in ((0, "failed"), (1, "stopped")):
        over = events.ended(number, ending, reason="on purpose", time=trials[number].ended or 0)
        trials[number] = trials[number].apply(over)
    state, found = SweepState(plan.objectives, trials, total=plan.trials), {}
    state.data_summary = results_of(plan).data_summary
    for way in ("inserted", "by calls"):
        database = tmp_path / f"{way}.db"
        shutil.copy(empty_store, database)
        with contextlib.closing(Writer(plan, f"sqlite:///{database}", log=no_word)) as writer:
            assert writer.store.inserts
            writer.store.inserts = way == "inserted"
            writer.open(state)
            monkeypatch.setattr(writer.trials, "_create" if writer.store.inserts else "insert", pytest.fail)
            assert writer.finish(state, over=True)
        found[way] = rows_of(database)
    for table in TABLES:
        assert found["inserted"][table] == found["by calls"][table]
        assert found["inserted"][table]


def test_a_trial_that_can_not_be_inserted_costs_that_trial_alone(plan: SweepPlan, undisturbed: dict[str, Any]) -> None:
    state, said = results_of(plan), list[str]()
    refused = [{**report, "no;name": 1.0} for report in state.trials[1].reports]
    state.trials[1] = dataclasses.replace(state.trials[1], reports=tuple(refused))
    with contextlib.closing(Writer(plan, plan.mlflow_uri, log=said.append)) as writer:
        writer.open(state)
        assert writer.finish(state, over=True)
        assert writer.parts.missing().startswith('MLflow lacks trial 001 (Invalid value "no;name"')
    whole = [name for name in undisturbed if name.startswith("trial") and name != "trial 1"]
    assert {name: store_of(plan)[name] for name in whole} == {name: undisturbed[name] for name in whole}


def test_every_number_of_the_ledger_is_there_once(plan: SweepPlan, undisturbed: dict[str, Any]) -> None:
    for record in results_of(plan).trials.values():
        name, (status, start, end), params, tags, metrics, _ = undisturbed[f"trial {record.number}"]
        assert name.startswith(f"{record.number:03d} ce=")
        assert status == "FINISHED"
        assert (start, end) == (int(record.started * 1000), int(record.ended * 1000))  # type: ignore[operator]
        assert {key: params[key] for key in ("regularizer", "epochs")} == {
            "regularizer": record.config["regularizer"],
            "epochs": "10",
        }
        for told in record.reports[:-1]:
            for key in told.keys() - {"epoch", "final", "time"}:
                rows = [row for row in metrics if row[0] == key and row[1] == told["epoch"]]
                assert rows == [(key, told["epoch"], int(told["time"] * 1000), pytest.approx(told[key], abs=0), 0)]
        assert record.result is not None
        [chosen] = [row for row in metrics if row[0] == "sel_sens"]
        assert chosen[1:4] == (0, int(record.result["time"] * 1000), record.result["sensitivity_accuracy"])


def test_tags_say_what_a_trial_is(plan: SweepPlan, undisturbed: dict[str, Any]) -> None:
    results = results_of(plan)
    ranks = results.ranks()
    for number, rank in ranks.items():
        _, _, _, tags, metrics, _ = undisturbed[f"trial {number}"]
        assert tags["pareto.front"] == str(rank == 0).lower()
        assert tags["pareto.rank"] == str(rank)
        assert tags["pareto.knee"] == str(number == results.knee).lower()
        assert tags["otsweep.plan_hash"] == plan.hash
        assert tags["otsweep.code_version"] == plan.code_version
        assert tags["otsweep.data_fingerprint"] == results.data_summary["data_fingerprint"]
        assert tags["otsweep.resources"] == "1 CPU, 0 GPU"
        assert "CPU hours" in tags["otsweep.cost"]
        assert tags["otsweep.seed"] == "0"
        told = [(step, moment, value) for key, step, moment, value, _ in metrics if key == "pareto_rank"]
        assert {step for step, _, _ in told} == {0}
        assert max(told)[2] == rank, "the latest is the last"
    assert {tags["mlflow.runColor"] for _, _, _, tags, _, _ in undisturbed.values()} >= {"#B8BDC4", "#0072B2"}


def test_the_parent_tells_the_front_and_what_it_cost(plan: SweepPlan, undisturbed: dict[str, Any]) -> None:
    name, (status, _, _), params, tags, metrics, _ = undisturbed["sweep "]
    results = results_of(plan)
    assert (name, status) == (plan.name, "FINISHED")
    volumes = [(step, value) for key, step, _, value, _ in metrics if key == "front_hypervolume"]
    assert volumes == [(each.finished, each.hypervolume) for each in results.course]
    assert volumes[-1] == (TRIALS, results.hypervolume)
    hours = [value for key, _, _, value, _ in metrics if key == "front_cpu_hours"]
    assert hours == sorted(hours)
    assert hours[-1] == pytest.approx(results.ended_seconds / 3600)
    note = tags["mlflow.note.content"]
    first, _, _, _, picture, *_ = note.splitlines()
    assert first.startswith(f"**Front of {results.front.size} among {TRIALS} finished trials**, hypervolume ")
    assert picture == "![The front](get-artifact?path=front%2Ffront.png&run_uuid=<run>)"
    for record in results.front_records:
        assert f"| [{record.number:03d}](#/experiments/<id>/runs/<run>) |" in note
        assert f"# {record.number:03d}\notsweep trial --dataset digits" in note


def test_the_front_as_files(plan: SweepPlan) -> None:
    sync(plan, plan.mlflow_uri, log=no_word)
    client = connect(plan.mlflow_uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    [parent] = client.search_runs([experiment.experiment_id], "tags.`otsweep.kind` = 'sweep'")
    files = {Path(file.path).name for file in client.list_artifacts(parent.info.run_id, "front")}
    assert files >= {"front.png", "front.html", "front.csv", "trials.json", "trials.parquet", "plan.yaml", "space.yaml"}
    assert parent.data.tags["mlflow.loggedArtifacts"] == '[{"path": "front/trials.json", "type": "table"}]'
    [logged] = parent.inputs.dataset_inputs
    assert logged.dataset.digest == results_of(plan).data_summary["data_fingerprint"]
    folder = Path(plan.storage) / "artifacts" / "digits" / parent.info.run_id / "artifacts" / "front"
    table = json.loads((folder / "trials.json").read_text())
    assert table["columns"][:3] == ["trial", "state", "rank"]
    assert len(table["data"]) == TRIALS


def test_an_audits_numbers_are_metrics_of_the_run_written_once(plan: SweepPlan) -> None:
    number = results_of(plan).front_records[0].number
    (plan.folder / "audit").mkdir()
    for seed in (7, 8):
        found = dataclasses.replace(audited(seed, [0.9, 0.5, 0.1]), number=number)
        (plan.folder / "audit" / f"{number:04d}-{seed}.json").write_bytes(sealed(found))
    for _ in range(2):
        sync(plan, plan.mlflow_uri, log=no_word)
    client = connect(plan.mlflow_uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "metrics.`audit/certified_accuracy` > 0")
    assert [run.data.tags["otsweep.trial"] for run in runs] == [str(number)]
    history = client.get_metric_history(runs[0].info.run_id, "audit/certified_accuracy")
    assert [point.value for point in history] == [0.75]


def test_a_command_runs_the_same_point_again(plan: SweepPlan) -> None:
    """Read back by the command's own parser, it names exactly the trial's configuration."""
    import argparse
    import shlex

    from sweep.tracking.description import run_again
    from trainer.__main__ import add_arguments, configs

    for record in results_of(plan).trials.values():
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        config, evaluation = configs(parser.parse_args(shlex.split(run_again(plan, record.config))[2:]))
        assert config == TrialConfig.from_mapping(record.config)
        assert evaluation == plan.space.evaluation


def test_a_sweep_written_as_it_runs_ends_as_one_written_afterwards(
    plan: SweepPlan, undisturbed: dict[str, Any]
) -> None:
    """Pass by pass, with another driver taking over in the middle."""
    results = SweepState(plan.objectives, {}, total=plan.trials)
    results.data_summary = results_of(plan).data_summary
    tracker = Tracker(plan, results, no_word)
    for count, number in enumerate(replay(plan, results)):
        tracker.changed(number)
        if count % 7 == 0:
            tracker.write_pass()
        if count == 30:
            tracker.thread.start()
            tracker.close(complete=False)
            assert store_of(plan)["sweep "][1][0] == "KILLED"
            assert "RUNNING" not in [run[1][0] for run in store_of(plan).values()]
            tracker = Tracker(plan, results, no_word)
    tracker.start()
    tracker.close(complete=True)
    assert store_of(plan) == undisturbed


def test_an_epoch_said_again_by_a_retry_is_there_once(plan: SweepPlan) -> None:
    """MLflow would keep both numbers for ever; also where another writer finds the earlier one."""
    results = results_of(plan)
    record = results.trials[0]
    running = dataclasses.replace(record, state="running", ended=None, reports=record.reports[:3])
    again = {**record.reports[2], "train_seconds": 9.0}
    for seconds in (5, 10):
        with writing(plan, results) as writer:
            writer.trials.write(running, results)
            report = {**again, "time": record.reports[2]["time"] + seconds}
            running = running.apply(events.reported(0, report))
            if seconds == 5:
                writer.trials.write(running, results)
    with writing(plan, results) as writer:
        writer.trials.write(running, results)
    _, _, _, _, metrics, _ = store_of(plan)["trial 0"]
    told = [row[1:4] for row in metrics if row[0] == "train_seconds"]
    assert len(told) == 3
    assert told[-1] == (3, int((record.reports[2]["time"] + 10) * 1000), 9.0)


def test_failed_and_stopped_trials_say_why(plan: SweepPlan) -> None:
    trials = results_of(plan).trials
    for number, ending, reason in ((0, "failed", "on purpose"), (1, "stopped", "behind")):
        over = events.ended(number, ending, reason=reason, time=trials[number].ended or 0)
        trials[number] = trials[number].apply(over)
    state = SweepState(plan.objectives, trials, total=plan.trials)
    with writing(plan, state) as writer:
        writer.finish(state, over=True)
    for number, status, reason in ((0, "FAILED", "on purpose"), (1, "KILLED", "behind")):
        _, (found, _, _), _, tags, metrics, _ = store_of(plan)[f"trial {number}"]
        assert (found, tags["otsweep.reason"]) == (status, reason)
        assert not [row for row in metrics if row[0] == "pareto_rank"]


def test_two_processes_never_write_the_same_sweep(plan: SweepPlan) -> None:
    with (
        writing(plan, results_of(plan)),
        pytest.raises(InputError, match="sweep 'digits24' is already being written to this store by pid"),
    ):
        sync(plan, plan.mlflow_uri, log=no_word)


def test_a_sweep_that_never_began_leaves_no_run(plan: SweepPlan) -> None:
    tracker = Tracker(plan, SweepState(plan.objectives, {}, total=plan.trials), no_word)
    tracker.start()
    tracker.write_pass()
    tracker.close(complete=False)
    assert store_of(plan) == {}


def test_a_store_that_is_away_is_said_once_and_holds_nothing_up(plan: SweepPlan) -> None:
    plan = dataclasses.replace(plan, mlflow_uri="http://127.0.0.1:9")
    said: list[str] = []
    tracker = Tracker(plan, results_of(plan), said.append)
    begun = time.monotonic()
    for _ in range(3):
        assert not tracker.attempt(tracker.write_pass)
    assert time.monotonic() - begun < 10
    assert said == [
        "MLflow does not take results at the moment (no MLflow store answers at http://127.0.0.1:9: nothing listens "
        "there, or it took too long); going on without it"
    ]


def test_the_writer_keeps_to_its_share(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand trials that wait at once, a pass writes as many as fit, and the next waits accordingly."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    plan = recorded("thousand", tmp_path)
    monkeypatch.setattr(tracker_module, "PASS_SECONDS", 0.5)
    tracker = Tracker(plan, results_of(plan), no_word)
    tracker.write_pass()
    spent, begun = 0.0, time.monotonic()
    pauses: list[float] = []
    monkeypatch.setattr(tracker.ending, "wait", lambda pause: pauses.append(pause) or len(pauses) > 6)
    passes: list[float] = []

    def timed(write: Any) -> bool:
        start = time.thread_time()
        write()
        passes.append(time.thread_time() - start)
        return True

    monkeypatch.setattr(tracker, "attempt", timed)
    tracker.work()
    assert 0 < spent + sum(passes) <= TIME_SHARE * 1.01 * sum(pauses[1:])
    assert time.monotonic() - begun < 60
    assert 0 < len(store_of(plan)) < 200
    assert tracker.writer is not None
    tracker.writer.close()


def test_a_pass_costs_the_same_however_many_trials_there_are(tmp_path: Path, empty_store: Path) -> None:
    """Trials that are written are not looked at again."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    plan = recorded("thousand", tmp_path)
    tracker = Tracker(plan, results_of(plan), no_word)
    tracker.loaded = True
    state = tracker.take_state()
    writer = tracker.writer = Writer(plan, plan.mlflow_uri, log=no_word)
    writer.open(state)
    written: list[int] = []
    writer.trials.write = lambda record, state: written.append(record.number)  # type: ignore[method-assign]
    with contextlib.closing(writer):
        tracker.changed(7)
        tracker.write_pass()
        tracker.write_pass()
    assert written == [7]


def test_views_fit_and_name_what_the_page_needs(plan: SweepPlan) -> None:
    sync(plan, plan.mlflow_uri, log=no_word)
    experiment = connect(plan.mlflow_uri).get_experiment_by_name("digits")
    assert experiment is not None
    [parent] = connect(plan.mlflow_uri).search_runs([experiment.experiment_id], "tags.`otsweep.kind` = 'sweep'")
    label = view_label(plan.name, parent.info.run_id)
    for view in NAMES:
        stored = json.loads(experiment.tags[VIEW_TAG + view_key(view, label)])
        assert stored["name"] == f"{view}: {label}"
        assert len(experiment.tags[VIEW_TAG + view_key(view, label)]) <= LONGEST_VIEW
    state = json.loads(json.loads(experiment.tags[VIEW_TAG + view_key(FRONT, label)])["state"])
    for query, count in ((state["searchFilter"], TRIALS), (f"attributes.run_id = '{parent.info.run_id}'", 1)):
        assert len(connect(plan.mlflow_uri).search_runs([experiment.experiment_id], query)) == count
    assert [chart["type"] for chart in state["compareRunCharts"]] == ["SCATTER", "PARALLEL", "LINE", "LINE", "LINE"]
    assert state["compareRunCharts"][1]["selectedParams"] == list(plan.space.swept)
    assert page("http://host", plan.mlflow_uri, plan) == "http://host" + view_link(
        experiment.experiment_id, view_key(FRONT, label)
    )


def test_views_of_long_past_sweeps_make_room(plan: SweepPlan) -> None:
    tags: dict[str, str] = {VIEW_TAG + "mine": json.dumps({"name": "Pareto front: mine"}), VIEW_TAG + "broken": "{"}
    for day in range(MOST_SWEEPS + 2):
        tags |= view_tags(plan, f"{day:032x}"[::-1], day)
    old = {VIEW_TAG + view_key(FRONT, "old")[:24]: json.dumps({"name": f"{FRONT}: old", "createdAt": -1})}
    labels = [view_label(plan.name, f"{day:032x}"[::-1]) for day in (0, 1)]
    expected = [VIEW_TAG + view_key(view, label) for view in NAMES for label in labels]
    assert sorted(outdated({**tags, **old})) == sorted([*expected, *old])


def test_another_version_is_said_and_all_is_written(
    plan: SweepPlan, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow, "__version__", "9.0.0")
    said: list[str] = []
    sync(plan, plan.mlflow_uri, log=said.append)
    assert said == [f"MLflow 9.0.0: its saved views were checked with {PAGE_VERSION} and may not open; all else does"]
    assert store_of(plan) == undisturbed


@pytest.mark.parametrize(
    ("running", "flat", "over"), [(False, 0, True), (True, 0, False), (False, 3, True)], ids=["all", "running", "flat"]
)
def test_when_a_sweep_is_over(plan: SweepPlan, running: bool, flat: int, over: bool) -> None:
    results = results_of(plan)
    if running:
        results.trials[0] = dataclasses.replace(results.trials[0], state="running")
    more = dataclasses.replace(plan, stop_when_flat=flat, trials=plan.trials + bool(flat))
    assert is_over(more, results) == over


def test_a_server_that_is_not_there_is_refused_quickly() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match="no MLflow store answers at http://127.0.0.1:9: nothing listens there"):
        connect("http://127.0.0.1:9")
    assert time.monotonic() - start < 30


def test_a_taken_port_is_refused() -> None:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: can't be used"):
            free_port(port)
    assert free_port(0) > 0


def test_the_writer_has_a_thread_of_its_own(plan: SweepPlan) -> None:
    tracker = Tracker(plan, results_of(plan), no_word)
    tracker.start()
    assert tracker.thread is not threading.current_thread()
    tracker.close(complete=True)
    assert not tracker.thread.is_alive()
    assert len(store_of(plan)) == 1 + TRIALS


def test_standings_are_current_while_a_sweep_runs(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each pass that had the time: front and knee are those of the trials that finished, and each has a rank."""
    monkeypatch.setattr(tracker_module, "PASS_SECONDS", 1000.0)
    results = SweepState(plan.objectives, {}, total=plan.trials)
    results.data_summary = results_of(plan).data_summary
    tracker, finished = Tracker(plan, results, no_word), 0
    for number in replay(plan, results):
        tracker.changed(number)
        if len(results.finished) == finished:
            continue
        finished += 1
        tracker.write_pass()
        store, ranks = store_of(plan), results.ranks()
        for each, rank in ranks.items():
            _, _, _, tags, _, latest = store[f"trial {each}"]
            assert tags["pareto.front"] == str(rank == 0).lower()
            assert tags["pareto.knee"] == str(each == results.knee).lower()
            [told] = [value for key, _, _, value, _ in latest if key == "pareto_rank"]
            assert tags["pareto.rank"] == str(int(told))
            if finished in (1, 2, 3, 5):
                assert told == rank
        assert f"among {finished} finished trials" in store["sweep "][3]["mlflow.note.content"]
        assert store["sweep "][3]["mlflow.note.content"].count("[") >= len(results.front_records)
    assert finished == TRIALS
    assert tracker.writer is not None
    tracker.writer.close()


def test_files_of_the_front_follow_even_when_nothing_ends_meanwhile(
    plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial ended while the files' time had not come: they are written when it has."""
    tracker = Tracker(plan, results_of(plan), no_word)
    tracker.write_pass()
    writer, written = tracker.writer, []
    assert writer is not None
    with contextlib.closing(writer):
        assert not writer.parent.files_stale
        writer.parent.files_stale = True
        monkeypatch.setattr(ParentRun, "write_files", lambda self, state, over: written.append(time.monotonic()))
        tracker.write_pass()
        assert written == []
        writer.parent.files_due = time.monotonic()
        tracker.write_pass()
        assert len(written) == 1
