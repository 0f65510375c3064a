"""The plan of a sweep: everything that decides it, each option declared once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from search_spaces import Space
from sweep.front import Objectives
from sweep.plan.mlflow_address import check_mlflow_uri, given_uri
from sweep.plan.objectives import OBJECTIVES, check_objectives, objectives_to_dict
from sweep.plan.options import check_typed, declared, option, options_of
from sweep.plan.paths import CACHE, check_name, existing_folder
from sweep.plan.stages import Stage, points_by_number
from trainer.config import OF_EARLIER_VERSIONS, UNANIMOUS, TrialConfig, check_packable
from trainer.errors import InputError

SAMPLERS = ("tpe", "nsga2", "nsga3", "gp", "random", "qmc")
_DECIDING_SPACE = ("evaluation", "space", "points", "require", "prior")
"""Sections of the space that are part of a plan's digest."""


@dataclass(frozen=True)
class SweepPlan:
    """One sweep. Plain values apart from the space and the objectives; paths and URIs are absolute."""

    name: str = field(metadata=declared("name of the sweep", metavar="NAME", shown="the space's name and the time"))

    space: Space
    """The search space and what judges it, all presets resolved."""

    storage: str = field(
        metadata=declared(
            "folder or URL of all sweeps", metavar="DIR", place=True, shown="OTSWEEP_STORAGE, else ~/otsweep"
        )
    )

    mlflow_uri: str = field(
        metadata=declared(
            "MLflow server or store, without a password",
            metavar="URI",
            place=True,
            resumable=True,
            resolve=given_uri,
            shown="MLFLOW_TRACKING_URI, else SQLite in the storage folder",
        )
    )

    created: str
    """Time of creation, UTC, ISO 8601."""

    code_version: str
    """`git describe` where the code runs from a clone, else the installed version."""

    versions: dict[str, str]
    """Versions of Python and of the libraries that the numbers may depend on."""

    id: str = ""
    """Random identifier, which tells the sweep's runs in MLflow from those of others with its name; empty in plans of
    earlier versions. No number depends on it."""

    objectives: Objectives = field(default=OBJECTIVES, metadata={"decides": True})
    """Objectives of the front: report fields, directions and the reference point of the hypervolume."""

    sampler: str = option("tpe", "sampler that proposes configurations", choices=SAMPLERS, metavar="NAME", decides=True)

    stopper: str = option(
        "none", "rule that stops trials early", choices=("none", "asha", "thaw"), metavar="NAME", decides=True
    )
    """`asha` stops trials that lag at a rung; `thaw` pauses trials there, and continues those that are worth it."""

    eta: int = option(
        2, "at each rung the best 1/N of the trials go on, and all on the rung's front", low=2, high=100, decides=True
    )

    grace_epochs: int = option(
        2, "epochs of the first rung; each next has eta times as many", low=1, high=100_000, decides=True
    )

    stop_chance: float = option(
        0.05,
        "stop or pause a lagging trial if its probability of reaching the front is at most P; at 1 stop all of them",
        low=0,
        high=1,
        metavar="P",
        decides=True,
    )
    """The probability is estimated from how the finished trials changed from that rung on."""

    ladder: int = option(
        0,
        "judge the first epochs with N attack steps, later ones with more; 0 judges all with the evaluation's own",
        low=0,
        high=100_000,
        decides=True,
        since=0,
    )
    """The number grows with the epochs. The second half of training, which the model is chosen from, gets all steps."""

    trials: int = option(
        24, "trials in all; each seed of a configuration is one", low=1, high=100_000, shown="the space's", decides=True
    )

    seeds: int = option(
        1, "seeds that each configuration runs on, ranked and shown together", low=1, high=1000, decides=True
    )
    """Each is a trial of its own, with the seed `seed`, `seed` + 1 and so on."""

    budget_epochs: int = option(
        0,
        "begin no trial that would bring the epochs of all to more than N; 0 for no limit",
        low=0,
        high=1_000_000_000,
        decides=True,
        since=0,
    )

    stop_when_flat: int = option(
        0,
        "begin no trial once the hypervolume has not grown over N trials; 0 for never",
        low=0,
        high=100_000,
        decides=True,
    )

    flat_growth: float = option(
        0.01, "relative growth of the hypervolume that still counts as none", low=0, high=1, metavar="X", decides=True
    )

    max_hours: float = option(
        0.0, "begin no trial after H hours; 0 for no limit", low=0, high=100_000, metavar="H", resumable=True
    )
    """Resumptions are counted together. Running trials end as they would have, so that the limit is passed by one
    trial's time at most."""

    max_gpu_hours: float = option(
        0.0,
        "spend no more than H GPU hours on trials; 0 for no limit",
        low=0,
        high=100_000_000,
        metavar="H",
        resumable=True,
    )
    """GPUs of a trial (in a pack its share of the pack's) times the hours that it holds them, over all trials and
    resumptions. No trial begins that would pass it, and where it is reached, running trials stop at their next
    epoch."""

    epochs: int | None = option(
        None, "epochs of every trial", **TrialConfig.fields()["epochs"].metadata, shown="the space's", decides=True
    )

    seed: int = option(0, "seed of the search and, with it, of every trial", low=0, high=2**31 - 1, decides=True)

    epoch_timeout: float = option(
        0.0,
        "end and retry a worker that reports nothing for S seconds; 0: for 20 usual epochs of its trial, 15 minutes at "
        "least",
        low=0,
        high=100_000_000,
        metavar="S",
        resumable=True,
    )
    """It is told before. Where no trial has shown yet how long an epoch takes, none is ended by default."""

    cpus_per_trial: float = option(1.0, "CPU cores, and threads, of a trial or pack", above=0, high=4096)

    gpus_per_trial: float = option(0.0, "GPUs of a trial or pack; 0.25 shares one among four", low=0, high=1024)

    pack: int = option(
        1,
        "train K trials in one process, alike ones in one vectorised step, on a GPU; 1 packs none",
        low=1,
        high=1024,
        metavar="K",
        resumable=True,
    )
    """Packing changes numbers in their last digits alone, where sums are taken in another order."""

    max_concurrent: int = option(
        0,
        "maximum number of trials at once; 0: as many as fit; auto: as many as the first trial's memory allows",
        low=0,
        high=100_000,
        resumable=True,
    )

    measure_memory: bool = False
    """True (`--max-concurrent auto`) to begin with one trial, and then run as many at once as its memory allows."""

    keep_models: str = option("front", "models that MLflow is given", choices=("front", "all", "none"), metavar="WHOSE")
    """`none` also leaves out the gallery of examples of the front's trials."""

    data_dir: str | None = option(
        None,
        "folder with data sets, looked into before anything is downloaded",
        metavar="DIR",
        place=True,
        resumable=True,
        resolve=partial(existing_folder, "--data-dir"),
        shown="OTSWEEP_DATA_DIR",
    )

    history: tuple[Stage, ...] = field(default=(), metadata={"decides": True})
    """Earlier stages of a sweep that was extended; empty for one that was not."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if re.fullmatch("[0-9a-f]{0,64}", self.id) is None:
            raise InputError(f"id {self.id!r}: must be hexadecimal digits")
        check_mlflow_uri(self.mlflow_uri)
        check_objectives(self.objectives)
        for name in OPTIONS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_option(name, getattr(self, name)))
        _check_together(self)

    @property
    def folder(self) -> Path:
        """The sweep's own folder."""
        return Path(self.storage) / self.name

    @property
    def configurations(self) -> int:
        """Number of different configurations among the trials."""
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
        """Folder of data and preparations, shared by all sweeps in this storage."""
        return Path(self.storage) / CACHE

    @property
    def hash(self) -> str:
        """A digest of what decides the numbers: the same experiment elsewhere has the same digest. Left out are where
        results go, how many trials run at once, on which cores and in which packs, when the plan was made and by which
        versions."""
        return plan_digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by field name."""
        plain = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        del plain["history"]
        plain |= {"history": [stage.to_dict() for stage in self.history]} if self.history else {}
        return plain | {"space": self._plain_space(), "objectives": objectives_to_dict(self.objectives)}

    def _plain_space(self) -> dict[str, Any]:
        """Return the space's plain values; where it is judged as by an earlier version they are as that wrote them."""
        plain, evaluation = self.space.to_dict(), self.space.evaluation
        later = {name for name, value in OF_EARLIER_VERSIONS.items() if getattr(evaluation, name) == value}
        if evaluation.crowd == UNANIMOUS:
            later |= {"crowd", "eval_final_steps"}
        plain["evaluation"] = {name: value for name, value in plain["evaluation"].items() if name not in later}
        return plain


