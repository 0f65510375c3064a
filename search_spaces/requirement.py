"""Requirements: bounds that a configuration must keep to be on the front, such as `clean_accuracy >= 0.9`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from trainer.errors import InputError
from trainer.number import as_written, parse_number
from trainer.report import EpochReport
from trainer.words import did_you_mean

MEASURES = tuple(
    field.name for field in dataclasses.fields(EpochReport) if field.type in ("float", "int") and field.name != "epoch"
)
"""Numbers that every report carries."""

_FORM = re.compile(r"\s*(\w+)\s*(>=|<=)\s*(\S.*?)\s*")


class Requirement(NamedTuple):
    """A bound on a number of the final report."""

    name: str
    """One of `MEASURES`."""

    at_least: bool
    """True for a lower bound, False for an upper one; the bound itself is allowed."""

    bound: float

    @classmethod
    def parse(cls, text: str, *, source: str) -> Self:
        """Return the requirement that a text describes; `source` names where it was given, for messages.

        Raises:
            InputError: quoting the text, and naming what would be right.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise InputError(f"{source} {text!r}: must read NAME >= NUMBER or NAME <= NUMBER")
        name, sign, number = match.groups()
        if name not in MEASURES:
            raise InputError(f"{source} {text!r}: no report carries {name!r}: {did_you_mean(name, MEASURES)}")
        bound = parse_number(number)
        if isinstance(bound, str) or not math.isfinite(bound):
            raise InputError(f"{source} {text!r}: {number!r} is not a finite number")
        return cls(name, sign == ">=", bound)

    def excess(self, value: float) -> float:
        """Return how far a value violates the bound, as a share of it (of 1 if it is 0); at most 0 if it holds."""
        return (self.bound - value if self.at_least else value - self.bound) / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.at_least else '<='} {as_written(self.bound)}"


def violation(requirements: Iterable[Requirement], numbers: Mapping[str, float]) -> float:
    """Return how far numbers violate requirements in all; 0 where all hold (the sum of Deb 2002, section VI)."""
    return math.fsum(max(0.0, each.excess(numbers[each.name])) for each in requirements)
