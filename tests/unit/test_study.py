"""A study's verdict on results made by hand: what is claimed, in which words, and what is drawn and kept."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sweep.audit.finalists import Finalist
from sweep.audit.results import AuditResult
from sweep.cli.commands import main
from sweep.front.objectives import Objectives
from sweep.front.pareto import hypervolume
from sweep.ledger.records import TrialRecord
from sweep.state.judged import JudgedImages
from sweep.study.figure import _attainment, _courses, study_figure
from sweep.study.resampling import resampled_parts, spread_of_parts
from sweep.study.result import StudyResult, SweepResult
from sweep.study.tables import study_markdown, study_metrics, study_tables, write_study_files
from sweep.study.verdict import arm_differences, power_line, sentences
from trainer.answers import Answers
from trainer.config import EvaluationConfig
from trainer.errors import InputError

ARMS = ["control", "better", "equal"]
SEEDS = [0, 1, 2, 3, 4]


def volumes(seed: int = 0) -> dict[tuple[str, str], list[float]]:
    """Return hypervolumes in which the seed matters much, `better` is better by 0.03 under both crowds, and `equal` is
    so under the lenient one alone."""
    draw = np.random.default_rng(seed)
    base, noise = draw.normal(0.2, 0.05, 5), lambda: draw.normal(0, 0.004, 5)
    return {
        (arm, crowd): (base + noise() + 0.03 * (arm == "better" or (arm == "equal" and crowd == "lenient"))).tolist()
        for arm in ARMS
        for crowd in ("strict", "lenient")
    }


def result_of(each: dict[tuple[str, str], list[float]], crowds: Sequence[str] = ("strict", "lenient")) -> StudyResult:
    evaluation = EvaluationConfig(dataset="mnist" if len(crowds) > 1 else "digits")
    seeds = list(range(len(each[ARMS[0], crowds[0]])))
    sweeps = [
        SweepResult(
            arm,
            seed,
            {crowd: each[arm, crowd][seed] for crowd in crowds},
            [_finalist(trial, each[arm, crowds[0]][seed]) for trial in range(2)],
            [[1.0, 0.1], [2.0, each[arm, crowds[0]][seed]]],
            [[0.0, 0.9], [0.3, each[arm, crowds[0]][seed]]],
        )
        for arm in ARMS
        for seed in seeds
    ]
    return StudyResult(
        name="mine",
        question="does <b>it</b> help?",
        arms=ARMS,
        seeds=seeds,
        planned_seeds=5,
        effort="2 trials",
        effort_unit="trials",
        audited="test split",
        evaluation=evaluation.to_dict(),
        objectives=["sensitivity_accuracy", "invariance_accuracy"],
        maximise=[True, True],
        reference=[0.0, 0.0],
        crowds=list(crowds),
        sweeps=sweeps,
        differences=arm_differences(each, arms=ARMS, crowds=crowds),
    )


def _finalist(trial: int, value: float) -> dict[str, object]:
    accuracies = {"sensitivity_accuracy": value, "invariance_accuracy": 0.5 - 0.1 * trial}
    return {"trial": trial, "label": f"m=0.{trial}", **accuracies, "lenient/invariance_accuracy": 0.4}


def test_differences_are_paired_and_corrected_for_the_number_of_arms() -> None:
    each = volumes()
    found = {(one.arm, one.crowd): one for one in arm_differences(each, arms=ARMS, crowds=["strict"])}
    better, equal = found["better", "strict"], found["equal", "strict"]
    for arm, one in (("better", better), ("equal", equal)):
        reference: Any = stats.ttest_rel(each[arm, "strict"], each["control", "strict"])
        assert one.p_value == pytest.approx(reference.pvalue, rel=1e-6)
        assert (one.low, one.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert better.p_value is not None
    assert better.adjusted == pytest.approx(2 * better.p_value)
    assert equal.adjusted == pytest.approx(equal.p_value)
    assert (better.shown, equal.shown) == (True, False)
    unpaired: Any = stats.ttest_ind(each["better", "strict"], each["control", "strict"])
    assert unpaired.pvalue > 0.05, "without pairs the seeds' spread would have hidden it"


def test_the_sentence_says_what_was_shown_and_what_it_would_take() -> None:
    result = result_of({key: value for key, value in volumes().items() if key[1] == "strict"}, crowds=("strict",))
    head, better, equal = sentences(result)
    assert head == "Against control, 1 of 2 arms move the front forward (better): 5 seeds, 2 trials each."
    one, other = result.differences
    assert better.startswith(f"better moves the front by {one.estimate:+.4f} ({one.low:+.4f} to {one.high:+.4f}; p = ")
    assert f"shows no difference ({other.estimate:+.4f}, " in equal
    needed = "more than 1000 seeds would be" if other.needed and other.needed > 1000 else f"{other.needed} seeds are"
    assert equal.endswith(f"to show one of {abs(other.estimate):.4f}, {needed} needed.")


def test_a_verdict_under_two_crowds_holds_under_both_or_says_under_which() -> None:
    head, better, equal = sentences(result_of(volumes()))
    assert head.startswith(
        "Against control, 1 of 2 arms move the front forward under both crowds (better), 1 under one of them ("
    )
    assert better.startswith("better, under both crowds: strict: moves the front by +0.0")
    assert equal.startswith("equal, by crowd: under strict it shows no difference")
    assert "under lenient it moves the front by +0.0" in equal


def test_one_seed_claims_nothing_and_a_half_done_study_says_so() -> None:
    first = {key: value[:1] for key, value in volumes().items()}
    head, better, _ = sentences(result_of(first))
    assert (
        head
        == "Against control, 0 of 2 arms move the front forward under both crowds: 1 of 5 seeds so far, 2 trials each."
    )
    assert "on one seed; at least two, better five, seeds are needed to say more" in better
    none = dataclasses.replace(result_of(first), seeds=[], sweeps=[], differences=[])
    assert sentences(none) == ["mine: no seed is done yet on all 3 arms."]


def test_no_difference_is_rarely_called_one() -> None:
    """Holm's correction over two arms and the pairs: at most 5% of studies in which no arm differs make any claim."""
    draw, studies, wrong = np.random.default_rng(1), 400, 0
    for _ in range(studies):
        base = draw.normal(0.2, 0.05, 5)
        each = {(arm, "strict"): (base + draw.normal(0, 0.01, 5)).tolist() for arm in ARMS}
        wrong += any(one.shown for one in arm_differences(each, arms=ARMS, crowds=["strict"]))
    assert 0.01 <= wrong / studies <= 0.08


