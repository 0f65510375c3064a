"""Ctrl-C and SIGTERM while a sweep runs."""

from __future__ import annotations

import signal
import threading
from typing import Any


class SignalHandler:
    """A context in which the first Ctrl-C or SIGTERM sets `asked`, and the second one ends the process.

    Outside of the main thread signals are left alone.

    Args:
        stop: another way to ask; None for signals alone.
    """

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._stop = stop or threading.Event()
        self._previous: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """True once the sweep is asked to stop."""
        return self._stop.is_set()

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: object) -> None:
        self._stop.set()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
