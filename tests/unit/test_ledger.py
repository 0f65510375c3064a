"""The ledger: exact, durable through kill -9 and damage, one writer, any number of readers."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.ledger import reading
from sweep.ledger.reading import read_ledger
from sweep.ledger.records import Ledger, TrialRecord
from sweep.ledger.table import parquet_bytes
from sweep.ledger.writing import LedgerWriter
from trainer.config import TrialConfig
from trainer.errors import InputError
from trainer.report import EpochReport

scalars = (
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
finite = st.floats(allow_nan=False, allow_infinity=False)
reports = st.builds(
    lambda epoch, final, metrics: {"epoch": epoch, "final": final, **metrics},
    st.integers(1, 5),
    st.booleans(),
    st.dictionaries(st.sampled_from(["clean_accuracy", "loss_total", "c"]), finite | st.integers(0, 9)),
)
configs = st.dictionaries(st.sampled_from(["margin", "regularizer", "seed", "δ"]), scalars)
trials = st.integers(0, 3)
events = st.lists(
    st.tuples(st.just("started"), trials, configs, st.integers(0, 9), st.integers(1, 4), st.text(), finite)
    | st.tuples(st.just("reported"), trials, reports, finite)
    | st.tuples(st.just("ended"), trials, st.sampled_from(["finished", "stopped", "failed"]), st.text(), finite),
    max_size=30,
)


def write(writer: LedgerWriter, event: tuple[Any, ...]) -> None:
    kind, number, *facts = event
    if kind == "started":
        config, seed, attempt, host, at = facts
        writer.started(number, config=config, seed=seed, attempt=attempt, host=host, time=at)
    elif kind == "reported":
        report, at = facts
        writer.reported(number, report, time=at)
    else:
        state, reason, at = facts
        writer.ended(number, state=state, reason=reason, time=at)


def model(history: list[tuple[Any, ...]]) -> dict[int, TrialRecord]:
    """What the ledger should say, written as plainly as possible."""
    expected: dict[int, TrialRecord] = {}
    for kind, number, *facts in history:
        trial = expected.setdefault(number, TrialRecord(number))
        if kind == "started":
            trial.config, trial.seed, attempt, trial.host, at = facts
            trial.attempts = max(trial.attempts, attempt)
            trial.started = at if trial.started is None else trial.started
            trial.begun = [*trial.begun, {"time": at, "reason": ""}]
            trial.state, trial.reason, trial.ended = "running", "", None
        elif kind == "ended":
            trial.state, trial.reason, trial.ended = facts
        else:
            report = facts[0]
            said = {99 if r["final"] else r["epoch"]: r for r in [*trial.reports, report]}
            trial.reports = [said[epoch] for epoch in sorted(said)]
    return {number: trial for number, trial in expected.items() if trial.started is not None}


def report(epoch: int, *, final: bool = False, accuracy: float = 0.5) -> dict[str, Any]:
    return EpochReport(
        epoch=epoch,
        final=final,
        clean_accuracy=accuracy,
        sensitivity_accuracy=0.1 + accuracy / 3,
        invariance_accuracy=0.4,
        invariance_stuck=0.2,
        invariance_unchanged=0.9,
        invariance_changed_mass=92.5,
        invariance_effective_size=81.25,
        invariance_original_label=0.7,
        learning_rate=1e-3,
        train_seconds=1.5,
        evaluation_seconds=0.5,
        terms={"cross_entropy": 0.7 / 3},
    ).to_dict()


def fill(sweep: Path, numbers: range, *, part_events: int = 8) -> None:
    """Whole trials of five events each."""
    with LedgerWriter(sweep, part_events=part_events) as writer:
        for number in numbers:
            config = TrialConfig(margin=0.01 * number, seed=number).to_dict()
            writer.started(number, config=config, seed=number, attempt=1, host="node", time=100.0 + number)
            for epoch in (1, 2):
                writer.reported(number, report(epoch), time=200.0)
            writer.reported(number, report(2, final=True), time=200.0)
            writer.ended(number, state="finished", time=300.0 + number)


def fill_log(sweep: Path, numbers: range) -> Path:
    """As `fill`, all still in the log, its writer gone without a close."""
    with LedgerWriter(sweep) as writer:
        for number in numbers:
            writer.started(number, config={"margin": 0.5}, seed=number, attempt=1, host="node", time=1.0)
            writer.ended(number, state="finished", time=2.0)
        writer._pending.clear()
    return sweep / "ledger" / "log.jsonl"


def parts(sweep: Path) -> list[Path]:
    return sorted((sweep / "ledger").glob("part-*.parquet"))


class TestRoundTrip:
    @settings(max_examples=40)
    @given(history=events, part_events=st.integers(1, 12), reopen_every=st.integers(1, 30))
    def test_what_is_written_is_read_back_exactly(self, tmp_path_factory, history, part_events, reopen_every):
        sweep = tmp_path_factory.mktemp("sweep")
        LedgerWriter(sweep).close()
        for start in range(0, len(history), reopen_every):
            with LedgerWriter(sweep, part_events=part_events) as writer:
                for event in history[start : start + reopen_every]:
                    write(writer, event)
                # While the writer is open, and across a log and parts.
                assert read_ledger(sweep).trials == model(history[: start + reopen_every])
        ledger = read_ledger(sweep)
        last = {number: dataclasses.replace(each, reports=each.reports[-1:]) for number, each in ledger.trials.items()}
        assert read_ledger(sweep, keep_epochs=False).trials == last
        # repr tells 1 from True and from 1.0, and -0.0 from 0.0, which == does not.
        assert repr(ledger.trials) == repr(dict(sorted(model(history).items())))
        assert all("its start is lost" in warning for warning in ledger.warnings)

    def test_an_epoch_said_twice_counts_once_and_the_later_wins(self, tmp_path):
        with LedgerWriter(tmp_path) as writer:
            for attempt, accuracies in ((1, [0.1, 0.2, 0.3]), (2, [0.25, 0.35])):
                writer.started(7, config={}, seed=0, attempt=attempt, host=f"node{attempt}", time=float(attempt))
                for epoch, accuracy in enumerate(accuracies, start=attempt):
                    writer.reported(7, report(epoch, accuracy=accuracy), time=1.0)
        trial = read_ledger(tmp_path).trials[7]
        assert [(r["epoch"], r["clean_accuracy"]) for r in trial.reports] == [(1, 0.1), (2, 0.25), (3, 0.35)]
        assert (trial.attempts, trial.host, trial.started, trial.result) == (2, "node2", 1.0, None)

    def test_the_result_is_the_final_report_said_last(self, tmp_path):
        with LedgerWriter(tmp_path) as writer:
            writer.started(0, config={}, seed=0, attempt=1, host="", time=0.0)
            for epoch, final in ((1, False), (2, False), (2, True), (1, True)):
                writer.reported(0, report(epoch, final=final), time=1.0)
        trial = read_ledger(tmp_path).trials[0]
        assert trial.result == report(1, final=True)
        assert trial.reports == [report(1), report(2), report(1, final=True)]

    def test_a_started_trial_without_end_is_running_and_a_restarted_one_again(self, tmp_path):
        with LedgerWriter(tmp_path) as writer:
            writer.started(0, config={}, seed=0, attempt=1, host="", time=5.0)
            writer.ended(0, state="failed", reason="not finite", time=4.0)
            assert read_ledger(tmp_path).trials[0].state == "failed"
            writer.started(0, config={}, seed=0, attempt=2, host="", time=3.0)
        trial = read_ledger(tmp_path).trials[0]
        assert (trial.state, trial.reason, trial.started, trial.ended) == ("running", "", 5.0, None)

    @pytest.mark.parametrize(
        ("values", "error", "words"),
        [
            ({"loss": float("nan")}, ValueError, "loss = nan: must be finite"),
            ({"loss": float("-inf")}, ValueError, "loss = -inf: must be finite"),
            ({"n": 2**63}, ValueError, "must fit in 64 bits"),
            ({"terms": {"a": 1}}, TypeError, "terms = .*must be true or false, a number or a text"),
            ({"loss": None}, TypeError, "loss = None"),
        ],
        ids=["nan", "infinity", "huge", "nested", "none"],
    )
    def test_what_could_not_be_read_back_is_refused_and_leaves_no_trace(self, tmp_path, values, error, words):
        with LedgerWriter(tmp_path) as writer:
            with pytest.raises(error, match=words):
                writer.reported(0, {"epoch": 1, "final": False, **values}, time=0.0)
            with pytest.raises(error, match=words):
                writer.started(0, config=values, seed=0, attempt=1, host="", time=0.0)
        assert read_ledger(tmp_path) == Ledger({}, [])

    def test_an_incomplete_report_and_an_unknown_state_are_refused(self, tmp_path):
        with LedgerWriter(tmp_path) as writer:
            with pytest.raises(ValueError, match="must name its epoch and whether it is final"):
                writer.reported(0, {"epoch": 1}, time=0.0)
            with pytest.raises(ValueError, match="metric 'seed': a column of the ledger has this name"):
                writer.reported(0, {"epoch": 1, "final": False, "seed": 3}, time=0.0)
            with pytest.raises(ValueError, match="'done': must be one of finished, stopped, failed"):
                writer.ended(0, state="done", time=0.0)  # type: ignore[arg-type]

    def test_a_folder_without_ledger_is_named(self, tmp_path):
        with pytest.raises(InputError, match=re.escape(repr(str(tmp_path)))):
            read_ledger(tmp_path)


@pytest.fixture(scope="module")
def thirty_events(tmp_path_factory) -> tuple[Path, Ledger]:
    """A sweep's folder with three parts, and what they hold."""
    sweep = tmp_path_factory.mktemp("sweep")
    fill(sweep, range(6), part_events=10)
    return sweep, read_ledger(sweep)


