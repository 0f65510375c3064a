"""Checkpoints that survive a crash at any moment: sealed bytes in a store, of which the newest readable one is used."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from trainer.files.atomic import patiently, write_whole
from trainer.files.sealed import seal, unseal

KEPT = 2
"""Number of checkpoints kept per trial: the newest, and the one before in case the newest is damaged."""


class Store(Protocol):
    """A flat folder of named bytes, on this machine or elsewhere; `write` is all or nothing."""

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, content: bytes) -> None: ...
    def delete(self, name: str) -> None: ...


class FolderStore:
    """A `Store` in a folder of this machine, made when it is first written to.

    Args:
        log: Called with a message if a write has to wait for the storage.
    """

    def __init__(self, folder: Path, *, log: Callable[[str], None] = lambda message: None) -> None:
        self.folder, self._log = folder, log

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*")) if self.folder.is_dir() else []

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole.

        Raises:
            StorageFailed: if the folder can't be written or the disk stays full; what was there stays.
        """
        path = self.folder / name
        patiently(lambda: write_whole(path, content), what=repr(str(path)), log=self._log)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


def save_checkpoint(store: Store, epoch: int, state: dict[str, Any]) -> None:
    """Write the state after `epoch`, then delete all but the `KEPT` newest checkpoints up to it.

    A checkpoint of a later epoch is deleted too: it can only be a damaged one that was passed over.

    Args:
        state: Tensors, numbers, texts, lists and mappings only (`torch.load(weights_only=True)` must read it).
    """
    written = f"checkpoint-{epoch:06d}.pt"
    store.write(written, seal(to_bytes(state)))
    names = _checkpoint_names(store)
    kept = [name for name in names if name <= written][-KEPT:]
    for name in set(names) - set(kept):
        store.delete(name)


def keep_newest_checkpoint(store: Store) -> None:
    """Delete all checkpoints but the newest, of a trial that will wait."""
    for name in _checkpoint_names(store)[:-1]:
        store.delete(name)


def load_checkpoint(store: Store) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest whole checkpoint, or None; and a warning for each damaged one that was passed over."""
    warnings = []
    for name in reversed(_checkpoint_names(store)):
        try:
            return from_bytes(unseal(store.read(name))), warnings
        except FileNotFoundError:
            continue  # deleted meanwhile by a worker that outlived its driver and writes the same numbers
        except (ValueError, OSError) as error:
            warnings.append(f"{name} is damaged ({error}) and passed over")
    return None, warnings


def _checkpoint_names(store: Store) -> list[str]:
    """Return the names, oldest first; six digits keep the order of names and of epochs the same."""
    return [name for name in store.names() if name.startswith("checkpoint-")]


def to_bytes(state: dict[str, Any]) -> bytes:
    """Return the state as `from_bytes` reads it."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """Return the state that `to_bytes` was given, on the CPU. Reads tensors and plain values only; runs no code.

    Raises:
        ValueError: for anything else.
    """
    import torch

    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - the reader raises whatever damaged bytes lead it to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"unreadable: {reason}") from error
