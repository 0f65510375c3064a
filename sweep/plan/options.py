"""Options of a sweep: each is declared once, and the rest follows from its declaration.

An option is a field of `SweepPlan` made by `option`. The arguments of `run`, `plan`, `submit` and `resume`, the key in
the plan's file, the plan's digest and what a resume may change are all derived from it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import InputError
from trainer.fields import read_value
from trainer.words import did_you_mean

_NOTHING = object()
"""Stands for a value that no earlier plan implies."""


@dataclass(frozen=True, kw_only=True)
class _Option:
    """The declaration of an option, kept as the metadata of its field."""

    help: str
    """Meaning, as `--help` shows it; the choices and the default are added."""

    metavar: str = "N"
    """Stand-in for the value in `--help`."""

    low: float | None = None
    """Least value allowed."""

    high: float | None = None
    """Largest value allowed."""

    above: float | None = None
    """Bound that the value must exceed."""

    choices: tuple[str, ...] | None = None

    decides: bool = False
    """True if the option decides the numbers of trials or of the search, and so is part of the plan's digest."""

    since: Any = _NOTHING
    """Value that earlier plans imply, of an option added later. A digest leaves the option out at that value."""

    resumable: bool = False
    """True if `resume` may change the option."""

    place: bool = False
    """True if the option says where things are; a cluster's nodes have places of their own."""

    shown: str | None = None
    """Default in words, where the field's own default does not tell it."""

    repeatable: bool = False
    """True if the option may be given several times; its value is then a list."""

    resolve: Callable[[str], Any] | None = None
    """Function that turns what was typed into the plan's value, by looking at this machine."""


def declared(help: str, **facts: Any) -> dict[str, Any]:
    """Return the metadata of a field that is an option; the arguments are those of `_Option`."""
    return vars(_Option(help=help, **facts))


def option(default: Any, help: str, **facts: Any) -> Any:
    """Return a dataclass field that is an option with a default."""
    return dataclasses.field(default=default, metadata=declared(help, **facts))


@dataclass(frozen=True)
class _SpaceOptions:
    """Options that change the search space before it becomes part of a plan, which holds the space alone."""

    set: list[str] | None = option(
        None,
        "fix a knob of all trials, or of what judges them",
        metavar="KEY=VALUE",
        repeatable=True,
        shown="the space's",
    )

    require: list[str] | None = option(
        None,
        "requirement of the front: trials that violate it are excluded: 'clean_accuracy >= 0.9'",
        metavar="BOUND",
        repeatable=True,
        shown="the space's",
    )

    crowd: str | None = option(
        None,
        "people whose answers count: strict, lenient, or one that `people --fit` stored",
        metavar="NAME",
        shown="the space's",
    )

    points: str | None = option(None, "configurations to run first: YAML, JSON or CSV", metavar="FILE", shown="none")

    from_: str | None = option(
        None,
        "run the front of an earlier sweep first, and draw some trials near its best, as a prior does",
        metavar="NAME",
        shown="none",
    )


def options_of(plan: type) -> dict[str, dataclasses.Field]:
    """Return the options among the fields of a plan by name, each with its plain type: `int` for `int | None`."""
    options = {spec.name: copy.copy(spec) for spec in dataclasses.fields(plan) if "help" in spec.metadata}
    for spec in options.values():
        spec.type = str(spec.type).removesuffix(" | None")  # type: ignore[assignment]
    return options


SPACE_OPTIONS = options_of(_SpaceOptions)
"""Options that change the search space, by name."""


def flag(name: str) -> str:
    """Return the option as it is typed; a name that is a word of Python, such as `from_`, ends in an underscore."""
    return "--" + name.rstrip("_").replace("_", "-")


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command, without those that are None; one that was repeated is so again."""
    words: list[str] = []
    for name, value in options.items():
        for each in value if isinstance(value, list) else [] if value is None else [value]:
            words += [flag(name), str(each)]
    return words


def add_option(parser: argparse.ArgumentParser, spec: dataclasses.Field, *, shown: str | None = None) -> None:
    """Add the command-line argument of an option; `shown` describes its default where that is the command's own."""
    declared = spec.metadata
    choices = f": {', '.join(declared['choices'])}" if declared["choices"] else ""
    default = f"{spec.default:g}" if isinstance(spec.default, float) else spec.default
    again = "; repeatable" if declared["repeatable"] else ""
    text = f"{declared['help']}{choices}{again} (default: {shown or declared['shown'] or default})"
    action = "append" if declared["repeatable"] else "store"
    parser.add_argument(flag(spec.name), dest=spec.name, action=action, metavar=declared["metavar"], help=text)


def check_typed(name: str, value: Any, options: Mapping[str, dataclasses.Field]) -> Any:
    """Return an option's value in its own type, as `read_value` does.

    Raises:
        InputError: naming the option as it is typed, the value and what would be right.
    """
    if name not in options:
        raise InputError(f"unknown option {name!r}: {did_you_mean(name, options)}")
    return read_value(flag(name), value, options[name])
