"""The versions that a sweep began with, and those that would go on with it."""

from __future__ import annotations

import platform

from sweep.plan.plan import SweepPlan
from sweep.plan.version import VERSIONS_OF, code_version, installed_version
from trainer.errors import InputError

_DECIDING = ("torch", "optuna")
"""Libraries whose every version may compute, or draw, other numbers."""


def changed_versions(plan: SweepPlan) -> dict[str, str]:
    """Return what runs here in another version than where the sweep began, as `2.15.0, here 2.16.0` by its name."""
    here = {"otsweep": code_version(), "python": platform.python_version()}
    here |= {name: installed_version(name) for name in VERSIONS_OF}
    began = {"otsweep": plan.code_version, **plan.versions}
    return {name: f"{began[name]}, here {here[name]}" for name in here if began.get(name, here[name]) != here[name]}


def describe_changes(changes: dict[str, str]) -> str:
    return "; ".join(f"{name} {change}" for name, change in changes.items())


def check_same_numbers(plan: SweepPlan, changes: dict[str, str]) -> None:
    """Refuse to add to a sweep's trials where the same numbers can't come out any more.

    Raises:
        InputError: if a library that decides them has another version than where the sweep began.
    """
    deciding = {name: changes[name] for name in _DECIDING if name in changes}
    if deciding:
        raise InputError(
            f"{plan.name} began with {describe_changes(deciding)}: further trials would not have the numbers that they "
            "would have had; install what it began with, or give --other-versions to go on all the same"
        )
