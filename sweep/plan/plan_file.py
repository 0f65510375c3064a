"""TODO one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from search_spaces import Located, dump_yaml, read_yaml
from sweep.plan.mlflow_address import default_mlflow_uri
from sweep.plan.paths import PLAN, check_name, name_taken, nearest_sweeps, storage_folder
from sweep.plan.plan import SweepPlan, plan_digest
from sweep.plan.remote_storage import pull_remote, push_remote, url_of
from trainer.errors import InputError
from trainer.files import make_whole_folder, write_whole


def write_plan(plan: SweepPlan) -> None:
    """Make the sweep's folder with the plan in it: both are there afterwards, or neither.

    Raises:
        InputError: if the name was taken meanwhile, or the storage can't be written.
    """
    try:
        with make_whole_folder(plan.folder, replace=False) as draft:
            write_whole(draft / PLAN, plan_text(plan).encode())
        push_remote(plan.folder)
    except OSError as error:
        if plan.folder.exists():
            raise name_taken(plan.folder) from None
        raise InputError(f"--storage {plan.storage}: can't be written: {error.strerror}") from None


def read_plan(name: str, *, storage: str | None = None) -> SweepPlan:
    """The plan of a sweep; storage that was moved or mounted elsewhere is followed.

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
        raise InputError(f"{folder / name} holds the plan of {plan.name!r}: give the folder its name back")
    if url_of(folder) is None and plan.mlflow_uri == default_mlflow_uri(Path(plan.storage)):
        plan = dataclasses.replace(plan, mlflow_uri=default_mlflow_uri(folder))
    return dataclasses.replace(plan, storage=str(folder), data_dir=_followed(plan, folder))


def _followed(plan: SweepPlan, folder: Path) -> str | None:
    """Where a sweep's data lies now: in its storage, if it did, wherever that is; None where the folder is not here,
    so that OTSWEEP_DATA_DIR says it on this machine."""
    if plan.data_dir is None:
        return None
    here = Path(plan.data_dir)
    if here.is_relative_to(plan.storage):
        here = folder / here.relative_to(plan.storage)
    return str(here) if here.is_dir() else None


def plan_text(plan: SweepPlan) -> str:
    """The text of a plan's file. The digest comes last: a file that was cut anywhere has lost it."""
    return dump_yaml({**plan.to_dict(), "hash": plan.hash})


def parse_plan(root: Located) -> SweepPlan:
    """The plan in a file's tree, if its digest fits.

    Raises:
        InputError: for a file that is cut off, damaged or was changed by hand.
    """
    entries = dict(root.mapping("a plan"))
    if "hash" not in entries:
        raise root.error("is cut off or damaged: hash missing")
    written = entries.pop("hash")
    rest = Located(entries, root.where)
    plan = SweepPlan.from_yaml(rest)
    # Over what stands in the file, not over what it means now: a later version may know more fields.
    if plan_digest(rest.plain()) != written.value:
        raise written.error(f"is damaged or was changed by hand: its digest is {plan_digest(rest.plain())}")
    return plan
