"""Ctrl-C and SIGTERM while a sweep runs."""

from __future__ import annotations

import signal
from typing import Any


class SignalHandler:
    """A context in which the first Ctrl-C or SIGTERM sets `asked`, and the second one ends the process."""

    def __init__(self) -> None:
        self.asked = False
        """Whether the sweep is asked to stop."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: object) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
