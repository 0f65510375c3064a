"""Forecasts of a sweep: closed forms against the scheduler itself, budgets, and a real sweep beside its forecast."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import signal
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.reading import load_space
from sweep.cli.commands import build_parser
from sweep.cli.run import plan_of, run_command
from sweep.engine.slots import Node
from sweep.engine.trainable import Footprint
from sweep.forecast import kept, quantities
from sweep.forecast.forecast import make_forecast
from sweep.forecast.kept import FORECAST, describe_cost, kept_at
from sweep.forecast.measured import Candidate, ProfileResult, TimedConfiguration
from sweep.forecast.profile import candidates, extremes, work
from sweep.forecast.quantities import EXPECTED, HIGH, HOUR, LOW, Span
from sweep.forecast.schedule import expected_rungs, fill_slots, mean_epochs, survivors, trial_lengths
from sweep.forecast.table import headline, lines
from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.plan.from_options import make_plan
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SweepPlan
from sweep.plan.plan_file import read_plan
from sweep.report.files import write_ledger_table
from sweep.report.words import size
from sweep.search.decision import CHANGES
from sweep.search.rungs import Rungs
from sweep.state.sweep_state import state_of_trials
from tests.support.commands import command, otsweep, start
from tests.support.recorded_sweeps import recorded, results_of
from trainer.config import TrialConfig
from trainer.cost import Cost
from trainer.report import EpochReport

GIGABYTE = 10**9

REPORT = EpochReport(
    1, False, 0.9, 0.4, 0.3, 0.6, 0.9, 80.0, 75.0, 0.8, 0.001, 1.0, 0.2, terms={"loss/clean_ce": 0.5}
).to_dict()
COST = Cost(
    beginning=0.5,
    steps=10,
    step=0.1,
    diagnosis=0.03,
    judging_low=0.2,
    judging_high=1.0,
    saving=0.05,
    checkpoint_bytes=3_000_000,
    model_bytes=750_000,
    timed=5.0,
    wall=5.0,
    report=REPORT,
)


@pytest.fixture
def planned(tmp_path: Path) -> Any:
    def make(space: str = "digits", **options: Any) -> SweepPlan:
        return make_plan(load_space(space), storage=str(tmp_path), **options)

    return make


def measured(
    plan: SweepPlan, *, factors: tuple[float, ...] = (0.5, 1.0, 2.0), slots: int = 2, **given: Any
) -> ProfileResult:
    """Return points of cost 1, a corner of a quarter of it and one of four times, and draws of the factors."""
    config = {**TrialConfig().to_dict(), "epochs": plan.epochs_per_trial}
    points = [TimedConfiguration(Candidate(config, point=number), COST) for number in range(len(plan.space.points))]
    corners = [TimedConfiguration(Candidate(config), COST.slowed(factor)) for factor in (0.25, 4.0)]
    draws = [TimedConfiguration(Candidate(config, drawn=True), COST.slowed(factor)) for factor in factors]
    known = {"nodes": [Node(2, 0, 16 * GIGABYTE)], "ray_seconds": 3.0, "worker_seconds": 4.0, "preparation": []}
    known |= {"failed": [], "footprint": Footprint(GIGABYTE, 0, 0), "slots": slots}
    return ProfileResult(timed=[*corners, *points, *draws], **{**known, **given})


# ------------------------------------------------------------------------------------------------------------- packs


def test_in_a_pack_a_trial_waits_for_its_neighbours_but_for_what_they_gain(planned: Any) -> None:
    """Pack four lanes that are worth two trials: twice as long each, four at once, at a quarter of the GPU."""
    alone, packed = planned(gpus_per_trial=1, trials=200), planned(gpus_per_trial=1, trials=200, pack=4)
    apart = make_forecast(alone, measured(alone, slots=1))
    together = make_forecast(packed, measured(packed, slots=4, pack_gain=2.0))
    assert together.trial_seconds.expected == pytest.approx(2 * apart.trial_seconds.expected, rel=0.1)
    assert together.running_seconds.expected == pytest.approx(apart.running_seconds.expected / 2, rel=0.1)
    assert together.gpu_hours.expected == pytest.approx(apart.gpu_hours.expected / 2, rel=0.1)


def test_what_a_pack_gains_is_told(planned: Any) -> None:
    plan = planned(gpus_per_trial=1, pack=4)
    [remark] = make_forecast(plan, measured(plan, pack_gain=3.0)).remarks
    assert remark == "--pack 4: its steps are 3 times as fast as one trial after the other"


# ------------------------------------------------------------------------------------------------------------ epochs


@pytest.mark.parametrize("eta", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_survivors_of_arrivals_in_random_order(planned: Any, count: int, eta: int) -> None:
    """Compare the closed form with the scheduler's own mean over all orders in which trials can arrive, one by one."""
    gone_on = []
    for order in itertools.permutations(range(count)):
        rungs = Rungs(OBJECTIVES, levels=[1], eta=eta)
        decisions = [rungs.decide(number, str(number), 1, (place, place)) for number, place in enumerate(order)]
        gone_on.append(sum(not decision.stop for decision in decisions if decision is not None))
    told = survivors(count, planned(stopper="asha", eta=eta, stop_chance=1), 1)
    assert told.expected == pytest.approx(fmean(gone_on))
    assert told.high == count
    assert told.low == (count if count < eta else math.ceil(count / eta))


