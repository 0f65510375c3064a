"""Comparing fronts: against moocore where it knows the measure, and by what must hold of any two fronts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import hypothesis
import moocore
import numpy as np
import pytest
from hypothesis import strategies as st

from search_spaces.reading import load_space
from sweep.cli.commands import main
from sweep.ledger.records import TrialRecord
from sweep.ledger.writing import LedgerWriter
from sweep.plan.from_options import make_plan
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SweepPlan
from sweep.report.comparison import compare_sweeps, heights
from sweep.report.comparison_figure import comparison_figure
from sweep.report.comparison_report import comparison_verdict
from sweep.report.sides import Side, Sweep
from sweep.state.judged import JudgedImages
from sweep.state.sweep_state import state_of_trials
from tests.support.recorded_sweeps import RECORDED, recorded
from trainer.answers import Answers
from trainer.config import TrialConfig
from trainer.errors import InputError

FACTS = {
    "data_fingerprint": "d",
    "validation_images": 300,
    "judged_images": 300,
    "changed_mass": 90.5,
    "judge_accuracy": 0.99,
    "judge_agreement": 0.9,
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    return make_plan(load_space("digits"), name="plain", storage=str(tmp_path_factory.mktemp("plain")))


Cloud = Sequence[tuple[float, float]]


def side(plan: SweepPlan, name: str, *clouds: Cloud, seeds: Sequence[int] = range(100), clean: float = 0.9) -> Side:
    """Return a side of one sweep per cloud of (sensitivity, invariance), on the first of the seeds."""
    sweeps = []
    for seed, cloud in zip(seeds, clouds, strict=False):
        trials = {}
        for number, (sensitivity, invariance) in enumerate(cloud):
            final = {"epoch": 1, "final": True, "clean_accuracy": clean, "invariance_stuck": 0.1}
            final |= {"sensitivity_accuracy": sensitivity, "invariance_accuracy": invariance, "time": 1.0}
            trials[number] = TrialRecord(number, TrialConfig().to_dict(), 0, "finished", ended=1.0, reports=[final])
        mine = dataclasses.replace(plan, name=f"{name}{seed}", seed=seed)
        results = state_of_trials(mine, trials)
        results.data_summary = dict(FACTS)
        sweeps.append(Sweep(mine, results))
    return Side(name, tuple(sweeps))


IMAGES = 200


def answered(side: Side, *, first: int) -> Side:
    """Give every trial the answers that its numbers stand for: right on so many images from the first one on."""
    for sweep in side.sweeps:
        for number, record in sweep.results.trials.items():
            [final] = record.reports
            right, clean = (
                np.roll(np.arange(IMAGES) < round(final[name] * IMAGES), first)
                for name in ("sensitivity_accuracy", "clean_accuracy")
            )
            moved = np.roll(np.arange(IMAGES) < round(final["invariance_accuracy"] * IMAGES), first)
            answers = Answers(clean | right, right, moved.astype(np.uint8), clean)
            report = final | {"answers": answers.encode()}
            sweep.results.load({number: dataclasses.replace(record, reports=[report])})
        sweep.results._count_anew()
        labels = np.zeros(IMAGES, dtype=int)
        sweep.results.judged = JudgedImages(np.arange(IMAGES), labels, {"strict": np.eye(2)[1 - labels]})
    return side


def shifted(cloud: Cloud, by: float) -> Cloud:
    return [(x + by, y + by) for x, y in cloud]


share = st.integers(0, 20).map(lambda n: n / 20)
cloud = st.lists(st.tuples(share, share), min_size=1, max_size=8)


clouds = st.lists(cloud, min_size=1, max_size=3)


@hypothesis.given(clouds, clouds)
@hypothesis.settings(max_examples=25)
def test_against_moocore_and_its_own_mirror(plan: SweepPlan, mine: list[Cloud], theirs: list[Cloud]) -> None:
    a, b = side(plan, "a", *mine), side(plan, "b", *theirs)
    there, back = compare_sweeps(a, b), compare_sweeps(b, a)
    assert there.paired == (len(mine) == len(theirs))
    pairs = list(zip(mine, theirs, strict=True) if there.paired else itertools.product(mine, theirs))
    needed = [moocore.epsilon_additive(np.array(x), ref=np.array(y), maximise=True) for x, y in pairs]
    assert there.epsilon[0] == pytest.approx(fmean(needed), abs=1e-12)
    volumes = [
        [moocore.hypervolume(-np.array(points), ref=np.zeros(2)) for points in (x, y, [*x, *y])] for x, y in pairs
    ]
    alone, theirs_alone = (fmean(both - volume[k] for *volume, both in volumes) for k in (1, 0))
    assert there.covered_alone == pytest.approx((alone, theirs_alone), abs=1e-12)
    # What each covers alone differs by what the fronts differ by, and so do the areas above the stretches.
    assert there.difference.estimate == pytest.approx(alone - theirs_alone, abs=1e-12)
    areas = [(each.high - each.low) * each.difference.estimate for each in there.stretches]
    assert sum(areas) == pytest.approx(there.difference.estimate, abs=1e-12)
    assert back.covered_alone == pytest.approx(there.covered_alone[::-1], abs=1e-15)
    assert (back.difference.estimate, back.difference.p_value) == (
        -there.difference.estimate,
        there.difference.p_value,
    )
    assert [each.difference.estimate for each in back.stretches] == [-s.difference.estimate for s in there.stretches]


def test_attainment_is_that_of_moocore(plan: SweepPlan) -> None:
    """Compare what all, and what any of three seeds attain."""
    generator = np.random.default_rng(0)
    clouds = [generator.random((6, 2)) for _ in range(3)]
    one = side(plan, "a", *([tuple(point) for point in each.tolist()] for each in clouds))
    x = np.unique(np.vstack(clouds)[:, 0])
    each = [sweep.points for sweep in one.sweeps]
    attained = np.sort([heights(points, OBJECTIVES, x) for points in each], axis=0)
    # moocore minimises.
    stacked = -np.vstack(clouds)
    surfaces = moocore.eaf(stacked, sets=np.repeat([1, 2, 3], 6), percentiles=[100 / 3, 100])
    for height, level in ((attained[-1], 100 / 3), (attained[0], 100)):
        surface = -surfaces[np.isclose(surfaces[:, 2], level)][:, :2]
        np.testing.assert_allclose(heights(surface, OBJECTIVES, x), height)


FRONT = [(0.1, 0.6), (0.3, 0.4), (0.5, 0.2)]
SEEDS = [shifted(FRONT, by) for by in (0.0, 0.01, -0.02)]


def test_one_sweep_a_side_claims_nothing(plan: SweepPlan) -> None:
    comparison = compare_sweeps(side(plan, "a", shifted(FRONT, 0.4)), side(plan, "b", FRONT))
    assert comparison.difference.estimate > 0.3
    assert not comparison.claim
    assert comparison_verdict(comparison).startswith(
        "No claim is made: that needs at least two, better five, sweeps a side on different seeds.\nHypervolume 0."
    )
    assert {each.difference.p_value for each in comparison.stretches} == {None}


def test_images_are_drawn_jointly_where_answers_are_known(plan: SweepPlan) -> None:
    """Sides that are right on the same images meet the same luck; sides that are not have theirs in the interval."""
    alone = compare_sweeps(*(answered(side(plan, name, FRONT), first=0) for name in "ab"))
    assert (alone.difference.covers, alone.difference.interval, alone.claim) == ("sources", (0, 0), False)
    theirs = answered(side(plan, "b", *SEEDS), first=0)
    found = {}
    for first in (0, IMAGES // 2):
        mine = answered(side(plan, "a", *(shifted(cloud, 0.01) for cloud in SEEDS[::-1])), first=first)
        comparison = compare_sweeps(mine, theirs)
        assert comparison.difference.covers == "sweeps and sources"
        assert "on these images" not in comparison_verdict(comparison)
        found[first] = comparison.difference.shared
    assert found[IMAGES // 2] > 0.02 > 10 * found[0]
    unknown = compare_sweeps(side(plan, "a", *SEEDS), theirs)
    assert unknown.difference.covers == "sweeps"


def test_what_three_seeds_show_is_claimed(plan: SweepPlan) -> None:
    better = [shifted(cloud, 0.3 + by) for cloud, by in zip(SEEDS, (0.0, 0.005, -0.01), strict=True)]
    comparison = compare_sweeps(side(plan, "a", *better), side(plan, "b", *SEEDS))
    assert comparison.claim
    assert comparison.difference.interval is not None
    assert comparison.difference.interval.low > 0
    verdict = comparison_verdict(comparison)
    assert verdict.startswith("a is ahead: hypervolume ")
    assert verdict.endswith("3 sweeps a side, paired by seed)")
    assert all(each.difference.claim for each in comparison.stretches)
    others = compare_sweeps(side(plan, "a", *better[:2]), side(plan, "b", *SEEDS, seeds=[3, 4, 5]))
    assert comparison_verdict(others).endswith("2 and 3 sweeps, not paired)")


def test_fronts_of_equal_sweeps_are_not_called_different(plan: SweepPlan) -> None:
    equal = compare_sweeps(side(plan, "a", *SEEDS), side(plan, "b", *SEEDS))
    assert (equal.difference.estimate, equal.difference.interval, equal.claim) == (0.0, (0.0, 0.0), False)
    turned = compare_sweeps(side(plan, "a", *SEEDS), side(plan, "b", *SEEDS[1:], SEEDS[0]))
    assert comparison_verdict(turned).startswith("No difference was shown: hypervolume ")
    turned = compare_sweeps(side(plan, "a", *SEEDS), side(plan, "b", *SEEDS[1:], shifted(SEEDS[0], 0.01)))
    said = comparison_verdict(turned).splitlines()[1]
    assert said == "So many sweeps show a difference of 0.109 in 4 of 5 cases; one of the size found needs 639 a side."


def test_only_contenders_count(plan: SweepPlan) -> None:
    """A trial that breaks the requirements is on no front, in the comparison too."""
    strict = dataclasses.replace(plan, space=plan.space.requiring(["clean_accuracy >= 0.95"]))
    a, b = (side(strict, name, *SEEDS, clean=0.96) for name in "ab")
    for sweep in b.sweeps:
        broken = dataclasses.replace(sweep.results.trials[0], number=3, reports=[])
        final = {**sweep.results.trials[0].reports[0], "sensitivity_accuracy": 1.0, "clean_accuracy": 0.9}
        sweep.results.load({3: dataclasses.replace(broken, reports=[final])})
        sweep.results._count_anew()
    comparison = compare_sweeps(a, b)
    assert comparison.difference.estimate == 0
    assert comparison.covered_alone == comparison.epsilon == (0, 0)
    assert comparison.effort == "3 and 4 trials"
    assert comparison_verdict(comparison).startswith("Not at equal effort: 3 and 4 trials; no claim is made.\n")
    with pytest.raises(InputError, match="requirements = clean_accuracy >= 0.95 and none"):
        compare_sweeps(a, side(plan, "b", *SEEDS))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sampler": "random"}, "tpe and random as sampler"),
        ({"epochs": 3}, "10 and 3 epochs"),
        ({"stopper": "asha"}, "none and asha (2, 2, 0.05) as stopper"),
        ({"ladder": 5}, "0 and 5 as ladder"),
        ({"seeds": 3}, "1 and 3 seeds of each configuration"),
        ({"pack": 4}, "1 and 4 in a pack"),
    ],
    ids=["sampler", "epochs", "stopper", "ladder", "seeds", "pack"],
)
def test_nothing_is_claimed_at_unequal_effort(plan: SweepPlan, change: dict, named: str) -> None:
    better = [shifted(cloud, 0.3 + by) for cloud, by in zip(SEEDS, (0.0, 0.005, -0.01), strict=True)]
    comparison = compare_sweeps(
        side(dataclasses.replace(plan, **change), "a", *better), side(dataclasses.replace(plan, **change), "b", *SEEDS)
    )
    assert comparison.claim
    comparison = compare_sweeps(side(plan, "a", *better), side(dataclasses.replace(plan, **change), "b", *SEEDS))
    assert (comparison.effort, comparison.claim) == (named, False)


def test_more_seeds_are_a_mean_and_a_band(plan: SweepPlan) -> None:
    a = side(plan, "a", [(0.2, 0.2)], [(0.4, 0.4)])
    assert a.hypervolume == pytest.approx((0.04 + 0.16) / 2)
    drawn = comparison_figure(compare_sweeps(a, side(plan, "b", [(0.3, 0.3)])))
    labels = drawn.axes[0].get_legend_handles_labels()[1]
    assert labels == ["A: front", "A: all to any seed", "B: front"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data_fingerprint": "other"}, "data_fingerprint = d and other"),
        ({"changed_mass": 4}, "changed_mass = 90.5 and 4"),
    ],
    ids=["data", "judge"],
)
def test_fronts_that_were_judged_differently_are_refused(plan: SweepPlan, change: dict, named: str) -> None:
    a, b = side(plan, "a", FRONT), side(plan, "b", FRONT)
    b.sweeps[0].results.data_summary |= change
    with pytest.raises(InputError, match=f"judged differently, so their points can't be compared: {named}"):
        compare_sweeps(a, b)


def test_each_seed_may_have_a_split_of_its_own(plan: SweepPlan) -> None:
    def on_splits(name: str, clouds: Sequence[Cloud], splits: Sequence[int]) -> Side:
        found = []
        for seed, (cloud, split) in enumerate(zip(clouds, splits, strict=True)):
            evaluation = plan.space.evaluation.replace(split_seed=split)
            mine = dataclasses.replace(plan, space=dataclasses.replace(plan.space, evaluation=evaluation))
            found += answered(side(mine, name, cloud, seeds=[seed]), first=50 * split + 20 * (name == "a")).sweeps
            found[-1].results.data_summary["data_fingerprint"] = str(split)
        return Side(name, tuple(found))

    own = compare_sweeps(on_splits("a", SEEDS, [0, 1, 2]), on_splits("b", SEEDS[::-1], [0, 1, 2]))
    one = compare_sweeps(on_splits("a", SEEDS, [0, 0, 0]), on_splits("b", SEEDS[::-1], [0, 0, 0]))
    assert own.difference.shared is not None
    assert one.difference.shared is not None
    # Luck that each sweep has for itself is in the variance between them.
    assert own.difference.shared < one.difference.shared / 2
    with pytest.raises(InputError, match="judged on different splits: split_seed = 0, 1, 2 and 0"):
        compare_sweeps(on_splits("a", SEEDS, [0, 1, 2]), on_splits("b", SEEDS, [0, 0, 0]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a sweep with its own first trials: tables of 80 columns, files, one run in MLflow however often."""
    monkeypatch.setenv("COLUMNS", "80")
    recorded("digits24", tmp_path)
    write_half(tmp_path)
    assert main(["compare", "digits24", "half", "--storage", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines() if "://" not in line and str(tmp_path) not in line) <= 80
    stored = json.loads((tmp_path / "digits24" / "compare" / "half" / "compare.json").read_text())
    assert "Not at equal effort: 24 and 8 trials; no claim is made.\n" in said
    assert (stored["claim"], stored["unequal_effort"]) == (False, "24 and 8 trials")
    assert stored["covered_alone"][1] == 0
    assert stored["additive_epsilon"][0] <= 0
    assert (tmp_path / "digits24" / "compare" / "half" / "compare.png").stat().st_size > 10_000
    from sweep.tracking.store import connect

    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    for _ in range(2):
        [run] = client.search_runs([experiment.experiment_id], "tags.`otsweep.kind` = 'comparison'")
        assert run.data.metrics["hypervolume_difference"] == stored["difference"]["estimate"]
        assert "![Both fronts]" in run.data.tags["mlflow.note.content"]
        assert {file.path for file in client.list_artifacts(run.info.run_id, "compare")} >= {"compare/compare.png"}
        assert main(["compare", "digits24", "half", "--storage", str(tmp_path), "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out) == stored


def write_half(storage: Path) -> None:
    from sweep.ledger.reading import read_ledger
    from tests.support.recorded_sweeps import write_records

    folder = storage / "half"
    folder.mkdir()
    shutil.copy(RECORDED / "digits24" / "prepared.json", folder)
    text = (RECORDED / "digits24" / "plan.yaml").read_text()
    (folder / "plan.yaml").write_text(text.replace("name: digits24", "name: half"))
    with LedgerWriter(folder) as ledger:
        write_records(ledger, list(read_ledger(RECORDED / "digits24").trials.values())[:8])


def test_sides_that_are_no_sides_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded("digits24", tmp_path)
    write_half(tmp_path)
    assert main(["compare", "digits24,half", "half", "--storage", str(tmp_path)]) == 2
    assert "digits24, half: all on --seed 0; the sweeps of one side must be on different seeds" in said_in(capsys)
    assert main(["compare", "half", "half", "--storage", str(tmp_path)]) == 2
    assert "half: on both sides; a sweep can't be compared with itself" in said_in(capsys)


def said_in(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_another_evaluation_is_refused_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("digits24", "thousand"):
        recorded(name, tmp_path)
    assert main(["compare", "digits24", "thousand", "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "train_size = 0 and 300" in said
    assert "eval_sensitivity_steps = 20 and 3" in said
