"""Files and folders that appear whole under their name or not at all, in storage that may refuse them for a while."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO, TypeVar

from trainer.errors import StorageFailed

_Written = TypeVar("_Written")

UNFINISHED = ".unfinished"
"""Suffix of what is still being written; its name begins with a dot."""

_PATIENCE_SECONDS = 30.0
"""Time for which a refused write is repeated: over a hiccup of a network folder, or until somebody makes room."""

_PAUSE_SECONDS = 0.5

_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS, errno.EAGAIN})
"""Refusals that may end by themselves; a file where a folder should be does not."""


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file in one piece, as `open_whole` does.

    Raises:
        OSError: if the storage refuses; what was there stays.
    """
    with open_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` at the end of the block; if the block raises, nothing changes.

    Afterwards the file survives a power cut. Its folder is made if missing. One writer of a path per process.

    Raises:
        OSError: if the storage refuses; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _renamed(path) as unfinished, unfinished.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def open_anew(path: Path) -> FileIO:
    """Put a new, empty file in the place of `path` and return it, open for reading and writing, unbuffered.

    Readers that have the old file open keep it. The new name is durable after `sync_folder`.

    Raises:
        OSError: if the storage refuses; what was there stays.
    """
    with contextlib.ExitStack() as undo:
        with _renamed(path) as unfinished:
            file = undo.enter_context(unfinished.open("w+b", buffering=0))
        undo.pop_all()
        return file


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Yield the name of a file that the block makes, and rename it to `path`; delete it if the block raises."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def make_whole_folder(path: Path, *, replace: bool) -> Iterator[Path]:
    """Make a new folder that is renamed to `path` at the end of the block; if the block raises, nothing changes.

    Args:
        replace: Whether a folder that has the name already gives way, and what killed processes left is removed. Only
            one process at a time may do that.

    Raises:
        OSError: if the storage refuses, or a folder that is not empty has the name already and stays.
    """
    if replace:
        for leftover in path.parent.glob(f".{path.name}.*{UNFINISHED}"):
            shutil.rmtree(leftover, ignore_errors=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        unfinished.mkdir()
        yield unfinished
        sync_folder(unfinished)
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def patiently(
    write: Callable[[], _Written], *, what: str, log: Callable[[str], None] = lambda message: None
) -> _Written:
    """Return what `write` returns, and repeat it while the storage refuses for a reason that may pass.

    Args:
        what: Name of what is written, for people: "checkpoint-000003.pt of trial 7".
        log: Called once with a message if it has to wait.

    Raises:
        StorageFailed: if the storage still refuses after `_PATIENCE_SECONDS`, or for a reason that does not pass.
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
                log(f"cannot write {what}: {error.strerror}; waiting up to {_PATIENCE_SECONDS:.0f} s")
            waited = True
        time.sleep(_PAUSE_SECONDS)
