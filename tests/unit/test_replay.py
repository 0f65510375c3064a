"""Replays: what another way of stopping would have saved and lost, on curves where the answer is plain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search_spaces.reading import load_space
from sweep.cli.commands import main
from sweep.ledger.records import TrialRecord
from sweep.ledger.writing import LedgerWriter
from sweep.plan.from_options import make_plan
from sweep.plan.plan import SweepPlan
from sweep.plan.plan_file import write_plan
from sweep.report.replay import replay_sweep, unknown_ends
from sweep.state.sweep_state import SweepState

EPOCHS = 9

# (sensitivity at epochs 1 to 9), invariance equal: 2 begins worst and ends best, 1 is never good.
CURVES = {0: [0.5] * 9, 1: [0.2] * 9, 2: [0.1, 0.4, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.9]}


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return make_plan(
        load_space("digits"), name="curves", storage=str(tmp_path), trials=3, epochs=EPOCHS, grace_epochs=1
    )


def report(epoch: int, value: float, *, time: float, final: bool = False) -> dict:
    accuracies = {"sensitivity_accuracy": value, "invariance_accuracy": value}
    took = {"train_seconds": 1.0, "evaluation_seconds": 1.0}
    return {"epoch": epoch, "final": final, "time": time, **took, **accuracies}


def finished(number: int, curve: list[float]) -> TrialRecord:
    """Return a trial that ran after the one before, an epoch a second."""
    reports = [report(epoch, value, time=100 * number + epoch) for epoch, value in enumerate(curve, start=1)]
    reports.append(report(EPOCHS, curve[-1], time=100 * number + 10, final=True))
    return TrialRecord(number, {"knob": number, "seed": 0}, 0, "finished", reports=reports)


@pytest.fixture
def results(plan: SweepPlan) -> SweepState:
    records = {number: finished(number, curve) for number, curve in CURVES.items()}
    return SweepState(plan.objectives, records, total=3)


def test_it_tells_what_is_saved_and_what_is_lost(plan: SweepPlan, results: SweepState) -> None:
    early = replay_sweep(plan, results, etas=[2], grace_epochs=1, stop_chance=1.0)[0]
    assert early.stopped == (1, 2)
    assert (early.spent, early.logged) == (9 + 1 + 1, 27)
    assert early.lost == (2,)
    assert early.hypervolume == pytest.approx(0.25)
    late = replay_sweep(plan, results, etas=[2], grace_epochs=3, stop_chance=1.0)[0]
    assert late.stopped == (1,)
    assert (late.spent, late.lost) == (9 + 3 + 9, ())
    assert late.hypervolume == results.hypervolume == pytest.approx(0.81)


def test_reports_are_heard_in_the_order_of_their_times(plan: SweepPlan, results: SweepState) -> None:
    """Reverse the order: had the worst come first, it could not have been known yet to be the worst."""
    for record in results.trials.values():
        for said in record.reports:
            said["time"] = -said["time"]
    assert replay_sweep(plan, results, etas=[2], grace_epochs=9 - 1, stop_chance=1.0)[0].stopped == (1,)
    for said in results.trials[1].reports:
        said["time"] -= 1000
    assert replay_sweep(plan, results, etas=[2], grace_epochs=9 - 1, stop_chance=1.0)[0].stopped == ()


def test_what_the_sweep_stopped_itself_is_said_to_be_unknown(plan: SweepPlan, results: SweepState) -> None:
    results.trials[1].state = "stopped"
    assert unknown_ends(replay_sweep(plan, results, etas=[2], grace_epochs=1, stop_chance=1.0), results) == []
    assert unknown_ends(replay_sweep(plan, results, etas=[5], grace_epochs=1, stop_chance=1.0), results) == [1]


def test_the_command_shows_one_row_per_setting(
    plan: SweepPlan, results: SweepState, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(plan)
    with LedgerWriter(plan.folder) as ledger:
        for number, record in results.trials.items():
            ledger.started(number, config=record.config, seed=0, attempt=1, host="", time=0.0)
            for said in record.reports:
                ledger.reported(number, said, time=said["time"])
            ledger.ended(number, state="finished", time=0.0)
    storage = ["--storage", plan.storage]
    assert main(["replay", "curves", "--eta", "2", "--stop-chance", "1", *storage]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == ["2", "1", "2", "4", "8", "11/27", "59.3%", "2/3", "30.9%", "1/1", "002"]
    assert main(["replay", "curves", "--eta", "2", "--stop-chance", "1", "--format", "json", *storage]) == 0
    content = json.loads(capsys.readouterr().out)
    (replayed,) = content["replays"]
    assert (replayed["eta"], replayed["stop_chance"], replayed["epochs_logged"]) == (2, 1.0, 27)
    assert replayed["saved"] == pytest.approx(1 - replayed["epochs"] / replayed["epochs_logged"])
    assert {"lower", "upper", "objective", "correlation", "trials"} <= set(content["agreements"][0])
    assert main(["replay", "curves", *storage]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1:5]] == ["2", "3", "4", "8"]
    assert "2 to 4       3         0.33        0.33" in shown
    assert main(["replay", "curves", "--eta", "1", *storage]) == 2
    assert "--eta = 1: must be at least 2" in capsys.readouterr().err
