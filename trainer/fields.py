"""Frozen dataclasses whose fields are checked: type, range and choices are declared with each field."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import field
from functools import cache
from typing import Any, Self

from trainer.errors import InputError
from trainer.number import Fraction, parse_number
from trainer.words import did_you_mean


def knob(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    forms: tuple[str, ...] = (),
) -> Any:
    """Define a dataclass field with its range, in which `low` and `high` lie and `above` does not.

    `forms` stand beside the choices for values of one's own, such as `folder:PATH`: any text after the first colon.
    """
    limits = {"low": low, "high": high, "above": above, "choices": choices}
    return field(default=default, metadata=limits | ({"forms": forms} if forms else {}))


class CheckedFields:
    """Base of dataclasses whose fields are converted and checked at construction."""

    def __post_init__(self) -> None:
        for name, spec in self.fields().items():
            object.__setattr__(self, name, check_value(name, getattr(self, name), spec))
        self._check_together()

    def _check_together(self) -> None:
        """Check rules that tie several fields."""

    @classmethod
    @cache
    def fields(cls) -> dict[str, dataclasses.Field]:
        """Return all fields by name, in order."""
        return {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build a record from keys and values; the error for an unknown key names the nearest known one."""
        for key in values:
            if key not in cls.fields():
                raise InputError(f"unknown setting {key!r}: {did_you_mean(key, cls.fields())}")
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked again."""
        return type(self).from_mapping({**vars(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by field name, ready for YAML, JSON or Parquet; a fraction is the plain number."""
        values = {name: getattr(self, name) for name in self.fields()}
        return {name: float(value) if isinstance(value, Fraction) else value for name, value in values.items()}


@cache
def field_docs(record: type) -> dict[str, str]:
    """Return what the source says below the fields of a dataclass, each on one line."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(below.value.value).split())
        for field, below in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def field_type(spec: dataclasses.Field) -> type:
    """Return the plain type of a field: bool, int, float or str."""
    return {"bool": bool, "int": int, "float": float, "str": str}[str(spec.type)]


def check_value(name: str, value: Any, spec: dataclasses.Field) -> Any:
    """Return `value` in the field's own type.

    Raises:
        InputError: if it has another type or lies outside the range; names field, value and what would be right.
    """
    kind, limits = field_type(spec), spec.metadata
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not (number if kind is float else isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
        raise InputError(f"{name} = {_quoted(value)}: must be {_describe_type(spec)}")
    with contextlib.suppress(OverflowError):  # an integer too large for a float is outside every range
        value = value if isinstance(value, Fraction) else kind(value)
    if limits["choices"] is not None and value not in limits["choices"] and not _has_form(value, limits):
        known = (*limits["choices"], *limits.get("forms", ()))
        raise InputError(f"{name} = {_quoted(value)}: {did_you_mean(value, known)}")
    if kind in (int, float) and not _in_range(value, limits):
        raise InputError(f"{name} = {_quoted(value)}: must be {describe_range(spec)}")
    return value


def read_value(name: str, value: Any, spec: dataclasses.Field) -> Any:
    """Return what `check_value` does; text is read as a number where the field is one.

    Raises:
        InputError: as `check_value`.
    """
    is_text = isinstance(value, str) and field_type(spec) in (int, float)
    return check_value(name, parse_number(value) if is_text else value, spec)


def _quoted(value: object) -> str:
    """Return `value` as an error shows it: cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out an integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _in_range(value: float, limits: Mapping[str, Any]) -> bool:
    """Return whether a number is finite and inside a field's limits."""
    return (
        (isinstance(value, int) or math.isfinite(value))
        and (limits["low"] is None or value >= limits["low"])
        and (limits["above"] is None or value > limits["above"])
        and (limits["high"] is None or value <= limits["high"])
    )


def _has_form(value: object, limits: Mapping[str, Any]) -> bool:
    """Return whether a word has one of a field's forms, by what stands before its first colon."""
    kinds = {form.partition(":")[0] for form in limits.get("forms", ())}
    return isinstance(value, str) and ":" in value and value.partition(":")[0] in kinds


def _describe_type(spec: dataclasses.Field) -> str:
    """Return the type of a field and its range in words."""
    kind = field_type(spec)
    if kind is bool:
        return "true or false"
    if kind is str:
        return describe_range(spec) if spec.metadata["choices"] else "a word"
    return f"a {'whole ' if kind is int else ''}number, {describe_range(spec)}"


def describe_range(spec: dataclasses.Field) -> str:
    """Return the range of a field in words."""
    low, high, above = (spec.metadata[key] for key in ("low", "high", "above"))
    if spec.metadata["choices"] is not None:
        return "one of " + ", ".join((*spec.metadata["choices"], *spec.metadata.get("forms", ())))
    start = f"above {above}" if above is not None else f"at least {low}" if low is not None else ""
    if high is None:
        return start or "a finite number"
    return f"{start} and at most {high}" if start else f"at most {high}"


def parse_settings(pairs: Iterable[str], *records: type[CheckedFields]) -> dict[str, Any]:
    """Read pairs such as "margin=0.1", as given to `--set`, in the types of the fields that they name.

    Raises:
        InputError: for a pair without `=`, an unknown key, or a value of another type than the field's.
    """
    known = {name: spec for record in records for name, spec in record.fields().items()}
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise InputError(f"--set {pair!r}: write it as key=value")
        if key not in known:
            raise InputError(f"unknown setting {key!r}: {did_you_mean(key, known)}")
        value: Any = text.strip()
        if field_type(known[key]) is bool:
            value = {"true": True, "false": False}.get(value.lower(), value)
        settings[key] = read_value(key, value, known[key])
    return settings


def check_budget(name: str, epsilon: float, norm: str) -> None:
    """Check that an L0 or Linf budget lies in [0, 1]: it is a share of the pixels or of the pixel range."""
    if norm != "l2" and epsilon > 1:
        raise InputError(f"{name} = {epsilon!r}: must be at least 0 and at most 1 (pixel units of [0,1] images)")
