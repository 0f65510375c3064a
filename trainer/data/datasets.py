"""Images in [0, 1] and their labels, as tensors that all processes of a machine share.

Published files are decoded once into `.npy` files below the cache folder, in the order train, validation, test, and
opened memory-mapped from then on: every split, and every prefix of one, is a slice of the same pages.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from trainer.config import EvaluationConfig
from trainer.data.catalogue import PUBLISHED_FILES, SIZES, Sizes, classes_of, is_own
from trainer.data.locate import find_files
from trainer.data.store import Stored, build_stored, open_stored, source_digest
from trainer.errors import InputError


class Split(NamedTuple):
    """A part of the data: copy-on-write views of the cache's pages."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1]."""
    labels: Tensor
    """(N,) int64 in [0, K)."""


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, split."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    """K."""
    fingerprint: str
    """Hex digest of the pixels, the labels, their order, and how many images train and validation hold."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, rows, columns = self.train.images.shape[1:]
        return channels, rows, columns


def load_data(evaluation: EvaluationConfig, *, data_dir: Path | None = None, cache_dir: Path) -> Data:
    """Load the data set that `evaluation` names, cut to its sizes.

    Args:
        evaluation: Decides the data set, its split and how much of train and validation is used.
        data_dir: Folder that is searched first for published files; OTSWEEP_DATA_DIR if None. Only read.
        cache_dir: Folder for decoded tensors (`tensors/`) and for files that had to be downloaded (`datasets/`).

    Raises:
        InputError: if the files can't be found or downloaded, are damaged, or hold fewer images than asked for; if data
            of one's own is not as README.md says.
    """
    name, cache_dir = evaluation.dataset, cache_dir.expanduser().absolute()
    if name in SIZES:
        _check_sizes(evaluation, SIZES[name], classes_of(name))
    try:
        files = find_files(name, data_dir, downloads=cache_dir / "datasets") if name in PUBLISHED_FILES else []
        folder = cache_dir / "tensors" / f"{_file_name(name)}-{source_digest(evaluation, files)}"
        stored = open_stored(folder) or build_stored(folder, evaluation, files)
    except OSError as error:
        raise InputError(
            f"cannot use the cache in {str(cache_dir)!r}: {error}; choose another with --storage"
        ) from error
    return _cut(stored, evaluation)


def _file_name(dataset: str) -> str:
    """Return a data set's name as a part of a file's name: of one's own its kind and the end of its path."""
    kind, _, rest = dataset.partition(":")
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{kind}-{Path(rest).name}")[:60] if is_own(dataset) else dataset


def _check_sizes(evaluation: EvaluationConfig, available: Sizes, classes: int) -> None:
    """Check that a subset exists and has room for every class."""
    for knob, size, most in (
        ("train_size", evaluation.train_size, available.train),
        ("validation_size", evaluation.validation_size, available.validation),
    ):
        if size and not classes <= size <= most:
            raise InputError(
                f"{knob} = {size}: {evaluation.dataset} takes {classes} (its classes) to {most}, or 0 for all"
            )


def _cut(stored: Stored, evaluation: EvaluationConfig) -> Data:
    """Slice the stored tensors; nothing is copied."""
    whole, classes = stored.sizes, int(stored.labels.max()) + 1
    if is_own(evaluation.dataset):
        _check_sizes(evaluation, whole, classes)
    used = Sizes(evaluation.train_size or whole.train, evaluation.validation_size or whole.validation, whole.test)
    starts = (0, whole.train, whole.train + whole.validation)
    splits = [
        Split(stored.images[start : start + size], stored.labels[start : start + size])
        for start, size in zip(starts, used, strict=True)
    ]
    fingerprint = hashlib.sha256(f"{stored.digest} {used}".encode()).hexdigest()[:16]
    return Data(evaluation.dataset, *splits, classes=classes, fingerprint=fingerprint)
