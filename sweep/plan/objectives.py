"""The objectives of a plan: the default ones, checked, written and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from search_spaces import Located
from sweep.front import Objectives
from trainer.errors import InputError
from trainer.report import EpochReport
from trainer.words import did_you_mean

OBJECTIVES = Objectives(
    names=("sensitivity_accuracy", "invariance_accuracy"), maximise=(True, True), reference=(0.0, 0.0)
)

_REPORTED = tuple(field.name for field in dataclasses.fields(EpochReport) if field.type in ("float", "int"))


def check_objectives(objectives: Objectives) -> None:
    """Check that objectives are at least two different numbers of an epoch report.

    Raises:
        InputError: naming the objective that is wrong.
    """
    for name in objectives.names:
        if name not in _REPORTED:
            raise InputError(f"objective {name!r}: {did_you_mean(name, _REPORTED)}")
    if len(set(objectives.names)) != len(objectives.names) or len(objectives.names) < 2:
        raise InputError(f"objectives {', '.join(objectives.names)}: must be at least two, all different")


def objectives_to_dict(objectives: Objectives) -> list[dict[str, Any]]:
    records = zip(objectives.names, objectives.maximise, objectives.reference, strict=True)
    return [
        {"name": name, "direction": "max" if maximise else "min", "reference": float(reference)}
        for name, maximise, reference in records
    ]


def read_objectives(node: Located) -> Objectives:
    known = ["name", "direction", "reference"]
    records = [each.mapping("an objective", known=known) for each in node.items("objectives")]
    if not records:
        raise node.error("objectives is empty")
    return Objectives(
        names=tuple(_entry(node, each, "name").word("name") for each in records),
        maximise=tuple(_read_direction(_entry(node, each, "direction")) for each in records),
        reference=tuple(_read_reference(_entry(node, each, "reference")) for each in records),
    )


def _entry(node: Located, entries: Mapping[str, Located], key: str) -> Located:
    if key not in entries:
        raise node.error(f"is cut off or damaged: an objective has no {key}")
    return entries[key]


def _read_direction(node: Located) -> bool:
    if node.value not in ("max", "min"):
        raise node.error(f"direction = {node.plain()!r}: must be max or min")
    return node.value == "max"


def _read_reference(node: Located) -> float:
    if not isinstance(node.value, (int, float)) or isinstance(node.value, bool):
        raise node.error(f"reference = {node.plain()!r}: must be a number")
    return float(node.value)