def test_nobody_is_stopped_where_none_is_behind_another() -> None:
    rungs = Rungs(OBJECTIVES, levels=[1], eta=2)
    decisions = [rungs.decide(number, str(number), 1, (number, 9 - number)) for number in range(10)]
    assert not any(decision.stop for decision in decisions if decision is not None)


def test_seeds_go_on_together(planned: Any) -> None:
    alone, together = planned(stopper="asha", trials=8), planned(stopper="asha", trials=24, seeds=3)
    assert survivors(24, together, 1) == survivors(8, alone, 1).times(3)


def test_all_go_on_before_enough_have_finished(planned: Any) -> None:
    plan = planned(stopper="asha", eta=2, trials=40)
    assert survivors(CHANGES + 1, plan, 2).expected == CHANGES + 1
    assert survivors(40, plan, 2).low == 20
    assert 20 < survivors(40, plan, 2).expected < survivors(40, plan, 8).expected < 40


def test_where_trials_pause_four_go_on_at_least(planned: Any) -> None:
    plan = planned(stopper="thaw", eta=2, grace_epochs=2, trials=60, epochs=10)
    rungs = expected_rungs(plan, 4)
    assert [rung.reach.low for rung in rungs] == [60, CHANGES, CHANGES, CHANGES]
    assert [rung.reach.high for rung in rungs] == [60, 60, 60, 60]
    # Two sweeps of random draws from the digits study's 480 trials, in four slots, trained 344 epochs.
    assert mean_epochs(plan, rungs).times(60).expected == pytest.approx(344, rel=0.15)
    assert mean_epochs(plan, rungs).times(60).low == 2 * 60 + 8 * CHANGES


def test_rungs_and_epochs(planned: Any) -> None:
    plan = planned(stopper="asha", eta=2, grace_epochs=2, trials=16, epochs=10)
    rungs = expected_rungs(plan, 2)
    assert [rung.epoch for rung in rungs] == [2, 4, 8, 10]
    assert [rung.reach.low for rung in rungs] == [16, 8, 4, 2]
    assert [rung.reach.high for rung in rungs] == [16, 16, 16, 16]
    expected = sum(n * rung.reach.expected for n, rung in zip((2, 2, 4, 2), rungs, strict=True))
    epochs = mean_epochs(plan, rungs).times(16)
    assert epochs == Span(2 * 16 + 2 * 8 + 4 * 4 + 2 * 2, pytest.approx(expected), 160)
    assert mean_epochs(planned(epochs=10), []) == Span(10, 10, 10)


# -------------------------------------------------------------------------------------------------------------- time


UNBOUNDED = SweepPlan("any", load_space("digits"), "", "sqlite:////any.db", "", "", {}, trials=30)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 8))
def test_trials_in_slots(lengths: list[float], slots: int) -> None:
    """Require Graham's bounds of list scheduling."""
    schedule = fill_slots(lengths, slots, UNBOUNDED)
    assert schedule.trials == len(lengths)
    assert schedule.slot_seconds == pytest.approx(sum(lengths))
    least = max(max(lengths), sum(lengths) / slots)
    assert least <= schedule.seconds * (1 + 1e-9)
    assert schedule.seconds <= (sum(lengths) / slots + (1 - 1 / slots) * max(lengths)) * (1 + 1e-9)


def test_three_equal_trials_in_two_slots(planned: Any) -> None:
    assert fill_slots([3.0] * 3, 2, planned()) == (6.0, 9.0, 3)


