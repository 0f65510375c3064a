"""Agreement with people on perturbed images that people labelled: where such examples lie, and the shares as numbers.

Needs no torch, so that the commands that only show the shares need not load it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Self

from trainer.errors import InputError
from trainer.intervals import wilson_interval

EXAMPLES_OPTION = "--invariance-examples"
_FOLDER = "invariance_examples"
"""Folder below the data folder in which the published sets are looked for."""
_PUBLISHED_FOR = "mnist"
_DATASETS = (_PUBLISHED_FOR, "fashion_mnist")
"""Data sets that the published layout fits: 28x28 grey images in 10 classes."""

LABELS = "_labels.npy"
"""Suffix of the names of files with people's labels."""

ORIGINAL, JUDGE, MODEL = "the original", "the oracle", "the model"
"""Names of answerers: the label that the image had before the change, whatever it shows; the judge; a trained model.

They stand in reports and results on disk.
"""
_SHOWN = {JUDGE: "the judge"}
"""Names that people read instead of the stored ones."""

HEADINGS = (
    "\n",
    "agrees on\nchanged",
    "95%\ninterval",
    "\nstuck",
    "agrees on\nunchanged",
    "right in\nchanges",
    "\nanswers",
)
"""Headings of `cells`, in two lines; `LEGEND` explains them."""
LEGEND = (
    "changed, unchanged: images to which people gave another label than the original, or the same; stuck: of the "
    "changed ones, right before the change, those still given the original label; right in changes: of the images "
    "given another label than the original, those where people gave it too."
)


class ExamplesFolder(NamedTuple):
    """A folder with sets of examples."""

    path: str
    digest: str
    """Digest of the names and contents of all arrays in it."""


class Share(NamedTuple):
    """A share of images."""

    hits: int
    size: int

    @property
    def value(self) -> float:
        """The share as a number in [0, 1]; 0 if there are no images."""
        return self.hits / max(self.size, 1)


@dataclass(frozen=True)
class Agreement:
    """Agreement of an answerer, which may abstain, with people on one set."""

    answerer: str
    covered: Share
    """Share of the images that it answered; the other shares are of these."""
    changed: Share
    """Share with the people's answer among images whose class people see changed."""
    stuck: Share
    """Share with the source's label among the same images, if it was right on the source."""
    unchanged: Share
    """Share with the people's answer among images whose class people see unchanged."""
    called_changed: Share
    """Share with the people's answer among images that it gave another class than the source's."""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        return cls(plain["answerer"], *(Share(*plain[field.name]) for field in dataclasses.fields(cls)[1:]))


@dataclass(frozen=True)
class SetComparison:
    """All answerers that were compared with people on one set."""

    name: str
    """Name of the set."""
    images: int
    changed: int
    """Number of images whose class people see changed."""
    unchanged: int
    white: int
    """Pixel value that was read as white in the set's files: 255 or 1."""
    agreements: tuple[Agreement, ...]

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        return cls(**{**plain, "agreements": tuple(map(Agreement.from_plain, plain["agreements"]))})

    def by(self, answerer: str) -> Agreement:
        return next(each for each in self.agreements if each.answerer == answerer)

    @property
    def title(self) -> str:
        """A line such as "linf/automated_eps03: people see 21 of 100 images changed"."""
        undecided = self.images - self.changed - self.unchanged
        return (
            f"{self.name}: people see {self.changed} of {self.images} images changed"
            f"{f', and did not agree on {undecided}' if undecided else ''}"
            f"{'; pixels read as 0 to 1, not 0 to 255' if self.white == 1 else ''}"
        )


