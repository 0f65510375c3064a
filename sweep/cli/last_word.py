"""The last word of a process that is ended without having one: killed, out of memory, or by a library."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

_WAIT = """trap '' INT TERM HUP QUIT USR1 USR2; read -r word || printf '%s\\n' "$0" >&2"""
"""Reads until this process ends; where it ended without a word, says one for it."""


@contextlib.contextmanager
def last_word(message: str) -> Iterator[None]:
    """Have a shell print a message to standard error if this process ends, in whatever way, before the context does."""
    try:
        waiting = subprocess.Popen(["/bin/sh", "-c", _WAIT, message], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            waiting.communicate(b"done\n")
