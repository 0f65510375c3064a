"""Crowds: their fit to answers of people, the measure of it, and the files that the answers are in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch.nn import functional as F

from search_spaces.reading import load_space
from sweep.cli import main
from sweep.ledger.records import TrialRecord
from sweep.plan.from_options import make_plan
from sweep.report.rows import cells, front_rows, headings
from sweep.report.verdicts import judge_line
from sweep.state.sweep_state import SweepState
from sweep.tracking.metrics import report_metrics
from trainer.config import UNANIMOUS, EvaluationConfig, usual_evaluation
from trainer.crowds import THRESHOLDS, UNCALIBRATED, Crowd, check_crowd, crowd_for, crowds_for, other_crowds
from trainer.data.datasets import Split, load_data
from trainer.errors import InputError
from trainer.invariance.crowd_fitting import calibrate, cross_validate, fit_crowd, measure
from trainer.invariance.people import Answers, read_perturbed, read_votes
from trainer.invariance.preparation import open_judge
from trainer.invariance.readings import Readings

TRUE = Crowd("true", threshold=0.4, concentration=12.0, strength=0.3, lapse=0.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pale(count: int) -> Readings:
    """Return readings of images of class 0 with a stroke of class 1 or 2, each of a strength of its own."""
    at = torch.tensor(THRESHOLDS)
    strength, other = torch.rand(count, generator=generator()), torch.arange(count) % 2 + 1
    seen = torch.where(at[:, None] < strength, other, 0)
    by_ink = torch.stack([1 - strength, *(strength * (other == name) for name in (1, 2))], 1)
    return Readings(torch.cat([F.one_hot(seen, 3).float(), by_ink[None]]), thresholds=True, ink=True)


def said(readings: Readings, crowd: Crowd) -> Answers:
    """Return the answers of a whole crowd."""
    count = readings.values.shape[1]
    nothing = torch.zeros(count, dtype=torch.int64)
    return Answers("all", torch.zeros(count, 1, 2, 2), readings.shares(crowd).double(), nothing, torch.arange(count))


def test_the_fit_finds_the_crowd_that_answered() -> None:
    readings = pale(4000)
    found = fit_crowd("found", [readings], [said(readings, TRUE)])
    assert found.numbers == pytest.approx(TRUE.numbers, rel=0.1)
    torch.testing.assert_close(readings.shares(found), readings.shares(TRUE), atol=0.01, rtol=0)


def test_no_image_is_predicted_by_numbers_fitted_on_its_source() -> None:
    """Change one source's answers: the prediction of its images stays what it was, in both sets that it is in."""
    readings = pale(60)
    answers = said(readings, TRUE)
    before = cross_validate([readings, readings], [answers, answers])
    shares = answers.shares.clone()
    shares[7] = torch.tensor([0.0, 0.0, 1.0])
    changed = answers._replace(shares=shares)
    after = cross_validate([readings, readings], [changed, changed])
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one[7], other[7])
        assert not torch.allclose(one, other)


