"""The one progress display: on a terminal, on a dumb terminal, in a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import sys
import termios

import pytest

from sweep.cli.console import console, errors
from sweep.report.tables import plain_table
from trainer import progress
from trainer.progress import BAR_WIDTH, ProgressLine, bar


def terminal(columns: int) -> tuple[io.TextIOWrapper, int]:
    """Return a stream onto a terminal of that width, and the end that a person would read."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return os.fdopen(writer, "w", encoding="utf-8"), reader


def read(stream: io.TextIOWrapper, reader: int) -> str:
    stream.close()
    text = b""
    with contextlib.suppress(OSError):  # which is how a terminal that was closed ends
        while chunk := os.read(reader, 10_000):
            text += chunk
    os.close(reader)
    return text.decode()


def test_on_a_terminal_one_line_is_written_over_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, reader = terminal(columns=50)
    with ProgressLine(stream) as line:
        line.show("preparing: judge", 1, 4)
        line.update(f"epoch 1/2 {'x' * 100}", now=True)
        line.log("warning: something")
        line.update("epoch 2/2", now=True)
    text = read(stream, reader)
    drawn = [part for part in text.split("\r\x1b[K") if part]
    assert drawn == ["preparing: judge", f"epoch 1/2 {'x' * 39}", "warning: something\r\n", "epoch 2/2"]
    assert text.endswith("\r\x1b[K"), "it leaves nothing behind"


def test_on_a_dumb_terminal_nothing_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream, reader = terminal(columns=50)
    with ProgressLine(stream, "loading torch") as line:
        line.show("preparing: judge", 1, 4)
        line.update("epoch 1/2", now=True)
    assert read(stream, reader) == "loading torch\r\npreparing: judge\r\n"


def test_elsewhere_each_stage_is_a_line_and_then_one_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with ProgressLine(stream) as line:
        for second in range(25):
            clock[0] = 100.0 + second
            line.show(f"stage {second % 2}", second, 24)  # side by side, each is announced once
            if second == 5:
                line.log("note")
    written = stream.getvalue().splitlines()
    assert written == ["stage 0", "stage 1", "note", f"stage 0 {bar(16 / 24)}"]


def test_what_is_not_shown_is_still_logged() -> None:
    stream = io.StringIO()
    with ProgressLine(stream, shown=False) as line:
        line.show("stage", 1, 2)
        line.log("warning")
    assert stream.getvalue() == "warning\n"


def test_time_left_is_what_the_rest_of_the_stage_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 130.0, 140.0, 150.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    line = ProgressLine(io.StringIO(), shown=False)
    assert [line.time_left(share) for share in (0.5, 0.6, 0.75)] == ["", "0:40 left", "0:30 left"]
    line.begin("the next stage")
    assert [line.time_left(share) for share in (0.0, 0.5)] == ["", "0:10 left"]


@pytest.mark.parametrize(("share", "filled"), [(0.0, 0), (0.5, BAR_WIDTH // 2), (1.0, BAR_WIDTH)])
def test_a_bar_is_as_full_as_its_share(share: float, filled: int) -> None:
    assert bar(share).count("━") == filled
    assert bar(share).count("╌") == BAR_WIDTH - filled
    assert bar(share).endswith(f" {share:.0%}")


FOREIGN = "[bold]no[/bold] :warning: \x1b]0;title\x07 \r \u202e \udcff"


def test_foreign_text_is_shown_as_it_is_and_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = r"[bold]no[/bold] :warning: \x1b]0;title\x07 \r \u202e \udcff"
    table = plain_table("reason", left=[0])
    table.add_row(FOREIGN)
    console.print(table, soft_wrap=False, width=200)
    console.print(FOREIGN)
    errors.print(FOREIGN)
    with ProgressLine(sys.stderr) as line:
        line.log(FOREIGN)
    printed = capsys.readouterr()
    assert [line.rstrip() for line in printed.out.splitlines()] == ["reason", shown, shown]
    assert printed.err.splitlines() == [shown, shown]


class _Cell(io.StringIO):
    """A notebook's stream."""


_Cell.__module__ = "ipykernel.iostream"


def test_in_a_notebook_one_line_is_written_over_again_without_control_codes() -> None:
    stream = _Cell()
    with ProgressLine(stream) as line:
        line.update("a long line", now=True)
        line.update("short", now=True)
        line.log("a message")
    assert stream.getvalue() == "\r\ra long line\r" + " " * 11 + "\rshort\r     \ra message\n"
