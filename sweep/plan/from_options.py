"""Plans from options: a new sweep's, and one that a resume changes."""

from __future__ import annotations

import dataclasses
import os
import platform
import secrets
import time
from collections.abc import Mapping
from typing import Any

from search_spaces import Space
from sweep.plan.mlflow_address import VARIABLE, absolute_uri, default_mlflow_uri
from sweep.plan.paths import default_name, free_name, open_storage
from sweep.plan.plan import OPTIONS, RESUMABLE, SweepPlan, check_option
from sweep.plan.remote_storage import pull_remote
from sweep.plan.version import VERSIONS_OF, code_version, installed_version
from trainer.errors import InputError
from trainer.own_crowds import CROWDS, find_crowd

_AUTO = "auto"


def make_plan(
    space: Space, *, name: str | None = None, storage: str | None = None, mlflow_uri: str | None = None, **options: Any
) -> SweepPlan:
    """Return a plan for this machine; an option that is None or left out keeps its default.

    A crowd of one's own, named by the space, stands in the plan by value.

    Args:
        storage: the folder that holds all sweeps; created if missing.
        options: further options named in `OPTIONS`; numbers may be given as text.

    Raises:
        InputError: naming the option that is wrong.
    """
    folder = open_storage(storage)
    if mlflow_uri is None and (found := os.environ.get(VARIABLE)):
        mlflow_uri = absolute_uri(found, source=VARIABLE)
    given = check_options({**options, "mlflow_uri": mlflow_uri})
    values: dict[str, Any] = {
        "name": free_name(name, folder) if name is not None else default_name(space.name, folder),
        "storage": str(folder),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "code_version": code_version(),
        "id": secrets.token_hex(8),
        "versions": {"python": platform.python_version(), **{each: installed_version(each) for each in VERSIONS_OF}},
        "trials": space.trials if space.swept else space.trials * given.get("seeds", 1),
    }
    if "mlflow_uri" not in given:
        values["mlflow_uri"] = default_mlflow_uri(folder)
    pull_remote(folder / CROWDS)
    space = space.judged_by(find_crowd(space.evaluation.crowd, folder))
    return SweepPlan(space=space, **{**values, **given})


def with_resume_overrides(plan: SweepPlan, given: Mapping[str, Any]) -> SweepPlan:
    """Return the plan with what a resume may change of it: places, limits, and how much runs at once.

    Raises:
        InputError: naming the option that is wrong.
    """
    changes = check_options({name: given.get(name) for name in RESUMABLE})
    changed = {**vars(plan), **changes}
    if changed["max_gpu_hours"] and changed["pack"] != plan.pack:
        raise InputError(
            f"--pack {changed['pack']}: the sweep has a budget of GPU hours, which were counted by packs of "
            f"{plan.pack}; leave --pack out, or lift the budget by --max-gpu-hours 0"
        )
    return dataclasses.replace(plan, **changes)


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a plan from options as they were typed, without those that were not given.

    Raises:
        InputError: naming the option as it is typed, the value and what would be right.
    """
    given = {name: value for name, value in options.items() if value is not None}
    measured = {"measure_memory": given["max_concurrent"] == _AUTO} if "max_concurrent" in given else {}
    if given.get("max_concurrent") == _AUTO:
        given["max_concurrent"] = 0
    return {name: _resolved(name, check_option(name, value)) for name, value in given.items()} | measured


def _resolved(name: str, value: Any) -> Any:
    resolve = OPTIONS[name].metadata["resolve"]
    return resolve(value) if resolve else value
