"""Invariance examples that people labelled: read in the published layout, and compared with any classifier.

A folder as published with Tramèr et al. 2020: `NAME.npy` (N, 28, 28) with pixels from 0 to 255 and `NAME_labels.npy`
(N,) beside it, in any subfolder. The MNIST test images that they start from stand in `indexs.npy` (sic) at the top or,
for one family of sets, in `FAMILY_indexs.npy` beside them.

Shapes: N images, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.config import InputError
from trainer.data import Split
from trainer.evidence import Interval, wilson_interval
from trainer.oracle import ABSTAINS

LABELS, INDICES = "_labels.npy", "indexs.npy"


class LabelledSet(NamedTuple):
    """Perturbed images, what people say they show, and what they were made from."""

    name: str
    """The file's path in the folder, without its suffix."""
    images: Tensor
    """(N, 1, H, W) in [0, 1]."""
    labels: Tensor
    """(N,) int64, -1 where people did not agree on any."""
    sources: Split
    """The N images that they were made from."""

    @property
    def changed(self) -> Tensor:
        """(N,) bool: people see another class than the source's."""
        return (self.labels != ABSTAINS) & (self.labels != self.sources.labels)

    @property
    def unchanged(self) -> Tensor:
        """(N,) bool: people still see the source's class."""
        return self.labels == self.sources.labels


class Share(NamedTuple):
    """A share of images."""

    hits: int
    size: int

    @property
    def value(self) -> float:
        """In [0, 1]; 0 of no images."""
        return self.hits / max(self.size, 1)

    @property
    def interval(self) -> Interval:
        """Wilson's, at 95%."""
        return wilson_interval(self.hits, self.size)


class Agreement(NamedTuple):
    """How far someone who answers, or abstains, agrees with people on one set."""

    answerer: str
    covered: Share
    """Images that were answered at all; the other shares are of these."""
    changed: Share
    """Of images whose class people see changed, those answered with the people's label."""
    stuck: Share
    """Of those whose source was answered rightly, the ones still answered with the source's label."""
    unchanged: Share
    """Of images whose class people see unchanged, those answered with it."""
    called_changed: Share
    """Of images answered with another class than the source's, those where people say the same."""


Answers = Callable[[Tensor], Tensor]
"""Images (N, 1, H, W) in [0, 1] to classes (N,) int64, -1 for none."""


def read_examples(folder: Path, test: Split, *, classes: int) -> list[LabelledSet]:
    """Every labelled set below `folder`, by name.

    Args:
        folder: in the published layout.
        test: the data set's test images, in the published order.
        classes: K.

    Raises:
        InputError: naming the file, where there is none or one is damaged, or does not belong to the others.
    """
    names = sorted(path.relative_to(folder) for path in folder.rglob(f"*{LABELS}"))
    if not names:
        raise InputError(f"--invariance-examples {str(folder)!r}: holds no file whose name ends in {LABELS}")
    return [read_set(folder, str(name)[: -len(LABELS)], test, classes=classes) for name in names]


def read_set(folder: Path, name: str, test: Split, *, classes: int) -> LabelledSet:
    """The set of one name; arguments and errors as of `read_examples`."""
    labels, levels = load_array(folder / f"{name}{LABELS}"), load_array(folder / f"{name}.npy")
    indices_file = find_indices(folder, name)
    indices = load_array(indices_file)
    rows, columns = test.images.shape[2:]
    if levels.shape != (len(labels), rows, columns) or labels.ndim != 1:
        raise InputError(f"{name}: images {levels.shape}, labels {labels.shape}: must be (N, {rows}, {columns}), (N,)")
    if indices.shape != labels.shape or not in_range(indices, 0, len(test.labels) - 1):
        raise InputError(f"{indices_file}: must hold {len(labels)} whole numbers from 0 to {len(test.labels) - 1}")
    if not in_range(labels, ABSTAINS, classes - 1):
        raise InputError(f"{name}{LABELS}: must hold whole numbers from 0 to {classes - 1}, or {ABSTAINS} for none")
    if not (levels.min() >= 0 and levels.max() <= 255):
        raise InputError(f"{name}.npy: pixels from {levels.min():g} to {levels.max():g}: must lie in [0, 255]")
    chosen = torch.from_numpy(indices.astype(np.int64))
    images = torch.from_numpy(levels.astype(np.float32) / 255)[:, None]
    return LabelledSet(name, images, torch.from_numpy(labels.astype(np.int64)), Split(*(t[chosen] for t in test)))


def find_indices(folder: Path, name: str) -> Path:
    """The file of source indices: that of the set's family, the first word of its name, where there is one."""
    path = folder / name
    own = path.with_name(f"{path.name.split('_')[0]}_{INDICES}")
    return own if own.exists() else folder / INDICES


def load_array(path: Path) -> np.ndarray:
    """The numbers in one file, never unpickled.

    Raises:
        InputError: naming the file, where it is missing, damaged or empty.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file, and the set can't be read without it") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable array of numbers ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf" or array.size == 0:
        raise InputError(f"{path}: must hold an array of numbers")
    return array


def in_range(numbers: np.ndarray, low: int, high: int) -> bool:
    """Whether all are whole numbers from `low` to `high`."""
    return bool((numbers == np.floor(numbers)).all() and numbers.min() >= low and numbers.max() <= high)


def compare(labelled: LabelledSet, answerers: dict[str, Answers]) -> list[Agreement]:
    """What each answerer makes of a set, beside who always answers with the source's label."""
    always = agreement("the original label", labelled, labelled.sources.labels, labelled.sources.labels)
    return [always] + [
        agreement(name, labelled, answer(labelled.images), answer(labelled.sources.images))
        for name, answer in answerers.items()
    ]


def agreement(name: str, labelled: LabelledSet, answers: Tensor, clean_answers: Tensor) -> Agreement:
    """Compare `answers` (N,) to a set's images, and to its sources, with what people say."""
    covered, source = answers != ABSTAINS, labelled.sources.labels
    right_when_clean = clean_answers == source
    called_changed = covered & (answers != source) & (labelled.labels != ABSTAINS)
    return Agreement(
        answerer=name,
        covered=share(covered, torch.ones_like(covered)),
        changed=share(answers == labelled.labels, covered & labelled.changed),
        stuck=share(answers == source, covered & labelled.changed & right_when_clean),
        unchanged=share(answers == labelled.labels, covered & labelled.unchanged),
        called_changed=share(answers == labelled.labels, called_changed),
    )


def share(hits: Tensor, among: Tensor) -> Share:
    """How many of the images `among` (N,) bool are `hits` (N,) bool."""
    return Share(int((hits & among).sum()), int(among.sum()))
