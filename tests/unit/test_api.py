"""The face for Python: what `import sweep` offers is light, typed as the options are, and the command's own."""

from __future__ import annotations

import csv
import io
import json
import queue
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import sweep
from sweep.api.auditing import _AuditWords, _StudyWords
from sweep.api.options import ResumeOptions, RunOptions, knob_words, new_plan
from sweep.api.running import News
from sweep.cli import main
from sweep.ledger.reading import read_ledger
from sweep.plan import AUDIT_OPTIONS, STUDY_OPTIONS
from sweep.plan.options import SPACE_OPTIONS
from sweep.plan.plan import OPTIONS, RESUMABLE, SweepPlan
from sweep.state.sweep_state import SweepState
from tests.support import events
from tests.support.recorded_sweeps import recorded
from trainer import errors

EPOCH = {"epoch": 1, "final": False, "train_seconds": 1.0, "evaluation_seconds": 1.0}


pytestmark = pytest.mark.filterwarnings("ignore:.*has no count of its events")
"""The recorded sweep is of a version whose ledger did not count them."""


@pytest.fixture(scope="module")
def plan(new_storage: Callable[[str], Path]) -> SweepPlan:
    return recorded("digits24", new_storage("api"))


@pytest.fixture(scope="module")
def opened(plan: SweepPlan) -> sweep.Sweep:
    return sweep.open(plan.name, storage=plan.storage)


def test_importing_it_costs_nothing_and_verbs_are_functions_beside_rooms_of_their_names() -> None:
    code = (
        "import sweep, sys; from sweep.plan import SweepPlan; "
        "heavy = {'ray', 'torch', 'mlflow', 'matplotlib', 'pandas'} & set(sys.modules); "
        "assert callable(sweep.plan) and callable(sweep.open) and issubclass(sweep.InputError, ValueError); "
        "print(sorted(heavy), 'run' in dir(sweep))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[] True", run.stderr


def test_options_are_those_of_the_command_in_their_types() -> None:
    assert set(RunOptions.__annotations__) == {*OPTIONS, *SPACE_OPTIONS}
    assert {*RESUMABLE, "storage"} <= set(ResumeOptions.__annotations__)
    assert set(_AuditWords.__annotations__) == set(AUDIT_OPTIONS)
    assert set(_StudyWords.__annotations__) == set(STUDY_OPTIONS)
    kinds = {"int": int, "float": float, "str": str}
    for name, kind in typing.get_type_hints(RunOptions).items():
        if name in OPTIONS:
            assert kinds[str(OPTIONS[name].type)] in typing.get_args(kind), name


def test_options_may_be_what_python_has_for_them(tmp_path: Path) -> None:
    plan = new_plan(
        "digits",
        {"storage": tmp_path, "trials": 7, "set": {"regularizer": "none"}, "require": "clean_accuracy >= 0.9"},
    )
    assert (plan.trials, plan.space.fixed["regularizer"]) == (7, "none")
    assert [str(each) for each in plan.space.require] == ["clean_accuracy >= 0.9"]
    assert knob_words({"a": True, "b": 0.5}) == ["a=true", "b=0.5"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda storage: sweep.run("digits", storage=storage, trails=3), "unknown option 'trails': did you mean"),
        (lambda storage: sweep.run("digit", storage=storage), "unknown search space 'digit': did you mean 'digits'"),
        (lambda storage: sweep.plan("digits", storage=storage, set={"margn": 1}), "unknown setting 'margn'"),
        (lambda storage: sweep.open("nothing", storage=storage), "no sweep 'nothing' in"),
        (lambda storage: sweep.resume("nothing", storage=storage), "no sweep 'nothing' in"),
        (lambda storage: sweep.compare("nothing", "none", storage=storage), "no sweep 'nothing' in"),
        (lambda storage: sweep.trial("pgd-at", set={"margn": 1}, storage=storage), "unknown setting 'margn'"),
    ],
)
def test_a_mistake_is_an_error_of_ours_and_prints_nothing(
    call: Callable[[str], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(sweep.InputError, match=message):
        call(str(tmp_path))
    assert capsys.readouterr() == ("", "")


def test_a_front_is_a_table_and_a_figure(
    plan: SweepPlan, opened: sweep.Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["front", plan.name, "--storage", plan.storage, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(opened.front.columns) == list(rows[0])
    assert opened.front["trial"].tolist() == [int(row["trial"]) for row in rows]
    assert opened.front["sensitivity_accuracy"].tolist() == [float(row["sensitivity_accuracy"]) for row in rows]
    assert main(["front", plan.name, "--storage", plan.storage, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(opened.to_dict()))
    assert isinstance(opened.figure(), Figure)
    fields = opened.arrow("front").schema
    assert b"description" in fields.field("sensitivity_accuracy").metadata
    assert b"Setting" in fields.field("sensitivity_epsilon").metadata[b"description"]
    assert "of 24 trials ended" in repr(opened)


def test_trials_and_reports_are_tables(plan: SweepPlan, opened: sweep.Sweep) -> None:
    records = read_ledger(plan.folder).trials
    assert opened.trials["trial"].tolist() == list(records)
    assert opened.trials["state"].tolist() == [record.state for record in records.values()]
    assert len(opened.reports) == sum(len(record.reports) for record in records.values())
    finals = opened.reports.query("final").set_index("trial")["clean_accuracy"]
    assert finals.to_dict() == opened.trials.query("final").set_index("trial")["clean_accuracy"].to_dict()


def test_reports_are_told_and_begins_are_not() -> None:
    from sweep.plan.objectives import OBJECTIVES

    state, seen = SweepState(OBJECTIVES, {}, total=2), queue.SimpleQueue()
    news = News(state, seen.put)
    for event in [
        events.started(0, {}),
        events.reported(0, EPOCH),
        events.started(0, {}, attempt=2),
        events.reported(0, EPOCH),
        events.ended(0, "failed", reason="a reason"),
    ]:
        state.apply(event)
        news.tell(0)
    told = [seen.get() for _ in range(seen.qsize())]
    assert [(each.state, each.reason, each.report.get("epoch")) for each in told] == [
        ("running", "", 1),
        ("running", "", 1),
        ("failed", "a reason", 1),
    ]


def test_errors_are_those_of_the_project() -> None:
    assert sweep.InputError is errors.InputError
    assert issubclass(sweep.Interrupted, KeyboardInterrupt)


def test_wrong_audits_and_studies_are_refused_as_the_command_does(plan: SweepPlan) -> None:
    with pytest.raises(sweep.InputError, match="nothing"):
        sweep.audit("nothing", storage=plan.storage)
    with pytest.raises(sweep.InputError, match="crowd = 'unanimous'"):
        sweep.audit(plan.name, storage=plan.storage)
    with pytest.raises(sweep.InputError, match="regularizer"):
        sweep.study("regularizer", storage=plan.storage)
    with pytest.raises(sweep.InputError, match="no model is named"):
        sweep.judge([], storage=plan.storage)
