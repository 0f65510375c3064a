"""Signals: Ctrl-C where Python drops it (inside a callback of a weak reference), and signals while a sweep runs."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from sweep.cli import commands
from trainer import interrupts
from trainer.interrupts import SignalHandler, in_hurry, raise_interrupt, remembered_interrupts
from trainer.progress import ProgressLine

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Handle signals as a new process does: Ray, once connected in this process, leaves its handler of SIGTERM."""
    usual = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    before = [signal.signal(number, handler) for number, handler in zip(SIGNALS, usual, strict=True)]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Return the exceptions that Python ignores; it is told of each by a hook."""
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: found.append(ignored.exc_type))
    yield found
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class _Thing:
    pass


def lose_ctrl_c() -> None:
    """Send Ctrl-C to this process while a callback runs."""
    thing = _Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    assert reference() is None


@pytest.mark.parametrize("shown", [False, True])
def test_a_lost_ctrl_c_ends_the_next_sign_of_progress(shown: bool, dropped: list[Any]) -> None:
    line = ProgressLine(io.StringIO(), shown=shown)
    with remembered_interrupts():
        line.show("nothing happened", 0, 2)
        lose_ctrl_c()
        for sign in (lambda: line.update("on"), lambda: line.show("on", 1, 2), raise_interrupt):
            with pytest.raises(KeyboardInterrupt):
                sign()
        line.log("what is told at the end")
        line.clear()
    line.update("the next command knows nothing of it")
    assert dropped == [KeyboardInterrupt]


def test_the_command_ends_as_stopped(
    dropped: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object) -> int:
        lose_ctrl_c()
        ProgressLine(io.StringIO()).update("timing")
        return 0

    jobs = commands.COMMANDS["jobs"]._replace(run=run)
    monkeypatch.setitem(commands.COMMANDS, "jobs", jobs)
    assert commands.main(["jobs"]) == 130
    assert capsys.readouterr().err == "otsweep: stopped\n"
    assert dropped == [KeyboardInterrupt]


def test_an_ignored_ctrl_c_stays_ignored_and_other_threads_change_nothing() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with remembered_interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    seen: list[Any] = []

    def elsewhere() -> None:
        with remembered_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_ends_a_command_as_ctrl_c_does(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), remembered_interrupts():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_sweep_takes_note_of_signals_however_often_they_come() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with remembered_interrupts(), SignalHandler() as outer:
        with SignalHandler() as inner:
            assert not inner.asked
            for number in 2 * SIGNALS:
                signal.raise_signal(number)
            raise_interrupt()
            assert inner.asked
        assert outer.asked
        with SignalHandler() as later:
            assert later.asked, "it asks whatever begins after it"
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with SignalHandler() as next_one:
        assert not next_one.asked


def test_a_ctrl_c_that_python_dropped_before_a_sweep_asks_it(dropped: list[Any]) -> None:
    with remembered_interrupts():
        lose_ctrl_c()
        with SignalHandler() as signals:
            assert signals.asked
    assert dropped == [KeyboardInterrupt]


def test_handlers_that_a_library_took_are_taken_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalHandler() as signals:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signals.take_back()
            signal.raise_signal(signal.SIGHUP)
            assert not signals.asked
            signal.raise_signal(signal.SIGTERM)
            assert signals.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_can_wait_has_to_some_time_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    with SignalHandler():
        assert not in_hurry()
        signal.raise_signal(signal.SIGTERM)
        assert not in_hurry()
        monkeypatch.setattr(interrupts, "_HURRY_SECONDS", 0.0)
        assert in_hurry()
    assert not in_hurry()


def test_a_process_that_does_not_end_is_ended_with_its_last_words() -> None:
    code = (
        "import os, signal, time\nfrom trainer import interrupts\ninterrupts._LAST_SECONDS = 0.1\n"
        "with interrupts.SignalHandler('to resume: ...'):\n"
        "    signal.raise_signal(signal.SIGTERM)\n    time.sleep(100)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stderr) == (130, "\nto resume: ...\n")
