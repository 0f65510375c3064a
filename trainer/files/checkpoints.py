"""Checkpoints that survive a crash at any moment: sealed bytes in a store, the newest readable one wins."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from trainer.files.atomic import patiently, write_whole

KEPT = 2
"""Checkpoints kept per trial: the newest, and the one before in case the newest was written by half."""


class Store(Protocol):
    """A flat folder of named bytes, on this machine or elsewhere; `write` is all or nothing."""

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, content: bytes) -> None: ...
    def delete(self, name: str) -> None: ...


class FolderStore:
    """A `Store` in a folder of this machine, made when it is first written to; `told` hears where it must wait."""

    def __init__(self, folder: Path, *, told: Callable[[str], None] = lambda message: None) -> None:
        self.folder, self.told = folder, told

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*")) if self.folder.is_dir() else []

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Raises StorageFailed where the folder can't be written or the disk stays full; what was there stays."""
        path = self.folder / name
        patiently(lambda: write_whole(path, content), what=repr(str(path)), told=self.told)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


def save_checkpoint(store: Store, epoch: int, state: dict[str, Any]) -> None:
    """Write the state after `epoch`, then drop all but the `KEPT` newest checkpoints up to it.

    One of a later epoch can only be one that was damaged and passed over.

    Args:
        state: tensors, numbers, texts, lists and mappings only (`torch.load(weights_only=True)` must read it).
    """
    written = f"checkpoint-{epoch:06d}.pt"
    store.write(written, seal(to_bytes(state)))
    names = _checkpoint_names(store)
    kept = [name for name in names if name <= written][-KEPT:]
    for name in set(names) - set(kept):
        store.delete(name)


def load_checkpoint(store: Store) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that is whole, or None; and a warning for each damaged one that was passed over."""
    warnings = []
    for name in reversed(_checkpoint_names(store)):
        try:
            return from_bytes(unseal(store.read(name))), warnings
        except FileNotFoundError:
            continue  # dropped meanwhile by a worker that outlived its driver; it writes what this trial would
        except (ValueError, OSError) as error:
            warnings.append(f"{name} is damaged ({error}) and passed over")
    return None, warnings


def _checkpoint_names(store: Store) -> list[str]:
    """Oldest first; six digits keep the order of names and of epochs the same."""
    return [name for name in store.names() if name.startswith("checkpoint-")]


def to_bytes(state: dict[str, Any]) -> bytes:
    """Return the state as `from_bytes` reads it."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """What `to_bytes` wrote, on the CPU. Tensors and plain values only; no code is run.

    Raises:
        ValueError: for anything else.
    """
    import torch

    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - the reader raises whatever damaged bytes lead it to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"unreadable: {reason}") from error


def seal(payload: bytes) -> bytes:
    """The payload behind its SHA-256, so that damage is known before anything is parsed."""
    return hashlib.sha256(payload).digest() + payload


def unseal(content: bytes) -> bytes:
    """The payload.

    Raises:
        ValueError: if the digest does not fit.
    """
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("its checksum does not fit")
    return payload
