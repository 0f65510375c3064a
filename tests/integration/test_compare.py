"""Comparing fronts: against moocore where it knows the measure, and by what must hold of any two fronts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import hypothesis
import moocore
import numpy as np
import pytest
from hypothesis import strategies as st

from search_spaces.reading import load_space
from sweep.cli.commands import main
from sweep.front import pareto as pareto_module
from sweep.ledger.records import TrialRecord
from sweep.ledger.writing import LedgerWriter
from sweep.plan.from_options import make_plan
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SweepPlan
from sweep.report import comparison as comparing
from sweep.report.comparison import Side, Sweep, compare_sweeps, heights
from sweep.report.comparison_figure import comparison_figure
from sweep.report.comparison_report import comparison_verdict
from sweep.state.sweep_state import SweepState
from tests.support.recorded_sweeps import RECORDED, recorded
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
COUNT = 90


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    return make_plan(load_space("digits"), name="plain", storage=str(tmp_path_factory.mktemp("plain")))


def side(plan: SweepPlan, name: str, *clouds: list[tuple[float, float]]) -> Side:
    """Return a side of one sweep per cloud of (sensitivity, invariance)."""
    sweeps = []
    for place, cloud in enumerate(clouds):
        trials = {}
        for number, (sensitivity, invariance) in enumerate(cloud):
            final = {"epoch": 1, "final": True, "clean_accuracy": 0.9, "invariance_stuck": 0.1}
            final |= {"sensitivity_accuracy": sensitivity, "invariance_accuracy": invariance}
            final |= {"invariance_effective_size": COUNT, "time": 1.0}
            trials[number] = TrialRecord(number, TrialConfig().to_dict(), 0, "finished", ended=1.0, reports=[final])
        results = SweepState(plan.objectives, trials, total=len(trials))
        results.data_summary = dict(FACTS)
        sweeps.append(Sweep(dataclasses.replace(plan, name=f"{name}{place}"), results))
    return Side(name, tuple(sweeps))


share = st.integers(0, 20).map(lambda n: n / 20)
cloud = st.lists(st.tuples(share, share), min_size=1, max_size=8)


@hypothesis.given(cloud, cloud)
@hypothesis.settings(max_examples=25)
def test_against_moocore_and_its_own_mirror(
    plan: SweepPlan, mine: list[tuple[float, float]], theirs: list[tuple[float, float]]
) -> None:
    a, b = side(plan, "a", mine), side(plan, "b", theirs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "DRAWS", 10)
        there, back = compare_sweeps(a, b), compare_sweeps(b, a)
    x, y = np.array(mine), np.array(theirs)
    assert there.epsilon[0] == pytest.approx(moocore.epsilon_additive(x, ref=y, maximise=True), abs=1e-12)
    volumes = [moocore.hypervolume(-points, ref=np.zeros(2)) for points in (x, y, np.vstack([x, y]))]
    assert there.difference == pytest.approx(volumes[0] - volumes[1], abs=1e-12)
    assert there.covered_alone == pytest.approx((volumes[2] - volumes[1], volumes[2] - volumes[0]), abs=1e-12)
    assert (back.difference, back.epsilon) == (-there.difference, there.epsilon[::-1])
    assert back.covered_alone == there.covered_alone[::-1]
    assert {(r.leader, r.low, r.high) for r in there.regions} == {(r.leader, r.low, r.high) for r in back.regions}


@hypothesis.given(cloud, cloud)
@hypothesis.settings(max_examples=50)
def test_regions_hold_exactly_what_one_covers_alone(
    plan: SweepPlan, mine: list[tuple[float, float]], theirs: list[tuple[float, float]]
) -> None:
    """Require that a side leads somewhere if and only if it covers something alone; elsewhere both are equal."""
    a, b = side(plan, "a", mine), side(plan, "b", theirs)
    regions = comparing.regions(a, b)
    whole = pareto_module.hypervolume(mine + theirs, OBJECTIVES)
    for one, other in ((a, b), (b, a)):
        alone = whole - pareto_module.hypervolume(other.points, OBJECTIVES)
        led = [region for region in regions if region.leader == one.name]
        assert bool(led) == (alone > 1e-12)
        assert sum((region.high - region.low) * region.lead for region in led) >= alone - 1e-12
    x = np.linspace(0.013, 0.987, 40)
    equal = np.maximum(heights(a.points, OBJECTIVES, x), 0) == np.maximum(heights(b.points, OBJECTIVES, x), 0)
    inside = [any(region.low < place < region.high for region in regions) for place in x]
    assert (equal != np.array(inside)).all()


def test_attainment_is_that_of_moocore(plan: SweepPlan) -> None:
    """Compare what all, and what any of three seeds attain."""
    generator = np.random.default_rng(0)
    clouds = [generator.random((6, 2)) for _ in range(3)]
    one = side(plan, "a", *([tuple(point) for point in each.tolist()] for each in clouds))
    x = np.unique(np.vstack(clouds)[:, 0])
    each = [sweep.results.points(sweep.results.finished.values()) for sweep in one.sweeps]
    attained = np.sort([heights(points, OBJECTIVES, x) for points in each], axis=0)
    # moocore minimises.
    stacked = -np.vstack(clouds)
    surfaces = moocore.eaf(stacked, sets=np.repeat([1, 2, 3], 6), percentiles=[100 / 3, 100])
    for height, level in ((attained[-1], 100 / 3), (attained[0], 100)):
        surface = -surfaces[np.isclose(surfaces[:, 2], level)][:, :2]
        np.testing.assert_allclose(heights(surface, OBJECTIVES, x), height)


def test_the_interval_covers_no_difference_of_a_front_with_itself(plan: SweepPlan) -> None:
    points = [(0.1, 0.6), (0.3, 0.4), (0.5, 0.2)]
    low, high = compare_sweeps(side(plan, "a", points), side(plan, "b", points)).interval
    assert low < 0 < high
    assert high - low < 0.2
    better = [(x + 0.4, y + 0.3) for x, y in points]
    comparison = compare_sweeps(side(plan, "a", better), side(plan, "b", points))
    assert comparison.interval.low > 0
    assert comparison_verdict(comparison).startswith("a is ahead")
    assert comparison.interval == compare_sweeps(side(plan, "a", better), side(plan, "b", points)).interval


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
    a, b = side(plan, "a", [(0.2, 0.2)]), side(plan, "b", [(0.2, 0.2)])
    b.sweeps[0].results.data_summary |= change
    with pytest.raises(InputError, match=f"judged differently, so their points can't be compared: {named}"):
        compare_sweeps(a, b)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a sweep with its own first trials: tables of 80 columns, files, one run in MLflow however often."""
    monkeypatch.setenv("COLUMNS", "80")
    recorded("digits24", tmp_path)
    write_half(tmp_path)
    assert main(["compare", "digits24", "half", "--storage", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines() if "://" not in line and str(tmp_path) not in line) <= 80
    stored = json.loads((tmp_path / "digits24" / "compare" / "half" / "compare.json").read_text())
    assert stored["covered_alone"][1] == 0
    assert stored["additive_epsilon"][0] <= 0
    assert (tmp_path / "digits24" / "compare" / "half" / "compare.png").stat().st_size > 10_000
    from sweep.tracking.store import connect

    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    for _ in range(2):
        [run] = client.search_runs([experiment.experiment_id], "tags.`otsweep.kind` = 'comparison'")
        assert run.data.metrics["hypervolume_difference"] == stored["difference"]
        assert "![Both fronts]" in run.data.tags["mlflow.note.content"]
        assert {file.path for file in client.list_artifacts(run.info.run_id, "compare")} >= {"compare/compare.png"}
        assert main(["compare", "digits24", "half", "--storage", str(tmp_path)]) == 0


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


def test_another_evaluation_is_refused_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("digits24", "thousand"):
        recorded(name, tmp_path)
    assert main(["compare", "digits24", "thousand", "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "train_size = 0 and 300" in said
    assert "eval_sensitivity_steps = 20 and 3" in said
