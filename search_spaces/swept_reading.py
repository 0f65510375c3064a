"""Swept knobs read from a YAML tree: ranges, choices, and the conditions between knobs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from search_spaces.space import NOT_SWEPT, TRIAL_FIELDS
from search_spaces.swept import Choices, Range, Swept
from search_spaces.yaml_file import Located
from trainer.fields import field_type, read_value
from trainer.words import did_you_mean

_RANGE_KEYS = ["low", "high", "log", "step"]
_MOST_STEPS = 1_000_000


def read_swept(name: str, node: Located) -> Swept:
    """Return a knob that is swept.

    Raises:
        InputError: with file and line.
    """
    if name in NOT_SWEPT:
        raise node.error(f"{name!r} can't be swept: {NOT_SWEPT[name]}")
    if isinstance(node.value, list):
        raise node.error(f"{name}: a list; to sweep over it write {{choices: [...]}}")
    entries = node.mapping(f"{name!r}", known=[*_RANGE_KEYS, "choices", "when"])
    as_range = [key for key in entries if key in _RANGE_KEYS]
    if "choices" in entries and as_range:
        raise node.error(f"{name}: either choices or a range, not both ({', '.join(as_range)})")
    domain = _read_choices(name, entries["choices"]) if "choices" in entries else _read_range(name, entries, node)
    return Swept(domain, _read_when(name, entries["when"]) if "when" in entries else {})


def _read_choices(name: str, node: Located) -> Choices:
    options = [_check_option(name, item) for item in node.items(f"{name}: choices")]
    if not options:
        raise node.error(f"{name}: choices is empty; give at least one value")
    for option, count in Counter(options).items():
        if count > 1:
            raise node.error(f"{name}: {option!r} stands {count} times among the choices")
    return Choices(tuple(options))


def _check_option(name: str, node: Located) -> Any:
    with node.error_context():
        return read_value(name, node.plain(), TRIAL_FIELDS[name])


def _read_range(name: str, entries: Mapping[str, Located], node: Located) -> Range:
    spec = TRIAL_FIELDS[name]
    if field_type(spec) not in (int, float):
        raise node.error(f"{name}: holds no number, so it has no range; write {{choices: [...]}}")
    for end in ("low", "high"):
        if end not in entries:
            raise node.error(f"{name}: a range needs low and high, or give choices; {end} is missing")
    low, high = (_check_end(name, end, entries[end], spec) for end in ("low", "high"))
    if low >= high:
        raise entries["low"].error(f"{name}: low = {low!r} must be below high = {high!r}")
    log = _read_log(name, entries, low)
    step = _read_step(name, entries, low, high)
    if log and step is not None:
        raise entries["step"].error(f"{name}: log and step exclude each other; leave one out")
    return Range(low, high, log, step)


def _check_end(name: str, end: str, node: Located, spec: dataclasses.Field) -> Any:
    with node.error_context():
        return read_value(f"{name}.{end}", node.plain(), spec)


def _read_log(name: str, entries: Mapping[str, Located], low: float) -> bool:
    if "log" not in entries:
        return False
    log = entries["log"].plain()
    if not isinstance(log, bool):
        raise entries["log"].error(f"{name}: log = {log!r}: must be true or false")
    if log and low <= 0:
        raise entries["log"].error(f"{name}: log needs low above 0, not {low!r}")
    return log


def _read_step(name: str, entries: Mapping[str, Located], low: float, high: float) -> float | None:
    """Return the step in the type of the range's ends, which it must join exactly: a range says what it means."""
    if "step" not in entries:
        return None
    step, node = entries["step"].plain(), entries["step"]
    noun = "a whole number" if isinstance(low, int) else "a number"
    if isinstance(step, bool) or not isinstance(step, int if isinstance(low, int) else (int, float)):
        raise node.error(f"{name}: step = {step!r}: must be {noun}")
    if step <= 0:
        raise node.error(f"{name}: step = {step!r}: must be above 0")
    if (high - low) / step > _MOST_STEPS:
        raise node.error(f"{name}: step = {step!r}: makes more than {_MOST_STEPS:,} steps; leave it out")
    # In decimals, as Optuna counts: 0.3 is three steps of 0.1.
    start, end, stride = (Decimal(str(number)) for number in (low, high, step))
    last = start + (end - start) // stride * stride
    if last == start:
        raise node.error(f"{name}: step = {step!r}: is larger than the range")
    if last != end:
        raise node.error(f"{name}: step = {step!r}: does not lead from {low!r} to {high!r}; the last stop is {last}")
    return step if isinstance(low, int) else float(step)


def _read_when(name: str, node: Located) -> dict[str, tuple[Any, ...]]:
    """Return the accepted values by key; a single value may stand for a list of one."""
    conditions = {}
    for parent, item in node.mapping(f"{name}: when").items():
        if parent not in TRIAL_FIELDS:
            raise item.error(f"{name}: unknown setting {parent!r} in when: {did_you_mean(parent, TRIAL_FIELDS)}")
        options = item.value if isinstance(item.value, list) else [item]
        if not options:
            raise item.error(f"{name}: when {parent} is empty; give at least one value")
        conditions[parent] = tuple(_check_option(parent, option) for option in options)
    return conditions


def check_conditions(
    name: str, swept: Swept, fixed: Mapping[str, Any], others: Mapping[str, Swept], node: Located
) -> None:
    """Check that each condition is on another key of this space, and on a value that the key can have."""
    for parent, values in swept.when.items():
        if parent not in fixed and parent not in others:
            raise node.error(f"{name}: depends on {parent!r}, which is not in this space; fix it or sweep it")
        domain = Choices((fixed[parent],)) if parent in fixed else others[parent].domain
        if isinstance(domain, Range):
            raise node.error(f"{name}: depends on {parent!r}, a range; a condition needs choices or a fixed value")
        if not set(values) & set(domain.options):
            reachable = ", ".join(map(str, domain.options))
            raise node.error(f"{name}: its condition never holds: {parent} is only ever {reachable}")


def parents_first(swept: dict[str, Swept], entries: Mapping[str, Located]) -> dict[str, Swept]:
    """Return the same knobs, each after those that its conditions read."""
    ordered, waiting = {}, dict(swept)
    while waiting:
        ready = [name for name, each in waiting.items() if not waiting.keys() & each.when.keys()]
        if not ready:
            circle = _circle(waiting)
            raise entries[circle[0]].error(f"conditions go in a circle: {' needs '.join(circle)}")
        ordered |= {name: waiting.pop(name) for name in ready}
    return ordered


def _circle(waiting: Mapping[str, Swept]) -> list[str]:
    """Return one circle among knobs that all wait for another one of them."""
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(parent for parent in waiting[path[-1]].when if parent in waiting))
    return path[path.index(path[-1]) :]
