"""Quantities of a forecast: an expected value between a low and a high one, and their texts."""

from __future__ import annotations

from typing import NamedTuple

from sweep.report import duration

LOW, EXPECTED, HIGH = range(3)
HOUR = 3600.0


class Span(NamedTuple):
    """A quantity as expected, and where it lies if every drawn trial is as cheap, or as dear, as the space allows."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Span:
        return Span(*(factor * value for value in self))

    def plus(self, other: float) -> Span:
        return Span(*(value + other for value in self))


def in_time(span: Span) -> str:
    """Return seconds as `1:52 (1:20 to 3:40)`."""
    return _span_text(*map(duration, span))


def in_hours(span: Span) -> str:
    """Return hours with two digits."""
    return _span_text(*(f"{hours:.2g}" for hours in span))


def in_counts(span: Span) -> str:
    """Return whole numbers."""
    return _span_text(*(f"{count:,.0f}" for count in span))


def _span_text(low: str, expected: str, high: str) -> str:
    return expected if low == expected == high else f"{expected} ({low} to {high})"