def test_the_power_is_told_from_a_pilot_or_not_at_all() -> None:
    assert "not known before two seeds are done" in power_line([], 5, "")
    line = power_line([0.01, 0.01], 5, "study pilot")
    told = float(line.partition("true difference of ")[2].split()[0])
    draw = np.random.default_rng(0).normal(told, 0.01, (4000, 5))
    tested: Any = stats.ttest_1samp(draw, 0, axis=1)
    assert (tested.pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.03)


CLASSES, IMAGES = 4, 150


def _model(generator: np.random.Generator, *, robust: float) -> AuditResult:
    """Return the result of a model that answers at random, on images 50 to 199 of a split."""
    withstood = generator.random(IMAGES) < robust
    perturbed = generator.integers(CLASSES, size=IMAGES).astype(np.uint8)
    answers = Answers(np.ones(IMAGES, dtype=bool), withstood, perturbed, np.ones(IMAGES, dtype=bool))
    return AuditResult(0, {}, {}, IMAGES, list(range(50, 50 + IMAGES)), {}, answers.encode(), {})


def _judge(generator: np.random.Generator) -> JudgedImages:
    shares = generator.dirichlet(np.ones(CLASSES), size=IMAGES).astype(np.float32)
    return JudgedImages(np.arange(IMAGES), np.zeros(IMAGES, dtype=np.int64), {"strict": shares})


def _numbers(models: list[AuditResult], judges: list[JudgedImages], weights: np.ndarray) -> np.ndarray:
    """Return both accuracies (2,) by their definitions, under weights (200,) of the split's images."""
    robust, invariant = [], []
    for model in models:
        answers = Answers.decode(model.answers)
        robust.append(np.average(answers.robust, weights=weights[50:200]))
        for judge in judges:
            q, w = judge.shares["strict"], weights[judge.source]
            agreed = sum(w[i] * q[i, answers.perturbed[i]] for i in range(IMAGES) if answers.perturbed[i] != 0)
            invariant.append(agreed / sum(w * (1 - q[:, 0])))
    return np.array([np.mean(robust), np.mean(invariant)])


