"""A search space read from a YAML file and checked line by line; README.md describes the format.

Only names and numbers are checked here; torch, Ray and Optuna are not imported before a configuration is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search_spaces.prior_reading import read_prior
from search_spaces.requirement import Requirement
from search_spaces.space import (
    NOT_GIVEN,
    NOT_SWEPT,
    TRIAL_FIELDS,
    Space,
    can_be_on,
    corner_configurations,
    without_seed,
)
from search_spaces.swept import Swept
from search_spaces.swept_reading import check_conditions, parents_first, read_swept
from search_spaces.yaml_file import Located, locate, read_yaml
from trainer.config import EvaluationConfig, TrialConfig, with_weights
from trainer.errors import InputError
from trainer.fields import parse_settings, read_value
from trainer.presets import preset
from trainer.words import did_you_mean

FOLDER = Path(__file__).parent
STUDIES = FOLDER / "studies"
"""Folder of the studies that come with otsweep."""
_SECTIONS = ["name", "description", "trials", "evaluation", "space", "require", "prior", "points"]


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
    if is_study(root):
        raise root.error("is a study, since it has 'arms': run it by `otsweep study FILE`")
    sections = root.mapping("a search space", known=_SECTIONS)
    if "space" not in sections:
        raise root.error("a search space needs the section 'space:' (fields of TrialConfig: what is swept)")
    fixed, swept = _read_space(sections["space"])
    points = _read_points(sections.get("points"), fixed)
    space = Space(
        name=_read_name(sections.get("name", Located(name, root.where))),
        description=" ".join(_read_text(sections.get("description")).split()),
        evaluation=_read_evaluation(sections.get("evaluation")),
        fixed=fixed,
        swept=swept,
        require=_read_require(sections.get("require")),
        prior=read_prior(sections.get("prior"), swept),
        trials=_read_trials(sections.get("trials"), sections["space"], drawn=bool(swept), points=len(points)),
    )
    return dataclasses.replace(space, points=tuple(map(space.complete, points)))


def is_study(root: Located) -> bool:
    """Return whether a YAML tree is meant as a study, not as a search space."""
    return isinstance(root.value, dict) and "arms" in root.value


def load_space(name_or_path: str) -> Space:
    """Return a space by the name of a file in this folder, or from the path of a YAML or JSON file.

    Raises:
        InputError: for an unknown name, or for the first thing that is wrong in the file, with its line.
    """
    path = Path(name_or_path)
    is_name = path.suffix.lower() not in (".yaml", ".yml", ".json") and len(path.parts) <= 1
    if is_name and name_or_path not in names():
        if (STUDIES / f"{name_or_path}.yaml").is_file():
            raise InputError(f"{name_or_path!r} is a study: run it by `otsweep study {name_or_path}`")
        raise InputError(
            f"unknown search space {name_or_path!r}: {did_you_mean(name_or_path, names())}, or the path of a YAML file"
        )
    if is_name:
        path = FOLDER / f"{name_or_path}.yaml"
    return space_from_yaml(read_yaml(path), name=path.stem)


def names() -> list[str]:
    """Return the names of the spaces that come with otsweep."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def fix_knobs(space: Space, texts: Sequence[str]) -> Space:
    """Return a space with values such as `margin=0.1` for all trials, given points too, or for what judges them.

    Knobs that are on under other values alone are no longer drawn.

    Raises:
        InputError: for an unknown or wrong setting, or if nothing is left to draw or to run.
    """
    given = parse_settings(texts, TrialConfig, EvaluationConfig)
    for name in NOT_GIVEN.keys() & given.keys():
        raise InputError(f"--set {name}: is not set so: {NOT_GIVEN[name]}")
    judging = {name: value for name, value in given.items() if name in EvaluationConfig.fields()}
    knobs = {name: value for name, value in given.items() if name not in judging}
    fixed = {**space.fixed, **knobs}
    drawn = {name: each for name, each in space.swept.items() if name not in knobs}
    swept = {name: each for name, each in drawn.items() if can_be_on(name, fixed, drawn)}
    if not swept and not space.points:
        raise InputError(f"--set {' --set '.join(texts)}: leaves nothing to sweep; `otsweep trial` runs one trial")
    for corner in corner_configurations(fixed, swept):
        TrialConfig.from_mapping(corner)
    # In the order in which the plan's file will give them back: draws depend on it.
    swept, evaluation = parents_first(swept, {}), space.evaluation.replace(**judging)
    prior = space.prior.without(space.swept.keys() - swept.keys())
    whole = dataclasses.replace(space, evaluation=evaluation, fixed=fixed, swept=swept, prior=prior, points=())
    return whole.beginning_with({**point, **knobs} for point in space.points) if space.points else whole


