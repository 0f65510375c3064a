"""Tensors kept on disk under a name made of what they depend on.

A checksum beside each file shows damage; a lock lets one process compute while others wait. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError
from trainer.files.locks import locked
from trainer.files.sealed import fits_checksum, write_with_checksum

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = 2
"""Version of the cached files and of the procedures that fill them: raise it when either changes."""


class NotPrepared(Exception):
    """Cached tensors are missing where they must not be made."""


class Cache:
    """Tensors by what they depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(
        self, stage: str, parameters: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the tensors kept for these parameters, memory-mapped; make them first if missing or damaged.

        Raises:
            InputError: if the folder can't be written.
        """
        path = self.path(stage, parameters)
        try:
            with locked(path.with_suffix(".lock")):
                stored = _read(path)
                if stored is None:
                    _write(path, make())
                    stored = _read(path)
        except OSError as error:
            raise InputError(f"cannot keep prepared data in {str(self._folder)!r}: {error}") from error
        assert stored is not None
        return stored

    def path(self, stage: str, parameters: Mapping[str, Any]) -> Path:
        """Return the file that holds the tensors for these parameters."""
        return self._folder / f"{stage.replace(' ', '-')}-{digest(stage, parameters)}.pt"


class ReadOnlyCache(Cache):
    """A cache that makes nothing."""

    def get(
        self, stage: str, parameters: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the tensors kept for these parameters.

        Raises:
            NotPrepared: if they are missing or damaged.
        """
        stored = _read(self.path(stage, parameters))
        if stored is None:
            raise NotPrepared(stage)
        return stored


def digest(stage: str, parameters: Mapping[str, Any]) -> str:
    """Return a short name for a stage with its parameters."""
    text = json.dumps({"format": _FORMAT, "stage": stage, **parameters}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, buffer)
    write_with_checksum(path, buffer.getbuffer())


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors under `path`, memory-mapped; None if they are missing or damaged."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True, mmap=True) if fits_checksum(path) else None
