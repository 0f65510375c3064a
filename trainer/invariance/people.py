"""Answers of people, in the form that crowds are fitted on and held against: votes, and sets of one label an image.

A folder of votes holds `images.npy` (N, H, W) with pixels from 0 to 255, `sources.npy` (N,), the test images that they
were made from, and `votes.npy` (N, P), the class that each of P people named, -1 for none.

Shapes: N images, K classes, P people.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.data import Split
from trainer.errors import InputError
from trainer.invariance.judge import ABSTAINS
from trainer.invariance.labelled_sets import WHITE, LabelledSet, in_range, load_array, read_images


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
    """(N,) int64: the test image that each was made from."""


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
    if sources.shape != votes.shape[:1] or not in_range(sources, 0, len(test.labels) - 1):
        raise InputError(
            f"{folder / 'sources.npy'}: {sources.shape} from {sources.min():g} to {sources.max():g}: must be "
            f"({len(votes)},) whole numbers from 0 to {len(test.labels) - 1}"
        )
    images, _ = read_images(folder / "images.npy", len(votes), tuple(test.images.shape[1:]))
    said = torch.from_numpy(votes.astype(np.int64))
    counts = F.one_hot(said + 1, classes + 1)[..., 1:].sum(1).double()
    known, index = counts.sum(1) > 0, torch.from_numpy(sources.astype(np.int64))
    return Answers(
        f"{votes.shape[1]} people on {folder.name}",
        images[known],
        counts[known] / counts[known].sum(1, keepdim=True),
        test.labels[index][known],
        index[known],
    )


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
