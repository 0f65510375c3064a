"""The cache of decoded data sets: built once, opened memory-mapped from then on, checked each time."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.config import EvaluationConfig
from trainer.data.catalogue import SIZES, Sizes, is_own
from trainer.data.formats import Pixels, check_pixels, decode
from trainer.data.own import decode_own, own_digest
from trainer.data.splits import split_order, usual_sizes
from trainer.files import locked, make_whole_folder

_STORED_FILES = ("images.npy", "labels.npy")
_FORMAT = 2
"""Version of the cached tensors; a cache of another version is left alone and a new one made beside it."""


class Stored(NamedTuple):
    """The opened cache: all splits one after the other."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1]."""
    labels: Tensor
    """(N,) int64."""
    digest: str
    """Digest of pixels, labels and their order."""
    sizes: Sizes
    """Sizes of the splits."""


def source_digest(evaluation: EvaluationConfig, files: list[Path]) -> str:
    """Return a name for the cache of these files, so that a file put in the place of another is read again.

    Raises:
        InputError: if data of one's own is not there.
    """
    files_seen: list[Any] = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    files_seen += own_digest(evaluation.dataset) if is_own(evaluation.dataset) else []
    return hashlib.sha256(json.dumps([_FORMAT, evaluation.split_seed, files_seen]).encode()).hexdigest()[:12]


def open_stored(folder: Path) -> Stored | None:
    """Open the cached tensors, memory-mapped; None if they are missing or damaged."""
    try:
        record = json.loads((folder / "record.json").read_bytes())
        if record["checks"] != measure(folder):
            return None
        # Copy-on-write: writing to a tensor by mistake stays in the process that does it.
        images, labels = (
            torch.from_numpy(np.load(folder / name, mmap_mode="c", allow_pickle=False)) for name in _STORED_FILES
        )
        return Stored(images, labels, str(record["digest"]), Sizes(*record["sizes"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def build_stored(folder: Path, evaluation: EvaluationConfig, files: list[Path]) -> Stored:
    """Decode, split and store a data set, in one process while the others wait for it."""
    with locked(folder.with_name(f"{folder.name}.lock")):
        if stored := open_stored(folder):
            return stored
        name = evaluation.dataset
        pixels = decode_own(name) if is_own(name) else check_pixels(decode(name, files), name)
        sizes = SIZES.get(name) or usual_sizes(len(pixels.labels), pixels.tests)
        order = split_order(pixels.labels, sizes, tests=pixels.tests, seed=evaluation.split_seed)
        _store(folder, pixels._replace(images=pixels.images[order], labels=pixels.labels[order]), sizes)
        stored = open_stored(folder)
    if stored is None:
        raise OSError(f"what was just written to {folder} reads back differently")
    return stored


def _store(folder: Path, pixels: Pixels, sizes: Sizes) -> None:
    digest = hashlib.sha256(pixels.images.tobytes() + pixels.labels.tobytes()).hexdigest()
    with make_whole_folder(folder, replace=True) as unfinished:
        np.save(unfinished / "images.npy", np.divide(pixels.images, pixels.white, dtype=np.float32))
        np.save(unfinished / "labels.npy", pixels.labels)
        record = {"digest": digest, "sizes": sizes, "checks": measure(unfinished)}
        (unfinished / "record.json").write_text(json.dumps(record))


def measure(folder: Path, *, blocks: int = 64, block: int = 1 << 14) -> dict[str, list[int]]:
    """Measure each stored file: its size, and a checksum of evenly spaced blocks (all of a small file, 1 MiB at most).

    That shows what happens to files (cut short, zeroed by a crash, overwritten) at a cost that each trial can pay.
    """
    measured = {}
    for name in _STORED_FILES:
        with open(folder / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            checksum = 0
            for start in np.linspace(0, max(0, size - block), min(blocks, -(-size // block))).astype(int):
                file.seek(start)
                checksum = zlib.crc32(file.read(block), checksum)
        measured[name] = [size, checksum]
    return measured