def test_budgets_end_a_forecast(planned: Any) -> None:
    hour = [HOUR] * 24
    assert fill_slots(hour, 2, planned(max_hours=2.5)) == (3 * HOUR, 6 * HOUR, 6)
    assert fill_slots(hour, 2, planned(gpus_per_trial=0.5, max_gpu_hours=2)) == (2 * HOUR, 4 * HOUR, 4)
    assert fill_slots(hour, 2, planned(stop_when_flat=5), low=True).trials == 7
    assert fill_slots(hour, 2, planned(stop_when_flat=5)).trials == 24
    assert fill_slots(hour, 2, planned(epochs=10, budget_epochs=59)).trials == 5
    stopped = planned(epochs=10, budget_epochs=60, stopper="asha")
    assert fill_slots(hour, 2, stopped, epochs=4).trials == 13, "one that begins may train to its end"
    paused = planned(epochs=10, budget_epochs=60, stopper="thaw")
    assert fill_slots(hour, 2, paused, epochs=4).trials == 15, "what a paused one leaves goes to others"


def test_points_cost_their_own_and_draws_what_is_sampled(planned: Any) -> None:
    plan = planned(trials=10)
    given = len(plan.space.points)
    point, cheap, dear = (
        [0.5 * f + 10 * (f * (1.0 + 0.03 + 0.2 + share * 0.8) + 0.05 + 0.015) + 0.05 for share in (0, 0.25, 1)]
        for f in (1.0, 0.25, 4.0)
    )
    low, expected, high = (trial_lengths(plan, measured(plan), 10, which) for which in (LOW, EXPECTED, HIGH))
    assert low == pytest.approx([point[0]] * given + [cheap[0]] * (10 - given))
    assert high == pytest.approx([point[2]] * given + [dear[2]] * (10 - given))
    assert expected[:given] == pytest.approx([point[1]] * given)
    assert min(expected[given:]) < point[1] < max(expected[given:])


def test_every_seed_is_a_trial(planned: Any) -> None:
    plan = planned(trials=12, seeds=3)
    lengths = trial_lengths(plan, measured(plan), 10, EXPECTED)
    assert len(lengths) == 12
    assert lengths[0] == lengths[2]


def test_a_forecast_adds_up(planned: Any) -> None:
    plan = planned(trials=10)
    told = make_forecast(plan, measured(plan, preparation=["judging set"]))
    assert told.wall_seconds.expected == pytest.approx(3 + 4 + told.running_seconds.expected + told.ending_seconds)
    assert told.running_seconds.low < told.running_seconds.expected < told.running_seconds.high
    assert told.running_seconds.expected >= told.cpu_hours.expected * HOUR / 2
    assert dict(lines(plan, told))["  preparing"] == "not counted, once for this data: judging set"
    assert told.gpu_hours == Span(0, 0, 0)
    assert told.storage["checkpoints"] == 10 * (2 * (3_000_000 + 750_000) + 750_000)
    assert told.memory["host"] == GIGABYTE
    assert told.logged["runs"] == 11
    assert "loss/clean_ce" in told.logged["metrics"]
    assert told.cheapest["step"] < told.dearest["step"]
    assert json.loads(json.dumps(told.to_dict()))["trials"] == {"low": 10, "expected": 10, "high": 10}


@pytest.mark.parametrize("name", ["digits24", "thousand"])
def test_the_size_of_a_ledger_is_that_of_recorded_sweeps(tmp_path: Path, name: str) -> None:
    plan = recorded(name, tmp_path)
    ledger = read_ledger(plan.folder)
    write_ledger_table(plan, results_of(plan), plan.folder / "ledger.parquet")
    written = sum(path.stat().st_size for path in plan.folder.rglob("*.parquet"))
    report = ledger.trials[0].reports[0]
    timed = [TimedConfiguration(Candidate(ledger.trials[0].config), COST._replace(report=report))]
    told = make_forecast(plan, measured(plan)._replace(timed=timed))
    assert told.storage["ledger"] == pytest.approx(written, rel=0.2)


