"""Everything that decides a sweep, written into its folder before anything runs and read back on resume."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from search_spaces import Located, Space, locate, space_from_yaml
from sweep.front import Objectives
from sweep.plan.mlflow_address import absolute_uri, check_mlflow_uri, default_mlflow_uri
from sweep.plan.objectives import OBJECTIVES, check_objectives, objectives_to_dict, read_objectives
from sweep.plan.paths import CACHE, check_name, default_name, existing_folder, free_name, open_storage
from sweep.plan.version import VERSIONS_OF, code_version, installed_version
from trainer.config import TrialConfig, check_packable
from trainer.errors import InputError
from trainer.fields import check_value, field_type, knob
from trainer.words import did_you_mean

SAMPLERS = ("tpe", "nsga2", "nsga3", "gp", "random", "qmc")
_STOPPERS = ("none", "asha")
_KEPT_MODELS = ("front", "all", "none")
_DECIDING = (
    "objectives",
    "sampler",
    "stopper",
    "eta",
    "grace_epochs",
    "stop_chance",
    "ladder",
    "trials",
    "seeds",
    "stop_when_flat",
    "flat_growth",
    "epochs",
    "seed",
)
_DECIDING_SPACE = ("evaluation", "space", "points", "require")
_LATER = {"ladder": 0}
"""Fields that came later, as plans without them are meant; at that they leave a plan's digest as it was."""
_AUTO = "auto"


