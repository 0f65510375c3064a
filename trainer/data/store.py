"""TODO one line."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.config import EvaluationConfig
from trainer.data.catalogue import PUBLISHED_FILES, SIZES
from trainer.data.formats import Pixels, check_pixels, decode

_STORED_FILES = ("images.npy", "labels.npy")
_FORMAT = 1
"""Of the cached tensors; a cache of another format is left alone and a new one made beside it."""


class Stored(NamedTuple):
    """The opened cache: all splits one after the other."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1]."""
    labels: Tensor
    """(N,) int64."""
    digest: str
    """Of pixels, labels and their order."""


# Splitting


def _split_order(labels: np.ndarray, evaluation: EvaluationConfig) -> np.ndarray:
    """Which published image stands where in the cache: (N,) indices in the order train, validation, test.

    A published test set stays as it is, in its own order; digits have none, so theirs is drawn with the rest.
    """
    sizes = SIZES[evaluation.dataset]
    held_out = sizes.test if evaluation.dataset in PUBLISHED_FILES else 0
    pool = len(labels) - held_out
    order = stratified_order(labels[:pool], np.random.default_rng(evaluation.split_seed))
    test, validation, train = np.split(order, [sizes.test - held_out, sizes.test - held_out + sizes.validation])
    return np.concatenate([train, validation, test, np.arange(pool, len(labels))])


def stratified_order(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random order in which every prefix holds nearly the same share of each class.

    The r-th image of a class of size m, in random order, gets the random key (r + u) / m with u in [0, 1): each class
    is spread evenly over [0, 1], sorting by the key interleaves them, and a prefix holds its share of a class to 1 / m.

    Args:
        labels: (N,) int64.
        generator: Decides the order.
    """
    shuffled = generator.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    key = (rank + generator.random(len(labels))) / np.repeat(sizes, sizes)
    return by_class[np.argsort(key, kind="stable")]


# The cache of decoded tensors


def source_digest(evaluation: EvaluationConfig, files: list[Path]) -> str:
    """Names the cache after what it was made from, so that a file put in another's place is read again."""
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([_FORMAT, evaluation.split_seed, seen]).encode()).hexdigest()[:12]


def open_stored(folder: Path) -> Stored | None:
    """The cached tensors, memory-mapped; None where they are absent or damaged."""
    try:
        record = json.loads((folder / "record.json").read_bytes())
        if record["checks"] != measure(folder):
            return None
        # Copy-on-write: writing to a tensor by mistake stays in the process that does it.
        images, labels = (
            torch.from_numpy(np.load(folder / name, mmap_mode="c", allow_pickle=False)) for name in _STORED_FILES
        )
        return Stored(images, labels, str(record["digest"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def build_stored(folder: Path, evaluation: EvaluationConfig, files: list[Path]) -> Stored:
    """Decode, split and store, in one process while the others wait for it."""
    with locked(folder):
        if stored := open_stored(folder):
            return stored
        pixels = check_pixels(decode(evaluation.dataset, files), evaluation.dataset)
        order = _split_order(pixels.labels, evaluation)
        _store(folder, pixels._replace(images=pixels.images[order], labels=pixels.labels[order]))
        stored = open_stored(folder)
    if stored is None:
        raise OSError(f"what was just written to {folder} reads back differently")
    return stored


def _store(folder: Path, pixels: Pixels) -> None:
    """Write the tensors under a temporary name, then put them in place whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    digest = hashlib.sha256(pixels.images.tobytes() + pixels.labels.tobytes()).hexdigest()
    np.save(partial / "images.npy", np.divide(pixels.images, pixels.white, dtype=np.float32))
    np.save(partial / "labels.npy", pixels.labels)
    (partial / "record.json").write_text(json.dumps({"digest": digest, "checks": measure(partial)}))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def measure(folder: Path, *, blocks: int = 64, block: int = 1 << 14) -> dict[str, list[int]]:
    """Size and checksum of evenly spaced blocks of each stored file: all of a small file, 1 MiB of a large one.

    Enough for what happens to files (cut short, zeroed by a crash, overwritten) at a cost that each trial can pay.
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


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path`'s lock against every other process on this machine; the system frees it if this one is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
