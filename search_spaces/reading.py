"""What is swept: a `Space` read from a YAML file, checked line by line, and drawn from by Optuna.

    description: one sentence
    trials: 24                                    # what the command line may override
    evaluation: {dataset: digits}                 # fields of EvaluationConfig: what every trial is judged by
    space:                                        # fields of TrialConfig; a plain value is fixed
      epochs: 12
      regularizer: {choices: [none, triplet]}
      learning_rate: {low: 1e-4, high: 1e-2, log: true}
      sensitivity_steps: {low: 1, high: 9, step: 2}
      margin: {low: 0.01, high: 1.0, when: {regularizer: triplet}}
    require: [clean_accuracy >= 0.9]              # who breaks it is on no front, and the search is told
    points:                                       # run first: presets, values, or a preset with some values changed
      - {preset: pgd-at, sensitivity_epsilon: 0.2}

A knob whose condition does not hold stays at TrialConfig's default. Only names and numbers are checked here; torch, Ray
and Optuna are not imported before a configuration is drawn.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.requirement import Requirement
from search_spaces.yaml_file import Located, locate, read_yaml
from trainer.config import EvaluationConfig, TrialConfig
from trainer.errors import InputError
from trainer.fields import check_value, field_type
from trainer.presets import preset
from trainer.words import did_you_mean

if TYPE_CHECKING:
    pass
from search_spaces.space import (
    MOST_STEPS,
    NOT_GIVEN,
    NOT_SWEPT,
    TRIAL_FIELDS,
    Choices,
    Range,
    Space,
    Swept,
    corner_configurations,
    without_seed,
)

FOLDER = Path(__file__).parent
_SECTIONS = ["name", "description", "trials", "evaluation", "space", "require", "points"]
_RANGE_KEYS = ["low", "high", "log", "step"]


def space_from_dict(plain: Mapping[str, Any]) -> Space:
    """Return the space that `Space.to_dict` described.

    Raises:
        InputError: for values that no space has.
    """
    return space_from_yaml(locate(plain, "space"), name=str(plain.get("name", "")))


def space_from_yaml(root: Located, *, name: str) -> Space:
    """Return the space that a YAML tree describes; `name` stands where the tree names none.

    Raises:
        InputError: with file and line, for the first thing that is wrong.
    """
    sections = root.mapping("a search space", known=_SECTIONS)
    if "space" not in sections:
        raise root.error("a search space needs the section 'space:' (fields of TrialConfig: what is swept)")
    fixed, swept = _read_space(sections["space"])
    points = _read_points(sections.get("points"), fixed)
    return Space(
        name=sections["name"].word("name") if "name" in sections else name,
        description=" ".join(_read_text(sections.get("description")).split()),
        evaluation=_read_evaluation(sections.get("evaluation")),
        fixed=fixed,
        swept=swept,
        points=points,
        require=_read_require(sections.get("require")),
        trials=_read_trials(sections.get("trials"), sections["space"], drawn=bool(swept), points=len(points)),
    )


def load_space(name_or_path: str) -> Space:
    """A space by the name of a file in this folder, or from the path of a YAML file.

    Raises:
        InputError: for an unknown name, or for the first thing that is wrong in the file, with its line.
    """
    path = Path(name_or_path)
    is_name = path.suffix not in (".yaml", ".yml") and len(path.parts) <= 1
    if is_name and name_or_path not in names():
        raise InputError(
            f"unknown search space {name_or_path!r}: {did_you_mean(name_or_path, names())}, or the path of a YAML file"
        )
    if is_name:
        path = FOLDER / f"{name_or_path}.yaml"
    return space_from_yaml(read_yaml(path), name=path.stem)


def names() -> list[str]:
    """The spaces that come with otsweep."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _read_text(node: Located | None) -> str:
    return "" if node is None else node.word("description")


