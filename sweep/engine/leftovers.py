"""Removal of what a Ray of one's own leaves behind: its folder, if it was killed; processes, if it did not start.

Each folder names its owner, and the next start removes those of owners that are gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

PREFIX = "ots-"
"""Begin of the names of such folders."""

_OWNER = "owner.json"


def write_owner(folder: Path) -> None:
    """Write into a folder which process it belongs to; where that can't be told (not on Linux), write nothing."""
    if owner := _process(os.getpid()):
        (folder / _OWNER).write_text(json.dumps(owner))


def remove_leftovers(place: Path) -> None:
    """Remove the folders in `place` whose owners, processes of this user on this machine, are gone."""
    for folder in place.glob(f"{PREFIX}*"):
        if _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)


def end_stray_processes(folder: Path) -> None:
    """End the processes of a Ray that were given a folder to work in; those of a raylet that died live on for a while,
    and make the folder again after it was removed."""
    option = os.fsencode(f"={folder}{os.sep}")
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if option in words.read_bytes():
                os.kill(int(words.parent.name), signal.SIGKILL)


def _is_left(folder: Path) -> bool:
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        owner = json.loads((folder / _OWNER).read_text())
        now, here = _process(int(owner["pid"])), _process(os.getpid())
    except (OSError, ValueError, KeyError, TypeError):
        return False  # it is another's, or nobody knows whose
    # A number of a process says nothing in another container, on another machine, or since this one was restarted.
    same_machine = here is not None and all(owner.get(key) == here[key] for key in ("boot", "namespace"))
    return same_machine and owner != now


def _process(pid: int) -> dict[str, Any] | None:
    """Return what tells a process from every other: numbers are given again; None if there is no such process."""
    proc = Path("/proc")
    try:
        # The name of its program, in parentheses, may hold anything.
        started = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        return {"pid": pid, "started": started, "boot": boot, "namespace": os.readlink(proc / "self/ns/pid")}
    except OSError:
        return None
