"""Given points: from a file, from the front of an earlier sweep, and back again."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from search_spaces.prior import Belief, Prior
from search_spaces.reading import load_space
from search_spaces.space import NOT_SWEPT, Space
from sweep.cli.commands import main
from sweep.ledger.writing import LedgerWriter
from sweep.plan.from_options import make_plan
from sweep.plan.plan import SweepPlan
from sweep.plan.plan_file import parse_plan, plan_text, read_plan, write_plan
from sweep.report.rows import trial_label
from sweep.search.points import read_space
from trainer.errors import InputError
from trainer.presets import preset

DRAWN = {
    "regularizer": "sinkhorn",
    "entropy": 0.1,
    "sensitivity_weight": 1e-05,
    "clean_ce_weight": 0.0,
    "invariance_ce_weight": 1.0,
}


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("digits")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("points")


@pytest.fixture(scope="module")
def earlier(storage: Path, space: Space) -> tuple[SweepPlan, list[dict[str, Any]]]:
    """A sweep whose front has a drawn trial, one of its given points, and one that no other space would draw; with the
    configurations on its front, the best in sensitivity first."""
    plan = make_plan(space, name="earlier", storage=str(storage), trials=4, epochs=3)
    write_plan(plan)
    base = space.points[0]
    configs = [{**base, **DRAWN}, space.points[1], {**base, **preset("trades"), "learning_rate": 0.003}, base]
    with LedgerWriter(plan.folder) as ledger:
        for number, (config, robust) in enumerate(zip(configs, (0.3, 0.6, 0.4, 0.2), strict=True)):
            ledger.started(number, config={**config, "epochs": 3, "seed": 5}, seed=5, attempt=1, host="", time=1.0)
            numbers = {"sensitivity_accuracy": robust, "invariance_accuracy": min(0.7, 1 - robust)}
            numbers |= {"clean_accuracy": 0.9, "invariance_stuck": 0.1, "time": 1.0}
            ledger.reported(number, {"epoch": 2, "final": True, **numbers}, time=1.0)
            ledger.ended(number, state="finished", time=1.0)
    return plan, [configs[1], configs[2], configs[0]]


def given(space: Space, file: Path | None = None, sweep: str | None = None, storage: Path | None = None) -> Space:
    return read_space(space, {"points": file, "from_": sweep}, storage=str(storage))


def without(config: dict[str, Any], names: Any = NOT_SWEPT) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in names}


def test_the_front_of_a_sweep_comes_first_in_its_order_and_nothing_twice(
    space: Space, storage: Path, earlier: tuple[SweepPlan, list[dict[str, Any]]]
) -> None:
    points = given(space, sweep="earlier", storage=storage).points
    assert [without(point) for point in points[:3]] == [without(config) for config in earlier[1]]
    assert [point for point in points[3:]] == [point for point in space.points if point != space.points[1]]


@pytest.mark.parametrize("form", ["json", "csv"])
def test_what_front_writes_is_what_points_reads(
    space: Space,
    storage: Path,
    earlier: tuple[SweepPlan, list[dict[str, Any]]],
    form: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["front", "earlier", "--format", form, "--storage", str(storage)]) == 0
    (storage / f"front.{form}").write_text(capsys.readouterr().out)
    points = given(space, storage / f"front.{form}").points
    assert [without(point) for point in points[:3]] == [without(config) for config in earlier[1]]


def test_a_space_without_a_prior_gets_that_of_the_front(
    space: Space, storage: Path, earlier: tuple[SweepPlan, list[dict[str, Any]]]
) -> None:
    found = given(space, sweep="earlier", storage=storage)
    assert set(found.prior.beliefs) == {"sensitivity_accuracy", "invariance_accuracy"}
    plan = write_plan(make_plan(found, name="later", storage=str(storage)))
    assert read_plan("later", storage=str(storage)).space.prior == plan.space.prior == found.prior
    own = dataclasses.replace(space, prior=Prior({"clean_accuracy": {"margin": Belief(0.1, 0.5)}}))
    assert given(own, sweep="earlier", storage=storage).prior == own.prior
    assert not given(space).prior.beliefs


def test_points_of_a_file_come_before_those_of_a_sweep(
    space: Space, storage: Path, earlier: tuple[SweepPlan, list[dict[str, Any]]]
) -> None:
    file = storage / "two.yaml"
    file.write_text("- {preset: pgd-at, sensitivity_epsilon: 0.11}\n- {regularizer: triplet, margin: 0.5}\n")
    points = given(space, file, "earlier", storage).points
    assert [points[0]["sensitivity_epsilon"], points[1]["margin"]] == [0.11, 0.5]
    assert without(points[2]) == without(earlier[1][0])


def test_a_plan_holds_its_points_and_needs_the_other_sweep_no_more(
    space: Space, storage: Path, earlier: tuple[SweepPlan, list[dict[str, Any]]], tmp_path: Path
) -> None:
    from search_spaces.yaml_file import parse_yaml

    shutil.copytree(earlier[0].folder, tmp_path / "earlier")
    found = given(space, sweep="earlier", storage=tmp_path)
    plan = make_plan(found, name="later", storage=str(tmp_path))
    text = plan_text(plan)
    shutil.rmtree(tmp_path / "earlier")
    assert parse_plan(parse_yaml(text.encode(), "plan.yaml")).space.points == found.points
    assert plan.hash != make_plan(space, name="other", storage=str(tmp_path)).hash


def test_a_space_that_draws_nothing_runs_what_it_is_given(space: Space, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("- {sensitivity_epsilon: 0.123}\n")
    fixed = dataclasses.replace(space, swept={}, trials=len(space.points))
    found = given(fixed, tmp_path / "more.yaml")
    assert len(found.points) == found.trials == len(space.points) + 1


TWO = [("pgd-at", 0.125), ("trades", 0.25)]
DIALECTS = {
    "blank lines": "preset,sensitivity_epsilon\n\npgd-at,0.125\ntrades,0.25\n\n\n",
    "CRLF, empty cells": "preset,sensitivity_epsilon,\r\npgd-at,0.125,\r\ntrades,0.25,\r\n,,\r\n",
    "semicolons and decimal commas": "preset;sensitivity_epsilon\npgd-at;0,125\ntrades;2,5e-1\n",
    "pandas' index": ",preset,sensitivity_epsilon\n0,pgd-at,0.125\n1,trades,0.25\n",
    "its index again, tabs": "Unnamed: 0\tpreset\tsensitivity_epsilon\n0\tpgd-at\t0.125\n1\ttrades\t0.25\n",
    "Excel's own line": "sep=;\npreset;sensitivity_epsilon\npgd-at;0,125\ntrades;0,25\n",
    "bars": "preset|sensitivity_epsilon\npgd-at|0,125\ntrades|0.25\n",
    "no value, by many words": "preset,sensitivity_epsilon,margin,entropy\npgd-at,.125,NaN,NA\ntrades,1/4,#N/A,null\n",
    "an index of an index": "Unnamed: 0.1,Unnamed: 0,preset,sensitivity_epsilon\n0,0,pgd-at,0.125\n1,1,trades,0.25\n",
    "an old Mac's lines, all quoted": '"preset","sensitivity_epsilon"\r"pgd-at","0.125"\r"trades","0.25"\r',
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_spreadsheets_and_pandas_write_is_read(space: Space, tmp_path: Path, dialect: str, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(DIALECTS[dialect].encode(encoding))
    points = given(space, tmp_path / "a.csv").points[:2]
    expected = [preset(name) | {"sensitivity_epsilon": epsilon} for name, epsilon in TWO]
    assert [{key: point[key] for key in each} for point, each in zip(points, expected, strict=True)] == expected


def test_json_is_read_as_jq_prints_it(space: Space, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"front": [\n\t{\n\t\t"margin":\t0.125\n\t}\n\t,{"margin":0.25}]}\n')
    assert [point["margin"] for point in given(space, tmp_path / "a.json").points[:2]] == [0.125, 0.25]


@pytest.mark.parametrize("ending", ["tsv", "txt"])
def test_tables_have_other_endings_too(space: Space, tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.{ending}").write_text("preset\tmargin\npgd-at\t0,125\n")
    assert given(space, tmp_path / f"a.{ending}").points[0]["margin"] == 0.125


def test_json_of_pandas_is_read(space: Space, tmp_path: Path) -> None:
    """Line by line, with null where a row has no value."""
    (tmp_path / "a.jsonl").write_text('{"margin":0.125,"entropy":null}\n{"margin":0.25,"entropy":0.5}\n')
    points = given(space, tmp_path / "a.jsonl").points[:2]
    assert [point["margin"] for point in points] == [0.125, 0.25]
    assert points[1]["entropy"] == 0.5 != points[0]["entropy"]


def test_results_by_other_crowds_are_no_settings(space: Space, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"margin": 0.125, "lenient/invariance_accuracy": 0.5}]')
    assert given(space, tmp_path / "a.json").points[0]["margin"] == 0.125


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.yaml",
            "- {margin: 0.1}\n- {sensitivity_epsilon: 7}\n",
            "a.yaml, line 2: sensitivity_epsilon = 7.0: must be",
        ),
        ("a.yaml", "- {margn: 0.1}\n", "a.yaml, line 1: unknown setting 'margn': did you mean 'margin'"),
        ("a.yaml", "- {epochs: 3}\n", "line 1: 'epochs' can't differ between points"),
        ("a.yaml", "- {preset: pgd}\n", "a.yaml, line 1: .*pgd-at"),
        ("a.yaml", "{}", "must be a list of points, or hold one under 'points' or 'front'"),
        ("a.json", '{"front": [{"trial": 3,\n "margin": -1}]}', "a.json, line 2: margin = -1.0: must be"),
        ("a.json", '{"front": []}', "holds no point"),
        ("a.csv", "trial,margin\n0,0.1\n1,x\n", "a.csv, line 3: margin = 'x': must be a number"),
        ("a.csv", "trial,margin\n0\n", "a.csv, line 2: has 1 cells, and the header has 2"),
        ("a.csv", "", "holds no point"),
        ("a.csv", 'preset,margin\npgd-at,"0.1\n', "a.csv, line 3: .*is a quotation mark left open"),
        ("a.csv", "preset,margin\npgd-at,0.1 # about\n", "a.csv, line 2: margin = '0.1 # about': must be a number"),
        ("a.csv", "PK\x03\x04\0\0", "a.csv, line 1: holds a zero byte: is no text"),
        ("a.jsonl", '{"margin": 1}\n{"margin": -1}\n', "a.jsonl, line 2: margin = -1.0: must be"),
        ("a.json", '{"margin": {"0": 0.1}}', r"must be a list of points, .*to_json\(orient='records'\)"),
        ("a.yaml", "- {margin: }\n", "a.yaml, line 1: margin = None: must be a number"),
        ("a.csv", "margin,entropy,margin\n1,1,2\n", "a.csv, line 1: 'margin' stands twice in the header"),
        ("a.csv", "margin,\n0.1,0.2\n", "a.csv, line 1: column 2 has values and no name"),
        ("a.csv", "margin;entropy\n1.000,5;1\n", "a.csv, line 2: margin = '1.000,5': must be a number"),
        ("gone.csv", None, "gone.csv: no such file"),
        ("gone.yaml", None, "gone.yaml: no such file"),
    ],
)
def test_what_is_wrong_is_named_where_it_stands(
    space: Space, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        given(space, tmp_path / name)


def test_a_sweep_without_a_front_and_no_sweep_are_refused(space: Space, tmp_path: Path) -> None:
    plan = make_plan(space, name="empty", storage=str(tmp_path))
    write_plan(plan)
    LedgerWriter(plan.folder).close()
    with pytest.raises(InputError, match="--from empty: has no front yet"):
        given(space, sweep="empty", storage=tmp_path)
    with pytest.raises(InputError, match="no sweep 'emtpy' in .*: did you mean 'empty'"):
        given(space, sweep="emtpy", storage=tmp_path)


def test_the_command_refuses_a_wrong_point_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("- {margin: -1}\n")
    assert main(["run", "--points", str(tmp_path / "a.yaml"), "--storage", str(tmp_path / "s")]) == 2
    assert "a.yaml, line 1: margin = -1" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["digits", "mnist", "paper", "cifar10"])
def test_labels_tell_all_points_of_a_space_apart(name: str) -> None:
    space = load_space(name)
    labels = [trial_label(space, point) for point in space.points]
    assert len(set(labels)) == len(labels) > 1


def test_a_label_tells_what_a_point_sets_and_the_space_does_not_draw() -> None:
    space = load_space("digits")
    (trades,) = [trial_label(space, point) for point in space.points if point["trades_weight"] > 0]
    assert trades == "as=0 av=0 eps=0.2 epsv=0.3 R=none beta=6 ab=0 sensitivity_objective=kl"
    drawn = space.complete({**space.fixed, "regularizer": "triplet", "sensitivity_weight": 0.5, "margin": 0.25})
    assert trial_label(space, drawn) == "as=0 av=0 eps=0.1 epsv=0.3 R=triplet beta=0 ws=0.5 wv=0 m=0.25"
