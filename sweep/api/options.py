"""Options as Python gives them: typed names for what the command line takes as words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from search_spaces import Space
from sweep.plan import SPACE_OPTIONS, SweepPlan, make_plan

SpaceLike = str | Path | Mapping[str, Any] | Space
"""A name in search_spaces/, the path of a YAML file, the content of one as plain values, or a space that was read."""


class RunOptions(TypedDict, total=False):
    """Options of `otsweep run` by name, in plain types; None and what is left out keep their defaults."""

    name: str | None
    storage: str | Path | None
    mlflow_uri: str | None
    data_dir: str | Path | None
    sampler: str | None
    stopper: str | None
    eta: int | None
    grace_epochs: int | None
    stop_chance: float | None
    ladder: int | None
    trials: int | None
    seeds: int | None
    budget_epochs: int | None
    stop_when_flat: int | None
    flat_growth: float | None
    max_hours: float | None
    max_gpu_hours: float | None
    epochs: int | None
    epoch_timeout: float | None
    seed: int | None
    cpus_per_trial: float | None
    gpus_per_trial: float | None
    pack: int | None
    max_concurrent: int | str | None
    keep_models: str | None
    set: Mapping[str, Any] | Sequence[str] | None
    require: str | Sequence[str] | None
    crowd: str | None
    points: str | Path | None
    from_: str | None


class ResumeOptions(TypedDict, total=False):
    """Options of `otsweep resume` by name, in plain types; None and what is left out keep the sweep's own."""

    storage: str | Path | None
    mlflow_uri: str | None
    data_dir: str | Path | None
    max_hours: float | None
    max_gpu_hours: float | None
    epoch_timeout: float | None
    pack: int | None
    max_concurrent: int | str | None
    trials: int | None
    budget_epochs: int | None
    space: SpaceLike | None


def typed_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as the command line has them: paths as text, knobs as `key=value`, one requirement as a list."""
    words = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    if knobs := words.get("set"):
        words["set"] = knob_words(knobs)
    if isinstance(bound := words.get("require"), str):
        words["require"] = [bound]
    return words


def knob_words(knobs: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return values of knobs by name as `key=value`, as `--set` takes them."""
    if not isinstance(knobs, Mapping):
        return list(knobs)
    return [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in knobs.items()]


def new_plan(space: SpaceLike, options: Mapping[str, Any]) -> SweepPlan:
    """Return the plan of a new sweep; nothing is written but the storage folder.

    Args:
        options: those named in `RunOptions`.

    Raises:
        InputError: naming what is wrong.
    """
    from sweep.search import read_space  # Optuna comes with it

    words = typed_words(options)
    changes = {name: words.pop(name, None) for name in SPACE_OPTIONS}
    return make_plan(read_space(space, changes, storage=words.get("storage")), **words)
