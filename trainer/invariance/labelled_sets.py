"""Invariance examples that people labelled: read in the published layout, and compared with any classifier.

A folder as published with Tramèr et al. 2020: `NAME.npy` (N, 28, 28) with pixels from 0 to 255 and `NAME_labels.npy`
(N,) beside it, in any subfolder. The MNIST test images that they were made from are listed in `indexs.npy` (sic) beside
them or in a folder above; for one set alone in `NAME_indexs.npy`, for one family of sets in `FAMILY_indexs.npy`, named
by the first word of their names. Images may be (N, 784) or (N, 28, 28, 1) too, and pixels may lie in [0, 1].

Shapes: N images, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer.attacks import judged, predict
from trainer.data import Split
from trainer.errors import InputError
from trainer.human_agreement import (
    EXAMPLES_OPTION,
    LABELS,
    ORIGINAL,
    Agreement,
    ExamplesFolder,
    HumanAgreement,
    SetComparison,
    Share,
)
from trainer.invariance.judge import ABSTAINS

_INDICES = "indexs.npy"
_BATCH = 500
"""Images that a model answers at once."""
WHITE = 255
"""Greatest pixel value in the published sets, whatever their type."""


class LabelledSet(NamedTuple):
    """Perturbed images, people's labels for them, and the images that they were made from."""

    name: str
    """Path of the file in the folder, without its suffix."""
    images: Tensor
    """(N, 1, H, W) in [0, 1]."""
    labels: Tensor
    """(N,) int64, -1 where people did not agree on any class."""
    sources: Split
    """The N images that these were made from, with their labels."""
    source_index: Tensor
    """(N,) int64, their positions among the test images."""
    white: int = WHITE
    """The pixel value that was taken for white."""

    @property
    def changed(self) -> Tensor:
        """(N,) bool: people see another class than the source's."""
        return (self.labels != ABSTAINS) & (self.labels != self.sources.labels)

    @property
    def unchanged(self) -> Tensor:
        """(N,) bool: people still see the source's class."""
        return self.labels == self.sources.labels


_Answers = Callable[[Tensor], Tensor]
"""Function from images (N, 1, H, W) in [0, 1] to classes (N,) int64, -1 for none."""


def read_examples(folder: Path, test: Split, *, classes: int) -> list[LabelledSet]:
    """Read every labelled set below `folder`, in the order of their names.

    Args:
        folder: a folder in the published layout.
        test: the data set's test images, in the published order.
        classes: K.

    Raises:
        InputError: naming the folder or file, if there is no set, or a file is missing, damaged, or of another set.
    """
    # A Mac's archives hold a `._NAME` beside every NAME.
    names = sorted(path.relative_to(folder) for path in folder.rglob(f"[!.]*{LABELS}"))
    if not names:
        raise InputError(f"{EXAMPLES_OPTION} {str(folder)!r}: holds no file whose name ends in {LABELS}")
    return [_read_set(folder, str(name)[: -len(LABELS)], test, classes=classes) for name in names]


def _read_set(folder: Path, name: str, test: Split, *, classes: int) -> LabelledSet:
    """Read the set of one name; arguments and errors as of `read_examples`."""
    labels, indices_file = load_array(folder / f"{name}{LABELS}"), _find_indices(folder, name)
    indices = load_array(indices_file)
    if labels.ndim != 1 or not in_range(labels, ABSTAINS, classes - 1):
        raise InputError(
            f"{folder / name}{LABELS}: must hold (N,) whole numbers from 0 to {classes - 1}, or {ABSTAINS} for none"
        )
    images, white = _read_images(folder / f"{name}.npy", len(labels), tuple(test.images.shape[1:]))
    if indices.shape != labels.shape or not in_range(indices, 0, len(test.labels) - 1):
        raise InputError(
            f"{indices_file}: holds {indices.shape} indices from {indices.min():g} to {indices.max():g}; for "
            f"{name}.npy it must hold ({len(labels)},) whole numbers from 0 to {len(test.labels) - 1} (indices of this "
            f"set alone belong into {name}_{_INDICES})"
        )
    chosen = torch.from_numpy(indices.astype(np.int64))
    sources = Split(test.images[chosen], test.labels[chosen])
    _check_sources(name, images, sources.images, indices_file)
    return LabelledSet(name, images, torch.from_numpy(labels.astype(np.int64)), sources, chosen, white)


