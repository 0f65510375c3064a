"""Ctrl-C where Python drops it: inside a callback of a weak reference, as its import lock has them."""

from __future__ import annotations

import io
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from sweep.cli import commands
from trainer.interrupts import raise_interrupt, remembered_interrupts
from trainer.progress import ProgressLine


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