def test_the_measure_is_that_of_a_direct_computation() -> None:
    people = torch.softmax(3 * torch.randn(200, 3, generator=generator(1)), 1).double()
    predicted = torch.softmax(people.log() + torch.randn(200, 3, generator=generator(2)), 1).double()
    labels = torch.arange(200) % 3
    answers = Answers("some", torch.zeros(200, 1, 2, 2), people, labels, torch.arange(200) // 2)
    found = measure(predicted, answers)
    changed, seen = (1 - each[range(200), labels].numpy() for each in (predicted, people))
    assert found.people_changed == pytest.approx(seen.mean())
    assert found.changed.value == pytest.approx(changed.mean())
    assert found.auc.value == pytest.approx(roc_auc_score(seen > 0.5, changed))
    assert found.brier.value == pytest.approx(((predicted - people) ** 2).sum(1).mean().item())
    rows = np.repeat(predicted.numpy(), 3, axis=0)
    expected = log_loss(np.tile([0, 1, 2], 200), rows, sample_weight=people.flatten().numpy())
    assert found.log_loss.value == pytest.approx(expected)
    for number in (found.changed, found.brier, found.log_loss, found.auc):
        assert number.interval.low < number.value < number.interval.high


def test_copies_of_a_source_make_nothing_surer() -> None:
    predicted = torch.softmax(torch.randn(50, 3, generator=generator(1)), 1).double()
    answers = Answers("some", torch.zeros(50, 1, 2, 2), predicted.roll(1, 0), torch.zeros(50).long(), torch.arange(50))
    copied = Answers(*(field if isinstance(field, str) else torch.cat([field] * 4) for field in answers))
    once, often = measure(predicted, answers), measure(torch.cat([predicted] * 4), copied)
    for one, other in ((once.brier, often.brier), (once.changed, often.changed)):
        assert one.interval == pytest.approx(other.interval)


# -------------------------------------------------------------------------------------------------- named crowds


def test_crowds_of_data_without_people_are_uncalibrated() -> None:
    for name in ("digits", "fashion_mnist", "cifar10"):
        assert crowd_for(name, "strict") == crowd_for(name, "lenient") == UNCALIBRATED
        assert other_crowds(name, "strict") == ()
    assert [crowd.name for crowd in crowds_for("mnist")] == ["strict", "lenient"]
    assert [crowd.name for crowd in other_crowds("mnist", "lenient")] == ["strict"]
    assert all(crowd.predictions for crowd in crowds_for("mnist"))


def test_nothing_new_is_judged_by_the_judge_of_earlier_versions() -> None:
    check_crowd(EvaluationConfig())
    with pytest.raises(InputError, match="crowd = 'unanimous'.*nothing new is judged by it"):
        check_crowd(EvaluationConfig(crowd=UNANIMOUS))


def test_the_other_crowd_has_a_column_of_the_front_and_a_metric(tmp_path: Path) -> None:
    final = {"epoch": 3, "final": True, "time": 1.0, "sensitivity_accuracy": 0.5, "invariance_accuracy": 0.4}
    final |= {"invariance_stuck": 0.3, "clean_accuracy": 0.9, "invariance_changed_mass": 12.5}
    final |= {"invariance_effective_size": 9.5, "lenient/invariance_accuracy": 0.25}
    for space, shown in (("mnist", ["lenient"]), ("digits", [])):
        plan = make_plan(load_space(space), name=space, storage=str(tmp_path))
        config = next(iter(plan.space.corners())).to_dict()
        record = TrialRecord(0, config, 0, "finished", ended=1.0, reports=[final])
        (row,) = front_rows(plan, SweepState(plan.objectives, {0: record}, total=1))
        assert [name for name in headings(plan, [row]) if name in ("strict", "lenient")] == shown
        assert len(cells(plan, row)) == len(headings(plan, [row]))
        assert ("25.0%" in cells(plan, row)) == bool(shown)
    metrics = {row.key: row.value for row in report_metrics(final)}
    assert (metrics["sel_inv"], metrics["sel_inv_lenient"], metrics["sel_inv_mass"]) == (0.4, 0.25, 12.5)


def test_a_verdict_tells_how_surely_the_images_measure() -> None:
    known = {"judge_accuracy": 0.9, "judged_images": 200, "changed_mass": 50.0}
    assert "of the answers to 200 perturbed ones 25.0% see a change." in judge_line(EvaluationConfig(), known)
    known |= {"changed_share_interval": [0.2, 0.31], "effective_size": 40.5, "effective_size_interval": [33.2, 44.9]}
    told = judge_line(EvaluationConfig(), known)
    assert "25.0% (20.0% to 31.0%; the weight of 40, 33 to 44, whole images) see a change." in told


# --------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    """Return a folder of votes of three people on four images; on the last nobody named a class."""
    folder = tmp_path / "votes"
    folder.mkdir()
    np.save(folder / "images.npy", np.full((4, 2, 2), 51, np.uint8))
    np.save(folder / "sources.npy", np.array([3, 1, 0, 2]))
    np.save(folder / "votes.npy", np.array([[1, 1, 0], [2, -1, 2], [0, 1, 2], [-1, -1, -1]], np.int8))
    return folder


@pytest.fixture
def test_split() -> Split:
    return Split(torch.zeros(5, 1, 2, 2), torch.tensor([0, 1, 2, 1, 0]))


def test_votes_become_shares_of_the_people_who_answered(votes: Path, test_split: Split) -> None:
    found = read_votes(votes, test_split, classes=3)
    expected = [[1 / 3, 2 / 3, 0], [0, 0, 1], [1 / 3, 1 / 3, 1 / 3]]
    torch.testing.assert_close(found.shares, torch.tensor(expected, dtype=torch.float64))
    assert found.sources.tolist() == [3, 1, 0]
    assert found.labels.tolist() == [1, 1, 0]
    assert found.images.unique().item() == pytest.approx(0.2)
    assert found.people == "3 people on votes"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("votes", np.array([[1, 3, 0]] * 4), r"votes\.npy: \(4, 3\) from 0 to 3: must be .* from 0 to 2, or -1"),
        ("votes", np.zeros(4), r"votes\.npy: \(4,\) from 0 to 0: must be \(images, people\)"),
        ("sources", np.array([0, 1, 2, 5]), r"sources\.npy: \(4,\) from 0 to 5: must be \(4,\).* from 0 to 4"),
        ("sources", np.array([0, 1]), r"sources\.npy: \(2,\)"),
        ("images", np.zeros((4, 3, 2)), r"images\.npy: images \(4, 3, 2\)"),
    ],
)
def test_wrong_votes_are_refused(votes: Path, test_split: Split, name: str, content: np.ndarray, message: str) -> None:
    np.save(votes / f"{name}.npy", content)
    with pytest.raises(InputError, match=message):
        read_votes(votes, test_split, classes=3)