@dataclass(frozen=True)
class HumanAgreement:
    """All comparisons with people on the sets of one folder."""

    folder: str
    digest: str
    sets: tuple[SetComparison, ...]

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Build from the output of `dataclasses.asdict`, also after a way through JSON."""
        return cls(plain["folder"], plain["digest"], tuple(map(SetComparison.from_plain, plain["sets"])))


def find_examples(given: str | Path | None, *, dataset: str, data_dir: str | Path | None) -> ExamplesFolder | None:
    """Find the folder that was named, else the one beside the data; None if there is neither.

    Args:
        given: Folder named with --invariance-examples.
        dataset: Name of the data set that the examples must have been made from.
        data_dir: Folder with data sets; OTSWEEP_DATA_DIR if None.

    Raises:
        InputError: if the data set has another shape, or the folder can't be read or holds no labelled set.
    """
    if given is not None:
        if dataset not in _DATASETS:
            raise InputError(
                f"{EXAMPLES_OPTION} {str(given)!r}: such examples are 28x28 grey images in 10 classes "
                f"({', '.join(_DATASETS)}); the data set here is {dataset!r}"
            )
        return _open_folder(Path(given), context=f"{EXAMPLES_OPTION} {str(given)!r}")
    beside = data_dir or os.environ.get("OTSWEEP_DATA_DIR")
    found = Path(beside).expanduser() / _FOLDER if beside and dataset == _PUBLISHED_FOR else None
    return _open_folder(found, context=f"examples {str(found)!r}") if found and found.is_dir() else None


def _open_folder(path: Path, *, context: str) -> ExamplesFolder:
    """Open a folder with at least one labelled set; errors as of `find_examples`, beginning with `context`."""
    try:
        path = path.expanduser().absolute()
        is_folder = path.is_dir()
        files = {file: _digest(file) for file in sorted(path.rglob("[!.]*.npy")) if file.is_file()}
    except (OSError, ValueError, RuntimeError) as error:  # unreadable; a null byte in it; ~nobody
        raise InputError(f"{context}: can't be read: {error}") from None
    if not is_folder:
        raise InputError(f"{context}: {'is not a folder' if path.exists() else 'no such folder'}")
    if not any(file.name.endswith(LABELS) for file in files):
        raise InputError(f"{context}: holds no file whose name ends in {LABELS}")
    listing = "\n".join(f"{file.relative_to(path)} {content}" for file, content in files.items())
    return ExamplesFolder(str(path), hashlib.sha256(listing.encode()).hexdigest()[:16])


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def cells(agreements: Sequence[Agreement]) -> list[str]:
    """Return one answerer's line below `HEADINGS`: its shares, or the means of several on the same images."""
    name = agreements[0].answerer
    return [
        _SHOWN.get(name, name),
        _shown([each.changed for each in agreements]),
        _shown_interval([each.changed for each in agreements]),
        _shown([each.stuck for each in agreements], of=False),
        _shown([each.unchanged for each in agreements]),
        _shown([each.called_changed for each in agreements]),
        _shown([each.covered for each in agreements], of=False),
    ]


def _shown(shares: Sequence[Share], *, of: bool = True) -> str:
    """Return the mean share and the mean number of images, as in "47.6% of 21"; a dash if there are no images."""
    known = [share for share in shares if share.size]
    if not known:
        return "-"
    size = fmean(share.size for share in shares)
    return f"{fmean(share.value for share in known):.1%}" + (f" of {size:.0f}" if of else "")


def _shown_interval(shares: Sequence[Share]) -> str:
    """Return Wilson's interval at 95%, as in "28 to 68%"; for the number of images of one, since all have the same."""
    size = shares[0].size
    if not size:
        return "-"
    hits = round(fmean(share.value for share in shares) * size)
    interval = wilson_interval(hits, size)
    return f"{100 * interval.low:.0f} to {100 * interval.high:.0f}%"


def unknown_agreement(dataset: str) -> str:
    """Return what is shown if there are no examples."""
    if dataset != _PUBLISHED_FOR:
        return f"How far the judge agrees with people on perturbed images of {dataset} is not known."
    return (
        "How far the judge agrees with people is not known here: put the published examples "
        f"(github.com/ftramer/Excessive-Invariance, its folder {_FOLDER}/) into OTSWEEP_DATA_DIR, or name their folder "
        f"with {EXAMPLES_OPTION}."
    )
