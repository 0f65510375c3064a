"""Configurations on several seeds: drawn, told, stopped, ranked and shown as one."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from ray.tune.utils import flatten_dict
from scipy.stats import t

from search_spaces.reading import load_space
from search_spaces.space import Space
from sweep.front.pareto import constrained_ranks, front_mask, ranks
from sweep.front.resampling import mean_intervals, resample_seeds
from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.plan.from_options import make_plan
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SAMPLERS, SweepPlan
from sweep.plan.plan_file import read_plan
from sweep.report.formats import front_table
from sweep.report.front_figure import front_picture
from sweep.report.rows import cells, front_rows
from sweep.search.rungs import Rungs
from sweep.state.sweep_state import SweepState, state_of_trials
from tests.support import events
from tests.support.commands import command, otsweep, start, wait_for
from tests.support.tuned_search import TunedSearch
from trainer.errors import InputError

numbers = st.integers(0, 6).map(float)


def groups(n: int = 6, k: int = 3) -> st.SearchStrategy[np.ndarray]:
    member = st.tuples(numbers, numbers)
    return st.lists(st.lists(member, min_size=k, max_size=k), min_size=1, max_size=n).map(np.array)


# ---------------------------------------------------------------------------------------------------------------------
# Arrays


def chances_of(samples: np.ndarray, **kwargs: Any) -> np.ndarray:
    return resample_seeds(samples, OBJECTIVES, **kwargs).on_front


@given(groups())
def test_intervals_are_students(samples: np.ndarray) -> None:
    found = mean_intervals(samples, level=0.9)
    for i, group in enumerate(samples):
        for j, values in enumerate(group.T):
            if values.std() > 0:
                expected = t.interval(0.9, len(values) - 1, values.mean(), values.std(ddof=1) / np.sqrt(len(values)))
                assert found[i, j] == pytest.approx(expected)
            else:
                assert found[i, j].tolist() == [values[0], values[0]]


@given(groups(k=1))
def test_members_that_agree_leave_no_doubt(samples: np.ndarray) -> None:
    sure = front_mask(samples[:, 0], OBJECTIVES).astype(float).tolist()
    assert chances_of(samples, seed=0, draws=5).tolist() == sure
    assert chances_of(np.repeat(samples, 3, axis=1), seed=0, draws=5).tolist() == sure


@given(groups(), st.randoms(use_true_random=False))
def test_every_draw_has_a_front(samples: np.ndarray, random: Any) -> None:
    chances = chances_of(samples, seed=1, draws=40)
    assert ((chances >= 0) & (chances <= 1)).all()
    assert chances.sum() >= 1 - 1e-9
    on_no_front = chances_of(samples, bounds=np.ones((*samples.shape[:2], 1)), seed=1, draws=5)
    assert not on_no_front.any()


def test_chances_are_those_of_the_draws_counted_out() -> None:
    """Count the four draws from two members: twice the lower, twice the higher, and two times one of each.

    Their means are 1 - r, 1 + r and, twice, 1, with r the root of 2.
    """
    samples = np.array([[[0.0, 0.0], [2.0, 2.0]], [[2.3, 2.3], [2.3, 2.3]]])
    found = chances_of(samples, seed=3, draws=20_000)
    assert found == pytest.approx([0.25, 0.75], abs=0.01)
    bounded = chances_of(samples, bounds=np.array([[[0.0], [0.0]], [[-1.0], [0.9]]]), seed=3)
    assert bounded[1] < 0.6, "one draw in four breaks the bound, and one in four is beaten"


def test_a_drawn_mean_varies_as_that_of_fresh_seeds() -> None:
    """Compare with the chance to pass a fixed point at a distance of z standard errors, for a normal sample."""
    sample = np.random.default_rng(0).normal(size=30)
    error = sample.std(ddof=1) / np.sqrt(30)
    for z, chance in [(-1.0, 0.841), (0.5, 0.309), (1.5, 0.067)]:
        bar = sample.mean() + z * error
        both = np.stack([np.stack([sample, sample], axis=1), np.full((30, 2), bar)])
        assert chances_of(both, seed=0, draws=4000)[0] == pytest.approx(chance, abs=0.03)


@given(groups(n=12, k=1), st.lists(st.integers(0, 3).map(float), min_size=12, max_size=12))
def test_constrained_ranks_put_the_feasible_first(samples: np.ndarray, violations: list[float]) -> None:
    points, broken = samples[:, 0], np.array(violations[: len(samples)])
    found = constrained_ranks(points, broken, OBJECTIVES)
    assert found[broken == 0].tolist() == ranks(points[broken == 0], OBJECTIVES).tolist()
    assert constrained_ranks(points, 0 * broken, OBJECTIVES).tolist() == ranks(points, OBJECTIVES).tolist()
    for i in range(len(points)):
        for j in range(len(points)):
            if broken[i] < broken[j]:
                assert found[i] < found[j]
            if broken[i] == broken[j] > 0:
                assert found[i] == found[j]
    assert sorted(set(found.tolist())) == list(range(len(set(found.tolist()))))


# ---------------------------------------------------------------------------------------------------------------------
# Results


def ended(number: int, robust: float, invariant: float, state: str = "finished") -> TrialRecord:
    told = {"sensitivity_accuracy": robust, "invariance_accuracy": invariant, "clean_accuracy": 0.9, "epoch": 2}
    told |= {
        "invariance_stuck": 0.1,
        "invariance_effective_size": 40,
        "time": 1.0,
        "train_seconds": 1.0,
        "evaluation_seconds": 1.0,
    }
    reports = [{**told, "final": False}] + ([{**told, "final": True}] if state == "finished" else [])
    config = {**load_space("digits").points[0], "margin": 0.1 + number // 3 / 10, "seed": number % 3}
    return TrialRecord(
        number, config, number % 3, state, started=0.0, ended=1.0, ended_as=100 - number, reports=reports
    )


# The first trial alone dominates all, and its configuration none: so it is the seed that was lucky.
MEASURED = [(0.9, 0.9), (0.5, 0.5), (0.1, 0.1), (0.6, 0.7), (0.6, 0.6), (0.6, 0.5), (0.2, 0.8), (0.2, 0.8), (0.2, 0.8)]


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return make_plan(load_space("digits"), name="replicated", storage=str(tmp_path), trials=12, seeds=3)


@pytest.fixture
def results(plan: SweepPlan) -> SweepState:
    trials = [ended(number, *found) for number, found in enumerate(MEASURED)]
    trials += [ended(9, 1.0, 1.0), ended(10, 1.0, 1.0, state="stopped"), ended(11, 1.0, 1.0, state="failed")]
    return state_of_trials(plan, {each.number: each for each in trials})


def test_ranked_are_the_means_of_whole_configurations(results: SweepState) -> None:
    assert sorted(results.configurations) == [0, 3, 6], "9 to 11 did not all finish"
    assert [each.number for each in results.front_records] == [3, 6]
    assert results.points(results.front_records) == pytest.approx(np.array([[0.6, 0.6], [0.2, 0.8]]))
    assert results.hypervolume == pytest.approx(0.6 * 0.6 + 0.2 * 0.2)
    assert results.ranks() == {0: 1, 1: 1, 2: 1, **dict.fromkeys(range(3, 9), 0)}


def test_results_that_came_one_by_one_are_those_that_were_loaded(results: SweepState, plan: SweepPlan) -> None:
    live = state_of_trials(plan, {})
    for record in sorted(results.trials.values(), key=lambda record: record.ended_as):
        live.trials[record.number] = TrialRecord(record.number, record.config, record.seed, reports=record.reports)
        live.apply(events.ended(record.number, record.state, time=record.ended or 0.0))
    assert live.volumes == results.volumes
    assert sorted(live.configurations) == sorted(results.configurations)
    assert live.hypervolume == results.hypervolume
    assert len(set(results.volumes)) == 3, "it grows where the last seed of a configuration ends"


def test_the_table_shows_means_intervals_and_chances(results: SweepState, plan: SweepPlan) -> None:
    first, second = front_rows(plan, results)
    assert (first["trial"], first["seeds"]) == (3, 3)
    low, high = mean_intervals(np.array([[[0.7], [0.6], [0.5]]]))[0, 0]
    assert (first["invariance_accuracy_low"], first["invariance_accuracy_high"]) == pytest.approx((low, high))
    assert cells(plan, first)[:2] == ["60.0±0.0%", f"60.0±{50 * (high - low):.1f}%"]
    assert 0.5 < first["p_front"] < second["p_front"] < 1, "000 would win where it drew its lucky seed alone"
    table = front_table(plan, results)
    assert [str(column.header) for column in table.columns][-2:] == ["P(front)", "configuration"]
    assert list(table.columns[0].cells) == ["003-005", "006-008"]
    [axes] = front_picture(plan, results).axes
    labels = [each.get_text() for each in axes.texts if each.get_gid() == "label"]
    assert labels == [f"{row['trial']:03d} {row['p_front']:.0%}" for row in (second, first)]
    [bars] = [each for each in axes.collections if each.get_gid() == "intervals"]
    assert sorted(np.ptp(bars.get_segments(), axis=1).max(axis=1))[-1] == pytest.approx(100 * (high - low))  # type: ignore[attr-defined]
    told = results.configuration_metrics(4)
    assert told["mean_invariance_accuracy"] == pytest.approx(0.6)
    assert told["p_front"] == first["p_front"]


@pytest.mark.parametrize(("trials", "message"), [(10, "--trials 9 or --trials 12"), (2, "so give --trials 3")])
def test_trials_are_whole_configurations(tmp_path: Path, trials: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(load_space("digits"), name="x", storage=str(tmp_path), trials=trials, seeds=3)


def test_a_space_that_draws_nothing_runs_its_points_on_every_seed(tmp_path: Path) -> None:
    fixed = dataclasses.replace(load_space("digits"), swept={}, trials=5)
    assert make_plan(fixed, name="x", storage=str(tmp_path), seeds=2).trials == 10
    with pytest.raises(InputError, match="--trials 12: the space has 5 points, each on 2 seeds, and draws nothing"):
        make_plan(fixed, name="y", storage=str(tmp_path), seeds=2, trials=12)


# ---------------------------------------------------------------------------------------------------------------------
# Search and stopping


def search(space: Space, sampler: str, history: list[TrialRecord] | None = None) -> TunedSearch:
    return TunedSearch(space, OBJECTIVES, sampler=sampler, seed=5, epochs=3, seeds=3, history=history or [])


def run(found: TunedSearch, count: int) -> list[TrialRecord]:
    """Run in one slot. Every fifth configuration fails on its second seed, every seventh is stopped on its third."""
    records = []
    for _ in range(count):
        proposal = found.suggest("slot")
        number, config = proposal["number"], proposal["config"]
        group, replicate = divmod(number, 3)
        robust = config["sensitivity_epsilon"] + replicate / 100
        report = {"final": True, "epoch": 3, "sensitivity_accuracy": robust, "invariance_accuracy": 1 - robust}
        state = "failed" if group % 5 == 4 and replicate == 1 else "finished"
        state = "stopped" if group % 7 == 6 and replicate == 2 else state
        told = {"finished": {"report": report}, "failed": {"failure": "so"}, "stopped": {"report": {"final": False}}}
        found.on_trial_complete("slot", flatten_dict(told[state]))
        record = TrialRecord(number, config, config["seed"], state, sampler_state=proposal["sampler_state"])
        record.reports = [report] if state == "finished" else []
        records.append(record)
    return records


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_a_rebuilt_search_goes_on_in_the_middle_of_a_configuration(sampler: str) -> None:
    space = load_space("digits")
    undisturbed = run(search(space, sampler), 75)
    assert [record.seed for record in undisturbed[:6]] == [5, 6, 7, 5, 6, 7]
    for first in range(0, 75, 3):
        same = [{**record.config, "seed": 0} for record in undisturbed[first : first + 3]]
        assert same[0] == same[1] == same[2]
    for cut in (1, 37, 50, 72):
        assert run(search(space, sampler, undisturbed[:cut]), 75 - cut) == undisturbed[cut:]


def test_the_sampler_is_told_means_once_all_seeds_have_ended() -> None:
    found = search(load_space("digits"), "tpe")
    records = run(found, 23)
    states = [found.window.get_trial(group).state for group in range(8)]
    assert states == [
        *[TrialState.COMPLETE] * 4,
        TrialState.FAIL,
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.RUNNING,
    ]
    epsilon = records[0].config["sensitivity_epsilon"]
    assert found.window.get_trial(0).values == pytest.approx([epsilon + 0.01, 1 - epsilon - 0.01])


def test_once_a_seed_is_stopped_the_others_are_at_their_next_report() -> None:
    rungs = Rungs(OBJECTIVES, levels=[2, 4], eta=2)
    assert rungs.decide(0, "good", 2, (0.5, 0.5)) is not None
    assert rungs.decide(1, "bad", 1, (0.1, 0.1)) is None
    assert rungs.decide(2, "bad", 2, (0.4, 0.4)).stop  # type: ignore[union-attr]
    follows = rungs.decide(1, "bad", 2, (0.9, 0.9))
    assert follows is not None
    assert (follows.stop, follows.followed, follows.rung) == (True, 2, 2)
    assert follows.reason == "stopped after epoch 2: as trial 002 of its configuration was"
    assert rungs.decide(3, "bad", 1, (0.9, 0.9)).followed == 2  # type: ignore[union-attr]
    assert rungs.rungs[2, ""].trials["bad"] == {2: (0.4, 0.4)}, "who follows is compared no more"
    assert [rungs.stopped(trial) for trial in range(4)] == [False, True, True, True]


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 6), numbers, numbers), max_size=60))
def test_all_seeds_end_alike_and_no_front_is_stopped(told: list[tuple[int, int, float, float]]) -> None:
    rungs = Rungs(OBJECTIVES, levels=[1, 2, 4], eta=2)
    for trial, epoch, *values in told:
        if rungs.stopped(trial):
            continue
        decision = rungs.decide(trial, str(trial // 3), epoch, values)
        if decision is not None and decision.stop and decision.followed < 0:
            assert decision.layer > 0
        others = {each for each in range(trial // 3 * 3, trial // 3 * 3 + 3) if rungs.stopped(each)}
        assert rungs.stopped(trial) or not others
    again = Rungs(OBJECTIVES, levels=[1, 2, 4], eta=2)
    configs = {number: {"knob": number // 3, "seed": number % 3} for number in range(12)}
    decisions = {number: [each.to_dict(OBJECTIVES) for each in rungs.decisions.get(number, [])] for number in configs}
    again.restore([TrialRecord(number, configs[number], decisions=decisions[number]) for number in configs])
    assert len(again.leaders) == len(rungs.leaders)


# ---------------------------------------------------------------------------------------------------------------------
# A whole sweep, with real Ray

SPACE = """
trials: 15
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 1}
space:
  architecture: mlp
  batch_size: 50
  epochs: 4
  cross_entropy_on: {choices: [clean, sensitivity]}
  sensitivity_steps: 1
  regularizer: none
  learning_rate: {low: 0.0001, high: 0.01, log: true}
