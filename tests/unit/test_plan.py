"""Plans: what is written is what is read, a digest tells experiments apart, and no option's mistake goes unnamed."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from search_spaces.reading import load_space, space_from_dict
from search_spaces.yaml_file import dump_yaml, locate, parse_yaml
from sweep.cli.mlflow import _newest
from sweep.front.objectives import Objectives
from sweep.plan import mlflow_address
from sweep.plan.from_options import make_plan, with_resume_overrides
from sweep.plan.mlflow_address import absolute_uri, check_mlflow_uri, is_named, masked
from sweep.plan.paths import PLAN, check_name, default_name, list_sweeps, open_storage, storage_folder
from sweep.plan.plan import OPTIONS, SAMPLERS, SweepPlan, check_option, plan_digest
from sweep.plan.plan_file import parse_plan, plan_from_tree, plan_text, read_plan, write_plan
from trainer.errors import InputError

SPACE = load_space("digits")


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return str(tmp_path / "sweeps")


@pytest.fixture
def plan(storage: str) -> SweepPlan:
    return make_plan(SPACE, name="first", storage=storage, seed=3)


def rewritten(plan: SweepPlan, change: Callable[[str], str]) -> Path:
    """The file of a written plan after a change to its text."""
    write_plan(plan)
    path = plan.folder / PLAN
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Written and read back


def test_a_plan_comes_back_exactly(plan: SweepPlan, storage: str) -> None:
    write_plan(plan)
    assert read_plan("first", storage=storage) == plan
    assert read_plan("first", storage=storage).hash == plan.hash
    assert plan_from_tree(locate(plan.to_dict(), "plan")) == plan


def test_any_yaml_reader_reads_a_plan(plan: SweepPlan) -> None:
    write_plan(plan)
    assert yaml.safe_load((plan.folder / PLAN).read_text()) == {**plan.to_dict(), "hash": plan.hash}


@given(
    trials=st.integers(1, 10_000),
    epochs=st.none() | st.integers(1, 1000),
    seed=st.integers(0, 2**31 - 1),
    cpus=st.floats(0.01, 64),
    gpus=st.floats(0, 1) | st.integers(0, 8),
    concurrent=st.integers(0, 100),
    sampler=st.sampled_from(SAMPLERS),
    reference=st.floats(-1, 1),
    maximise=st.tuples(st.booleans(), st.booleans()),
    version=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1),
)
@settings(max_examples=50, deadline=None)
def test_a_plan_of_any_values_comes_back_exactly_through_yaml(
    trials: int,
    epochs: int | None,
    seed: int,
    cpus: float,
    gpus: float,
    concurrent: int,
    sampler: str,
    reference: float,
    maximise: tuple[bool, bool],
    version: str,
) -> None:
    plan = SweepPlan(
        name="a",
        space=SPACE,
        storage="/s",
        mlflow_uri="sqlite:////s/mlflow.db",
        created="2026-11-22T13:15:00Z",
        code_version=version,
        versions={"python": version, "torch": "2.10"},
        objectives=Objectives(("clean_accuracy", "invariance_stuck"), maximise, (reference, 0.0)),
        sampler=sampler,
        trials=trials,
        epochs=epochs,
        seed=seed,
        cpus_per_trial=cpus,
        gpus_per_trial=gpus,
        max_concurrent=concurrent,
    )
    assert parse_plan(parse_yaml(plan_text(plan).encode(), PLAN)) == plan


def test_the_stored_space_no_longer_depends_on_its_file_or_on_presets(plan: SweepPlan) -> None:
    write_plan(plan)
    text = (plan.folder / PLAN).read_text()
    assert "preset" not in text
    assert read_plan("first", storage=plan.storage).space.points == SPACE.points


def test_writing_needs_a_free_name_and_leaves_nothing_behind(plan: SweepPlan) -> None:
    write_plan(plan)
    before = (plan.folder / PLAN).read_text()
    other = dataclasses.replace(plan, seed=4)
    with pytest.raises(InputError, match="--name 'first': exists in .*otsweep resume first"):
        write_plan(other)
    assert (plan.folder / PLAN).read_text() == before
    assert os.listdir(plan.storage) == ["first"]


def test_a_sweeps_folder_is_as_open_as_its_storage(plan: SweepPlan) -> None:
    write_plan(plan)
    assert stat.S_IMODE(plan.folder.stat().st_mode) == stat.S_IMODE(Path(plan.storage).stat().st_mode)


def test_storage_that_was_moved_is_followed(plan: SweepPlan, tmp_path: Path) -> None:
    write_plan(plan)
    Path(plan.storage).rename(tmp_path / "elsewhere")
    moved = read_plan("first", storage=str(tmp_path / "elsewhere"))
    assert moved.folder == tmp_path / "elsewhere" / "first"
    assert moved.mlflow_uri == f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    assert moved.hash == plan.hash


def test_an_mlflow_server_stays_where_storage_moves(storage: str, tmp_path: Path) -> None:
    write_plan(make_plan(SPACE, name="first", storage=storage, mlflow_uri="http://host:5000"))
    Path(storage).rename(tmp_path / "elsewhere")
    assert read_plan("first", storage=str(tmp_path / "elsewhere")).mlflow_uri == "http://host:5000"


def test_a_name_made_from_the_time_gives_way_and_a_given_one_does_not(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = time.gmtime(0)
    monkeypatch.setattr(time, "gmtime", lambda now=None: moment)
    first = write_plan(make_plan(SPACE, storage=storage))
    second, third = write_plan(first), write_plan(first)
    assert [second.name, third.name] == [f"{first.name}-2", f"{first.name}-3"]
    assert read_plan(third.name, storage=storage) == third
    named = write_plan(make_plan(SPACE, name="given", storage=storage))
    with pytest.raises(InputError, match="--name 'given': exists in"):
        write_plan(named)


def test_a_copy_is_told_and_left_out(plan: SweepPlan, capsys: pytest.CaptureFixture[str]) -> None:
    write_plan(plan)
    os.utime(plan.folder / PLAN, (0, 0))
    shutil.copytree(plan.folder, plan.folder.with_name("first-backup"), copy_function=shutil.copyfile)
    assert _newest(plan.storage).name == "first"
    assert "first-backup holds the plan of 'first': it is a copy, and left out" in capsys.readouterr().err


def test_a_percent_sign_of_a_folder_is_none_of_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a%20b"
    assert make_url(make_plan(SPACE, storage=str(folder)).mlflow_uri).database == str(folder / "mlflow.db")
    monkeypatch.chdir(folder)
    assert make_url(absolute_uri("sqlite:///x.db")).database == str(folder / "x.db")


def test_an_address_in_the_environment_is_refused_by_its_variable(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:/mlruns")
    with pytest.raises(InputError, match="^MLFLOW_TRACKING_URI 'file:/mlruns': must be sqlite.*give --mlflow-uri$"):
        make_plan(SPACE, storage=storage)
    assert make_plan(SPACE, storage=storage, mlflow_uri="http://host").mlflow_uri == "http://host"


def test_a_renamed_folder_is_refused(plan: SweepPlan) -> None:
    write_plan(plan)
    plan.folder.rename(plan.folder.with_name("second"))
    with pytest.raises(InputError, match="second holds the plan of 'first'"):
        read_plan("second", storage=plan.storage)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


DAMAGE = {
    "empty": (lambda text: "", "is empty"),
    "cut in half": (lambda text: text[: len(text) // 2], r"plan\.yaml"),
    "last key lost": (lambda text: text[: text.index("hash")], "is cut off or damaged: hash missing"),
    "field lost": (lambda text: re.sub(r"(?m)^seed: 3\n", "", text), "is damaged or was changed by hand"),
    "name lost": (lambda text: re.sub(r"(?m)^name: first\n", "", text), "is cut off or damaged: name missing"),
    "binary": (lambda text: "\0\1\2" + text, "line 1: holds a zero byte"),
    "number edited": (
        lambda text: re.sub(r"(?m)^seed: 3$", "seed: 4", text),
        r"line \d+: is damaged or was changed by hand",
    ),
    "range edited": (lambda text: text.replace("high: 0.3", "high: 0.4", 1), "is damaged or was changed by hand"),
    "option out of range": (
        lambda text: re.sub(r"(?m)^trials: .*$", "trials: 0", text),
        "trials = 0: must be at least 1",
    ),
    "unknown key": (lambda text: text + "sede: 3\n", r"line \d+: unknown key 'sede' in a plan: did you mean 'seed'"),
    "objective lost": (
        lambda text: re.sub(r"(?m)^  direction: max\n", "", text, count=1),
        "an objective has no direction",
    ),
    "wrong direction": (
        lambda text: text.replace("direction: max", "direction: up", 1),
        "direction = 'up': must be max or",
    ),
    "wrong reference": (lambda text: text.replace("reference: 0.0", "reference: low", 1), "'low': must be a number"),
    "unknown objective": (
        lambda text: text.replace("name: sensitivity_acc", "name: sensitivty_acc"),
        "did you mean 'sens",
    ),
    "no objectives": (
        lambda text: re.sub(r"(?ms)^objectives:.*?^sampler", "objectives: []\nsampler", text),
        "is empty",
    ),
    "name is a number": (lambda text: re.sub(r"(?m)^name: first$", "name: 3", text), "name must be a word, not 3"),
    "space is a word": (
        lambda text: re.sub(r"(?ms)^space:.*?^storage", "space: x\nstorage", text),
        "must be a mapping",
    ),
    "versions is a list": (
        lambda text: re.sub(r"(?ms)^versions:.*?^obj", "versions: []\nobj", text),
        "must be a mapping",
    ),
    "secret added": (
        lambda text: re.sub(r"(?m)^mlflow_uri: .*$", "mlflow_uri: http://me:hunter2@host", text),
        r"http://\*\*\*@host",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_plan_is_refused_and_named(plan: SweepPlan, change: Callable[[str], str], message: str) -> None:
    path = rewritten(plan, change)
    with pytest.raises(InputError, match=message) as caught:
        read_plan("first", storage=plan.storage)
    assert str(caught.value).startswith(str(path))
    assert "hunter2" not in str(caught.value)


def test_a_plan_cut_anywhere_is_refused(plan: SweepPlan) -> None:
    text = plan_text(plan).rstrip()
    for end in [*range(0, len(text), 50), *range(text.rindex("hash"), len(text))]:
        with pytest.raises(InputError, match=PLAN):
            parse_plan(parse_yaml(text[:end].encode(), PLAN))


def test_a_plan_of_an_earlier_version_is_read_with_the_defaults_of_what_it_lacks(plan: SweepPlan) -> None:
    """Also where what it lacks would decide numbers: its digest is that of the file as it was written."""
    tree = parse_yaml(plan_text(plan).encode(), PLAN).plain()
    del tree["max_concurrent"], tree["space"]["evaluation"]["split_seed"]
    tree["hash"] = plan_digest(tree)
    assert tree["hash"] != plan.hash
    assert parse_plan(parse_yaml(dump_yaml(tree).encode(), PLAN)) == plan


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: ("hash: a\n" + text).encode(errors="replace")))
@settings(max_examples=100, deadline=None)
def test_no_plan_raises_anything_but_an_input_error(raw: bytes) -> None:
    with pytest.raises(InputError, match=PLAN):
        parse_plan(parse_yaml(raw, PLAN))


# ---------------------------------------------------------------------------------------------------------------------
# Digest


CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "seed": ({"seed": 4}, True),
    "trials": ({"trials": 5}, True),
    "epochs": ({"epochs": 2}, True),
    "sampler": ({"sampler": "random"}, True),
    "stopper": ({"stopper": "asha"}, True),
    "eta": ({"eta": 5}, True),
    "grace epochs": ({"grace_epochs": 5}, True),
    "flat front": ({"stop_when_flat": 5}, True),
    "flat growth": ({"flat_growth": 0.5}, True),
    "hours": ({"max_hours": 0.5}, False),
    "objectives": (
        {"objectives": Objectives(("sensitivity_accuracy", "clean_accuracy"), (True, True), (0.0, 0.0))},
        True,
    ),
    "reference": (
        {"objectives": Objectives(("sensitivity_accuracy", "invariance_accuracy"), (True, True), (0.1, 0.0))},
        True,
    ),
    "points": ({"space": dataclasses.replace(SPACE, points=SPACE.points[1:])}, True),
    "evaluation": ({"space": dataclasses.replace(SPACE, evaluation=SPACE.evaluation.replace(split_seed=1))}, True),
    "fixed value": ({"space": dataclasses.replace(SPACE, fixed={**SPACE.fixed, "batch_size": 50})}, True),
    "description": ({"space": dataclasses.replace(SPACE, description="other")}, False),
    "name": ({"name": "second"}, False),
    "storage": ({"storage": "/elsewhere"}, False),
    "address of MLflow": ({"mlflow_uri": "http://host:5000"}, False),
    "data folder": ({"data_dir": "/data"}, False),
    "time": ({"created": "2027-01-01T00:00:00Z"}, False),
    "versions": ({"versions": {}, "code_version": "v9"}, False),
    "concurrency": ({"max_concurrent": 1}, False),
    "cores": ({"cpus_per_trial": 2}, False),
}


@pytest.mark.parametrize(("change", "decides"), CHANGES.values(), ids=CHANGES.keys())
def test_the_digest_changes_with_what_decides_the_numbers_alone(
    plan: SweepPlan, change: dict[str, Any], decides: bool
) -> None:
    assert (dataclasses.replace(plan, **change).hash != plan.hash) == decides


def test_a_space_read_from_another_file_has_the_same_digest(plan: SweepPlan, tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text(dump_yaml(SPACE.to_dict()))
    copied = make_plan(load_space(str(tmp_path / "copy.yaml")), name="copy", storage=plan.storage, seed=3)
    assert copied.hash == plan.hash


# ---------------------------------------------------------------------------------------------------------------------
# Options


def test_what_is_not_given_comes_from_the_space_and_the_defaults(storage: str) -> None:
    plan = make_plan(SPACE, storage=storage, epochs=None, seed=None, trials=None, max_concurrent=None)
    assert (plan.trials, plan.epochs, plan.seed, plan.max_concurrent) == (SPACE.trials, None, 0, 0)
    assert plan.objectives.names == ("sensitivity_accuracy", "invariance_accuracy")
    assert plan.objectives.reference == (0.0, 0.0)
    assert plan.cache_dir == Path(storage) / "cache"
    assert plan.mlflow_uri == f"sqlite:///{storage}/mlflow.db"
    assert plan.versions["torch"][0].isdigit()
    assert plan.code_version


def test_numbers_may_be_given_as_text(storage: str) -> None:
    plan = make_plan(SPACE, storage=storage, trials="5", epochs="2", cpus_per_trial="0.5", gpus_per_trial="1")
    assert (plan.trials, plan.epochs, plan.cpus_per_trial, plan.gpus_per_trial) == (5, 2, 0.5, 1.0)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("trials", "0", "--trials = 0: must be at least 1"),
        ("stopper", "ahsa", "--stopper = 'ahsa': did you mean 'asha'"),
        ("eta", "1", "--eta = 1: must be at least 2"),
        ("grace_epochs", "0", "--grace-epochs = 0: must be at least 1"),
        ("max_hours", "-1", "--max-hours = -1.0: must be at least 0"),
        ("trials", -3, "--trials = -3: must be at least 1"),
        ("trials", "many", "--trials = 'many': must be a whole number"),
        ("trials", "1.5", "--trials = 1.5: must be a whole number"),
        ("trials", "nan", "--trials = nan: must be a whole number"),
        ("trials", "9" * 5000, "--trials = inf: must be a whole number"),
        ("trials", "", "--trials = '': must be a whole number"),
        ("epochs", "0", "--epochs = 0: must be at least 1"),
        ("seed", "-1", "--seed = -1: must be at least 0"),
        ("cpus_per_trial", "0", "--cpus-per-trial = 0.0: must be above 0"),
        ("cpus_per_trial", "-2", "--cpus-per-trial = -2.0: must be above 0"),
        ("cpus_per_trial", "inf", "--cpus-per-trial = inf: must be above 0"),
        ("gpus_per_trial", "-0.5", "--gpus-per-trial = -0.5: must be at least 0"),
        ("gpus_per_trial", "1.5", "--gpus-per-trial = 1.5: must be a share of one GPU (at most 1) or a whole number"),
        ("max_concurrent", "-1", "--max-concurrent = -1: must be at least 0"),
        ("max_concurrent", True, "--max-concurrent = True: must be a whole number"),
        ("sampler", "tpee", "--sampler = 'tpee': did you mean 'tpe'?"),
        ("trails", "3", "unknown option 'trails': did you mean 'trials'?"),
    ],
)
def test_a_wrong_option_is_named_as_it_is_typed(storage: str, option: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_plan(SPACE, storage=storage, **{option: value})
    assert message in str(caught.value)


@given(
    st.sampled_from(sorted(OPTIONS)), st.text(max_size=30) | st.from_regex(r"-?[0-9]{1,40}(\.[0-9]+)?(e[0-9]{1,4})?")
)
@settings(deadline=None)
def test_any_text_is_an_options_value_or_an_input_error(option: str, text: str) -> None:
    try:
        check_option(option, text)
    except InputError as error:
        message = str(error)
    else:
        return
    assert message.startswith("--" + option.replace("_", "-"))


def test_more_trials_than_points_where_nothing_is_drawn(storage: str) -> None:
    space = space_from_dict({"space": {"epochs": 1}, "points": [{"margin": 0.1}, {"margin": 0.2}]})
    assert make_plan(space, storage=storage).trials == 2
    with pytest.raises(InputError, match="--trials 3: the space has 2 points and draws nothing"):
        make_plan(space, storage=storage, trials=3)


@pytest.mark.parametrize("names", [("clean_accuracy",), ("clean_accuracy", "clean_accuracy")])
def test_objectives_are_at_least_two_and_different(plan: SweepPlan, names: tuple[str, ...]) -> None:
    objectives = Objectives(names, (True,) * len(names), (0.0,) * len(names))
    with pytest.raises(InputError, match="must be at least two, all different"):
        dataclasses.replace(plan, objectives=objectives)


def test_the_samplers_are_those_that_the_search_has() -> None:
    from sweep.search.samplers import SAMPLERS as SEARCHED

    assert set(SEARCHED) == set(SAMPLERS)


# ---------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("name", ["a", "digits-20261122-131500", "A.b_c-9", "x" * 64])
def test_a_good_name_is_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "a/b",
        "../a",
        "/abs",
        "a b",
        "a\n",
        "ä",
        "x" * 65,
        "a\0b",
        "cache",
        "mlflow.db",
        "trials",
    ],
)
def test_a_bad_name_is_refused_before_anything_is_made(name: str, storage: str) -> None:
    with pytest.raises(InputError, match="--name"):
        make_plan(SPACE, name=name, storage=storage)
    assert os.listdir(storage) == []
    with pytest.raises(InputError, match="--name"):
        read_plan(name, storage=storage)


def test_a_name_that_exists_is_refused(plan: SweepPlan) -> None:
    write_plan(plan)
    with pytest.raises(InputError, match="--name 'first': exists in .*; choose another, or resume that sweep by `ots"):
        make_plan(SPACE, name="first", storage=plan.storage)


def test_default_names_sort_by_time_and_are_unique(tmp_path: Path) -> None:
    assert default_name("digits", tmp_path, now=1795353300) == "digits-20261122-131500"
    names = []
    for now in itertools.chain([0.0] * 3, range(1, 10**9, 10**8)):
        names.append(default_name("digits", tmp_path, now=now))
        (tmp_path / names[-1]).mkdir()
    assert names == sorted(set(names))


@given(st.text(max_size=100))
@settings(deadline=None)
def test_a_default_name_is_a_good_name_whatever_the_space_is_called(space_name: str) -> None:
    check_name(default_name(space_name, Path("/proc/nowhere")))


def test_resume_of_an_unknown_name_names_the_nearest(plan: SweepPlan) -> None:
    write_plan(plan)
    with pytest.raises(InputError, match=r"no sweep 'frist' in .*: did you mean 'first'\? the latest: first"):
        read_plan("frist", storage=plan.storage)


def test_resume_where_nothing_is_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sweep 'first' in .*: there is none yet"):
        read_plan("first", storage=str(tmp_path / "none"))
    assert os.listdir(tmp_path) == []


def test_sweeps_are_listed_latest_first_without_drafts(storage: str) -> None:
    for age, name in enumerate(["c", "a", "b"]):
        plan = make_plan(SPACE, name=name, storage=storage)
        write_plan(plan)
        os.utime(plan.folder / PLAN, (time.time() - age, time.time() - age))
    for other in ("cache", ".draft"):
        (Path(storage) / other).mkdir()
    (Path(storage) / ".draft" / PLAN).write_text("")
    assert list_sweeps(Path(storage)) == ["c", "a", "b"]


# ---------------------------------------------------------------------------------------------------------------------
# Storage


def test_storage_is_the_option_then_the_environment_then_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OTSWEEP_STORAGE", str(tmp_path / "env"))
    assert storage_folder("~/given") == tmp_path / "given"
    assert storage_folder() == tmp_path / "env"
    monkeypatch.setenv("OTSWEEP_STORAGE", "")
    assert storage_folder() == tmp_path / "otsweep"
    assert os.listdir(tmp_path) == []


def test_a_relative_storage_is_taken_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_storage("a/../b") == tmp_path / "b"
    assert os.listdir(tmp_path / "b") == []


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("/dev/null/x", "--storage '/dev/null/x': can't be written: Not a directory"),
        ("/proc/otsweep", "--storage '/proc/otsweep': can't be written: "),
        ("/dev/null", "--storage '/dev/null': can't be written: File exists"),
        ("http://bucket/x", "--storage 'http://bucket/x': must be a folder, or begin with s3://"),
        ("what?", "must not hold '?'"),
        ("", "--storage '': must be a path of printable characters"),
        ("a\0b", "must be a path of printable characters"),
        ("~nobody-of-that-name/x", "--storage '~nobody-of-that-name/x': Could not determine home directory"),
        ("x" * 300, "can't be written: File name too long"),
    ],
)
def test_storage_that_can_not_be_used_is_named_with_the_reason(storage: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_plan(SPACE, storage=storage)
    assert message in str(caught.value)


def test_storage_that_fails_only_when_written_is_found_out(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk lets a file be made, and fails at the write."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="can't be written: No space left on device"):
        open_storage(storage)
    assert os.listdir(storage) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root: it may write anywhere")
def test_a_read_only_storage_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="can't be written: Permission denied"):
        open_storage(str(tmp_path))


def test_a_disk_that_fills_up_while_the_plan_is_written_leaves_no_half_sweep(
    plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="can't be written: No space left on device"):
        write_plan(plan)
    assert os.listdir(plan.storage) == []


@pytest.mark.parametrize(
    ("made", "message"), [(None, "no such folder"), ("file", "is not a folder")], ids=["missing", "a file"]
)
def test_a_data_folder_must_be_there(storage: str, tmp_path: Path, made: str | None, message: str) -> None:
    if made:
        (tmp_path / "data").write_text("")
    with pytest.raises(InputError, match=f"--data-dir '.*/data': {message}"):
        make_plan(SPACE, storage=storage, data_dir=str(tmp_path / "data"))


def test_a_data_folder_is_kept_absolute(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert make_plan(SPACE, storage=storage, data_dir="data").data_dir == str(tmp_path / "data")


# ---------------------------------------------------------------------------------------------------------------------
# The address of MLflow


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000",
        "https://mlflow.example.org/path",
        "http://[::1]:5000",
        "sqlite:////abs/mlflow.db",
        "sqlite:////home/me@work:2/mlflow.db",
        "postgresql://me@host/mlflow",
        "mysql+pymysql://me@host:3306/mlflow?charset=utf8",
        "postgresql://me@/mlflow?host=/var/run/postgresql&sslmode=require",
        "sqlite:////home/run#3/mlflow.db",
    ],
)
def test_a_good_address_is_kept(uri: str) -> None:
    assert absolute_uri(uri) == uri
    assert masked(uri) == uri


def test_a_relative_database_is_taken_from_here_once_and_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "must be sqlite:///FILE, http"),
        ("mlruns", "must be sqlite:///FILE, http"),
        ("file:///mlruns", "must be sqlite:///FILE, http"),
        ("htp://host", "must be sqlite:///FILE, http"),
        ("http://", "must be sqlite:///FILE, http"),
        ("http:// host", "must name a host"),
        ("http:///path", "must name a host"),
        ("http://host:99999", "a port up to 65535"),
        ("http://host:port", "a port up to 65535"),
        ("sqlite://", "must be sqlite:///FILE, http"),
        ("sqlite:///", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite://mlflow.db", "must name a file"),
    ],
)
def test_a_bad_address_is_refused(uri: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_mlflow_uri(uri)
    assert str(caught.value).startswith("--mlflow-uri ")
    assert message in str(caught.value)


SECRET = "Hunter-2"
SECRETS = [
    "http://me:{}@host:5000",
    "https://{}@host",
    "HTTPS://{}@host",
    "postgresql://me:{}@host/db",
    "mysql+pymysql://:{}@host/db",
    "postgresql://host/db?user=me&password={}",
    "http://host?access_token={}",
    "http://host/path?X-Amz-Signature={}",
    "https://host/path?sv=2020&sig={}",
    "https://host/path?{}",
    "https://host/path#{}",
    "postgresql://host/db?options=-c&sslpassword={}#{}",
]


@pytest.mark.parametrize("template", [*SECRETS, "me:{}@host", "http:/me:{}@host", "ftp://me:{}@host", "//me:{}@host"])
@pytest.mark.parametrize("extra", ["", "@", "/", "%", "é", ":", "#", "?", " "])
def test_a_secret_is_refused_and_never_shown(template: str, extra: str, storage: str) -> None:
    with pytest.raises(InputError) as caught:
        make_plan(SPACE, storage=storage, mlflow_uri=template.replace("{}", SECRET + extra + SECRET))
    assert SECRET not in str(caught.value)
    assert "***" in str(caught.value)


@pytest.mark.parametrize("template", SECRETS)
def test_a_refused_secret_is_told_where_to_go(template: str) -> None:
    with pytest.raises(InputError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        check_mlflow_uri(template.replace("{}", SECRET))


@pytest.mark.parametrize(
    "uri", ["s3://AKIA:{}@bucket/all", "s3://{}@bucket", "s3://bucket?secret_key={}", "s3://bucket/all?x={}#{}"]
)
def test_a_secret_in_the_storages_address_is_refused_and_never_shown(uri: str) -> None:
    with pytest.raises(InputError, match="holds a secret") as caught:
        storage_folder(uri.replace("{}", SECRET))
    assert SECRET not in str(caught.value)
    assert masked("s3://bucket/all?region=eu-west-1&endpoint_override=localhost:9000").endswith("=localhost:9000")


def test_an_address_is_named_by_this_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mlflow_address, "_named", set())
    assert not is_named("https://host:5000/a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://host:5000")
    assert is_named("https://host:5000/a")
    assert not any(map(is_named, ("http://host:5000", "https://host:5001", "https://other:5000", "http://[")))
    plan = make_plan(SPACE, name="elsewhere", storage=str(tmp_path), mlflow_uri="https://other:5000")
    assert is_named("https://other:5000/")  # whoever asks: the command, or a caller from Python
    with_resume_overrides(plan, {"mlflow_uri": "https://third:5000"})
    assert is_named("https://third:5000/")
    monkeypatch.setattr(mlflow_address, "_named", set())
    write_plan(plan)
    read_plan("elsewhere", storage=str(tmp_path))
    assert not is_named("https://other:5000/")


# ---------------------------------------------------------------------------------------------------------------------
# Another machine, other circumstances


def test_data_is_looked_for_where_the_storage_is_now(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "data").mkdir(parents=True)
    write_plan(make_plan(SPACE, name="within", storage=str(here), data_dir=str(here / "data")))
    (tmp_path / "data").mkdir()
    write_plan(make_plan(SPACE, name="beside", storage=str(here), data_dir=str(tmp_path / "data")))
    here.rename(there)
    assert read_plan("within", storage=str(there)).data_dir == str(there / "data")
    assert read_plan("beside", storage=str(there)).data_dir == str(tmp_path / "data")
    (tmp_path / "data").rmdir()
    assert read_plan("beside", storage=str(there)).data_dir is None, "OTSWEEP_DATA_DIR says it now"


def test_what_decides_nothing_may_change_on_resume(storage: str, tmp_path: Path) -> None:
    plan = make_plan(SPACE, storage=storage, max_hours=1, max_concurrent=2)
    nothing = dict.fromkeys(["max_hours", "max_gpu_hours", "max_concurrent", "pack", "data_dir", "mlflow_uri"])
    assert with_resume_overrides(plan, nothing) == plan
    given = nothing | {"max_gpu_hours": "2.5", "max_concurrent": "auto", "data_dir": str(tmp_path)}
    changed = with_resume_overrides(plan, given)
    assert (changed.max_gpu_hours, changed.measure_memory, changed.data_dir) == (2.5, True, str(tmp_path))
    assert changed.hash == plan.hash
    assert not with_resume_overrides(changed, nothing | {"max_concurrent": "3"}).measure_memory
    with pytest.raises(InputError, match="--data-dir 'nowhere': no such folder"):
        with_resume_overrides(plan, nothing | {"data_dir": "nowhere"})
