"""Ctrl-C that is not lost.

Python drops a KeyboardInterrupt that is raised inside a callback of its own (of a weak reference, or its import lock:
"Exception ignored in ..."), and the command would run on. So it is remembered, and raised again at the next sign of
progress.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_asked = threading.Event()


@contextlib.contextmanager
def remembered_interrupts() -> Iterator[None]:
    """Remember Ctrl-C while a command runs; who catches it ends the command, or calls `forget_interrupt`.

    Nothing is changed where Ctrl-C has another meaning, as where it is ignored, or outside of the main thread.
    """
    _asked.clear()
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _asked.clear()


def _handle(number: int, frame: object) -> None:
    _asked.set()
    raise KeyboardInterrupt


def forget_interrupt() -> None:
    """Forget a Ctrl-C that arrived, where much is still to be done before the command ends."""
    _asked.clear()


def raise_interrupt() -> None:
    """Raise KeyboardInterrupt if Ctrl-C has come. Long loops call it in every round, lines of progress when written."""
    if _asked.is_set():
        raise KeyboardInterrupt