require: clean_accuracy >= 0.5
points:
  - {preset: baseline, learning_rate: 0.005}
"""


@pytest.fixture(scope="module")
def storage(new_storage: Callable[[str], Path]) -> Path:
    folder = new_storage("replicates")
    (folder / "quick.yaml").write_text(SPACE)
    return folder


def words(storage: Path, name: str) -> tuple[str, ...]:
    options = ("--seeds", "3", "--sampler", "nsga2", "--stopper", "asha", "--max-concurrent", "1", "--seed", "4")
    return ("run", str(storage / "quick.yaml"), "--name", name, *options)


@pytest.fixture(scope="module")
def undisturbed(storage: Path) -> subprocess.CompletedProcess[str]:
    done = otsweep(storage, *words(storage, "whole"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def facts(storage: Path, name: str) -> list[tuple]:
    told = ("epoch", "sensitivity_accuracy", "clean_accuracy")
    return [
        (
            each.state,
            each.config,
            each.decisions,
            each.sampler_state,
            [[report[key] for key in told] for report in each.reports],
        )
        for each in read_ledger(storage / name).trials.values()
    ]


@pytest.mark.slow
def test_a_sweep_shows_configurations(storage: Path, undisturbed: subprocess.CompletedProcess[str]) -> None:
    assert "whole: 15 trials (5 configurations on 3 seeds each)" in undisturbed.stdout
    trials = read_ledger(storage / "whole").trials
    results = state_of_trials(read_plan("whole", storage=str(storage)), trials)
    front = json.loads(otsweep(storage, "front", "whole", "--format", "json").stdout)
    rows = list(csv.DictReader(io.StringIO(otsweep(storage, "front", "whole", "--format", "csv").stdout)))
    assert [row["trial"] for row in front["front"]] == [int(row["trial"]) for row in rows]
    assert [row["trial"] for row in front["front"]] == [each.number for each in results.front_records]
    assert (front["require"], front["infeasible"]) == (["clean_accuracy >= 0.5"], len(results.infeasible))
    for row, text in zip(front["front"], rows, strict=True):
        members = results.members(row["trial"])
        assert [each.state for each in members] == ["finished"] * 3
        mean = np.mean([each.result["sensitivity_accuracy"] for each in members if each.result])
        assert row["sensitivity_accuracy"] == pytest.approx(mean) == float(text["sensitivity_accuracy"])
        assert row["sensitivity_accuracy_low"] <= mean <= row["sensitivity_accuracy_high"]
        assert 0 <= row["p_front"] <= 1
        assert f"{row['trial']:03d}-{row['trial'] + 2:03d}" in undisturbed.stdout
    stopped = [number // 3 for number, each in trials.items() if each.state == "stopped"]
    assert stopped, "else nothing is shown here of stopping"
    for group in set(stopped):
        assert 3 * group not in results.configurations


@pytest.mark.slow
def test_mlflow_has_what_the_seeds_tell_together(storage: Path, undisturbed: subprocess.CompletedProcess[str]) -> None:
    from sweep.tracking.store import connect

    client = connect(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("quick")
    assert experiment is not None
    results = state_of_trials(read_plan("whole", storage=str(storage)), read_ledger(storage / "whole").trials)
    runs = client.search_runs([experiment.experiment_id], "tags.`otsweep.kind` = 'trial'")
    results.read_data(storage / "whole")
    seen = 0
    for run in runs:
        number = int(run.data.tags["otsweep.trial"])
        assert int(run.data.tags["otsweep.configuration"]) == number // 3 * 3
        if number in results.ranks():
            seen += 1
            for key, value in results.configuration_metrics(number).items():
                assert run.data.metrics[key] == value
    assert seen == len(results.ranks()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("reports", [9])
def test_killed_in_the_middle_it_ends_as_the_undisturbed_one(
    storage: Path, undisturbed: subprocess.CompletedProcess[str], reports: int
) -> None:
    driver = start(command(storage, *words(storage, "killed")), stdout=subprocess.DEVNULL)
    log = storage / "killed" / "ledger" / "log.jsonl"
    wait_for(lambda: log.exists() and log.read_bytes().count(b'"reported"') >= reports, driver)
    driver.kill()
    driver.wait()
    resumed = otsweep(storage, "resume", "killed")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert facts(storage, "killed") == facts(storage, "whole")
