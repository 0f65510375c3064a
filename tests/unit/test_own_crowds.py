"""Crowds of one's own: fitted on votes, found by name, and carried by value whatever becomes of their file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from search_spaces.reading import STUDIES, load_space
from search_spaces.study import load_study
from sweep.cli import main
from sweep.cli.commands import build_parser
from sweep.cli.run import plan_of
from sweep.cluster.submission import Submission, study_submission
from sweep.plan.audit_options import AUDIT_OPTIONS
from sweep.plan.from_options import make_plan
from sweep.plan.plan_file import read_plan, write_plan
from sweep.plan.study_plan import StudyPlan
from sweep.report.comparison import Side, Sweep, compare_sweeps
from sweep.report.rows import headings
from sweep.report.verdicts import judge_line
from sweep.state.sweep_state import state_of_trials
from trainer.__main__ import configs
from trainer.config import UNANIMOUS, usual_evaluation
from trainer.crowds import Crowd, Measured, Prediction, crowd_for, crowd_text, crowd_words
from trainer.data.datasets import load_data
from trainer.errors import InputError
from trainer.intervals import Interval
from trainer.invariance.preparation import open_judge
from trainer.own_crowds import check_own_name, find_crowd, write_crowd

TRUE = Crowd("true", threshold=0.3, concentration=12.0, lapse=0.1)
SHARE = Measured(0.25, Interval(0.125, 0.5))
MINE = Crowd(
    "mine",
    *(0.375, 12.5, 0.25, 0.0625),
    (Prediction("3 people", 40, 0.2, SHARE, SHARE, SHARE, Measured(0.75, Interval(0.5, 0.875))),),
    votes="0123456789ab",
    dataset="digits",
)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Return a storage folder with the crowd `mine` in it."""
    write_crowd(tmp_path, MINE)
    return tmp_path


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """Return votes that five people of the crowd `TRUE` give to 200 paler and 100 mixed digits."""
    folder, evaluation = tmp_path_factory.mktemp("voted") / "votes", usual_evaluation("digits")
    folder.mkdir()
    data = load_data(evaluation, cache_dir=cache_dir)
    images, labels = (field[:300] for field in data.validation)
    generator = torch.Generator().manual_seed(0)
    images = images * torch.linspace(0.2, 1, 300)[:, None, None, None]
    images[200:] = torch.maximum(images[200:], 0.6 * images[:100].flip(0))
    shares = open_judge(data, evaluation, cache_dir=cache_dir).shares(images, TRUE)
    said = torch.multinomial(shares, 5, replacement=True, generator=generator)
    said[:5, 0] = -1
    np.save(folder / "images.npy", (255 * images[:, 0]).round().numpy())
    np.save(folder / "sources.npy", 5000 + np.arange(300) % 150)
    np.save(folder / "labels.npy", labels.numpy())
    np.save(folder / "votes.npy", said.numpy().astype(np.int8))
    return folder


# ------------------------------------------------------------------------------------------------------------ the fit


@pytest.fixture
def empty(new_storage: Callable[[str], Path]) -> Path:
    """Return a storage folder without crowds, whose cache holds the judge."""
    return new_storage("fitted")


def fit(votes: Path, storage: Path, *more: str) -> int:
    return main(["people", "--fit", str(votes), "--dataset", "digits", "--storage", str(storage), *more])


