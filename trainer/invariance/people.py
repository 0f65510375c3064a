"""Answers of people, in the form that crowds are fitted on and held against: votes, and sets of one label an image.

A folder of votes holds `images.npy`, (N, H, W) or (N, C, H, W) with pixels from 0 to 255, `sources.npy` (N,), the
images that they were made from, and `votes.npy` (N, P), the class that each of P people named, -1 for none. The sources
are of any split if `labels.npy` (N,) tells their classes, as beside a sweep's page; without it they are test images.

Shapes: N images, K classes, P people.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.data import Split
from trainer.errors import InputError
from trainer.invariance.judge import ABSTAINS
from trainer.invariance.labelled_sets import WHITE, LabelledSet, in_range, load_array

_LABELS = "labels.npy"
_LARGEST_INDEX = 2**31 - 1


class Answers(NamedTuple):
    """Images that people looked at, and what they said."""

    people: str
    """The people, and what they were shown."""
    images: Tensor
    """(N, 1, H, W) in [0, 1]."""
    shares: Tensor
    """(N, K): the share of the people who gave each answer."""
    labels: Tensor
    """(N,) int64: the class of each image's source."""
    sources: Tensor
    """(N,) int64: the image that each was made from."""


def read_votes(folder: Path, test: Split, *, classes: int) -> Answers:
    """Read a folder of votes; an image for which nobody named a class is left out.

    Args:
        folder: as above.
        test: the data set's test images, in the published order.
        classes: K.

    Raises:
        InputError: naming the file that is missing, damaged, or of another shape or range.
    """
    votes, sources = load_array(folder / "votes.npy"), load_array(folder / "sources.npy")
    if votes.ndim != 2 or not in_range(votes, ABSTAINS, classes - 1):
        raise InputError(
            f"{folder / 'votes.npy'}: {votes.shape} from {votes.min():g} to {votes.max():g}: must be (images, people) "
            f"whole numbers from 0 to {classes - 1}, or {ABSTAINS} for no answer"
        )
    labelled = (folder / _LABELS).exists()
    _check_column(folder / "sources.npy", sources, len(votes), _LARGEST_INDEX if labelled else len(test.labels) - 1)
    index = torch.from_numpy(sources.astype(np.int64))
    labels = _read_labels(folder, len(votes), classes=classes) if labelled else test.labels[index]
    channels, rows, columns = test.images.shape[1:]
    images = read_perturbed(folder / "images.npy", (channels, rows, columns))
    if len(images) != len(votes):
        raise InputError(f"{folder / 'images.npy'}: {len(images)} images: must be {len(votes)}, as votes.npy has rows")
    said = torch.from_numpy(votes.astype(np.int64))
    counts = F.one_hot(said + 1, classes + 1)[..., 1:].sum(1).double()
    known = counts.sum(1) > 0
    return Answers(
        f"{votes.shape[1]} people on {folder.name}",
        images[known],
        counts[known] / counts[known].sum(1, keepdim=True),
        labels[known],
        index[known],
    )


def _read_labels(folder: Path, count: int, *, classes: int) -> Tensor:
    labels = load_array(folder / _LABELS)
    _check_column(folder / _LABELS, labels, count, classes - 1)
    return torch.from_numpy(labels.astype(np.int64))


def _check_column(path: Path, numbers: np.ndarray, count: int, largest: int) -> None:
    """Check that an array holds `count` whole numbers from 0 to `largest`."""
    if numbers.shape != (count,) or not in_range(numbers, 0, largest):
        raise InputError(
            f"{path}: {numbers.shape} from {numbers.min():g} to {numbers.max():g}: must be ({count},) whole numbers "
            f"from 0 to {largest}"
        )


def votes_fingerprint(folder: Path) -> str:
    """Return a digest of the arrays in a folder of votes."""
    digest = hashlib.sha256()
    for path in (folder / name for name in ("images.npy", "sources.npy", _LABELS, "votes.npy")):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:12]


def read_perturbed(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read images (N, C, H, W) in [0, 1] from an array (N, H, W) or (N, C, H, W) with pixels in [0, 1] or [0, 255].

    Args:
        shape: (C, H, W) of the data set's images.

    Raises:
        InputError: naming the file, for another shape or pixels outside the range.
    """
    levels = load_array(path)
    channels, rows, columns = shape
    allowed = [f"(N, {channels}, {rows}, {columns})", *([f"(N, {rows}, {columns})"] if channels == 1 else [])]
    if levels.shape[1:] not in (shape, *([(rows, columns)] if channels == 1 else [])):
        raise InputError(f"{path}: images {levels.shape}: must be {' or '.join(allowed)}")
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= WHITE):
        raise InputError(f"{path}: pixels from {low:g} to {high:g}: must lie in [0, 1] or in [0, {WHITE}]")
    white = 1 if high <= 1 else WHITE
    return torch.from_numpy(levels.astype(np.float32).reshape(-1, *shape) / white)


def answers_of_set(labelled: LabelledSet, *, classes: int) -> Answers:
    """Return a set of one label an image as answers; an image on which people did not agree is left out."""
    known = labelled.labels != ABSTAINS
    return Answers(
        f"the people of {labelled.name}",
        labelled.images[known],
        F.one_hot(labelled.labels[known], classes).double(),
        labelled.sources.labels[known],
        labelled.source_index[known],
    )
