"""TODO one line."""

from __future__ import annotations

import signal
from typing import Any


class SignalHandler:
    """Ctrl-C or SIGTERM: the first asks the sweep to stop cleanly, the second ends the process."""

    def __init__(self) -> None:
        self.asked = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self.ask)
        return self

    def ask(self, number: int, frame: object) -> None:
        self.asked = True
        self.restore()

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self.restore()