def test_a_crowd_is_fitted_on_votes_and_found_by_name(
    votes: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(votes, empty, "--crowd", "fitted", "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)
    found = crowd_for("digits", find_crowd("fitted", empty))
    assert json.loads(json.dumps(dataclasses.asdict(found))) == {k: v for k, v in told.items() if k != "file"}
    assert found.threshold == pytest.approx(TRUE.threshold, abs=0.05)
    assert found.lapse == pytest.approx(TRUE.lapse, abs=0.03)
    (quality,) = found.predictions
    assert (quality.people, quality.images) == ("5 people", 300)
    assert quality.changed.value == pytest.approx(quality.people_changed, abs=0.03)
    low, high = quality.changed.interval
    assert low < quality.changed.value < high
    first = Path(told["file"]).read_bytes()
    assert fit(votes, empty, "--crowd", "fitted") == 0
    said = capsys.readouterr().out
    assert f"threshold {found.threshold:g}, concentration {found.concentration:g}" in said
    assert "fitted, 5 people (300 images, cross-validated): saw" in said
    assert "run SPACE --crowd fitted" in said
    assert Path(told["file"]).read_bytes() == first, "the same votes give the same crowd"


def test_few_votes_say_what_is_missing(
    votes: Path, empty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for size in (24, 19):
        for name in ("images", "sources", "labels", "votes"):
            np.save(few / f"{name}.npy", np.load(votes / f"{name}.npy")[200 : 200 + size])
        status = fit(few, empty, "--crowd", "few")
        told = capsys.readouterr()
        if size == 24:
            assert status == 0
            assert re.search(r"is known to ±0\.\d\d from 24 images; \d+ tell it to ±0\.", told.out)
        else:
            assert status == 2
            assert "votes.npy: 19 images of 19 sources have an answer: too few" in told.err
            assert "at least 20 sources" in told.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels", np.full(300, 10), "labels.npy: (300,) from 10 to 10: must be (300,) whole numbers from 0 to 9"),
        ("images", np.zeros((300, 9, 8)), "images.npy: images (300, 9, 8)"),
        ("images", np.zeros((299, 8, 8)), "images.npy: 299 images: must be 300"),
        ("sources", np.full(300, -1), "sources.npy: (300,) from -1 to -1"),
        ("votes", None, "votes.npy: no such file"),
        ("votes", b"\x93NUMPY", "votes.npy: not a readable array"),
    ],
)
def test_damaged_votes_are_told_by_file(
    votes: Path,
    empty: Path,
    tmp_path: Path,
    name: str,
    content: object,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in votes.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    wrong = folder / f"{name}.npy"
    wrong.unlink()
    if isinstance(content, bytes):
        wrong.write_bytes(content)
    elif content is not None:
        np.save(wrong, np.asarray(content))
    assert fit(folder, empty, "--crowd", "fitted") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line
    assert not (empty / "crowds").exists()


def test_wrong_words_are_answered(votes: Path, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("strict", "lenient", "uncalibrated", UNANIMOUS):
        with pytest.raises(InputError, match=f"{name!r}: comes with otsweep"):
            check_own_name(name)
    for name in ("", "My", "a b", "a/b", "../a", "x" * 41, "mine\n"):
        with pytest.raises(InputError, match="must be 1 to 40 lower-case letters"):
            check_own_name(name)
    assert fit(votes, empty) == 2
    assert fit(empty / "none", empty, "--crowd", "mine") == 2
    told = capsys.readouterr().err
    assert "name the new crowd with --crowd NAME" in told
    assert "no such folder" in told


# -------------------------------------------------------------------------------------------------- names and values


def test_a_crowd_is_what_its_text_says() -> None:
    assert crowd_for("digits", crowd_text(MINE)) == MINE
    unknown = MINE.predictions[0]._replace(auc=Measured(float("nan"), Interval(float("nan"), float("nan"))))
    again = crowd_for("digits", crowd_text(dataclasses.replace(MINE, predictions=(unknown,))))
    assert np.isnan(again.predictions[0].auc.value)
    with pytest.raises(InputError, match="'mine': its people answered to digits, and can't judge mnist"):
        crowd_for("mnist", crowd_text(MINE))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lapse: 0.0625\n", "", "'lapse' is missing"),
        ("lapse:", "laps:", "'laps' is unknown|'lapse' is missing"),
        ("0.0625", "1.5", "lapse 1.5 from 0 to 1"),
        ("0.375", "a third", "threshold = 'a third': must be a number"),
        ("12.5", "inf", "concentration inf a number above 0"),
        ("[0.75,0.5,0.875]", "[0.75]", r"auc = '\[0.75\]': must be \[value,low,high\]"),
    ],
)
def test_a_damaged_crowd_is_told_by_file(storage: Path, old: str, new: str, message: str) -> None:
    path = storage / "crowds" / "mine.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=rf"mine\.yaml: is damaged .*({message})"):
        find_crowd("mine", storage)


def test_a_wrong_name_is_answered_with_the_nearest(storage: Path) -> None:
    for wrong, right in (("mien", "mine"), ("stric", "strict")):
        with pytest.raises(
            InputError, match=f"crowd = {wrong!r}: did you mean {right!r}. known: strict, lenient, mine"
        ):
            find_crowd(wrong, storage)
    with pytest.raises(InputError, match="no crowd 'mine' for data set 'digits'"):
        crowd_for("digits", "mine")


def test_a_sweep_and_a_trial_carry_the_numbers(storage: Path) -> None:
    """Plan, change the crowd's file, then remove it: the plan stays what it was."""
    words = ["digits", "--crowd", "mine", "--storage", str(storage), "--name", "asked"]
    plan = plan_of(build_parser().parse_args(["run", *words]))
    assert crowd_for("digits", plan.space.evaluation.crowd) == MINE
    write_plan(plan)
    write_crowd(storage, dataclasses.replace(MINE, threshold=0.5))
    assert read_plan("asked", storage=str(storage)).hash == plan.hash
    (storage / "crowds" / "mine.yaml").unlink()
    again = read_plan("asked", storage=str(storage))
    assert again == plan
    assert "the mine crowd, 25% changed where 3 people saw 20%" in judge_line(again.space.evaluation, {})
    assert headings(again, [])[-1] == "uncalibrated"
    arguments = build_parser().parse_args(["trial", "--set", f"crowd={plan.space.evaluation.crowd}"])
    assert configs(arguments)[1].crowd == plan.space.evaluation.crowd


def test_two_crowds_of_one_name_are_not_compared(storage: Path) -> None:
    def side(name: str, crowd: Crowd) -> Side:
        space = load_space("digits").judged_by(crowd_text(crowd))
        plan = make_plan(space, name=name, storage=str(storage))
        return Side(name, (Sweep(plan, state_of_trials(plan, {})),))

    a, other = side("a", MINE), side("b", dataclasses.replace(MINE, threshold=0.376))
    assert crowd_words(a.sweeps[0].plan.space.evaluation).startswith("mine (threshold 0.375, concentration 12.5")
    with pytest.raises(InputError, match=r"crowd = mine \(threshold 0\.375, .*\) and mine \(threshold 0\.376, "):
        compare_sweeps(a, other)


def test_a_cluster_is_sent_the_numbers(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTSWEEP_STORAGE", str(storage))
    sent = Submission.of("digits", name=None, options={}, paths={}, crowd="mine")
    assert sent.space_file is not None
    assert crowd_text(MINE) in yaml.safe_load(sent.space_file[1])["evaluation"]["crowd"]
    assert sent.plan.space.evaluation.crowd == crowd_text(MINE)


def test_a_study_is_sent_with_a_crowd_of_ones_own_by_value(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTSWEEP_STORAGE", str(storage))
    given = yaml.safe_load((STUDIES / "regularizers.yaml").read_text())
    given["evaluation"]["crowd"] = "mine"
    (file := tmp_path / "mine.yaml").write_text(yaml.safe_dump(given))
    paths = dict.fromkeys(("storage", "mlflow_uri", "data_dir"))
    sent = study_submission(str(file), name="sent", options={}, paths=paths)
    assert sent.space_file is not None
    (there := tmp_path / "there.yaml").write_text(sent.space_file[1])
    study = load_study(str(there), audit_options=AUDIT_OPTIONS)
    assert {space.evaluation.crowd for space in study.arms.values()} == {crowd_text(MINE)}
    assert isinstance(sent.plan, StudyPlan)
    assert sent.plan.study.arms == study.arms