def _check_together(plan: SweepPlan) -> None:
    """Check the rules that tie several fields."""
    if plan.gpus_per_trial > 1 and not plan.gpus_per_trial.is_integer():
        raise InputError(
            f"--gpus-per-trial = {plan.gpus_per_trial!r}: must be a share of one GPU (at most 1) or a whole number of "
            "them"
        )
    if plan.ladder > (steps := plan.space.evaluation.eval_sensitivity_steps):
        raise InputError(f"--ladder {plan.ladder}: must be at most {steps}, the evaluation's eval_sensitivity_steps")
    if plan.trials % plan.seeds:
        below = plan.trials // plan.seeds * plan.seeds
        right = " or ".join(f"--trials {each}" for each in (below, below + plan.seeds) if each)
        raise InputError(f"--trials {plan.trials}: must be a multiple of --seeds {plan.seeds}, so give {right}")
    if plan.pack > 1:
        _check_pack(plan)
    if unknown := [name for name in plan.space.prior.beliefs if name not in plan.objectives.names]:
        raise InputError(f"prior: {unknown[0]} is no objective; the sweep's are {', '.join(plan.objectives.names)}")
    given = len(points_by_number(plan.history, plan.space, seeds=plan.seeds))
    if not plan.space.swept and plan.configurations > given:
        seeds = f", each on {plan.seeds} seeds," if plan.seeds > 1 else ""
        raise InputError(f"--trials {plan.trials}: the space has {given} points{seeds} and draws nothing")


