"""The plan of a study: what is swept and audited in which order, and the file that a resume reads it back from."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from search_spaces import Study, dump_yaml, load_study, read_yaml, study_from_yaml
from sweep.plan.audit_options import AUDIT_OPTIONS, AuditOptions
from sweep.plan.from_options import check_options, make_plan, with_resume_overrides
from sweep.plan.paths import check_name, default_name, open_storage, storage_folder
from sweep.plan.plan import OPTIONS, PLACES, RESUMABLE, SweepPlan
from sweep.plan.plan_file import read_plan
from sweep.plan.remote_storage import url_of
from trainer.config import EvaluationConfig
from trainer.errors import InputError
from trainer.files import make_whole_folder, write_whole
from trainer.words import did_you_mean

STUDY = "study.yaml"
"""File in a study's folder that defines it."""

STUDY_OPTIONS = (
    *("storage", "mlflow_uri", "data_dir", "sampler", "keep_models"),
    *("cpus_per_trial", "gpus_per_trial", "pack", "max_concurrent"),
)
"""Options of a sweep that a study's sweeps take from the command; the others follow from the study's file."""
_DECIDING = tuple(name for name in STUDY_OPTIONS if OPTIONS[name].metadata["decides"])
_DEFAULTS = {"keep_models": "none"}


class Step(NamedTuple):
    """One arm on one seed."""

    arm: str
    seed: int


@dataclass(frozen=True)
class StudyPlan:
    """A study with a name, and the options of its sweeps."""

    name: str
    storage: Path
    study: Study
    options: dict[str, Any]
    """Fields of the sweeps' plans by name, as given."""

    @property
    def folder(self) -> Path:
        """The study's own folder; its sweeps stand beside it."""
        return self.storage / self.name

    @property
    def control(self) -> str:
        return next(iter(self.study.arms))

    @property
    def evaluation(self) -> EvaluationConfig:
        """The evaluation of all sweeps, their splits' seeds aside; a crowd of one's own stands in it by value."""
        return self.sweep_plan(self.steps[0]).space.evaluation.replace(split_seed=0)

    @property
    def audit_options(self) -> AuditOptions:
        return AuditOptions.of(self.study.audit)

    @property
    def hash(self) -> str:
        """A digest of what decides the numbers."""
        deciding = {name: self.options[name] for name in _DECIDING if name in self.options}
        return hashlib.sha256(
            json.dumps([self.study.source, list(self.study.arms), deciding], sort_keys=True).encode()
        ).hexdigest()[:16]

    def rounds(self) -> Iterator[list[Step]]:
        """Yield the steps seed by seed; the order of the arms is rotated, so that a drift meets all alike."""
        arms = list(self.study.arms)
        for index, seed in enumerate(self.study.seeds):
            first = index % len(arms)
            yield [Step(arm, seed) for arm in (*arms[first:], *arms[:first])]

    @property
    def steps(self) -> list[Step]:
        return [step for each in self.rounds() for step in each]

    def sweep_name(self, step: Step) -> str:
        return f"{self.name}-{step.arm}-{step.seed}"

    def begun(self, step: Step) -> bool:
        """Return whether the sweep of a step has a plan."""
        return (self.storage / self.sweep_name(step)).is_dir()

    def sweep_plan(self, step: Step) -> SweepPlan:
        """Return the plan of an arm's sweep on a seed: as it was begun, with what a resume changed, else a new one."""
        if self.begun(step):
            plan = read_plan(self.sweep_name(step), storage=str(self.storage))
            return with_resume_overrides(plan, {name: self.options.get(name) for name in RESUMABLE})
        effort = self.study.effort
        given = {**_DEFAULTS, **self.options, "seed": step.seed, "max_hours": effort.hours}
        given |= {"epochs": effort.epochs} if effort.epochs else {}
        space = self.study.space(step.arm, step.seed)
        if step != self.steps[0]:  # a crowd of one's own may have changed since the study began
            space = space.judged_by(self.evaluation.crowd)
        return make_plan(space, name=self.sweep_name(step), **{**given, "storage": str(self.storage)})

    def with_overrides(self, given: Mapping[str, Any]) -> StudyPlan:
        """Return the plan with what a resume may change of it."""
        changes = {name: given.get(name) for name in RESUMABLE if name in STUDY_OPTIONS}
        options = {**self.options, **{name: value for name, value in changes.items() if value is not None}}
        return StudyPlan(self.name, self.storage, self.study, options)

    def words(self) -> str:
        """Return the study's name as commands take it, with its storage where they would look elsewhere."""
        return (
            self.name if self.storage == storage_folder() else f"{self.name} --storage {shlex.quote(str(self.storage))}"
        )


