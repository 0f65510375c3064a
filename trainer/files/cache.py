"""Tensors kept on disk under a name made of what they depend on.

Files are written aside and renamed; a checksum beside each shows damage; a lock lets one process compute while others
wait. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = 2
"""Of the cached files and of the procedures that fill them: raise it when either changes."""


class NotPrepared(Exception):
    """What is asked for was not made yet, and is not to be made now."""


class Cache:
    """Tensors by what they depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(
        self, stage: str, parameters: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors kept for these parameters, memory-mapped; made first where there are none, or damaged ones.

        Raises:
            InputError: if the folder can't be written.
        """
        path = self.path(stage, parameters)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock")):
                stored = _read(path)
                if stored is None:
                    _write(path, make())
                    stored = _read(path)
        except OSError as error:
            raise InputError(f"cannot keep prepared data in {str(self._folder)!r}: {error}") from error
        assert stored is not None
        return stored

    def path(self, stage: str, parameters: Mapping[str, Any]) -> Path:
        """The file that holds them."""
        return self._folder / f"{stage.replace(' ', '-')}-{digest(stage, parameters)}.pt"


class ReadOnlyCache(Cache):
    """What is kept already, and nothing else."""

    def get(
        self, stage: str, parameters: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors kept for these parameters.

        Raises:
            NotPrepared: where there are none, or damaged ones.
        """
        stored = _read(self.path(stage, parameters))
        if stored is None:
            raise NotPrepared(stage)
        return stored


def digest(stage: str, parameters: Mapping[str, Any]) -> str:
    """A short name for a stage with its parameters."""
    text = json.dumps({"format": _FORMAT, "stage": stage, **parameters}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system frees it if the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, then their checksum, each to a file aside that is then renamed."""
    import torch

    buffer = io.BytesIO()
    torch.save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, buffer)
    _replace(path, buffer.getbuffer())
    _replace(path.with_suffix(".sha256"), hashlib.sha256(buffer.getbuffer()).hexdigest().encode())


def _replace(path: Path, content: bytes | memoryview) -> None:
    """Put `content` under `path` at once and whole."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    aside.replace(path)


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors under `path`, memory-mapped; None where there are none or the checksum tells of damage."""
    import torch

    checksum = path.with_suffix(".sha256")
    if not path.exists() or not checksum.exists():
        return None
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != checksum.read_text(errors="replace"):
            return None
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
