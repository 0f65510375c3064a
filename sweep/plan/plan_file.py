"""The plan's file: written before anything runs, read back on resume, refused where it was damaged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from search_spaces import Located, dump_yaml, read_yaml
from sweep.plan.extension import EXTENDING
from sweep.plan.mlflow_address import default_mlflow_uri
from sweep.plan.objectives import read_objectives
from sweep.plan.paths import (
    PLAN,
    check_name,
    default_name,
    is_default_name,
    name_taken,
    nearest_sweeps,
    storage_folder,
)
from sweep.plan.plan import SweepPlan, plan_digest
from sweep.plan.remote_storage import pull_remote, push_remote, url_of
from sweep.plan.stages import read_stages, read_written_space
from trainer.errors import InputError
from trainer.files import make_whole_folder, write_whole


def write_plan(plan: SweepPlan) -> SweepPlan:
    """Make the sweep's folder with the plan in it: both are there afterwards, or neither.

    Returns:
        The plan as written: a name that was made from the time, and taken meanwhile, gives way to the next free one.

    Raises:
        InputError: if a given name was taken meanwhile, or the storage can't be written.
    """
    try:
        with make_whole_folder(plan.folder, replace=False) as draft:
            write_whole(draft / PLAN, plan_text(plan).encode())
        push_remote(plan.folder)
        return plan
    except OSError as error:
        if plan.folder.exists() and is_default_name(plan.name, plan.space.name):
            return write_plan(dataclasses.replace(plan, name=default_name(plan.space.name, Path(plan.storage))))
        if plan.folder.exists():
            raise name_taken(plan.folder) from None
        raise InputError(f"--storage {plan.storage}: can't be written: {error.strerror}") from None


def rewrite_plan(plan: SweepPlan) -> None:
    """Write the plan of a sweep that was extended into its file; whoever calls it holds the sweep's ledger.

    What else a resume changed for itself alone is not kept.

    Raises:
        InputError: if the storage can't be written.
    """
    kept = read_plan(plan.name, storage=plan.storage)
    if kept.history == plan.history:
        return
    extended = {name: getattr(plan, name) for name in EXTENDING}
    kept = dataclasses.replace(kept, **extended, space=plan.space, history=plan.history)
    try:
        write_whole(plan.folder / PLAN, plan_text(kept).encode())
    except OSError as error:
        raise InputError(f"--storage {plan.storage}: can't be written: {error.strerror}") from None
    push_remote(plan.folder / PLAN)


def read_plan(name: str, *, storage: str | None = None) -> SweepPlan:
    """Return the plan of a sweep; its paths follow a storage that was moved or mounted elsewhere.

    Raises:
        InputError: for a name that no sweep in the storage has, or a damaged plan.
    """
    check_name(name)
    folder = storage_folder(storage)
    if url_of(folder):
        pull_remote(folder, only=f"/{PLAN}")
        pull_remote(folder / name)
    if not (folder / name / PLAN).is_file():
        raise InputError(f"no sweep {name!r} in {folder}: {nearest_sweeps(name, folder)}")
    plan = parse_plan(read_yaml(folder / name / PLAN))
    if plan.name != name:
        is_copy = (folder / plan.name / PLAN).is_file()
        remedy = "it is a copy, and left out" if is_copy else "give the folder its name back"
        raise InputError(f"{folder / name} holds the plan of {plan.name!r}: {remedy}")
    if url_of(folder) is None and plan.mlflow_uri == default_mlflow_uri(Path(plan.storage)):
        plan = dataclasses.replace(plan, mlflow_uri=default_mlflow_uri(folder))
    return dataclasses.replace(plan, storage=str(folder), data_dir=_moved_data_dir(plan, folder))


def _moved_data_dir(plan: SweepPlan, folder: Path) -> str | None:
    """Return where a sweep's data lies now. A folder in the storage moves with it; None where the folder is not on this
    machine, so that OTSWEEP_DATA_DIR decides."""
    if plan.data_dir is None:
        return None
    here = Path(plan.data_dir)
    if here.is_relative_to(plan.storage):
        here = folder / here.relative_to(plan.storage)
    return str(here) if here.is_dir() else None


def plan_text(plan: SweepPlan) -> str:
    """Return the text of a plan's file. The digest comes last: a file that was cut anywhere has lost it."""
    return dump_yaml({**plan.to_dict(), "hash": plan.hash})


def parse_plan(root: Located) -> SweepPlan:
    """Return the plan in a file's tree after a check of its digest.

    Raises:
        InputError: for a file that is cut off, damaged or was changed by hand.
    """
    entries = dict(root.mapping("a plan"))
    if "hash" not in entries:
        raise root.error("is cut off or damaged: hash missing")
    written = entries.pop("hash")
    rest = Located(entries, root.where)
    plan = plan_from_tree(rest)
    # Over what stands in the file, not over what it means now: a later version may know more fields.
    if plan_digest(rest.plain()) != written.value:
        raise written.error(f"is damaged or was changed by hand: its digest is {plan_digest(rest.plain())}")
    return plan


def plan_from_tree(root: Located) -> SweepPlan:
    """Return the plan that a YAML tree describes; a field that has a default may be missing.

    Raises:
        InputError: for a key that is unknown, missing or wrong.
    """
    fields = {spec.name: spec for spec in dataclasses.fields(SweepPlan)}
    entries = root.mapping("a plan", known=list(fields))
    missing = [name for name, spec in fields.items() if name not in entries and spec.default is dataclasses.MISSING]
    if missing:
        raise root.error(f"is cut off or damaged: {', '.join(missing)} missing")
    values = {key: item.plain() for key, item in entries.items()}
    values["space"] = read_written_space(entries["space"])
    values["history"] = read_stages(entries.get("history"))
    values["versions"] = {key: item.word(key) for key, item in entries["versions"].mapping("versions").items()}
    if "objectives" in entries:
        values["objectives"] = read_objectives(entries["objectives"])
    for key, spec in fields.items():
        if spec.type in ("str", "str | None") and values.get(key) is not None:
            entries[key].word(key)
    with root.error_context():
        return SweepPlan(**values)
