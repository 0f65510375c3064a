"""TODO one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sweep.report import duration

if TYPE_CHECKING:
    pass


LOW, EXPECTED, HIGH = range(3)

HOUR = 3600.0


class Span(NamedTuple):
    """A quantity as it may turn out."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Span:
        return Span(*(factor * value for value in self))

    def plus(self, other: float) -> Span:
        return Span(*(value + other for value in self))


def in_time(span: Span) -> str:
    """`1:52 (1:20 to 3:40)`."""
    return _told(*map(duration, span))


def in_hours(span: Span) -> str:
    return _told(*(f"{hours:.2g}" for hours in span))


def in_counts(span: Span) -> str:
    return _told(*(f"{count:,.0f}" for count in span))


def _told(low: str, expected: str, high: str) -> str:
    return expected if low == expected == high else f"{expected} ({low} to {high})"


def size(count: float) -> str:
    """`640 KB`, `12 MB`, `2.3 GB`."""
    unit, count = "KB", count / 1000
    for larger in ("MB", "GB"):
        if count >= 999.5:
            unit, count = larger, count / 1000
    return f"{count:.2g} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