def _read_trials(node: Located | None, space: Located, *, drawn: bool, points: int) -> int:
    """A space that draws nothing runs its points and nothing else."""
    if not drawn and not points:
        raise space.error("nothing is swept: give at least one field low and high, or choices")
    if node is None:
        return Space.trials if drawn else points
    with node.blamed():
        trials = check_value("trials", node.plain(), Space.__dataclass_fields__["trials"])
    if not drawn and trials > points:
        raise node.error(f"trials = {trials}: nothing is swept, so there are {points} points to run and no more")
    return trials


def _read_evaluation(node: Located | None) -> EvaluationConfig:
    if node is None:
        return EvaluationConfig()
    entries = node.mapping("evaluation")
    for key, item in entries.items():
        if key in TRIAL_FIELDS:
            raise item.error(f"{key!r} is what a trial trains with: it belongs under 'space'")
    values = _check_fields(entries, EvaluationConfig.fields())
    with _blamed_by_name(entries, node):
        return EvaluationConfig.from_mapping(values)


def _check_fields(entries: Mapping[str, Located], fields: Mapping[str, dataclasses.Field]) -> dict[str, Any]:
    """Values in their fields' types, each wrong one blamed on its own line."""
    values = {}
    for key, item in entries.items():
        with item.blamed():
            if key not in fields:
                raise InputError(f"unknown setting {key!r}: {did_you_mean(key, fields)}")
            values[key] = check_value(key, item.plain(), fields[key])
    return values


@contextmanager
def _blamed_by_name(entries: Mapping[str, Located], otherwise: Located) -> Iterator[None]:
    """Blame an error on the line of the field that its message opens with (a rule that ties several names one)."""
    try:
        yield
    except InputError as error:
        raise entries.get(str(error).partition(" ")[0], otherwise).error(str(error)) from None


def _read_space(node: Located) -> tuple[dict[str, Any], dict[str, Swept]]:
    """Fixed values and swept knobs, in an order in which each knob's conditions are known before it."""
    entries = node.mapping("space")
    for key, item in entries.items():
        if key in NOT_GIVEN:
            raise item.error(f"{key!r} is not set here: {NOT_GIVEN[key]}")
        if key in EvaluationConfig.fields():
            raise item.error(f"{key!r} is what every trial is judged by: it belongs under 'evaluation'")
        if key not in TRIAL_FIELDS:
            raise item.error(f"unknown setting {key!r}: {did_you_mean(key, TRIAL_FIELDS)}")
    fixed = _check_fields(
        {key: item for key, item in entries.items() if not isinstance(item.value, (dict, list))}, TRIAL_FIELDS
    )
    swept = {key: _read_swept(key, item) for key, item in entries.items() if key not in fixed}
    for key, each in swept.items():
        _check_conditions(key, each, fixed, swept, entries[key])
    swept = _parents_first(swept, entries)
    _check_corners(fixed, swept, entries, node)
    return fixed, swept


def _read_swept(name: str, node: Located) -> Swept:
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
    with node.blamed():
        return check_value(name, node.plain(), TRIAL_FIELDS[name])


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
    with node.blamed():
        return check_value(f"{name}.{end}", node.plain(), spec)


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
    """The step in the type of the range's ends, which it must join exactly: a range says what it means."""
    if "step" not in entries:
        return None
    step, node = entries["step"].plain(), entries["step"]
    noun = "a whole number" if isinstance(low, int) else "a number"
    if isinstance(step, bool) or not isinstance(step, (int, type(low))):
        raise node.error(f"{name}: step = {step!r}: must be {noun}")
    if step <= 0:
        raise node.error(f"{name}: step = {step!r}: must be above 0")
    if (high - low) / step > MOST_STEPS:
        raise node.error(f"{name}: step = {step!r}: makes more than {MOST_STEPS:,} steps; leave it out")
    # In decimals, as Optuna counts: 0.3 is three steps of 0.1.
    start, end, stride = (Decimal(str(number)) for number in (low, high, step))
    last = start + (end - start) // stride * stride
    if last == start:
        raise node.error(f"{name}: step = {step!r}: is larger than the range")
    if last != end:
        raise node.error(f"{name}: step = {step!r}: does not lead from {low!r} to {high!r}; the last stop is {last}")
    return type(low)(step)


