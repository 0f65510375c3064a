"""Sweeps written for other programs: an Optuna study that Optuna opens, and tables that say what they hold."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState

import sweep
from search_spaces.requirement import Requirement
from sweep.cli import main
from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.plan.plan import SweepPlan
from sweep.search.optuna_export import write_optuna_study
from tests.support.recorded_sweeps import recorded

pytestmark = pytest.mark.filterwarnings("ignore:.*has no count of its events")
"""The recorded sweep is of a version whose ledger did not count them."""


@pytest.fixture(scope="module")
def plan(new_storage: Callable[[str], Path]) -> SweepPlan:
    return recorded("digits24", new_storage("export"))


@pytest.fixture(scope="module")
def study(plan: SweepPlan, tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    path = tmp_path_factory.mktemp("optuna") / "study.db"
    words = ["export", plan.name, "--to", "optuna", str(path), "--storage", plan.storage]
    assert main(words) == 0
    assert main(words) == 0, "a file that exists is replaced"
    return optuna.load_study(study_name=plan.name, storage=f"sqlite:///{path}")


def test_optuna_finds_every_trial_with_its_objectives_and_knobs(plan: SweepPlan, study: optuna.Study) -> None:
    records = read_ledger(plan.folder).trials
    assert [trial.number for trial in study.trials] == list(records)
    assert study.metric_names == list(plan.objectives.names)
    for trial, record in zip(study.trials, records.values(), strict=True):
        assert record.result is not None
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [record.result[name] for name in plan.objectives.names]
        assert {**trial.params, **_settings(trial)} == record.config
        assert trial.intermediate_values == {
            report["epoch"]: report[plan.objectives.names[0]] for report in record.reports if not report["final"]
        }
        assert trial.user_attrs["report.clean_accuracy"] == record.result["clean_accuracy"]
        assert trial.datetime_complete is not None
        assert trial.datetime_complete.timestamp() == pytest.approx(record.ended, abs=1e-3)


def _settings(trial: optuna.trial.FrozenTrial) -> dict[str, object]:
    known = {name: value for name, value in trial.user_attrs.items() if name.startswith("config.")}
    return {name.removeprefix("config."): value for name, value in known.items()}


def test_optuna_sees_the_front_and_the_distributions_that_the_sampler_drew_from(
    plan: SweepPlan, study: optuna.Study
) -> None:
    front = sweep.open(plan.name, storage=plan.storage).front["trial"]
    assert {trial.number for trial in study.best_trials} == set(front)
    drawn = [trial for trial in study.trials if trial.number >= len(plan.space.points)]
    for trial in drawn:
        assert trial.distributions == plan.space.distributions({**trial.params, **_settings(trial)})
        assert trial.params == plan.space.active({**trial.params, **_settings(trial)})


def test_constraints_and_trials_that_did_not_finish(plan: SweepPlan, tmp_path: Path) -> None:
    bounded = sweep.open(plan.name, storage=plan.storage).plan
    bound = Requirement.parse("clean_accuracy >= 0.9", source="test")
    bounded = dataclasses.replace(bounded, space=dataclasses.replace(bounded.space, require=(bound,)))
    records = read_ledger(plan.folder).trials
    stopped = dataclasses.replace(records[1], state="stopped", reports=records[1].reports[:2])
    failed = dataclasses.replace(records[2], state="failed", reason="broke", reports=[])
    trials: dict[int, TrialRecord] = {0: records[0], 1: stopped, 2: failed, 4: records[4]}
    write_optuna_study(bounded, trials, tmp_path / "study.db")
    read = optuna.load_study(study_name=plan.name, storage=f"sqlite:///{tmp_path / 'study.db'}").trials
    assert [trial.state.name for trial in read] == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "COMPLETE"]
    assert read[2].user_attrs["reason"] == "broke"
    assert list(read[1].intermediate_values) == [1, 2]
    accuracy = (records[0].result or {})["clean_accuracy"]
    assert list(read[0].constraints.values()) == [pytest.approx((0.9 - accuracy) / 0.9)]


def test_tables_have_all_reports_and_say_what_each_column_is(plan: SweepPlan, tmp_path: Path) -> None:
    reports = sweep.open(plan.name, storage=plan.storage).reports
    for form in ("csv", "json", "parquet"):
        assert main(["export", plan.name, str(tmp_path / f"a.{form}"), "--to", form, "--storage", plan.storage]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    content = json.loads((tmp_path / "a.json").read_text())
    table = pq.read_table(tmp_path / "a.parquet")
    assert len(rows) == len(content["rows"]) == table.num_rows == len(reports)
    known = json.loads((tmp_path / "a.columns.json").read_text())
    assert list(known) == list(rows[0]) == list(content["rows"][0]) == list(content["columns"]) == table.column_names
    assert known["config.sensitivity_epsilon"]["unit"].startswith("pixel value")
    assert [float(row["clean_accuracy"]) for row in rows] == reports["clean_accuracy"].tolist()


def test_a_wrong_form_or_file_is_refused(plan: SweepPlan, tmp_path: Path) -> None:
    with pytest.raises(sweep.InputError, match="--to 'optun': did you mean 'optuna'"):
        sweep.export(plan.name, tmp_path / "a", to="optun", storage=plan.storage)
    for form in ("optuna", "csv"):
        with pytest.raises(sweep.InputError, match="can't be written"):
            sweep.export(plan.name, tmp_path / "no" / "a.csv", to=form, storage=plan.storage)