@dataclass(frozen=True)
class SweepPlan:
    """One sweep. Plain values apart from the space and the objectives; paths and URIs are absolute."""

    name: str
    """Of the sweep and of its folder."""

    space: Space
    """What is swept and what judges it, all presets resolved."""

    storage: str
    """The folder that holds all sweeps, their common cache and the default MLflow store."""

    mlflow_uri: str
    """Where MLflow records go; never with a password in it."""

    created: str
    """Time of creation, UTC, ISO 8601."""

    code_version: str
    """`git describe` where the code runs from a clone, else the installed version."""

    versions: dict[str, str]
    """Of Python and of the libraries that the numbers may depend on."""

    objectives: Objectives = OBJECTIVES
    """What is traded off: report fields, directions and the reference point of the hypervolume."""

    sampler: str = knob("tpe", choices=SAMPLERS)
    """Who proposes configurations."""

    stopper: str = knob("none", choices=_STOPPERS)
    """Who stops trials early: `asha` those that are behind at a rung, `none` nobody."""

    eta: int = knob(2, low=2, high=100)
    """Of the trials that reach a rung the best 1/eta go on, and all on the rung's front."""

    grace_epochs: int = knob(2, low=1, high=100_000)
    """Epochs of the first rung; each next has eta times as many."""

    stop_chance: float = knob(0.05, low=0, high=1)
    """Who is behind at a rung is stopped if its chance of coming to the front, as finished trials tell it, is at most
    this; 1 stops all who are behind."""

    ladder: int = knob(0, low=0, high=100_000)
    """Steps of the sensitivity attack that judges the first epochs; it grows with the epochs, and is the evaluation's
    own in the second half of training, which the model is chosen from. 0 for the evaluation's own in all."""

    trials: int = knob(24, low=1, high=100_000)
    """How many trials run in all, if nothing below ends the sweep before; every seed of a configuration is a trial."""

    seeds: int = knob(1, low=1, high=1000)
    """On how many seeds each configuration runs, in trials of its own: `seed`, `seed` + 1 and so on. They are ranked
    and shown together."""

    stop_when_flat: int = knob(0, low=0, high=100_000)
    """No new trial begins once the hypervolume has not grown over so many; 0 for never."""

    flat_growth: float = knob(0.01, low=0.0, high=1.0)
    """Growth of the hypervolume, as a share of it, up to which it has not grown."""

    max_hours: float = knob(0.0, low=0.0, high=100_000)
    """No new trial begins after so many hours of running, resumptions counted together; 0 for no limit. Trials that
    run by then end as they would have: the limit is passed by one trial's time at most."""

    max_gpu_hours: float = knob(0.0, low=0.0, high=100_000_000)
    """The GPUs of a trial (in a pack its share of the pack's) times the hours that it holds them, over all trials and
    resumptions; 0 for no limit. No trial begins that would pass it, and where it is reached, running trials stop at
    their next epoch."""

    epochs: int | None = None
    """Epochs of every trial where they are not the space's."""

    seed: int = knob(0, low=0, high=2**31 - 1)
    """Decides the search and, with it, every trial."""

    cpus_per_trial: float = knob(1.0, above=0, high=4096)
    """CPU cores a trial is given, and so its threads; where trials are packed, a pack."""

    gpus_per_trial: float = knob(0.0, low=0, high=1024)
    """GPUs a trial is given, or a pack; a share of one below 1, whole ones above."""

    pack: int = knob(1, low=1, high=1024)
    """So many trials train in one process, those of one structure in one vectorised step; 1 packs none. Changes no
    number but in the last digits, where sums are taken in another order."""

    max_concurrent: int = knob(0, low=0, high=100_000)
    """Most trials at once; 0 for as many as fit."""

    measure_memory: bool = False
    """Begin with one trial, and then run as many at once as its memory allows (`--max-concurrent auto`)."""

    keep_models: str = knob("front", choices=_KEPT_MODELS)
    """Trials whose models MLflow is given; with `none` the front's trials have no gallery of examples either."""

    data_dir: str | None = None
    """Folder with datasets, looked into before anything is downloaded."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_mlflow_uri(self.mlflow_uri)
        check_objectives(self.objectives)
        for option in OPTIONS:
            if getattr(self, option) is not None:
                object.__setattr__(self, option, check_option(option, getattr(self, option)))
        if self.ladder > (steps := self.space.evaluation.eval_sensitivity_steps):
            raise InputError(
                f"--ladder {self.ladder}: must be at most {steps}, the evaluation's eval_sensitivity_steps"
            )
        if self.trials % self.seeds:
            below = self.trials // self.seeds * self.seeds
            right = " or ".join(f"--trials {each}" for each in (below, below + self.seeds) if each)
            raise InputError(f"--trials {self.trials}: every trial has one of --seeds {self.seeds}, so give {right}")
        self._check_pack()
        if not self.space.swept and self.configurations > len(self.space.points):
            seeds = f", each on {self.seeds} seeds," if self.seeds > 1 else ""
            points = len(self.space.points)
            raise InputError(f"--trials {self.trials}: the space has {points} points{seeds} and draws nothing")

    def _check_pack(self) -> None:
        if self.pack == 1:
            return
        if self.measure_memory:
            raise InputError(
                f"--max-concurrent auto: goes by the memory of a trial that has a process of its own, and --pack "
                f"{self.pack} gives one to {self.pack} of them; give a number, or leave it out"
            )
        try:
            for config in self.space.corners():
                check_packable(config)
        except InputError as error:
            raise InputError(f"--pack {self.pack}: {error}") from None

    @property
    def folder(self) -> Path:
        """The sweep's own folder."""
        return Path(self.storage) / self.name

    @property
    def configurations(self) -> int:
        """How many different ones the trials are."""
        return self.trials // self.seeds

    @property
    def cpu_share(self) -> float:
        """CPU cores that one trial takes up: of a pack's its share."""
        return self.cpus_per_trial / self.pack

    @property
    def gpu_share(self) -> float:
        """GPUs that one trial takes up: of a pack's its share."""
        return self.gpus_per_trial / self.pack

    @property
    def epochs_per_trial(self) -> int:
        """Epochs of each drawn trial: the option's, else the space's."""
        return self.epochs or self.space.fixed.get("epochs", TrialConfig().epochs)

    @property
    def cache_dir(self) -> Path:
        """Data and preparations, shared by all sweeps in this storage."""
        return Path(self.storage) / CACHE

    @property
    def hash(self) -> str:
        """A digest of what decides the numbers: the same experiment elsewhere has the same digest. Left out are where
        results go, how many trials run at once, on which cores and in which packs, when the plan was made and by which
        versions."""
        return plan_digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {"space": self.space.to_dict(), "objectives": objectives_to_dict(self.objectives)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The plan that `to_dict` described."""
        return cls.from_yaml(locate(plain, "plan"))

    @classmethod
    def from_yaml(cls, root: Located) -> Self:
        """The plan that a YAML tree describes; a field that has a default may be missing.

        Raises:
            InputError: for a key that is unknown, missing or wrong.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        entries = root.mapping("a plan", known=list(fields))
        missing = [
            name for name, field in fields.items() if name not in entries and field.default is dataclasses.MISSING
        ]
        if missing:
            raise root.error(f"is cut off or damaged: {', '.join(missing)} missing")
        values = {key: item.plain() for key, item in entries.items()}
        values["space"] = space_from_yaml(entries["space"], name="")
        values["versions"] = {key: item.word(key) for key, item in entries["versions"].mapping("versions").items()}
        if "objectives" in entries:
            values["objectives"] = read_objectives(entries["objectives"])
        for key in ("name", "storage", "mlflow_uri", "created", "code_version", "data_dir"):
            if values.get(key) is not None:
                entries[key].word(key)
        with root.blamed():
            return cls(**values)


OPTIONS: dict[str, dataclasses.Field] = {
    "sampler": SweepPlan.__dataclass_fields__["sampler"],
    "stopper": SweepPlan.__dataclass_fields__["stopper"],
    "eta": SweepPlan.__dataclass_fields__["eta"],
    "grace_epochs": SweepPlan.__dataclass_fields__["grace_epochs"],
    "stop_chance": SweepPlan.__dataclass_fields__["stop_chance"],
    "ladder": SweepPlan.__dataclass_fields__["ladder"],
    "trials": SweepPlan.__dataclass_fields__["trials"],
    "seeds": SweepPlan.__dataclass_fields__["seeds"],
    "stop_when_flat": SweepPlan.__dataclass_fields__["stop_when_flat"],
    "flat_growth": SweepPlan.__dataclass_fields__["flat_growth"],
    "max_hours": SweepPlan.__dataclass_fields__["max_hours"],
    "max_gpu_hours": SweepPlan.__dataclass_fields__["max_gpu_hours"],
    "epochs": TrialConfig.fields()["epochs"],
    "seed": SweepPlan.__dataclass_fields__["seed"],
    "cpus_per_trial": SweepPlan.__dataclass_fields__["cpus_per_trial"],
    "gpus_per_trial": SweepPlan.__dataclass_fields__["gpus_per_trial"],
    "pack": SweepPlan.__dataclass_fields__["pack"],
    "max_concurrent": SweepPlan.__dataclass_fields__["max_concurrent"],
    "keep_models": SweepPlan.__dataclass_fields__["keep_models"],
}
"""Fields that an option of the same name sets, with their ranges."""


def make_plan(
    space: Space,
    *,
    name: str | None = None,
    storage: str | None = None,
    mlflow_uri: str | None = None,
    data_dir: str | None = None,
    **options: Any,
) -> SweepPlan:
    """A plan for this machine; what is None or left out keeps its default.

    Args:
        storage: the folder that holds all sweeps; created if missing.
        options: fields named in `OPTIONS`; numbers may be given as text.

    Raises:
        InputError: naming the option that is wrong.
    """
    folder = open_storage(storage)
    mlflow_uri = (os.environ.get("MLFLOW_TRACKING_URI") or None) if mlflow_uri is None else mlflow_uri
    given = check_options(options)
    return SweepPlan(
        name=free_name(name, folder) if name is not None else default_name(space.name, folder),
        space=space,
        storage=str(folder),
        mlflow_uri=absolute_uri(mlflow_uri) if mlflow_uri is not None else default_mlflow_uri(folder),
        data_dir=existing_folder("--data-dir", data_dir) if data_dir is not None else None,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        code_version=code_version(),
        versions={"python": platform.python_version(), **{each: installed_version(each) for each in VERSIONS_OF}},
        **{"trials": space.trials if space.swept else space.trials * given.get("seeds", 1), **given},
    )


def with_resume_overrides(plan: SweepPlan, given: Mapping[str, Any]) -> SweepPlan:
    """The plan, with what a resume may change of it: where data and results are, how much is spent, how much runs at
    once.

    Raises:
        InputError: naming the option that is wrong.
    """
    options = ("max_hours", "max_gpu_hours", "max_concurrent", "pack")
    changes = check_options({option: given[option] for option in options})
    changed = {**vars(plan), **changes}
    if changed["max_gpu_hours"] and changed["pack"] != plan.pack:
        raise InputError(
            f"--pack {changed['pack']}: the sweep has a budget of GPU hours, which were counted by packs of "
            f"{plan.pack}; leave --pack out, or lift the budget by --max-gpu-hours 0"
        )
    if given["data_dir"] is not None:
        changes["data_dir"] = existing_folder("--data-dir", given["data_dir"])
    if given["mlflow_uri"] is not None:
        changes["mlflow_uri"] = absolute_uri(given["mlflow_uri"])
    return dataclasses.replace(plan, **changes)


def plan_digest(plain: Mapping[str, Any]) -> str:
    deciding = {
        key: plain[key] for key in _DECIDING if key in plain and not (key in _LATER and plain[key] == _LATER[key])
    }
    deciding["space"] = {key: plain["space"][key] for key in _DECIDING_SPACE if key in plain["space"]}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a plan from options, without those that were not given.

    Raises:
        InputError: as `check_option`.
    """
    given = {option: value for option, value in options.items() if value is not None}
    measured = {"measure_memory": given["max_concurrent"] == _AUTO} if "max_concurrent" in given else {}
    if given.get("max_concurrent") == _AUTO:
        given["max_concurrent"] = 0
    return {option: check_option(option, value) for option, value in given.items()} | measured


def check_option(option: str, value: Any) -> Any:
    """An option's value in its own type; text is read as a number where the option is one.

    Raises:
        InputError: naming the option as it is typed, the value and what would be right.
    """
    if option not in OPTIONS:
        raise InputError(f"unknown option {option!r}: {did_you_mean(option, OPTIONS)}")
    flag, spec = "--" + option.replace("_", "-"), OPTIONS[option]
    if isinstance(value, str) and field_type(spec) is not str:
        value = _number(value)
    value = check_value(flag, value, spec)
    if option == "gpus_per_trial" and value > 1 and not value.is_integer():
        raise InputError(f"{flag} = {value!r}: must be a share of one GPU (at most 1) or a whole number of them")
    return value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