def _check_pack(plan: SweepPlan) -> None:
    if plan.measure_memory:
        raise InputError(
            f"--max-concurrent auto: measures the memory of a trial that has a process of its own, and with --pack "
            f"{plan.pack} {plan.pack} trials share one; give a number, or leave it out"
        )
    try:
        for config in plan.space.corners():
            check_packable(config)
    except InputError as error:
        raise InputError(f"--pack {plan.pack}: {error}") from None


OPTIONS = options_of(SweepPlan)
"""Fields of a plan that an option of the same name sets."""

PLACES = tuple(name for name, spec in OPTIONS.items() if spec.metadata["place"])
"""Options that say where things are."""

RESUMABLE = tuple(name for name, spec in OPTIONS.items() if spec.metadata["resumable"])
"""Options that a resume may change."""


check_option = partial(check_typed, options=OPTIONS)
"""Check a plan's option by its name and value, as `check_typed` does."""


def plan_digest(plain: Mapping[str, Any]) -> str:
    """Return the digest of a plan's plain values; keys that it lacks are left out, as in plans of earlier versions."""
    deciding = {
        spec.name: plain[spec.name]
        for spec in dataclasses.fields(SweepPlan)
        if spec.metadata.get("decides") and spec.name in plain and plain[spec.name] != spec.metadata.get("since")
    }
    deciding["space"] = {key: plain["space"][key] for key in _DECIDING_SPACE if key in plain["space"]}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
