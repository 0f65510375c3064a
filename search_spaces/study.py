"""A study read from a YAML file: a search space whose arms are swept alike and compared; README.md has the format."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from search_spaces.reading import STUDIES, check_fields, is_study, names, space_from_yaml
from search_spaces.space import TRIAL_FIELDS, Space
from search_spaces.yaml_file import Located, locate, read_yaml
from trainer.config import EvaluationConfig, TrialConfig
from trainer.errors import InputError
from trainer.fields import CheckedFields, check_value, knob, parse_settings
from trainer.words import did_you_mean

STUDY_RESULTS = STUDIES / "results"
"""Folder of results that are kept with the code, a folder for each study."""

_OF_SPACE = ("evaluation", "points", "require")
"""Sections that all arms share, as they stand in a search space."""
_SECTIONS = ["name", "question", *_OF_SPACE, "space", "arms", "effort", "seeds", "audit"]
_ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,23}")
_MOST_TRIALS = 10_000
"""Trials of an arm on a seed whose effort is a time."""
_SEED = TrialConfig.fields()["seed"]
_MOST_SEEDS = knob(5, low=1, high=1000)
_MOST_SEEDS.type = "int"


@dataclass(frozen=True)
class Effort(CheckedFields):
    """The effort of each arm on each seed: a number of trials, or a time."""

    trials: int = knob(0, low=0, high=100_000)
    """Trials; 0 where `hours` decides."""

    epochs: int = knob(0, low=0, high=100_000)
    """Epochs of every trial; 0 for the space's own."""

    hours: float = knob(0.0, low=0, high=100_000)
    """Time after which no further trial begins; 0 where `trials` decides."""

    def _check_together(self) -> None:
        if (self.trials > 0) == (self.hours > 0):
            raise InputError("effort must have either trials or hours, above 0")

    def __str__(self) -> str:
        return f"{self.trials} trials" if self.trials else f"{self.hours:g} hours"


@dataclass(frozen=True)
class Study:
    """A checked study."""

    name: str
    """The name of its file, without the suffix, or another that the file gives."""

    question: str
    """The question that it is to answer, in a sentence."""

    arms: dict[str, Space]
    """The search spaces to be compared, by name; the first is the control. All have the study's name."""

    effort: Effort

    seeds: tuple[int, ...]
    """Seeds of the sweeps, the same for all arms; each is also the seed of its split."""

    audit: dict[str, Any]
    """Options of the audits that differ from their defaults."""

    source: dict[str, Any]
    """The plain values that the study was read from, with its name."""

    def space(self, arm: str, seed: int) -> Space:
        """Return the search space of an arm on a seed, which has a split of its own."""
        space = self.arms[arm]
        return dataclasses.replace(space, evaluation=space.evaluation.replace(split_seed=seed))

    def judged_by(self, crowd: str) -> Self:
        """Return the same study with another crowd, by name or by value."""
        arms = {arm: space.judged_by(crowd) for arm, space in self.arms.items()}
        source = {**self.source, "evaluation": {**self.source.get("evaluation", {}), "crowd": crowd}}
        return dataclasses.replace(self, arms=arms, source=source)

    def fixing(self, texts: Sequence[str], *, audit_options: Mapping[str, dataclasses.Field]) -> Study:
        """Return the same study with values such as `margin=0.1` that hold for all arms, or for what judges them.

        Args:
            audit_options: as of `load_study`.

        Raises:
            InputError: for an unknown or wrong setting, and for one that an arm has itself.
        """
        source = copy.deepcopy(self.source)
        for name, value in parse_settings(texts, TrialConfig, EvaluationConfig).items():
            for arm, own in source["arms"].items():
                if name in own:
                    raise InputError(f"--set {name}: arm {arm!r} has it itself, and so would not be what it is")
            source.setdefault("evaluation" if name in EvaluationConfig.fields() else "space", {})[name] = value
        return study_from_yaml(locate(source, "--set"), name=self.name, audit_options=audit_options) if texts else self


def _study_path(name_or_path: str) -> Path | None:
    """Return the file of a study that comes with otsweep, named `mnist` or `studies/mnist`, or the path of a YAML file;
    None for any other word."""
    path = Path(name_or_path)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return path
    built_in = STUDIES / f"{name_or_path.removeprefix('studies/')}.yaml"
    return built_in if built_in.parent == STUDIES and built_in.is_file() else None


def names_study(word: str) -> bool:
    """Return whether a word names a study where a search space might be named too, whose name comes first.

    Raises:
        InputError: for a file that is no YAML.
    """
    path = None if word in names() else _study_path(word)
    return path is not None and is_study(read_yaml(path))