def make_study(file: str, *, name: str | None, options: Mapping[str, Any], settings: Sequence[str] = ()) -> StudyPlan:
    """Return the plan of a study on this machine; its name may be that of one that was begun, which then goes on.

    Args:
        options: those named in `STUDY_OPTIONS`, as typed; None for what was not given.
        settings: values that `--set` fixes for all arms.

    Raises:
        InputError: naming what is wrong.
    """
    folder = open_storage(options.get("storage"))
    if url := url_of(folder):
        raise InputError(f"--storage {url}: a study audits its sweeps, which can't be done at a URL; give a folder")
    plan = draft_study(file, name=name, options=options, folder=folder, settings=settings)
    for arm in plan.study.arms:  # so that what is wrong shows before anything runs
        if not plan.begun(step := Step(arm, plan.study.seeds[0])):
            plan.sweep_plan(step)
    return plan


def draft_study(
    file: str, *, name: str | None, options: Mapping[str, Any], folder: Path, settings: Sequence[str] = ()
) -> StudyPlan:
    """Return the plan of a study that may run elsewhere.

    Args:
        options, settings: as of `make_study`.
        folder: the storage.

    Raises:
        InputError: naming what is wrong.
    """
    study = load_study(file, audit_options=AUDIT_OPTIONS).fixing(settings, audit_options=AUDIT_OPTIONS)
    given = {option: value for option, value in options.items() if value is not None and option != "storage"}
    # A path is taken from the working directory, once and for all.
    given |= {option: value for option, value in check_options(given).items() if option in PLACES}
    chosen = default_name(study.name, folder) if name is None else check_name(name)
    plan = StudyPlan(chosen, folder, study, given)
    try:
        check_name(max(map(plan.sweep_name, plan.steps), key=len))
    except InputError as error:
        raise InputError(f"{error} (a sweep of the study {plan.name!r}; give a shorter --name)") from None
    return plan


def begin_study(plan: StudyPlan) -> StudyPlan:
    """Make the study's folder, or return the plan of one that was begun with the same file and options.

    Raises:
        InputError: if the name is that of a sweep, or of another study.
    """
    if (plan.folder / STUDY).is_file():
        begun = read_study(plan.name, storage=str(plan.storage))
        if begun.hash != plan.hash:
            raise InputError(
                f"--name {plan.name!r}: is another study in {plan.storage}, whose file or --sampler differs; choose "
                f"another name, or go on with that one by `otsweep resume {plan.words()}`"
            )
        return begun.with_overrides(plan.options)
    if plan.folder.exists():
        raise InputError(f"--name {plan.name!r}: exists in {plan.storage} and is no study; choose another")
    kept = {"name": plan.name, "options": plan.options, "study": plan.study.source, "hash": plan.hash}
    with make_whole_folder(plan.folder, replace=False) as draft:
        write_whole(draft / STUDY, dump_yaml(kept).encode())
    return plan


def has_study(name: str, *, storage: str | None) -> bool:
    """Return whether a study of that name was begun in the storage."""
    return bool(name) and "/" not in name and (storage_folder(storage) / name / STUDY).is_file()


def read_study(name: str, *, storage: str | None) -> StudyPlan:
    """Return the plan of a study that was begun.

    Raises:
        InputError: for a name that no study in the storage has, or a damaged file.
    """
    folder = storage_folder(storage)
    if not has_study(name, storage=storage):
        known = sorted(path.parent.name for path in folder.glob(f"[!.]*/{STUDY}"))
        near = did_you_mean(name, known) if known else "there is none yet"
        raise InputError(f"no study {name!r} in {folder}: {near}")
    root = read_yaml(folder / name / STUDY)
    entries = root.mapping("a study's plan")
    missing = [key for key in ("options", "study", "hash") if key not in entries]
    if missing:
        raise root.error(f"is cut off or damaged: {', '.join(missing)} missing")
    study = study_from_yaml(entries["study"], name="", audit_options=AUDIT_OPTIONS)
    options = {key: item.plain() for key, item in entries["options"].mapping("options").items()}
    plan = StudyPlan(name, folder, study, options)
    if plan.hash != entries["hash"].value:
        raise entries["hash"].error(f"is damaged or was changed by hand: its digest is {plan.hash}")
    return plan
