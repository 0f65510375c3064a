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
from sweep.study.tables import _spread_text, notes, study_markdown, study_metrics, study_tables, write_study_files
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
    lead = "Against control, 1 of 2 arms are shown to move the front forward (better)"
    assert head == f"{lead}: 5 seeds, 2 trials of each arm on each seed."
    one, other = result.differences
    span = f"{one.estimate:+.4f} (95%: {one.low:+.4f} to {one.high:+.4f}; p = "
    assert better.startswith(f"better: moves the front forward, {span}")
    assert equal.startswith(f"equal: no difference was shown, {other.estimate:+.4f} (95%: ")
    needed = "more than 1000" if other.needed and other.needed > 1000 else f"about {other.needed}"
    assert equal.endswith(
        f"so many seeds show one of {other.detectable:.4f} in 4 of 5 cases, {needed} would one of "
        f"{abs(other.estimate):.4f}."
    )


def test_a_verdict_under_two_crowds_holds_under_both_or_says_under_which() -> None:
    head, better, equal = sentences(result_of(volumes()))
    assert head.startswith(
        "Against control, 1 of 2 arms are shown to move the front forward under both crowds (better), 1 under one of "
        "them ("
    )
    assert better.startswith("better, under both crowds: strict: moves the front forward, +0.0")
    assert equal.startswith("equal, by crowd: under strict no difference was shown, ")
    assert "under lenient moves the front forward, +0.0" in equal


def test_one_seed_claims_nothing_and_a_half_done_study_says_so() -> None:
    first = {key: value[:1] for key, value in volumes().items()}
    head, better, _ = sentences(result_of(first))
    assert head == (
        "Nothing is claimed about control and the others: at least two, better five, seeds are needed; 1 of 5 seeds so "
        "far, 2 trials of each arm on each seed."
    )
    assert better.startswith("better, under both crowds: strict: +0.0")
    assert better.endswith(" on one seed.")
    said = " ".join(notes(result_of(first)))
    assert not any(word in said for word in ("Student", "Holm")), "there is no interval or p-value to be explained"
    assert "by Student's t over 5 paired seeds" in " ".join(notes(result_of(volumes())))
    none = dataclasses.replace(result_of(first), seeds=[], sweeps=[], differences=[])
    assert sentences(none) == ["mine: no seed is done yet on all 3 arms."]


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("skewed", [False, True], ids=["normal", "skewed"])
def test_no_difference_is_rarely_called_one_and_intervals_hold_the_true_one(seeds: int, skewed: bool) -> None:
    """Holm's correction over two arms and the pairs: at most 5% of studies in which no arm differs make any claim, and
    an interval holds a true difference in 95%; with three standard deviations of luck on either."""
    draw, studies, wrong, held = np.random.default_rng(seeds), 400, 0, 0

    def noise() -> np.ndarray:
        return 0.01 * (draw.gamma(2.0, size=seeds) if skewed else draw.standard_normal(seeds))

    for _ in range(studies):
        base = draw.normal(0.2, 0.05, seeds)
        each = {(arm, "strict"): (base + noise()).tolist() for arm in ARMS}
        found = arm_differences(each, arms=ARMS, crowds=["strict"])
        wrong += any(one.shown for one in found)
        held += found[0].low is not None and found[0].high is not None and found[0].low <= 0 <= found[0].high
    assert wrong / studies <= 0.083
    assert held / studies >= 0.917
    assert skewed or (wrong / studies >= 0.01 and held / studies <= 0.983), "nor are they wider than need be"


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_what_is_said_to_be_shown_in_four_of_five_cases_is_so_after_holm_s_correction(seeds: int) -> None:
    """Move one of five arms by what is said to be detectable, with the deviation known."""
    draw, arms, deviation = np.random.default_rng(seeds), ["control", "better", "b", "c", "d", "e"], 0.01
    shown = float(power_line([deviation], seeds, "", tests=5).partition("true difference of ")[2].split()[0])
    hits = 0
    for _ in range(400):
        # With the control at rest its noise makes no arm's test depend on another's.
        each = {(arm, "strict"): draw.normal(0.2, deviation, seeds).tolist() for arm in arms[1:]}
        each["control", "strict"] = [0.2] * seeds
        each["better", "strict"] = [value + shown for value in each["better", "strict"]]
        hits += arm_differences(each, arms=arms, crowds=["strict"])[0].shown
    assert hits / 400 == pytest.approx(0.8, abs=0.06)


def test_arms_swapped_the_sign_swaps_and_identical_arms_differ_by_nothing() -> None:
    each = volumes()
    [there] = arm_differences(each, arms=["control", "better"], crowds=["strict"])
    [back] = arm_differences(each, arms=["better", "control"], crowds=["strict"])
    assert (there.low, there.high) == (-back.high, -back.low) if back.low and back.high else False
    assert (back.estimate, back.p_value, back.shown) == (-there.estimate, there.p_value, there.shown)
    same = each | {("better", "strict"): each["control", "strict"]}
    [none] = arm_differences(same, arms=["control", "better"], crowds=["strict"])
    assert (none.estimate, none.p_value, none.shown, none.needed) == (0.0, 1.0, False, None)


def test_the_power_is_told_from_a_pilot_or_not_at_all() -> None:
    assert "not known before two seeds are done" in power_line([], 5, "", tests=2)
    line = power_line([0.01, 0.01], 5, "study pilot", tests=1)
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
    ends = [line.get_xydata()[-1] for line in attainment.get_lines() if len(line.get_xydata())]
    assert {tuple(end) for end in ends} == {(100 * result.sweeps[i].hypervolumes["strict"], 0.0) for i in (1, 2)}, (
        "a front ends where its last point does, and one that is not there has no line"
    )
    assert course.get_ylabel() == "Hypervolume"
    labels = [text.get_text() for text in differences.get_yticklabels()]
    assert labels == ["equal (lenient)", "equal (strict)", "better (lenient)", "better (strict)"]

    each = volumes()
    *_, differences = study_figure(result_of(each)).axes
    seeds = [line.get_xdata() for line in differences.get_lines() if len(line.get_xdata()) == len(SEEDS)]
    expected = np.subtract(each["better", "strict"], each["control", "strict"])
    assert seeds[-1] == pytest.approx(expected), "the uppermost row's are drawn last"


def test_mlflow_gets_the_verdict_and_finite_numbers() -> None:
    result = result_of({key: value[:1] for key, value in volumes().items()})
    assert all(np.isfinite(value) for value in study_metrics(result).values())
    note = study_markdown(result_of(volumes()), "abc")
    assert "get-artifact?path=study%2Fstudy.png&run_uuid=abc" in note
    assert "better, under both crowds" in note
    spread = dataclasses.replace(result_of(volumes()).differences[0], deviation=0.01, parts={"images": 0.006})
    assert _spread_text(spread) == "0.0100; images 0.0060; search and split: 0.0080"
    beyond = dataclasses.replace(spread, parts={"images": 0.006, "training seeds": 0.009})
    assert _spread_text(beyond).endswith("search and split: nothing that so few seeds tell")
    assert len(study_tables(result)) == 2


def test_an_arm_that_is_worse_is_said_to_move_the_front_back() -> None:
    arms = {"better": "control", "control": "better", "equal": "equal"}
    swapped = {(arms[arm], crowd): value for (arm, crowd), value in volumes().items() if crowd == "strict"}
    head, worse, _ = sentences(result_of(swapped, crowds=("strict",)))
    assert head.startswith("Against control, 0 of 2 arms are shown to move the front forward, 2 back (better, equal): ")
    assert worse.startswith("better: moves the front back, -")
