"""Standard output and standard error that never end a command: a full disk, a closed terminal, a reader that left.

What can't be written is dropped, and the command goes on. A character that an encoding lacks is spelled out.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

_SPELLED = {"━": "=", "╌": "-", "±": "+-", "…": "...", "∞": "inf"}
"""Our own characters beyond ASCII, and what is written where the terminal's encoding lacks them."""
_LEFT = (errno.EPIPE, errno.EIO)
"""Errors of writing to a reader that left, or to a terminal that was closed: nobody misses anything."""
_ERRORS = "otsweep-spelled"


class _Sink(io.RawIOBase):
    """A file descriptor whose first error is kept, and after which everything is dropped.

    Args:
        number: the descriptor, which stays open.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)

    def write(self, data: Any) -> int:
        while self.error is None:
            try:
                return os.write(self.number, data)
            except BlockingIOError:  # a pipe that whoever started the command set to never wait
                select.select([], [self.number], [])
            except OSError as error:
                self.error = error
        return len(data)


class _Output(NamedTuple):
    """The two streams of a command."""

    stdout: _Sink
    stderr: _Sink

    def lost(self) -> str:
        """Return why a part of standard output was lost; empty if nothing was, or if its reader left."""
        sys.stdout.flush()
        error = self.stdout.error
        return "" if error is None or error.errno in _LEFT else os.strerror(error.errno or errno.EIO)


@contextlib.contextmanager
def lasting_output() -> Iterator[_Output]:
    """Let nothing that happens to standard output and standard error end the command. Only for a process of our own."""
    codecs.register_error(_ERRORS, _spell)
    _open_standard_descriptors()
    before, sinks = (sys.stdout, sys.stderr), (_Sink(1), _Sink(2))
    encodings = [getattr(stream, "encoding", None) or "utf-8" for stream in before]
    streams = [
        io.TextIOWrapper(io.BufferedWriter(sink), encoding, _ERRORS, line_buffering=sink.number == 2 or sink.isatty())
        for sink, encoding in zip(sinks, encodings, strict=True)
    ]
    for stream in before:
        with contextlib.suppress(OSError, AttributeError):  # closed before the command began
            stream.flush()
    sys.stdout, sys.stderr = streams
    try:
        yield _Output(*sinks)
    finally:
        for stream in streams:
            stream.flush()


def _open_standard_descriptors() -> None:
    """Open what of standard input, output and error is closed: else the next file opened would take its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Return what is written in place of characters that an encoding lacks, and where they end."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    spelled = (_SPELLED.get(each) or each.encode("ascii", "backslashreplace").decode() for each in lacking)
    return "".join(spelled), error.end