def test_a_busy_machine_is_said_to_be(planned: Any) -> None:
    plan = planned(trials=10)
    idle = measured(plan)
    busy = idle._replace(timed=[each._replace(cost=each.cost._replace(wall=20.0)) for each in idle.timed])
    quick, slow = make_forecast(plan, idle), make_forecast(plan, busy)
    assert quick.remarks == []
    assert slow.slowness == 4.0
    assert "all takes 4.0 times as long" in slow.remarks[0]
    assert slow.trial_seconds.expected == pytest.approx(4 * quick.trial_seconds.expected, rel=0.1)


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        ({"max_hours": 100}, {}, "--max-hours 100: all trials fit"),
        ({"max_hours": 0.001}, {}, "--max-hours 0.001: ends it after about 2 of 24 trials"),
        ({"stop_when_flat": 5}, {}, "--stop-when-flat 5: may end it from trial 6 on"),
        ({}, {"footprint": Footprint(9 * GIGABYTE, 0, 0)}, "2 trials take 18 GB of memory, of 16 GB"),
        ({}, {"failed": ["RuntimeError: too large"]}, "1 of 11 configurations could not be timed: RuntimeError"),
    ],
    ids=["all fit", "few fit", "flat", "memory", "failed"],
)
def test_remarks(planned: Any, options: dict[str, Any], given: dict[str, Any], words: str) -> None:
    plan = planned(**options)
    assert any(words in remark for remark in make_forecast(plan, measured(plan, **given)).remarks)


def test_lines_for_people(planned: Any) -> None:
    plan = planned(stopper="asha", gpus_per_trial=0.5, seeds=2, trials=24)
    told = make_forecast(plan, measured(plan, footprint=Footprint(GIGABYTE, 2 * GIGABYTE, 80 * GIGABYTE)))
    said = dict(lines(plan, told))
    assert said["  preparing"] == "0:00, all is in the cache"
    assert said["memory"] == "1 GB a trial, 2 GB of 16 GB at once; of a GPU's 80 GB 2 GB a trial"
    assert said["  at 2"] == "24 trials"
    assert said["  at 10"].endswith("trials end")
    assert "GPU hours" in said
    assert "12 configurations on 2 seeds" in headline(plan, told)


