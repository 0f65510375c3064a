"""Sweeps that the version before the two levels wrote (commit 0f66ced) are read, compared and synced.

`tests/recorded/version_0_1_0` holds a whole sweep, one that kill -9 cut during its fourth trial (without checkpoints),
and what that version made of both.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from sweep.cli import main
from sweep.ledger.reading import read_ledger

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


def test_the_front_is_the_same(storage: Path) -> None:
    front = json.loads(otsweep(storage, "front", "whole", "--format", "json"))
    assert {key: front[key] for key in ("hypervolume", "front")} == EXPECTED["finished"]


def test_a_sweep_is_compared_with_itself(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "whole", "whole", "--storage", str(storage)]) == 0
    assert "no difference" in capsys.readouterr().out.lower() or (storage / "whole" / "compare").is_dir()


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