def _read_images(path: Path, count: int, shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """Read `count` images (N, *shape) in [0, 1], and the pixel value that was taken for white.

    Raises:
        InputError: naming the file, for another shape or pixels outside the range.
    """
    levels = load_array(path)
    channels, rows, columns = shape
    allowed = [(count, rows, columns), (count, rows * columns), (count, rows, columns, channels)]
    if levels.shape not in allowed:
        raise InputError(f"{path}: images {levels.shape}: must be {', '.join(map(str, allowed))} for {count} labels")
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= WHITE):
        raise InputError(f"{path}: pixels from {low:g} to {high:g}: must lie in [0, {WHITE}], or in [0, 1]")
    white = 1 if high <= 1 else WHITE
    return torch.from_numpy(levels.astype(np.float32).reshape(count, *shape) / white), white


def _check_sources(name: str, images: Tensor, sources: Tensor, indices_file: Path) -> None:
    """Refuse a set that was made from other images than its indices name: most must lie nearest to their own.

    Raises:
        InputError: naming the set and the file of its indices.
    """
    nearest = torch.cdist(images.flatten(1), sources.flatten(1)).argmin(1)
    own = int((sources[nearest] == sources).flatten(1).all(1).sum())
    if 2 * own < len(images):
        raise InputError(
            f"{name}.npy: only {own} of {len(images)} images look like the test image that {indices_file} names for "
            "them: these are another set's indices, or the set was made from other data"
        )


def _find_indices(folder: Path, name: str) -> Path:
    """Find the file of source indices: the set's own, else its family's, else the common one in the nearest folder."""
    path = folder / name
    own = [path.with_name(f"{word}_{_INDICES}") for word in (path.name, path.name.split("_")[0])]
    common = [above / _INDICES for above in path.parents if above.is_relative_to(folder)]
    return next((file for file in [*own, *common] if file.exists()), folder / _INDICES)


def load_array(path: Path) -> np.ndarray:
    """Load the numbers in one file, without unpickling.

    Raises:
        InputError: naming the file, where it is missing, damaged or empty.
    """
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file, and the set can't be read without it") from error
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise InputError(f"{path}: not a readable array of numbers ({error})") from error
    if array.dtype.kind not in "iuf" or array.size == 0:
        raise InputError(f"{path}: {array.shape} of {array.dtype}: must hold an array of numbers")
    return array


def in_range(numbers: np.ndarray, low: int, high: int) -> bool:
    """Return whether all are whole numbers from `low` to `high`."""
    return bool((numbers == np.floor(numbers)).all() and numbers.min() >= low and numbers.max() <= high)


def ask_people(
    folder: ExamplesFolder, sets: Sequence[LabelledSet], answerers: Mapping[str, _Answers]
) -> HumanAgreement:
    """Measure how far each answerer agrees with people on the sets of a folder."""
    return HumanAgreement(
        folder.path,
        folder.digest,
        tuple(
            SetComparison(
                name=each.name,
                images=len(each.labels),
                changed=int(each.changed.sum()),
                unchanged=int(each.unchanged.sum()),
                white=each.white,
                agreements=tuple(compare(each, answerers)),
            )
            for each in sets
        ),
    )


def answers_of(model: nn.Module) -> _Answers:
    """Build the answers of a model, images (B, C, H, W) to a `Prediction`, on any device; leave it as it was found."""

    def answer(images: Tensor) -> Tensor:
        device = next((parameter.device for parameter in model.parameters()), images.device)
        with judged(model):
            logits = predict(lambda batch: model(batch.to(device)).logits, images, batch_size=_BATCH)
        return logits.argmax(1).cpu()

    return answer


def compare(labelled: LabelledSet, answerers: Mapping[str, _Answers]) -> list[Agreement]:
    """Compare each answerer with people on a set, and first an answer that is always the source's label."""
    always = agreement(ORIGINAL, labelled, labelled.sources.labels, labelled.sources.labels)
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
        covered=_share(covered, torch.ones_like(covered)),
        changed=_share(answers == labelled.labels, covered & labelled.changed),
        stuck=_share(answers == source, covered & labelled.changed & right_when_clean),
        unchanged=_share(answers == labelled.labels, covered & labelled.unchanged),
        called_changed=_share(answers == labelled.labels, called_changed),
    )


def _share(hits: Tensor, among: Tensor) -> Share:
    """Count how many of the images `among` (N,) bool are `hits` (N,) bool."""
    return Share(int((hits & among).sum()), int(among.sum()))