@pytest.mark.parametrize(
    ("count", "text"), [(640, "0.64 KB"), (640e3, "640 KB"), (999.6e3, "1 MB"), (12e6, "12 MB"), (2.34e9, "2.3 GB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


# -------------------------------------------------------------------------------------------------- what is timed


@pytest.mark.parametrize("name", ["digits", "mnist", "paper", "cifar10"])
def test_extremes_are_the_ends_of_what_may_be_drawn(name: str, planned: Any) -> None:
    space = load_space(name)
    cheapest, *dearest = extremes(space, 3)
    assert {config["regularizer"] for config in dearest} <= set(space.swept["regularizer"].domain.corners())
    assert {config["epochs"] for config in (cheapest, *dearest)} == {3}
    drawn = [each.config for each in candidates(planned(name, trials=64, sampler="random")) if each.drawn]
    assert len(drawn) == 24
    assert work(cheapest) <= min(map(work, drawn))
    assert work(dearest[0]) >= max(map(work, drawn))


def test_candidates_begin_with_the_ends_and_hold_every_point(planned: Any) -> None:
    plan = planned(trials=24, epochs=3)
    found = list(candidates(plan))
    assert [each.point for each in found if each.point is not None] == list(range(len(plan.space.points)))
    assert {each.config["epochs"] for each in found} == {3}
    assert work(found[0].config) < work(found[1].config)


def test_a_plan_of_points_alone_times_only_them(planned: Any) -> None:
    assert [each.point for each in candidates(planned(trials=3))] == [0, 1, 2]


# ------------------------------------------------------------------------------------------------ beside what it took


def sweep_of(plan: SweepPlan, held: list[float]) -> Any:
    report = {"epoch": 1, "final": True, "sensitivity_accuracy": 0.5, "invariance_accuracy": 0.5}
    records = [
        TrialRecord(
            number, TrialConfig().to_dict(), 0, "finished", slot_seconds=seconds, ended=float(number), reports=[report]
        )
        for number, seconds in enumerate(held)
    ]
    return state_of_trials(plan, {record.number: record for record in records})


def test_what_it_took_beside_its_plan(planned: Any) -> None:
    """Count the seconds in slots, so that a pause between two runs does not count."""
    plan = planned(name="mine", trials=10)
    told = make_forecast(plan, measured(plan))
    kept.keep_forecast(plan, told)
    kept.begin_forecast(plan, 2)
    running = told.running_seconds
    said = f"1:40 in 2 slots; planned {quantities.in_time(running)}"
    assert describe_cost(plan, sweep_of(plan, [20.0] * 10)) == said
    kept.begin_forecast(plan, 2)
    assert describe_cost(plan, sweep_of(plan, [20.0] * 10)) == said, "a resume keeps the plan"
    kept.begin_forecast(plan, 1)
    assert "planned" not in describe_cost(plan, sweep_of(plan, [20.0] * 10)), "for other slots nothing was planned"


def test_what_it_took_without_a_plan(planned: Any) -> None:
    plan = planned(name="mine", trials=10)
    assert describe_cost(plan, sweep_of(plan, [])) == ""
    kept.begin_forecast(plan, 1)
    assert describe_cost(plan, sweep_of(plan, [30.0] + [20.0] * 9)) == (
        "3:30 in 1 slot; after the first trial 5:00 was to be expected"
    )
    (plan.folder / FORECAST).write_text("{")
    assert describe_cost(plan, sweep_of(plan, [20.0])) == ""


def test_a_forecast_is_of_its_plan_alone(planned: Any) -> None:
    assert kept_at(planned(name="a")) == kept_at(planned(name="b"))
    others = [planned(trials=12), planned(cpus_per_trial=2), planned(max_hours=1), planned(max_concurrent="auto")]
    assert len({kept_at(plan) for plan in [planned(), *others]}) == 5


def test_the_command_that_runs_what_was_planned(tmp_path: Path) -> None:
    words = ["digits", "--trials", "6", "--require", "clean_accuracy >= 0.9", "--storage", str(tmp_path / "a b")]
    arguments = build_parser().parse_args(
        ["plan", *words, "--stopper", "asha", "--set", "margin=0.1", "--format", "json"]
    )
    said = shlex.split(run_command(arguments))
    again = build_parser().parse_args(said[said.index("run") :])
    assert plan_of(again).hash == plan_of(arguments).hash
    assert again.storage == str(tmp_path / "a b")


# --------------------------------------------------------------------------------------------------------- for real

SPACE = """
trials: 4
evaluation: {dataset: digits, train_size: 600, validation_size: 200, eval_sensitivity_steps: 10}
space:
  batch_size: 50
  epochs: 6
  cross_entropy_on: {choices: [clean, sensitivity]}
  sensitivity_steps: {low: 5, high: 10, step: 5}
  sensitivity_epsilon: {low: 0.05, high: 0.3}
points:
  - preset: baseline
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    (folder / "small.yaml").write_text(SPACE)
    return folder


def words(storage: Path, *more: str) -> tuple[str, ...]:
    return (str(storage / "small.yaml"), "--name", "mine", "--max-concurrent", "1", "--keep-models", "none", *more)


@pytest.mark.slow
def test_a_real_sweep_beside_its_forecast(storage: Path) -> None:
    """Allow a factor of 4 between plan and sweep: the machine may be busier now than then."""
    done = otsweep(storage, "plan", *words(storage, "--format", "json"))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert {path.name for path in storage.iterdir()} == {"small.yaml", "cache"}, "nothing was run or logged"
    assert not (storage / "cache" / "prepared").exists()
    assert told["preparation"] == ["judging set", "linf perturbations"]
    assert told["slots"] == 1
    assert told["memory"]["host"] > 10**8
    assert f"--storage {storage}" in told["command"]

    ran = otsweep(storage, "run", *words(storage))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [line] = [line for line in ran.stdout.splitlines() if line.startswith("time ")]
    assert "in 1 slot; planned " in line
    plan = read_plan("mine", storage=str(storage))
    beside = json.loads((plan.folder / FORECAST).read_text())
    assert beside["planned"]["running_seconds"] == told["running_seconds"]
    held = sum(record.slot_seconds for record in read_ledger(plan.folder).trials.values())
    assert held / 4 < told["running_seconds"]["expected"] < held * 4
    files = (plan.folder / "trials").rglob("*.pt")
    # One, two or three epochs' weights are in a checkpoint beside the newest and the optimiser's, two are told.
    assert told["storage"]["checkpoints"] == pytest.approx(sum(path.stat().st_size for path in files), rel=0.3)
    ledger = sum(path.stat().st_size for path in plan.folder.rglob("*.parquet"))
    assert ledger / 3 < told["storage"]["ledger"] < ledger * 3


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running(storage: Path) -> None:
    said = storage / "said.txt"
    with said.open("w") as file:
        plan = command(storage, "plan", *words(storage), "--name", "stopped")
        process = start(plan, stdout=file, stderr=file)
    while "opening the data" not in said.read_text():
        assert process.poll() is None, said.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130, said.read_text()
    assert "Traceback" not in said.read_text()
    assert said.read_text().endswith("otsweep: stopped\n")
