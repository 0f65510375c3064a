"""Locks between processes of one machine; the system frees a lock when the process that holds it dies."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.errors import InputError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, made with its folder if missing; wait while another process or thread holds it.

    Raises:
        OSError: if the file can't be made or locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        yield


def take_lock(path: Path, taken: str) -> FileLock:
    """Take a lock without waiting, until its `release()` or the end of this process, however it ends.

    Args:
        taken: First words of the error's message: "sweep 'first' is already being run".

    Raises:
        InputError: if it is taken, naming the process that holds it.
        OSError: if the file can't be made or locked.
    """
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = path.read_text(errors="replace") or "another process"
        raise InputError(f"{taken} by {holder}") from None
    return lock


def _lock(path: Path) -> FileLock:
    # No fallback: the kind of lock that the library uses where flock is missing outlives a killed process.
    return FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=_write_holder)


def _write_holder(descriptor: int) -> None:
    """Write into a lock's file who holds it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"pid {os.getpid()} on host {socket.gethostname()}".encode(), 0)