def _read_when(name: str, node: Located) -> dict[str, tuple[Any, ...]]:
    """Conditions by key; a single value may stand for a list of one."""
    conditions = {}
    for parent, item in node.mapping(f"{name}: when").items():
        if parent not in TRIAL_FIELDS:
            raise item.error(f"{name}: unknown setting {parent!r} in when: {did_you_mean(parent, TRIAL_FIELDS)}")
        options = item.value if isinstance(item.value, list) else [item]
        if not options:
            raise item.error(f"{name}: when {parent} is empty; give at least one value")
        conditions[parent] = tuple(_check_option(parent, option) for option in options)
    return conditions


def _check_conditions(
    name: str, swept: Swept, fixed: Mapping[str, Any], others: Mapping[str, Swept], node: Located
) -> None:
    """Each condition is on another key of this space, and on a value that the key can have."""
    for parent, values in swept.when.items():
        if parent not in fixed and parent not in others:
            raise node.error(f"{name}: depends on {parent!r}, which is not in this space; fix it or sweep it")
        domain = Choices((fixed[parent],)) if parent in fixed else others[parent].domain
        if isinstance(domain, Range):
            raise node.error(f"{name}: depends on {parent!r}, a range; a condition needs choices or a fixed value")
        if not set(values) & set(domain.options):
            reachable = ", ".join(map(str, domain.options))
            raise node.error(f"{name}: its condition never holds: {parent} is only ever {reachable}")


def _parents_first(swept: dict[str, Swept], entries: Mapping[str, Located]) -> dict[str, Swept]:
    """The same knobs, each after those that its conditions read."""
    ordered, waiting = {}, dict(swept)
    while waiting:
        ready = [name for name, each in waiting.items() if not waiting.keys() & each.when.keys()]
        if not ready:
            circle = _circle(waiting)
            raise entries[circle[0]].error(f"conditions go in a circle: {' needs '.join(circle)}")
        ordered |= {name: waiting.pop(name) for name in ready}
    return ordered


def _circle(waiting: Mapping[str, Swept]) -> list[str]:
    """One circle among knobs that all wait for another one of them."""
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(parent for parent in waiting[path[-1]].when if parent in waiting))
    return path[path.index(path[-1]) :]


def _check_corners(
    fixed: Mapping[str, Any], swept: Mapping[str, Swept], entries: Mapping[str, Located], node: Located
) -> None:
    """Nothing that can be drawn is refused by TrialConfig: rules that tie two fields hold in every pair of ends."""
    with _blamed_by_name(entries, node):
        for values in corner_configurations(fixed, swept):
            TrialConfig.from_mapping(values)


def _read_require(node: Located | None) -> tuple[Requirement, ...]:
    """One requirement, or a list of them."""
    given: list[Requirement] = []
    for item in [] if node is None else node.value if isinstance(node.value, list) else [node]:
        text = item.word("require")
        with item.blamed():
            given.append(Requirement.parse(text, said="require"))
    return tuple(dict.fromkeys(given))


def _read_points(node: Located | None, fixed: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    points: list[dict[str, Any]] = []
    for item in [] if node is None else node.items("points"):
        point = read_point(item, fixed)
        if point in points:
            raise item.error(f"this point is the same as point {points.index(point) + 1}; it would only be run twice")
        points.append(point)
    return tuple(points)


def read_point(node: Located, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration: the space's fixed values, then a preset's, then those written here."""
    entries = dict(node.mapping("a point"))
    for key, reason in {**NOT_SWEPT, **NOT_GIVEN}.items():
        if key in entries:
            raise entries[key].error(f"{key!r} can't differ between points: {reason}")
    based_on = entries.pop("preset", None)
    values = dict(fixed)
    if based_on is not None:
        with based_on.blamed():
            values |= preset(based_on.word("preset"))
    values |= _check_fields(entries, TRIAL_FIELDS)
    with _blamed_by_name(entries, node):
        return without_seed(TrialConfig.from_mapping(values))
