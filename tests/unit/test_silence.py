"""The rule by which a worker's silence is told and ended, on a clock of the test's own."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from search_spaces.reading import load_space
from sweep.engine.silence import Patience, Silence, SilenceCallback, SilenceWatch, patience, usual_epoch
from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.ledger.writing import LedgerWriter
from sweep.plan.from_options import make_plan
from sweep.plan.plan import SweepPlan
from sweep.state.sweep_state import read_state, state_of_trials
from sweep.tracking.description import front_markdown

MINUTE = 60.0


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return make_plan(load_space("digits"), name="quiet", storage=str(tmp_path), epochs=4)


def trial(*epochs: tuple[float, float]) -> TrialRecord:
    """Return a trial of four epochs with the training and evaluation seconds of those that it has reported."""
    reports = [
        {"epoch": epoch, "final": False, "train_seconds": train, "evaluation_seconds": evaluation}
        for epoch, (train, evaluation) in enumerate(epochs, start=1)
    ]
    return TrialRecord(0, config={"epochs": 4}, reports=reports)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A watch that looks every second."""

    def __init__(self, usual: float, *, timeout: float = 0.0) -> None:
        self.clock = Clock()
        self.watch = SilenceWatch(lambda number: usual, timeout=timeout, clock=self.clock)
        self.watch.hear(0)

    def pass_time(self, seconds: float) -> list[tuple[float, Silence]]:
        """Return what is told in that time, with the times of telling."""
        told = []
        for _ in range(round(seconds)):
            self.clock.now += 1
            told += [(self.clock.now, silence) for silence in self.watch.look()]
        return told


@pytest.mark.parametrize(
    ("usual", "timeout", "expected"),
    [
        pytest.param(1.0, 0.0, Patience(5 * MINUTE, 15 * MINUTE), id="never below some minutes"),
        pytest.param(10 * MINUTE, 0.0, Patience(50 * MINUTE, 200 * MINUTE), id="multiples of a long epoch"),
        pytest.param(0.0, 0.0, Patience(30 * MINUTE, math.inf), id="nothing to compare with"),
        pytest.param(0.0, 8.0, Patience(4.0, 8.0), id="a limit without a pace"),
        pytest.param(10 * MINUTE, 8.0, Patience(4.0, 8.0), id="a limit below the pace"),
        pytest.param(1.0, 3600.0, Patience(5 * MINUTE, 3600.0), id="a limit above the pace"),
    ],
)
def test_patience(usual: float, timeout: float, expected: Patience) -> None:
    assert patience(usual, timeout=timeout) == expected


def test_the_usual_epoch_is_the_trials_own_longest(plan: SweepPlan) -> None:
    assert usual_epoch(trial((3.0, 1.0), (9.0, 2.0), (4.0, 1.0)), plan, whole_trial=500.0) == 11.0


def test_a_trial_that_has_not_reported_may_take_as_long_as_a_whole_one(plan: SweepPlan) -> None:
    assert usual_epoch(trial(), plan, whole_trial=500.0) == 500.0


def test_the_last_report_may_take_all_attacks_on_the_chosen_epoch(plan: SweepPlan) -> None:
    evaluation = plan.space.evaluation
    steps = 10 * evaluation.eval_final_steps + 9 * evaluation.eval_targeted_steps
    rounds = steps / evaluation.eval_sensitivity_steps
    assert usual_epoch(trial(*[(1.0, 2.0)] * 4), plan, whole_trial=0.0) == max(3.0, 2.0 * rounds) > 3.0


def test_the_trials_of_a_pack_wait_for_each_other(plan: SweepPlan) -> None:
    assert usual_epoch(trial((3.0, 1.0)), replace(plan, pack=8), whole_trial=0.0) == 32.0


def test_a_silent_worker_is_told_once_then_ended_and_watched_no_more() -> None:
    watched = Watched(usual=10.0)
    (told_at, told), (ended_at, ended) = watched.pass_time(3600)
    assert (told_at, told.number, told.ended) == (300, 0, False)
    assert told.reason == (
        "its worker has reported nothing for 5 min, where it usually takes at most 10 s; it will be ended after 15 min"
    )
    assert (ended_at, ended.number, ended.ended) == (900, 0, True)
    assert ended.reason == (
        "its worker has reported nothing for 15 min, where it usually takes at most 10 s: ended (--epoch-timeout)"
    )


def test_a_worker_that_reports_again_is_told_anew() -> None:
    watched = Watched(usual=10.0)
    assert len(watched.pass_time(301)) == 1
    watched.watch.hear(0)
    assert watched.pass_time(299) == []
    assert [silence.ended for _, silence in watched.pass_time(2)] == [False]


def test_without_a_pace_nothing_is_ended() -> None:
    [(at, silence)] = Watched(usual=0.0).pass_time(4 * 3600)
    assert (at, silence.reason) == (1800, "its worker has reported nothing for 30 min")


def test_a_trial_that_has_ended_is_not_spoken_of() -> None:
    watched = Watched(usual=10.0)
    watched.watch.forget(0)
    assert watched.pass_time(3600) == []


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """Stop the driver for an hour, as Ctrl-Z does: reports wait to be read."""
    watched = Watched(usual=10.0)
    watched.clock.now += 3600
    assert watched.watch.look() == []
    assert watched.pass_time(290) == []
    assert len(watched.pass_time(10)) == 1


@pytest.mark.parametrize("recorded", [True, False])
def test_only_what_is_recorded_is_ended(recorded: bool) -> None:
    clock, ended = Clock(), []
    watch = SilenceWatch(lambda number: 0.0, timeout=2.0, clock=clock)
    callback = SilenceCallback(watch, record=lambda silence: recorded, end=ended.append)
    running = SimpleNamespace(config={"number": 7})
    callback.on_trial_start(0, [], running)
    for _ in range(5):
        clock.now += 1
        callback.on_step_begin(0, [])
    assert ended == ([running] if recorded else [])


def test_a_silence_is_recorded_replayed_and_over_once_the_worker_is_heard(plan: SweepPlan, tmp_path: Path) -> None:
    report = {"epoch": 1, "final": False, "train_seconds": 1.0, "evaluation_seconds": 1.0}
    live = state_of_trials(plan, {})
    with LedgerWriter(plan.folder) as ledger:
        live.apply(ledger.started(0, config={"epochs": 4}, seed=0, attempt=1, host="", time=0.0))
        live.apply(ledger.silent(0, "no word for 5 min", ended=False, time=1.0))
        assert live.silences() == ["trial 000: no word for 5 min"]
        assert read_ledger(plan.folder).trials == live.trials
        assert read_state(plan).warnings == ["quiet, trial 000: no word for 5 min"]
        assert front_markdown(plan, live, "1", "run", {}).startswith("trial 000: no word for 5 min\n\n**Front of")
        live.apply(ledger.reported(0, report, time=2.0))
        assert live.silences() == []
        live.apply(ledger.silent(0, "no word for 15 min", ended=True, time=3.0))
        assert live.silences() == ["trial 000: no word for 15 min"]
        live.apply(ledger.started(0, config={"epochs": 4}, seed=0, attempt=2, host="", time=4.0))
        assert live.silences() == []
    assert read_ledger(plan.folder).trials == live.trials