def load_study(name_or_path: str, *, audit_options: Mapping[str, dataclasses.Field]) -> Study:
    """Return a study by the name of a file in `studies/`, or from the path of a YAML file.

    Args:
        audit_options: options that the section `audit` may have.

    Raises:
        InputError: for an unknown name, or for the first thing that is wrong in the file, with its line.
    """
    path = _study_path(name_or_path)
    if path is None:
        known = sorted(each.stem for each in STUDIES.glob("*.yaml"))
        raise InputError(f"unknown study {name_or_path!r}: {did_you_mean(name_or_path, known)}, or a YAML file's path")
    return study_from_yaml(read_yaml(path), name=path.stem, audit_options=audit_options)


def study_from_yaml(root: Located, *, name: str, audit_options: Mapping[str, dataclasses.Field]) -> Study:
    """Return the study that a YAML tree describes; `name` stands where the tree names none.

    Raises:
        InputError: with file and line, for the first thing that is wrong.
    """
    sections = root.mapping("a study", known=_SECTIONS)
    for needed, meaning in (("arms", "what is compared"), ("effort", "trials or hours of each arm on each seed")):
        if needed not in sections:
            raise root.error(f"a study needs the section '{needed}:' ({meaning})")
    name = sections["name"].word("name") if "name" in sections else name
    effort = sections["effort"]
    with effort.error_context():
        given = Effort.from_mapping(check_fields(effort.mapping("effort"), Effort.fields()))
    return Study(
        name=name,
        question=" ".join(sections["question"].word("question").split()) if "question" in sections else "",
        arms=_read_arms(sections, given, name),
        effort=given,
        seeds=_read_seeds(sections.get("seeds")),
        audit=check_fields(sections["audit"].mapping("audit"), audit_options) if "audit" in sections else {},
        source={**root.plain(), "name": name},
    )


def _read_seeds(node: Located | None) -> tuple[int, ...]:
    """Return the seeds: a number of them, counted from 0, or a list."""
    if node is None:
        return tuple(range(_MOST_SEEDS.default))
    if not isinstance(node.value, list):
        with node.error_context():
            return tuple(range(check_value("seeds", node.plain(), _MOST_SEEDS)))
    seeds: list[int] = []
    for item in node.items("seeds"):
        with item.error_context():
            seed = check_value("seeds", item.plain(), _SEED)
        if seed in seeds:
            raise item.error(f"seed {seed} stands twice; each is run once")
        seeds.append(seed)
    if not seeds:
        raise node.error("seeds is empty: give a number of them, or a list")
    return tuple(seeds)


def _read_arms(sections: Mapping[str, Located], effort: Effort, name: str) -> dict[str, Space]:
    """Return the arms: each a search space of the shared sections and its own knobs.

    Raises:
        InputError: for fewer than two arms, a wrong one, or two that are the same.
    """
    node = sections["arms"]
    entries, arms = node.mapping("arms"), {}
    if len(entries) < 2:
        raise node.error(f"arms: {len(entries)} given; a study compares at least two, the first being the control")
    for arm, knobs in entries.items():
        if not _ARM.fullmatch(arm):
            raise knobs.error(f"arm {arm!r}: must be 1 to 24 letters, digits or '_', the first a letter or digit")
        space = _read_arm(sections, arm, knobs, effort, name)
        for other, earlier in arms.items():
            if (earlier.complete(earlier.fixed), earlier.swept) == (space.complete(space.fixed), space.swept):
                raise knobs.error(f"arm {arm!r} is the same space as arm {other!r}: nothing would be compared")
        arms[arm] = space
    return arms


def _read_arm(sections: Mapping[str, Located], arm: str, knobs: Located, effort: Effort, name: str) -> Space:
    shared = sections["space"].mapping("space") if "space" in sections else {}
    own = knobs.mapping(f"arm {arm!r}")
    tree = {key: sections[key] for key in _OF_SPACE if key in sections}
    tree["space"] = Located({**shared, **own}, knobs.where)
    if effort.trials:
        tree["trials"] = Located(effort.trials, sections["effort"].where)
    evaluation = tree["evaluation"].mapping("evaluation") if "evaluation" in tree else {}
    if "split_seed" in evaluation:
        raise evaluation["split_seed"].error("'split_seed' is not set here: the study's seeds are those of the splits")
    for key, item in own.items():
        if key not in TRIAL_FIELDS and key not in EvaluationConfig.fields():
            raise item.error(f"unknown setting {key!r} in arm {arm!r}: {did_you_mean(key, TRIAL_FIELDS)}")
    try:
        space = space_from_yaml(Located(tree, knobs.where), name=name)
    except InputError as error:
        raise InputError(f"{error} (in arm {arm!r})") from None
    return dataclasses.replace(space, trials=_MOST_TRIALS) if effort.hours and space.swept else space