class TestDamage:
    def test_a_torn_last_line_is_cut_off_and_said_wherever_it_is_torn(self, tmp_path):
        log = fill_log(tmp_path, range(3))
        whole = log.read_bytes()
        start = whole.rstrip(b"\n").rindex(b"\n") + 1
        for end in (*range(start + 1, len(whole) - 1, 9), len(whole) - 1):
            log.write_bytes(whole[:end])
            (tmp_path / "ledger" / "count").write_bytes(reading.count_line(5))
            with LedgerWriter(tmp_path) as writer:
                assert writer.warnings == [
                    f"log.jsonl: the last line is torn ({end - start} bytes, never acknowledged) and cut off"
                ]
                assert log.read_bytes() == whole[:start]
                assert read_ledger(tmp_path).warnings == []
                writer.ended(2, state="stopped", reason="again", time=9.0)
                states = [trial.state for trial in read_ledger(tmp_path).trials.values()]
                assert states == ["finished", "finished", "stopped"]
                writer._pending.clear()

    @settings(max_examples=40)
    @given(data=st.data())
    def test_a_flipped_byte_in_the_log_costs_at_most_two_events_and_is_told(self, tmp_path_factory, data):
        sweep = tmp_path_factory.mktemp("sweep")
        log = fill_log(sweep, range(6))
        whole = bytearray(log.read_bytes())
        where = data.draw(st.integers(0, len(whole) - 1))
        whole[where] ^= data.draw(st.integers(1, 255))
        log.write_bytes(whole)
        damaged = read_ledger(sweep)
        assert any("log.jsonl" in warning for warning in damaged.warnings)
        hit = log.read_bytes()[:where].count(b"\n") // 2
        for number, trial in damaged.trials.items():
            # A flipped line end merges two lines, which may belong to two trials.
            assert number in (hit, hit + 1) or (trial.config, trial.state) == ({"margin": 0.5}, "finished")
        # The writer numbers on behind the loss, and the loss stays told when the log is gone.
        with LedgerWriter(sweep) as writer:
            assert writer.warnings
            writer.started(9, config={}, seed=0, attempt=1, host="", time=0.0)
        later = read_ledger(sweep)
        assert later.trials[9].state == "running"
        assert later.trials.keys() >= damaged.trials.keys()
        if where < len(whole) - 1 and b"\n" in whole[where:-1]:
            assert any("missing" in warning for warning in later.warnings)

    @given(data=st.data())
    def test_a_flipped_byte_in_a_part_is_told_by_its_name_and_the_rest_is_used(self, thirty_events, data):
        sweep, sound = thirty_events
        first, second, third = parts(sweep)
        content = second.read_bytes()
        damaged = bytearray(content)
        damaged[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        second.write_bytes(damaged)
        ledger = read_ledger(sweep)
        second.write_bytes(content)
        assert ledger.warnings == [f"{second.name} is damaged: events 11 to 20 are left out"]
        assert ledger.trials == {number: sound.trials[number] for number in (0, 1, 4, 5)}

    def test_truncated_unreadable_and_removed_parts_are_told(self, tmp_path):
        fill(tmp_path, range(8), part_events=10)
        first, second, third, fourth = parts(tmp_path)
        first.write_bytes(first.read_bytes()[:-7])
        second.unlink()
        second.mkdir()
        third.unlink()
        ledger = read_ledger(tmp_path)
        assert ledger.trials.keys() == {6, 7}
        assert ledger.warnings == [
            f"{first.name} is damaged: events 1 to 10 are left out",
            f"{second.name} can't be read (Is a directory): events 11 to 20 are left out",
            "events 21 to 30 are missing",
        ]

    def test_a_trial_whose_start_was_lost_is_left_out_and_told(self, tmp_path):
        fill(tmp_path, range(2), part_events=1)
        parts(tmp_path)[0].unlink()
        ledger = read_ledger(tmp_path)
        assert ledger.trials.keys() == {1}
        assert ledger.warnings == [
            "trial 0 is left out: the event of its start is lost, and with it its configuration; `otsweep resume` runs "
            "it again",
            "events 1 to 1 are missing",
        ]

    def test_what_lost_its_start_or_its_result_is_run_again(self, tmp_path):
        with LedgerWriter(tmp_path) as writer:
            writer.ended(0, state="finished", time=2.0)
            for number in (1, 2):
                writer.started(number, config={"margin": 0.1}, seed=0, attempt=1, host="", time=0.0)
                writer.reported(number, report(1, final=number == 2), time=1.0)
                writer.ended(number, state="finished", time=2.0)
        ledger = read_ledger(tmp_path)
        taken_up = {number: trial.state for number, trial in ledger.to_go_on_from().items()}
        assert taken_up == {1: "running", 2: "finished"}

    @pytest.mark.parametrize("kept", [0, 1, 3])
    def test_a_log_that_lost_its_end_is_told_and_no_number_is_given_again(self, tmp_path, kept):
        fill(tmp_path, range(2), part_events=10)
        log = fill_log(tmp_path, range(2, 4))
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:kept]))
        expected = [f"events {11 + kept} to 14 are missing"]
        assert read_ledger(tmp_path).warnings == expected
        fill(tmp_path, range(4, 6), part_events=10)
        later = read_ledger(tmp_path)
        assert {4, 5} <= later.trials.keys()
        assert later.warnings == expected

    def test_a_log_that_is_missing_is_told(self, tmp_path):
        fill_log(tmp_path, range(2)).unlink()
        assert read_ledger(tmp_path) == Ledger({}, ["events 1 to 4 are missing"])

    def test_an_acknowledged_line_that_is_torn_is_missing(self, tmp_path):
        log = fill_log(tmp_path, range(2))
        log.write_bytes(log.read_bytes()[:-3])
        torn, missing = read_ledger(tmp_path).warnings
        assert re.fullmatch(r"log.jsonl: the last line is torn \(\d+ bytes\) and cut off", torn)
        assert missing == "events 4 to 4 are missing"

    def test_lines_in_another_order_count_by_their_numbers(self, tmp_path):
        log = fill_log(tmp_path, range(2))
        first, *others = log.read_bytes().splitlines(keepends=True)
        sound = read_ledger(tmp_path).trials
        log.write_bytes(b"".join([*others, first]))
        ledger = read_ledger(tmp_path)
        assert (ledger.trials, len(ledger.warnings)) == (sound, 1)
        assert "in another order" in ledger.warnings[0]

    def test_two_events_of_one_number_are_told(self, tmp_path):
        log = fill_log(tmp_path, range(2))
        log.write_bytes(log.read_bytes() + reading.checked_line('{"sequence":4,"event":"ended"}'))
        ledger = read_ledger(tmp_path)
        assert ledger.trials[1].state == "finished"
        assert ledger.warnings == ["log.jsonl: line 5 is another event 4 than one before it, and left out"]

    @pytest.mark.parametrize("content", [b"", b"000000000004 events, crc32 00000000\n", b"4"])
    def test_a_damaged_count_is_told_and_made_anew(self, tmp_path, content):
        fill_log(tmp_path, range(2))
        (tmp_path / "ledger" / "count").write_bytes(content)
        ledger = read_ledger(tmp_path)
        assert len(ledger.trials) == 2
        assert ledger.warnings == ["count is damaged: if the last ones were missing, nothing would tell"]
        with LedgerWriter(tmp_path) as writer:
            assert writer.warnings == ledger.warnings
        assert read_ledger(tmp_path).warnings == []

    def test_a_ledger_of_an_earlier_version_has_no_count_and_says_so_until_it_is_written_again(self, tmp_path):
        fill(tmp_path, range(2))
        (tmp_path / "ledger" / "count").unlink()
        (warning,) = read_ledger(tmp_path).warnings
        assert "has no count of its events" in warning
        with LedgerWriter(tmp_path) as writer:
            assert writer.warnings == [warning]
        assert read_ledger(tmp_path).warnings == []

    def test_a_count_that_lags_behind_is_no_alarm(self, tmp_path):
        fill_log(tmp_path, range(2))
        (tmp_path / "ledger" / "count").write_bytes(reading.count_line(2))
        assert read_ledger(tmp_path).warnings == []
        fill(tmp_path, range(2, 3))
        assert read_ledger(tmp_path).warnings == []

    def test_the_time_in_a_slot_is_the_longest_that_was_told(self, tmp_path):
        with LedgerWriter(tmp_path) as writer:
            writer.started(0, config={}, seed=0, attempt=1, host="", time=0.0)
            writer.reported(0, report(1), time=1.0, slot_seconds=7.5)
            writer.ended(0, state="failed", time=2.0, slot_seconds=9.25)
            writer.started(0, config={}, seed=0, attempt=2, host="", time=3.0)
            writer.reported(0, report(1), time=4.0, slot_seconds=9.0)
        ledger = read_ledger(tmp_path)
        assert ledger.trials[0].slot_seconds == 9.25
        assert ledger.to_table()["held"].to_pylist() == [9.25]

    def test_numbers_of_damaged_lines_are_not_given_again_even_if_no_other_is_left(self, tmp_path):
        fill(tmp_path, range(2), part_events=10)
        log = fill_log(tmp_path, range(2, 3))
        log.write_bytes(log.read_bytes().replace(b"trial", b"trail"))
        fill(tmp_path, range(3, 5), part_events=10)
        ledger = read_ledger(tmp_path)
        assert ledger.trials.keys() == {0, 1, 3, 4}
        assert ledger.warnings == ["events 11 to 12 are missing"]

    def test_numbers_of_a_damaged_part_are_not_given_again(self, tmp_path):
        fill(tmp_path, range(2), part_events=10)
        parts(tmp_path)[0].write_bytes(b"")
        fill(tmp_path, range(2, 4), part_events=10)
        assert read_ledger(tmp_path).trials.keys() == {2, 3}
        assert parts(tmp_path)[1].name.startswith("part-000000000011-000000000020-")


