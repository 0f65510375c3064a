"""TODO one line."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from trainer.report import EpochReport
from trainer.summary import bar

_REDRAW_SECONDS = 0.1


def brief(report: EpochReport | None) -> str:
    """The three accuracies of an epoch, where there is little room."""
    if report is None:
        return ""
    clean, sensitivity, invariance = report.clean_accuracy, report.sensitivity_accuracy, report.invariance_accuracy
    return f"clean {clean:.1%}  sens {sensitivity:.1%}  inv {invariance:.1%}"


class TimeLeft:
    """How long the rest takes if it goes on as it went."""

    def __init__(self) -> None:
        self.begun: tuple[float, float] | None = None

    def after(self, share: float) -> str:
        """In words, once there is something to go by; the first share that it hears of is where it starts."""
        now = time.monotonic()
        start, before = self.begun = self.begun or (now, share)
        if share == before:
            return ""
        seconds = int((now - start) * (1 - share) / (share - before))
        return f"{seconds // 60}:{seconds % 60:02d} left"


class StatusLine:
    """On a terminal one line that is written over again, elsewhere plain lines; a context that ends with a clean one.

    Args:
        stream: where it stands.
        shown: False keeps all but what is said to oneself.
    """

    def __init__(self, stream: TextIO, *, shown: bool) -> None:
        self.stream, self.shown, self.living = stream, shown, shown and stream.isatty()
        self.stage, self.drawn = "", 0.0

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def begin(self, stage: str) -> None:
        """Something else is being done now."""
        if stage != self.stage:
            self.stage = stage
            self.draw(stage, now=True)
            if self.shown and not self.living:
                self.say(stage)

    def draw(self, text: str, *, now: bool = False) -> None:
        """The living line; as often as eyes can follow, or `now`."""
        if self.living and (now or time.monotonic() - self.drawn > _REDRAW_SECONDS):
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80
            self.stream.write(f"\r\x1b[K{text[: columns - 1]}")
            self.stream.flush()
            self.drawn = time.monotonic()

    def prepare(self, stage: str, done: int, total: int) -> None:
        """How far a stage of the preparation is."""
        self.begin(f"preparing: {stage}")
        self.draw(f"{self.stage} {bar(done / max(total, 1))}", now=done == total)

    def tell(self, report: EpochReport) -> None:
        """An epoch's accuracies; on a terminal the living line has them."""
        if not self.living and not report.final:
            self.say(f"epoch {report.epoch}: {brief(report)}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, file=self.stream, flush=True)

    def clear(self) -> None:
        if self.living:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