def test_parts_of_the_spread_are_those_of_a_plain_bootstrap() -> None:
    draw = np.random.default_rng(0)
    objectives = Objectives(("sensitivity_accuracy", "invariance_accuracy"), (True, True), (0.0, 0.0))
    runs = [[_model(draw, robust=share) for _ in range(3)] for share in (0.3, 0.6)]
    judges = [_judge(draw) for _ in range(2)]
    finalists = [Finalist(TrialRecord(0), (), (), tuple(each)) for each in runs]
    parts = resampled_parts(finalists, judges, objectives, "strict", seed=0)

    def front(weights: np.ndarray, runs: list[list[AuditResult]], judges: list[JudgedImages]) -> float:
        return hypervolume(np.array([_numbers(each, judges, weights) for each in runs]), objectives)

    plain = {"images": [], "training seeds": [], "judges": []}
    for _ in range(200):
        plain["images"].append(front(draw.multinomial(200, np.full(200, 1 / 200)).astype(float), runs, judges))
        chosen = draw.integers(3, size=3)
        plain["training seeds"].append(front(np.ones(200), [[each[i] for i in chosen] for each in runs], judges))
        plain["judges"].append(front(np.ones(200), runs, [judges[i] for i in draw.integers(2, size=2)]))
    for drawn, reference in zip(parts, plain.values(), strict=True):
        assert drawn.mean() == pytest.approx(np.mean(reference), rel=0.02)
        assert drawn.std() == pytest.approx(np.std(reference), rel=0.25)

    assert set(spread_of_parts([parts], [parts], (0, 3, 2)).values()) == {0.0}, "what both arms share cancels out"
    alone = spread_of_parts([parts], [np.zeros_like(parts)], (0, 3, 2))
    assert alone["judges"] == pytest.approx(parts[2].std(ddof=1) * np.sqrt(2))
    assert "judges" not in spread_of_parts([parts], [parts], (0, 3, 1)), "nothing is known of one"
    assert resampled_parts([], judges, objectives, "strict", seed=0).shape == parts.shape


def test_attainment_and_courses_are_what_so_many_seeds_reach() -> None:
    plane = Objectives(("a", "b"), (True, True), (0.0, 0.0))
    fronts = [np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([[0.5, 0.5]]), np.zeros((0, 2))]
    surfaces = _attainment(fronts, plane, np.array([0.2, 0.5, 0.6]), floor=0.0)
    assert surfaces.tolist() == [[0, 0, 0], [0.5, 0.4, 0], [0.8, 0.5, 0.4]]
    effort, each = _courses([np.array([[1, 0.1], [2, 0.3]]), np.array([[1, 0.2]]), np.zeros((0, 2))])
    assert effort.tolist() == [0, 1, 2]
    assert each.tolist() == [[0, 0.1, 0.3], [0, 0.2, 0.2], [0, 0, 0]]


def test_a_result_alone_gives_everything_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(volumes())
    write_study_files(result, tmp_path)
    assert StudyResult.read(tmp_path) == result
    page = (tmp_path / "study.html").read_text()
    assert html.escape(sentences(result)[1]) in page
    assert "does &lt;b&gt;it&lt;/b&gt; help?" in page
    assert main(["study", str(tmp_path), "--report", "--plot", str(tmp_path / "again.png")]) == 0
    said = capsys.readouterr().out
    assert all(each in said for each in sentences(result))
    assert (tmp_path / "again.png").stat().st_size > 10_000
    assert main(["study", str(tmp_path), "--report", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"][0]["arm"] == "better"

    (tmp_path / "study.json").write_text(result.to_json()[:-40])
    with pytest.raises(InputError, match=r"study\.json: is damaged"):
        StudyResult.read(tmp_path)


def test_the_picture_holds_for_any_number_of_seeds_and_an_arm_without_a_front() -> None:
    result = result_of({key: value[:1] for key, value in volumes().items()})
    result.sweeps[0].points.clear()
    result.sweeps[0].curve.clear()
    attainment, course, budgets, differences = study_figure(result).axes
    assert len(budgets.get_lines()) == 3, "an arm less, and the budget that judges"
    assert "what half of the seeds attain" in attainment.get_title(loc="left")
    assert course.get_ylabel() == "Hypervolume"
    labels = [text.get_text() for text in differences.get_yticklabels()]
    assert labels == ["equal (lenient)", "equal (strict)", "better (lenient)", "better (strict)"]


def test_mlflow_gets_the_verdict_and_finite_numbers() -> None:
    result = result_of({key: value[:1] for key, value in volumes().items()})
    assert all(np.isfinite(value) for value in study_metrics(result).values())
    note = study_markdown(result_of(volumes()), "abc")
    assert "get-artifact?path=study%2Fstudy.png&run_uuid=abc" in note
    assert "better, under both crowds" in note
    assert len(study_tables(result)) == 2


def test_an_arm_that_is_worse_is_said_to_move_the_front_back() -> None:
    arms = {"better": "control", "control": "better", "equal": "equal"}
    swapped = {(arms[arm], crowd): value for (arm, crowd), value in volumes().items() if crowd == "strict"}
    head, worse, _ = sentences(result_of(swapped, crowds=("strict",)))
    assert (
        head == "Against control, 0 of 2 arms move the front forward, 2 back (better, equal): 5 seeds, 2 trials each."
    )
    assert worse.startswith("better moves the front by -")
