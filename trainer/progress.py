"""One line that shows how far something is: on a terminal, on a dumb terminal, in a pipe or a file."""

from __future__ import annotations

import os
import re
import time
from typing import IO, Self

from trainer.interrupts import raise_interrupt

BAR_WIDTH = 12
PLAIN_SECONDS = 10.0
"""Minimum time between two plain lines about the same stage, where a line can't be written over again."""
_REDRAW_SECONDS = 0.1
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, marks that turn the direction of writing, and halves of characters."""


class ProgressLine:
    """A line that is written over again on a terminal; elsewhere plain lines. A context that removes it at its end.

    Elsewhere a line is printed when a stage begins, and then every `PLAIN_SECONDS` in which nothing else was printed.

    Args:
        stream: Where it is written: standard error, as a rule, since standard output belongs to results.
        stage: Stage that begins with the context, if any.
        shown: Whether progress is shown at all. What is logged always is.
    """

    def __init__(self, stream: IO[str], stage: str = "", *, shown: bool = True) -> None:
        self.stream, self.shown = stream, shown
        self.living = shown and can_redraw(stream)
        self._first_stage, self._stage = stage, ""
        self._announced: set[str] = set()
        self._drawn, self._written = False, 0.0
        self._start: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        self._written = time.monotonic()
        self.begin(self._first_stage)
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def begin(self, stage: str) -> None:
        """Show that another stage begins; a stage that is under way goes on."""
        if stage == self._stage:
            return
        self._stage, self._start = stage, None
        if self.living:
            self.update(stage, now=True)
        elif self.shown and stage not in self._announced:  # stages that run side by side report in turn
            self._announced.add(stage)
            self.log(stage)

    def show(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is, as a bar if it has several parts; raise as `update`."""
        raise_interrupt()
        self.begin(stage)
        if total > 1:
            self.update(f"{stage} {bar(done / total)}", now=done == total)

    def update(self, text: str, *, now: bool = False) -> None:
        """Write the line over again: as often as eyes can follow, or `now` in any case.

        Raises:
            KeyboardInterrupt: if Ctrl-C was lost on its way.
        """
        raise_interrupt()
        if self.living:
            if now or time.monotonic() - self._written > _REDRAW_SECONDS:
                columns = os.get_terminal_size(self.stream.fileno()).columns or 80
                self.stream.write(f"\r\x1b[K{visible(text)[: columns - 1]}")
                self.stream.flush()
                self._drawn, self._written = True, time.monotonic()
        elif self.shown and time.monotonic() - self._written > PLAIN_SECONDS:
            self.log(text)

    def time_left(self, share: float) -> str:
        """Return how long the rest of the stage takes if it goes on as it went, in words.

        Args:
            share: Part of the stage that is done, in [0, 1]. The first one given is where it started.
        """
        now = time.monotonic()
        begun, before = self._start = self._start or (now, share)
        if share == before:
            return ""
        seconds = int((now - begun) * (1 - share) / (share - before))
        return f"{seconds // 60}:{seconds % 60:02d} left"

    def log(self, text: str) -> None:
        """Print a line that stays, above the one that is written over."""
        self.clear()
        print(visible(text), file=self.stream, flush=True)
        if not self.living:
            self._written = time.monotonic()

    def clear(self) -> None:
        """Remove the line that is written over, so that others can print; the next `update` shows it again."""
        if self._drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._drawn = False


def can_redraw(stream: IO[str]) -> bool:
    """Return whether a stream is a terminal that can write over what it shows."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def bar(share: float) -> str:
    """Return a share as a bar and in percent."""
    filled = int(BAR_WIDTH * share)
    return f"{'━' * filled}{'╌' * (BAR_WIDTH - filled)} {share:4.0%}"


def visible(text: str) -> str:
    """Return foreign text for a terminal: a character that would steer it, or could not be written, is spelled out."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
