"""Sweeps that the version before the two levels wrote (commit 0f66ced) are read, compared and synced, not resumed.

`tests/recorded/version_0_1_0` holds a whole sweep, one that kill -9 cut during its fourth trial (without checkpoints),
and what that version made of both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from search_spaces.yaml_file import locate
from sweep.cli import main
from sweep.ledger.reading import read_ledger
from sweep.plan.plan import SweepPlan, plan_digest
from sweep.plan.plan_file import parse_plan, plan_text, read_plan, write_plan
from trainer.config import UNANIMOUS

RECORDED = Path(__file__).parents[1] / "recorded" / "version_0_1_0"
EXPECTED = json.loads((RECORDED / "expected.json").read_text())


@pytest.fixture(scope="module")
def storage(new_storage: Callable[[str], Path]) -> Path:
    folder = new_storage("earlier")
    for name in ("whole", "cut"):
        shutil.copytree(RECORDED / name, folder / name)
    return folder


def otsweep(storage: Path, *words: str) -> str:
    """Return what a command prints that ends with status 0."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*words, "--storage", str(storage)]) == 0
    return said.getvalue()


def trials(storage: Path, name: str) -> dict[int, tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    return {number: (t.state, t.config, t.reports) for number, t in read_ledger(storage / name).trials.items()}


def linked(storage: Path, plan: SweepPlan) -> None:
    """Write a plan whose results are those of the finished sweep."""
    written = write_plan(plan)
    for name in ("ledger", "prepared.json"):
        (written.folder / name).symlink_to(storage / "whole" / name)


def test_the_front_is_the_same(storage: Path) -> None:
    front = json.loads(otsweep(storage, "front", "whole", "--format", "json"))
    assert {key: front[key] for key in ("hypervolume", "front")} == EXPECTED["finished"]


def test_a_sweep_is_compared_with_another_of_its_time(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linked(storage, dataclasses.replace(read_plan("whole", storage=str(storage)), name="again"))
    assert main(["compare", "whole", "again", "--storage", str(storage)]) == 0
    assert "No claim" in capsys.readouterr().out
    assert (storage / "whole" / "compare").is_dir()


def test_mlflow_is_written_anew(storage: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    otsweep(storage, "sync", "whole", "--mlflow-uri", uri)
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert len(runs) == 1 + 6
    assert all(run.info.status == "FINISHED" for run in runs)


def test_a_sweep_that_was_cut_keeps_its_judge_and_is_not_mixed_with_another(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check that it stands as it was left: the judge of then gave labels, the judge of now gives shares of people."""
    before = trials(storage, "cut")
    assert main(["resume", "cut", "--storage", str(storage)]) == 2
    assert "judge of earlier versions" in capsys.readouterr().err
    assert trials(storage, "cut") == before
    assert [number for number, (state, *_) in before.items() if state == "finished"] == [0, 1, 2]
    for number, (_, config, _) in before.items():
        expected = EXPECTED["interrupted"]["configs"][str(number)]
        assert {name: config[name] for name in expected} == expected


def test_its_judge_keeps_its_name_and_its_words(storage: Path) -> None:
    plan = read_plan("whole", storage=str(storage))
    assert plan.space.evaluation.crowd == UNANIMOUS
    written = yaml.safe_load((storage / "whole" / "plan.yaml").read_text())
    assert "crowd" not in written["space"]["evaluation"]
    assert read_plan("whole", storage=str(storage)).hash == plan_digest(plan.to_dict()) == plan.hash
    assert parse_plan(locate(yaml.safe_load(plan_text(plan)), "plan")) == plan
    said = " ".join(otsweep(storage, "front", "whole").split())
    assert "labelled by the judge of an earlier version" in said


def test_it_is_not_compared_with_what_people_judge(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = read_plan("whole", storage=str(storage))
    space = dataclasses.replace(plan.space, evaluation=plan.space.evaluation.replace(crowd="strict"))
    linked(storage, dataclasses.replace(plan, name="now", space=space))
    assert main(["compare", "whole", "now", "--storage", str(storage)]) == 2
    assert "crowd = unanimous and strict" in " ".join(capsys.readouterr().err.split())


def test_it_is_not_audited(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "whole", "--storage", str(storage)]) == 2
    assert "nothing new is judged by it" in " ".join(capsys.readouterr().err.split())
