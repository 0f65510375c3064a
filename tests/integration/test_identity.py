"""Sweeps that share a store: of one name, copied, moved, or behind; none sees, adopts or deletes another's runs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from sweep.plan.plan import SweepPlan
from sweep.plan.plan_file import plan_text, read_plan
from sweep.tracking.identity import is_own
from sweep.tracking.store import connect
from sweep.tracking.summary_run import write_summary
from sweep.tracking.writer import sync
from tests.support.recorded_sweeps import recorded

TRIALS = 2


def no_word(message: str) -> None:
    pytest.fail(f"said: {message}")


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path) -> str:
    """A store that all share."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def planned(folder: Path, uri: str, *, id: str) -> SweepPlan:
    """A recorded sweep in a storage of its own, whose plan has an identifier or, as in earlier versions, none."""
    folder.mkdir()
    plan = dataclasses.replace(recorded("digits24", folder, trials=TRIALS), mlflow_uri=uri, id=id)
    (plan.folder / "plan.yaml").write_text(plan_text(plan))
    return plan


def runs(uri: str, view: int = ViewType.ACTIVE_ONLY) -> dict[str, Run]:
    client = connect(uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    return {run.info.run_id: run for run in client.search_runs(experiments, run_view_type=view)}


def plain(found: dict[str, Run]) -> dict[str, tuple[str, dict[str, str], dict[str, float]]]:
    return {each: (run.info.status, run.data.tags, run.data.metrics) for each, run in found.items()}


def test_a_new_plan_has_an_identifier_that_no_number_depends_on(tmp_path: Path) -> None:
    from search_spaces.reading import load_space
    from sweep.plan.from_options import make_plan

    plans = [make_plan(load_space("digits"), name="same", storage=str(tmp_path)) for _ in range(2)]
    assert len({plan.id for plan in plans}) == 2
    assert len({plan.hash for plan in plans}) == 1
    assert f"id: {plans[0].id}\n" in plan_text(plans[0]).replace("'", "")


@pytest.mark.parametrize(
    ("first", "second"), [("aaaa", "bbbb"), ("", "bbbb"), ("aaaa", "")], ids=["both", "an old one", "beside an old one"]
)
def test_two_sweeps_of_one_name_leave_each_other_alone(tmp_path: Path, uri: str, first: str, second: str) -> None:
    one, other = planned(tmp_path / "one", uri, id=first), planned(tmp_path / "other", uri, id=second)
    sync(one, uri, log=no_word)
    before = plain(runs(uri))
    sync(other, uri, log=no_word)
    after = plain(runs(uri))
    assert len(before) == 1 + TRIALS
    assert len(after) == 2 * len(before)
    assert {each: after[each] for each in before} == before
    sync(one, uri, log=no_word)
    assert plain(runs(uri)) == after
    assert not runs(uri, ViewType.DELETED_ONLY)


@pytest.mark.parametrize("id", ["aaaa", ""], ids=["new", "old"])
def test_a_copy_is_a_sweep_of_its_own_and_a_move_is_not(tmp_path: Path, uri: str, id: str) -> None:
    one = planned(tmp_path / "one", uri, id=id)
    sync(one, uri, log=no_word)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    copy = read_plan("digits24", storage=str(tmp_path / "copy"))
    sync(copy, uri, log=no_word)
    assert len(runs(uri)) == 2 * (1 + TRIALS)
    (tmp_path / "one").rename(tmp_path / "moved")
    (tmp_path / "copy").rename(tmp_path / "copy elsewhere")
    for name in ("moved", "copy elsewhere", "moved"):
        sync(read_plan("digits24", storage=str(tmp_path / name)), uri, log=no_word)
    assert len(runs(uri)) == 2 * (1 + TRIALS)
    # A backup that was put back in its place is the sweep that was there.
    shutil.copytree(tmp_path / "moved", tmp_path / "backup")
    shutil.rmtree(tmp_path / "moved")
    shutil.copytree(tmp_path / "backup", tmp_path / "moved")
    sync(read_plan("digits24", storage=str(tmp_path / "moved")), uri, log=no_word)
    assert len(runs(uri)) == 2 * (1 + TRIALS)


def test_runs_that_an_earlier_version_wrote_are_taken_up(tmp_path: Path, uri: str) -> None:
    """Check that they are known by the plan's digest, as they say no place."""
    plan = planned(tmp_path / "one", uri, id="")
    sync(plan, uri, log=no_word)
    client = connect(uri)
    before = runs(uri)
    for run in before.values():
        if run.data.tags["otsweep.kind"] == "sweep":
            client.delete_tag(run.info.run_id, "otsweep.place")
    sync(plan, uri, log=no_word)
    assert plain(runs(uri)) == plain(before)


def test_an_older_state_of_a_ledger_takes_nothing_back(tmp_path: Path, uri: str) -> None:
    """Check that what another machine wrote from a newer one stays, as of a URL that two machines follow."""
    plan = planned(tmp_path / "one", uri, id="aaaa")
    behind = tmp_path / "behind"
    shutil.copytree(plan.folder, behind)
    sync(plan, uri, log=no_word)
    for run in runs(uri).values():
        if run.data.tags["otsweep.kind"] == "trial":
            connect(uri).delete_tag(run.info.run_id, "otsweep.complete")  # as while a trial runs
    before = plain(runs(uri))
    for part in (plan.folder / "ledger").glob("part-*"):
        part.unlink()
    lines = read_lines(behind)
    (plan.folder / "ledger" / "log.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    sync(plan, uri, log=lambda message: None)
    assert plain(runs(uri)).keys() == before.keys()
    assert not runs(uri, ViewType.DELETED_ONLY)


def read_lines(sweep: Path) -> list[bytes]:
    """A ledger's events as lines of a log."""
    from sweep.ledger.reading import checked_line, part_files
    from tests.support.recorded_sweeps import pq_events

    return [checked_line(text) for part in part_files(sweep / "ledger") for text in pq_events(part.path)]


def test_what_somebody_put_below_a_sweep_is_passed_over(tmp_path: Path, uri: str) -> None:
    plan = planned(tmp_path / "one", uri, id="aaaa")
    sync(plan, uri, log=no_word)
    client: MlflowClient = connect(uri)
    [parent] = [run for run in runs(uri).values() if run.data.tags["otsweep.kind"] == "sweep"]
    mine = client.create_run(parent.info.experiment_id, tags={"mlflow.parentRunId": parent.info.run_id, "note": "mine"})
    before = plain(runs(uri))
    sync(plan, uri, log=no_word)
    assert plain(runs(uri)) == before
    assert mine.info.run_id in before


def test_comparisons_of_one_name_leave_each_other_alone(tmp_path: Path, uri: str) -> None:
    one, other = planned(tmp_path / "one", uri, id="aaaa"), planned(tmp_path / "other", uri, id="bbbb")

    def write(plan: SweepPlan) -> None:
        folder = tmp_path / "files"
        folder.mkdir(exist_ok=True)
        write_summary(plan, "study", "s", metrics={}, note=lambda run: run, folder=folder, time=1.0, sweeps=[plan])

    for plan in (one, other):
        sync(plan, uri, log=no_word)
        write(plan)
        write(plan)
    found = runs(uri).values()
    summaries = [run for run in found if run.data.tags["otsweep.kind"] == "study"]
    assert len(summaries) == 2
    for plan in (one, other):
        [summary] = [run for run in summaries if is_own(plan, run.data.tags)]
        [swept] = [run for run in found if run.data.tags.get("mlflow.parentRunId") == summary.info.run_id]
        assert swept.data.tags["otsweep.sweep_id"] == plan.id