@pytest.mark.parametrize(
    ("levels", "white"),
    [
        (np.full((3, 4, 4), 255, np.uint8), 255),
        (np.full((3, 1, 4, 4), 255.0), 255),
        (np.full((3, 4, 4), 1.0, np.float32), 1),
    ],
    ids=["bytes", "channels", "shares"],
)
def test_images_are_read_in_either_range(tmp_path: Path, levels: np.ndarray, white: int) -> None:
    np.save(tmp_path / "images.npy", levels)
    found = read_perturbed(tmp_path / "images.npy", (1, 4, 4))
    assert found.shape == (3, 1, 4, 4)
    assert found.unique().tolist() == [1]


# ------------------------------------------------------------------------------------------------------- the command


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of an error."""
    assert main(["people", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_wrong_words_are_answered_in_one_line(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images.npy", str(tmp_path / "out.npy")
    np.save(images, np.zeros((2, 8, 8)))
    given = ["--predict", str(images), "--dataset", "digits", "--out", out]
    assert "give --predict IMAGES.npy" in refused([], capsys)
    assert "dataset = 'digit': did you mean 'digits'" in refused(["--predict", "x", "--dataset", "digit"], capsys)
    assert "crowd = 'strickt': did you mean 'strict'" in refused([*given, "--crowd", "strickt"], capsys)
    assert "--out 'nowhere/out.npy'" in refused([*given[:-1], "nowhere/out.npy"], capsys)
    assert "no such file" in refused(["--predict", "no.npy", *given[2:]], capsys)
    for wrong, message in (
        (np.zeros((2, 9, 8)), "images (2, 9, 8): must be (N, 1, 8, 8) or (N, 8, 8)"),
        (np.full((2, 8, 8), -1.0), "pixels from -1 to -1: must lie in [0, 1] or in [0, 255]"),
        (np.full((2, 8, 8), np.nan), "pixels from nan to nan"),
    ):
        np.save(images, wrong)
        assert message in refused(given, capsys)
    assert not Path(out).exists()


def test_shares_are_written_for_any_images(tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_data(usual_evaluation("digits"), cache_dir=cache_dir)
    np.save(tmp_path / "images.npy", data.test.images[:50, 0].numpy())
    out = tmp_path / "shares.npy"
    words = ["--predict", str(tmp_path / "images.npy"), "--dataset", "digits", "--out", str(out)]
    assert main(["people", *words]) == 0
    shares = np.load(out)
    assert (shares.shape, shares.dtype) == ((50, 10), np.float32)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    assert (shares.argmax(1) == data.test.labels[:50].numpy()).mean() > 0.9
    assert "uncalibrated" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------ real people


@pytest.mark.slow
def test_the_judge_meets_the_people_it_is_calibrated_on(data_dir: Path, cache_dir: Path) -> None:
    """Hold the crowds, cross-validated, against the given half of the people, and the code's numbers against a fit."""
    evaluation = usual_evaluation("mnist")
    data = load_data(evaluation, data_dir=data_dir, cache_dir=cache_dir)
    judge = open_judge(data, evaluation, cache_dir=cache_dir)
    strict, lenient = calibrate(judge, data.test, data_dir, classes=10)
    (votes,) = strict.crowd.predictions
    assert abs(votes.changed.value - votes.people_changed) < 0.04
    assert votes.brier.value <= 0.08
    assert votes.auc.value > 0.8
    l0, linf = lenient.crowd.predictions
    for each, brier in ((l0, 0.42), (linf, 0.27)):
        assert abs(each.changed.value - each.people_changed) < 0.08
        assert each.brier.value < brier
        assert each.auc.value > 0.8
    for found, known in zip((strict.crowd, lenient.crowd), crowds_for("mnist"), strict=True):
        assert found.name == known.name
        assert found.numbers == pytest.approx(known.numbers, rel=0.2, abs=0.02)
    quality = judge.quality(*data.validation, crowd_for("mnist", "strict"))
    assert quality.accuracy > 0.97
