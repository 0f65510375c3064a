"""Numbers as people write them: decimals, and fractions such as 8/255."""

from __future__ import annotations

import re
from typing import Any

_DECIMAL = r"(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
DECIMAL = re.compile(rf"[-+]?{_DECIMAL}")
FRACTION = re.compile(rf"([-+]?{_DECIMAL}) ?/ ?({_DECIMAL})")


class Fraction(float):
    """A number that was written as a fraction, with its text for files that people read.

    It is shown, compared and computed with as the float that it is; a copy, also in another process, is a plain float.
    """

    text: str

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


def parse_number(text: str) -> float | str:
    """Return the number that a text holds, as a decimal or a fraction; the text itself if it holds none."""
    try:
        return float(text)
    except ValueError:
        match = FRACTION.fullmatch(text.strip())
    if match is None or float(match[2]) == 0:
        return text
    number = Fraction(float(match[1]) / float(match[2]))
    number.text = match[0]
    return number


def as_written(number: float) -> str:
    """Return a number as text that `parse_number` gives back exactly: a fraction as it was written."""
    return number.text if isinstance(number, Fraction) else repr(number)
