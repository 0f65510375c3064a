"""Files that appear whole and stay after a power cut, in storage that may refuse them for a while."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trainer.errors import StorageFailed

_Written = TypeVar("_Written")

_PATIENCE_SECONDS = 30.0
"""How long storage that refuses is asked again: over a hiccup of a network folder, or until somebody makes room."""

_PAUSE_SECONDS = 0.5

_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS, errno.EAGAIN})
"""Refusals that may end by themselves; a file where a folder should be does not."""


def write_whole(path: Path, content: bytes) -> None:
    """The file appears whole, under its name, and stays after a power cut; or not at all. Makes its folder.

    Raises:
        OSError: if the storage refuses; what was there stays.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A new name is durable only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def patiently(
    write: Callable[[], _Written], *, what: str, told: Callable[[str], None] = lambda message: None
) -> _Written:
    """Return what `write` returns, and where the storage refuses for a while, again, until it takes it.

    Args:
        what: is written, for people: "checkpoint-000003.pt of trial 7".
        told: of the waiting, once.

    Raises:
        StorageFailed: if it still refuses after `PATIENCE_SECONDS`, or for a reason that does not pass.
    """
    begun, waited = time.monotonic(), False
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in _PASSING:
                raise StorageFailed(f"cannot write {what}: {error.strerror}") from error
            if time.monotonic() - begun > _PATIENCE_SECONDS:
                raise StorageFailed(f"cannot write {what}: {error.strerror}, for {_PATIENCE_SECONDS:.0f} s") from error
            if not waited:
                told(f"cannot write {what}: {error.strerror}; waiting up to {_PATIENCE_SECONDS:.0f} s")
            waited = True
        time.sleep(_PAUSE_SECONDS)