def _read_name(node: Located) -> str:
    """Return the name of a space, which names a file and a folder of artifacts."""
    name = node.word("name")
    if not name.isprintable() or {"/", "\\"} & set(name) or name.startswith((".", "-")):
        raise node.error(f"name = {name!r}: must be printable, without / and \\, and not begin with . or -")
    return name


def _read_text(node: Located | None) -> str:
    return "" if node is None else node.word("description")


def _read_trials(node: Located | None, space: Located, *, drawn: bool, points: int) -> int:
    """Return the number of trials: a space that draws nothing runs its points and nothing else."""
    if not drawn and not points:
        raise space.error("nothing is swept: give at least one field low and high, or choices")
    if node is None:
        return Space.trials if drawn else points
    with node.error_context():
        trials = read_value("trials", node.plain(), Space.__dataclass_fields__["trials"])
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
    values = check_fields(entries, EvaluationConfig.fields())
    with _error_at_field(entries, node):
        return EvaluationConfig.from_mapping(values)


def check_fields(entries: Mapping[str, Located], fields: Mapping[str, dataclasses.Field]) -> dict[str, Any]:
    """Return values in their fields' types; an error names the line of the wrong one."""
    values = {}
    for key, item in entries.items():
        with item.error_context():
            if key not in fields:
                raise InputError(f"unknown setting {key!r}: {did_you_mean(key, fields)}")
            values[key] = read_value(key, item.plain(), fields[key])
    return values


@contextmanager
def _error_at_field(entries: Mapping[str, Located], otherwise: Located) -> Iterator[None]:
    """Put the line of a field before an error whose message begins with its name, as rules on several fields do."""
    try:
        yield
    except InputError as error:
        raise entries.get(str(error).partition(" ")[0], otherwise).error(str(error)) from None


def _read_space(node: Located) -> tuple[dict[str, Any], dict[str, Swept]]:
    """Return fixed values and swept knobs, each knob after those that its conditions read."""
    entries = node.mapping("space")
    for key, item in entries.items():
        if key in NOT_GIVEN:
            raise item.error(f"{key!r} is not set here: {NOT_GIVEN[key]}")
        if key in EvaluationConfig.fields():
            raise item.error(f"{key!r} is what every trial is judged by: it belongs under 'evaluation'")
        if key not in TRIAL_FIELDS:
            raise item.error(f"unknown setting {key!r}: {did_you_mean(key, TRIAL_FIELDS)}")
    fixed = check_fields(
        {key: item for key, item in entries.items() if not isinstance(item.value, (dict, list))}, TRIAL_FIELDS
    )
    swept = {key: read_swept(key, item) for key, item in entries.items() if key not in fixed}
    for key, each in swept.items():
        check_conditions(key, each, fixed, swept, entries[key])
    swept = parents_first(swept, entries)
    _check_corners(fixed, swept, entries, node)
    return fixed, swept


def _check_corners(
    fixed: Mapping[str, Any], swept: Mapping[str, Swept], entries: Mapping[str, Located], node: Located
) -> None:
    """Check that TrialConfig refuses nothing that can be drawn: rules on two fields hold in every pair of ends."""
    with _error_at_field(entries, node):
        for values in corner_configurations(fixed, swept):
            TrialConfig.from_mapping(values)


def _read_require(node: Located | None) -> tuple[Requirement, ...]:
    """Return the requirements: the section holds one, or a list of them."""
    given: list[Requirement] = []
    for item in [] if node is None else node.value if isinstance(node.value, list) else [node]:
        text = item.word("require")
        with item.error_context():
            given.append(Requirement.parse(text, source="require"))
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
    """Return a configuration: the space's fixed values, overridden by a preset's, overridden by those written here."""
    entries = dict(node.mapping("a point"))
    for key, reason in {**NOT_SWEPT, **NOT_GIVEN}.items():
        if key in entries:
            raise entries[key].error(f"{key!r} can't differ between points: {reason}")
    based_on = entries.pop("preset", None)
    values = with_weights(fixed)
    if based_on is not None:
        with based_on.error_context():
            values |= preset(based_on.word("preset"))
    values |= with_weights(check_fields(entries, TRIAL_FIELDS))
    with _error_at_field(entries, node):
        return without_seed(TrialConfig.from_mapping(values))
