"""The identity of a sweep in a store that it may share with others of its name, and with copies of its own folder.

A plan has a random identifier, which all of its runs carry. A copy of the folder has it too, so the sweep's own run
also says where the folder is: as a file of this file system, which a move keeps and a copy does not, and as a path of
this host, which a backup that was put back keeps. One of the two is enough. Storage at a URL is where its URL is.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping

from sweep.plan import PLAN, SweepPlan, url_of

SWEEP_ID_TAG = "otsweep.sweep_id"
_PLACE_TAG = "otsweep.place"


def identity_tags(plan: SweepPlan) -> dict[str, str]:
    """Return the tags by which a run that stands for a whole sweep is found again."""
    return {_PLACE_TAG: " ".join(_place(plan)), **({SWEEP_ID_TAG: plan.id} if plan.id else {})}


def is_own(plan: SweepPlan, tags: Mapping[str, str]) -> bool:
    """Return whether a run with these tags belongs to this sweep, in this folder.

    Plans, and runs, of earlier versions have no identifier: they belong together by their digest, and a run that says
    no place is anybody's whose plan it is.
    """
    if plan.id != tags.get(SWEEP_ID_TAG, ""):
        return False
    place = tags.get(_PLACE_TAG, "").split()
    if not place:
        return not plan.id and tags.get("otsweep.plan_hash") == plan.hash
    return any(mine == other for mine, other in zip(_place(plan), place, strict=False))


def _place(plan: SweepPlan) -> tuple[str, str]:
    """Return digests of the file that the plan is, and of the path that it has."""
    if url := url_of(plan.folder):
        return _digest(url), _digest(url)
    path = plan.folder / PLAN
    try:
        found = path.stat()
        file = f"{found.st_ino} {found.st_ctime_ns}"
    except OSError:
        file = str(path)
    return _digest(file), _digest(f"{platform.node()} {os.path.realpath(path)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