class TestInterruption:
    """The writer stops between any two of its steps."""

    @pytest.mark.parametrize("stop_at", range(1, 12))
    def test_a_stop_at_any_system_call_loses_and_doubles_nothing(self, tmp_path, monkeypatch, stop_at):
        class Killed(BaseException):
            pass

        calls = 0

        def dying(function):
            def call(*arguments):
                nonlocal calls
                calls += 1
                if calls >= stop_at:
                    raise Killed
                return function(*arguments)

            return call

        acknowledged = []
        writer = LedgerWriter(tmp_path, part_events=3)

        def write_six():
            for number in range(6):
                writer.started(number, config={}, seed=0, attempt=1, host="", time=0.0)
                acknowledged.append(number)

        with monkeypatch.context() as patch:
            for name in ("pwrite", "fsync", "replace", "ftruncate", "unlink"):
                patch.setattr(os, name, dying(getattr(os, name)))
            with pytest.raises(Killed):
                write_six()
        writer._log.close()
        writer._count.close()
        writer._lock.release()

        found = list(read_ledger(tmp_path).trials)
        # The one on its way may have arrived; in front of it there is all and behind it nothing.
        assert found in (acknowledged, [*acknowledged, len(acknowledged)])
        with LedgerWriter(tmp_path, part_events=3) as again:
            again.started(99, config={}, seed=0, attempt=1, host="", time=0.0)
        ledger = read_ledger(tmp_path)
        assert list(ledger.trials) == [*found, 99]
        assert not [warning for warning in ledger.warnings if "torn" not in warning]
        numbers = [n for part in parts(tmp_path) for n in pq.read_table(part)["sequence"].to_pylist()]
        assert numbers == list(range(1, len(found) + 2))
        assert not list((tmp_path / "ledger").glob(".*.unfinished"))

    @pytest.mark.parametrize("failing", ["pwrite", "fsync"])
    def test_an_event_that_the_storage_refused_is_not_there_and_can_be_said_again(self, tmp_path, monkeypatch, failing):
        pwrite = os.pwrite

        def full(descriptor, *arguments):
            if failing == "pwrite" and arguments:
                pwrite(descriptor, arguments[0][:9], arguments[1])
            raise OSError(errno.ENOSPC, "No space left on device")

        with LedgerWriter(tmp_path) as writer:
            writer.started(0, config={}, seed=0, attempt=1, host="", time=0.0)
            with monkeypatch.context() as patch:
                patch.setattr(os, failing, full)
                with pytest.raises(OSError, match="No space left"):
                    writer.ended(0, state="failed", reason="a long reason " * 20, time=1.0)
            assert read_ledger(tmp_path).trials[0].state == "running"
            writer.ended(0, state="finished", time=1.0)
        ledger = read_ledger(tmp_path)
        assert (ledger.trials[0].state, ledger.warnings) == ("finished", [])

    def test_a_part_that_the_storage_refused_is_written_later(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with LedgerWriter(tmp_path, part_events=4) as writer:
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", full)
                for number in range(6):
                    writer.started(number, config={}, seed=0, attempt=1, host="", time=0.0)
            assert writer.warnings == [
                "log.jsonl could not be rolled into a part (No space left on device); nothing is lost"
            ]
            assert parts(tmp_path) == []
            assert len(read_ledger(tmp_path).trials) == 6
        ledger = read_ledger(tmp_path)
        assert (len(ledger.trials), ledger.warnings, len(parts(tmp_path))) == (6, [], 1)


CHILD = """
import sys, time
from pathlib import Path
from sweep.ledger.writing import LedgerWriter
writer = LedgerWriter(Path(sys.argv[1]), part_events=7)
number = int(sys.argv[2])
while True:
    writer.started(number, config={"margin": number / 7}, seed=number, attempt=1, host="node", time=1.0)
    print(number, flush=True)
    number += 1
    time.sleep(float(sys.argv[3]))
"""


def child(sweep: Path, first: int, *, pause: float = 0.0) -> subprocess.Popen[str]:
    """A writer in a process of its own; it prints a trial's number once that is acknowledged."""
    command = [sys.executable, "-c", CHILD, str(sweep), str(first), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


class TestReading:
    def test_a_line_that_is_just_being_written_is_waited_for(self, tmp_path, monkeypatch):
        log = fill_log(tmp_path, range(1))
        whole = log.read_bytes()
        log.write_bytes(whole[:-9])
        monkeypatch.setattr(reading.clock, "sleep", lambda _: log.write_bytes(whole))
        ledger = read_ledger(tmp_path)
        assert (ledger.trials[0].state, ledger.warnings) == ("finished", [])

    def test_a_log_that_is_rolled_while_it_is_read_counts_once_and_in_order(self, tmp_path, monkeypatch):
        with LedgerWriter(tmp_path, part_events=2) as writer:
            writer.started(0, config={}, seed=0, attempt=1, host="", time=0.0)

            def roll_then_list(folder):
                writer.ended(0, state="finished", time=1.0)
                return list_parts(folder)

            list_parts = reading.part_files
            monkeypatch.setattr(reading, "part_files", roll_then_list)
            ledger = read_ledger(tmp_path)
        assert (ledger.trials[0].state, ledger.warnings) == ("finished", [])


class TestProcesses:
    def test_kill_9_at_random_moments_loses_nothing_acknowledged(self, tmp_path):
        draw = random.Random(0)
        acknowledged: set[int] = set()
        found: dict[int, TrialRecord] = {}
        for round_ in range(6):
            with child(tmp_path, 10_000 * round_) as writer:
                assert writer.stdout is not None
                lines = [writer.stdout.readline()]
                time.sleep(draw.uniform(0, 0.15))
                os.kill(writer.pid, signal.SIGKILL)
                lines += writer.stdout.readlines()
            acknowledged |= {int(line) for line in lines if line.endswith("\n")}
            found = read_ledger(tmp_path).trials
            assert found.keys() >= acknowledged
            # Beyond what was acknowledged there is at most the one event that was on its way, per round.
            assert len(found.keys() - acknowledged) <= round_ + 1
        assert all(trial.config == {"margin": number / 7} for number, trial in found.items())
        with LedgerWriter(tmp_path):
            pass
        assert read_ledger(tmp_path) == Ledger(found, [])
        numbers = [n for part in parts(tmp_path) for n in pq.read_table(part)["sequence"].to_pylist()]
        assert numbers == list(range(1, len(found) + 1))

    def test_a_second_writer_is_refused_by_pid_and_a_reader_sees_whole_events_meanwhile(self, tmp_path):
        sweep = tmp_path / "first-light"
        with child(sweep, 0, pause=0.002) as writer:
            try:
                assert writer.stdout is not None
                writer.stdout.readline()
                holder = rf"sweep 'first-light' is already being run by pid {writer.pid} on host \S+"
                with pytest.raises(InputError, match=holder):
                    LedgerWriter(sweep)
                seen = 0
                for _ in range(40):
                    last = int(writer.stdout.readline())
                    ledger = read_ledger(sweep)
                    assert ledger.warnings == []
                    assert list(ledger.trials) == list(range(len(ledger.trials)))
                    assert len(ledger.trials) > max(last, seen - 1)
                    seen = len(ledger.trials)
            finally:
                writer.kill()
        LedgerWriter(sweep).close()

    def test_a_second_writer_in_the_same_process_is_refused_until_the_first_closes(self, tmp_path):
        first = LedgerWriter(tmp_path)
        with pytest.raises(InputError, match=rf"already being run by pid {os.getpid()}"):
            LedgerWriter(tmp_path)
        first.close()
        first.close()
        LedgerWriter(tmp_path).close()
        with pytest.raises(ValueError, match="closed"):
            first.ended(0, state="finished", time=0.0)

    def test_a_folder_that_is_a_file_is_told(self, tmp_path):
        (tmp_path / "ledger").write_text("")
        with pytest.raises(InputError, match=r"can't write the ledger in .*: File exists"):
            LedgerWriter(tmp_path)


def test_failed_trials_run_again_unless_their_configurations_made_them_fail(tmp_path):
    known = {0: True, 1: False, 2: None}  # None: as in ledgers of earlier versions
    with LedgerWriter(tmp_path) as writer:
        for number, environment in known.items():
            writer.started(number, config=TrialConfig().to_dict(), seed=0, attempt=1, host="", time=1.0)
            writer.ended(number, state="failed", reason="why", environment=environment, time=2.0)
    ledger = read_ledger(tmp_path)
    assert {number: trial.environment for number, trial in ledger.trials.items()} == known
    assert {trial.state for trial in ledger.to_go_on_from().values()} == {"failed"}
    again = ledger.to_go_on_from(retry_failed=True)
    assert [trial.state for trial in again.values()] == ["running", "failed", "running"]


class TestTable:
    def test_a_row_per_report_and_one_for_a_trial_without(self, tmp_path):
        fill(tmp_path, range(2))
        with LedgerWriter(tmp_path) as writer:
            writer.started(2, config=TrialConfig().to_dict(), seed=2, attempt=1, host="node", time=1.0)
            writer.ended(2, state="failed", reason="not finite in epoch 1: loss = nan", time=2.0)
        ledger = read_ledger(tmp_path)
        path = tmp_path / "ledger.parquet"
        path.write_bytes(parquet_bytes(ledger.to_table({"plan_hash": "abc", "code_version": "0.1.0"})))
        table = pq.read_table(path)
        assert table.schema.metadata == {b"plan_hash": b"abc", b"code_version": b"0.1.0"}
        rows = table.to_pylist()
        assert [(row["trial"], row["epoch"], row["final"]) for row in rows] == [
            *[(number, *key) for number in (0, 1) for key in ((1, False), (2, False), (2, True))],
            (2, None, None),
        ]
        assert rows[-1]["reason"] == "not finite in epoch 1: loss = nan"
        assert rows[-1]["clean_accuracy"] is None
        assert rows[3]["config.margin"] == 0.01
        for row, said in zip(rows, [r for trial in ledger.trials.values() for r in trial.reports], strict=False):
            assert {key: row[key] for key in said} == said

    def test_columns_keep_their_types(self, tmp_path):
        fill(tmp_path, range(1))
        schema = read_ledger(tmp_path).to_table().schema
        types = {name: str(schema.field(name).type) for name in schema.names}
        assert types["config.batch_size"] == types["epoch"] == "int64"
        assert types["cross_entropy"] == types["config.margin"] == types["started"] == "double"
        assert types["config.regularizer"] == types["state"] == "string"
        assert types["final"] == "bool"

    @settings(max_examples=40)
    @given(history=events)
    def test_any_ledger_becomes_a_table(self, tmp_path_factory, history):
        sweep = tmp_path_factory.mktemp("sweep")
        with LedgerWriter(sweep) as writer:
            for event in history:
                write(writer, event)
        ledger = read_ledger(sweep)
        (sweep / "ledger.parquet").write_bytes(parquet_bytes(ledger.to_table()))
        table = pq.read_table(sweep / "ledger.parquet")
        assert table.num_rows == sum(max(len(trial.reports), 1) for trial in ledger.trials.values())
        assert {"trial", "epoch", "final", "state", "reason"} <= set(table.column_names)

    def test_a_message_that_is_not_unicode_does_not_stop_the_table(self, tmp_path):
        with LedgerWriter(tmp_path) as writer:
            writer.started(0, config={}, seed=0, attempt=1, host="", time=0.0)
            writer.ended(0, state="failed", reason="no file '\udcff'", time=0.0)
        assert read_ledger(tmp_path).to_table()["reason"].to_pylist() == ["no file '?'"]
