"""Ctrl-C, SIGTERM and SIGHUP: none is lost, and none cuts off what must come to its end.

Python drops a KeyboardInterrupt that is raised inside a callback of its own (of a weak reference, or its import lock:
"Exception ignored in ..."), and the command would run on. So it is remembered, and raised again at the next sign of
progress. While a sweep runs nothing is raised at all: a `SignalHandler` takes note, and the sweep ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_HURRY_SECONDS = 10.0
"""Time after a signal from which what can wait for the next run has to."""
_LAST_SECONDS = 25.0
"""Time after a signal at which the process ends, whatever it waits for: batch systems kill it after 30."""
_INTERRUPTED = 130

_asked = threading.Event()


@contextlib.contextmanager
def remembered_interrupts() -> Iterator[None]:
    """Remember signals while a command runs; each raises KeyboardInterrupt, which ends the command.

    Nothing is changed where a signal has another meaning, as where it is ignored, or outside of the main thread.
    """
    _asked.clear()
    here = threading.current_thread() is threading.main_thread()
    usual = {number: signal.getsignal(number) for number in _SIGNALS if here}
    taken = {
        number: handler for number, handler in usual.items() if handler in (signal.SIG_DFL, signal.default_int_handler)
    }
    for number in taken:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
        _asked.clear()


def _handle(number: int, frame: object) -> None:
    _asked.set()
    raise KeyboardInterrupt


def raise_interrupt() -> None:
    """Raise KeyboardInterrupt if Ctrl-C has come. Long loops call it in every round, lines of progress when written."""
    if _asked.is_set():
        raise KeyboardInterrupt


class SignalHandler:
    """A context in which signals, however often they come, set `asked`, and do nothing else.

    Contexts may lie in one another: all are asked. Outside of the main thread there are no signals.

    Args:
        last_words: written to standard error if the context has not ended in time; then the process is ended.
    """

    def __init__(self, last_words: str = "") -> None:
        self.asked = False
        """True once the sweep is asked to stop."""
        self.asked_at = 0.0
        self._last_words = last_words
        self._last: threading.Timer | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        if _handlers and _handlers[-1].asked:
            self.asked, self.asked_at = True, _handlers[-1].asked_at
        elif _asked.is_set():
            self._ask()
            _asked.clear()
        _handlers.append(self)
        self.take_back()
        return self

    def __exit__(self, *_: object) -> None:
        _handlers.remove(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._last is not None:
            self._last.cancel()

    def take_back(self) -> None:
        """Handle the signals again that a library has taken, as Ray's does while it connects."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            present = signal.getsignal(number)
            if present is not signal.SIG_IGN:
                self._previous.setdefault(number, present or signal.SIG_DFL)
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        for each in _handlers:
            each._ask()

    def _ask(self) -> None:
        if self.asked:
            return
        self.asked, self.asked_at = True, time.monotonic()
        if self._last_words:
            self._last = threading.Timer(_LAST_SECONDS, self._end_process)
            self._last.daemon = True
            self._last.start()

    def _end_process(self) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self._last_words}\n".encode())
        os._exit(_INTERRUPTED)


_handlers: list[SignalHandler] = []
"""The contexts that are open, the innermost last."""


def in_hurry() -> bool:
    """Return whether a `SignalHandler` was asked so long ago that what can wait for the next run has to."""
    return any(each.asked and time.monotonic() - each.asked_at > _HURRY_SECONDS for each in _handlers)
