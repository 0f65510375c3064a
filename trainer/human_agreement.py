"""What people say about perturbed images: where such examples lie, and how far somebody agrees with them.

Plain numbers without torch, so that whoever only shows them need not load it.
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
"""In the data folder: where the published sets are looked for."""
_PUBLISHED_FOR = "mnist"
_DATASETS = (_PUBLISHED_FOR, "fashion_mnist")
"""Data sets of 28x28 grey images in 10 classes: the published layout fits no other."""

LABELS = "_labels.npy"
"""How the name of a file of people's labels ends."""

ORIGINAL, ORACLE, MODEL = "the original", "the oracle", "the model"
"""Who answers: with the label that the image had before the change, whatever it shows; the judge; a trained model."""

HEADINGS = (
    "\n",
    "agrees on\nchanged",
    "95%\ninterval",
    "\nstuck",
    "agrees on\nunchanged",
    "right in\nchanges",
    "\nanswers",
)
"""Of `cells`, in two lines; what they mean says `LEGEND`."""
LEGEND = (
    "changed, unchanged: images to which people gave another label than the original, or the same; stuck: of the "
    "changed ones, right before the change, those still given the original label; right in changes: of the images "
    "given another label than the original, those where people gave it too."
)


class ExamplesFolder(NamedTuple):
    """Sets of examples on disk."""

    path: str
    digest: str
    """Of every array below it."""


class Share(NamedTuple):
    """A share of images."""

    hits: int
    size: int

    @property
    def value(self) -> float:
        """In [0, 1]; 0 of no images."""
        return self.hits / max(self.size, 1)


@dataclass(frozen=True)
class Agreement:
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

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        return cls(plain["answerer"], *(Share(*plain[field.name]) for field in dataclasses.fields(cls)[1:]))


@dataclass(frozen=True)
class SetComparison:
    """Everyone who was compared with people on one set."""

    name: str
    """Of the set."""
    images: int
    changed: int
    """Images whose class people see changed."""
    unchanged: int
    white: int
    """The pixel value that the set's files were taken to mean white by: 255 or 1."""
    agreements: tuple[Agreement, ...]

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        return cls(**{**plain, "agreements": tuple(map(Agreement.from_plain, plain["agreements"]))})

    def by(self, answerer: str) -> Agreement:
        return next(each for each in self.agreements if each.answerer == answerer)

    @property
    def title(self) -> str:
        """`linf/automated_eps03: people see 21 of 100 images changed`."""
        undecided = self.images - self.changed - self.unchanged
        return (
            f"{self.name}: people see {self.changed} of {self.images} images changed"
            f"{f', and did not agree on {undecided}' if undecided else ''}"
            f"{'; pixels read as 0 to 1, not 0 to 255' if self.white == 1 else ''}"
        )


@dataclass(frozen=True)
class HumanAgreement:
    """What a folder of examples says of everyone who was compared."""

    folder: str
    digest: str
    sets: tuple[SetComparison, ...]

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """From what `dataclasses.asdict` makes of it, also through JSON."""
        return cls(plain["folder"], plain["digest"], tuple(map(SetComparison.from_plain, plain["sets"])))


def find_examples(given: str | Path | None, *, dataset: str, data_dir: str | Path | None) -> ExamplesFolder | None:
    """The folder that was named, else the one beside the data where there is one.

    Args:
        given: with --invariance-examples.
        dataset: name of the data set that the examples must have been made from.
        data_dir: where data sets lie; OTSWEEP_DATA_DIR if None.

    Raises:
        InputError: for a data set of another shape, or a folder that can't be read or holds no labelled set.
    """
    if given is not None:
        if dataset not in _DATASETS:
            raise InputError(
                f"{EXAMPLES_OPTION} {str(given)!r}: such examples are 28x28 grey images in 10 classes "
                f"({', '.join(_DATASETS)}); "
                f"the data set here is {dataset!r}"
            )
        return _open_folder(Path(given), said=f"{EXAMPLES_OPTION} {str(given)!r}")
    beside = data_dir or os.environ.get("OTSWEEP_DATA_DIR")
    found = Path(beside).expanduser() / _FOLDER if beside and dataset == _PUBLISHED_FOR else None
    return _open_folder(found, said=f"examples {str(found)!r}") if found and found.is_dir() else None


def _open_folder(path: Path, *, said: str) -> ExamplesFolder:
    """A folder with at least one labelled set; errors as of `find_examples`, beginning with what was `said`."""
    try:
        path = path.expanduser().absolute()
        is_folder, files = (
            path.is_dir(),
            {file: _digest(file) for file in sorted(path.rglob("*.npy")) if file.is_file()},
        )
    except (OSError, ValueError, RuntimeError) as error:  # unreadable; a null byte in it; ~nobody
        raise InputError(f"{said}: can't be read: {error}") from None
    if not is_folder:
        raise InputError(f"{said}: {'is not a folder' if path.exists() else 'no such folder'}")
    if not any(file.name.endswith(LABELS) for file in files):
        raise InputError(f"{said}: holds no file whose name ends in {LABELS}")
    listing = "\n".join(f"{file.relative_to(path)} {content}" for file, content in files.items())
    return ExamplesFolder(str(path), hashlib.sha256(listing.encode()).hexdigest()[:16])


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def cells(agreements: Sequence[Agreement]) -> list[str]:
    """One answerer's line below `HEADINGS`: its shares, of several their mean (the images are the same)."""
    first = agreements[0]
    return [
        first.answerer,
        _shown([each.changed for each in agreements]),
        _shown_interval([each.changed for each in agreements]),
        _shown([each.stuck for each in agreements], of=False),
        _shown([each.unchanged for each in agreements]),
        _shown([each.called_changed for each in agreements]),
        _shown([each.covered for each in agreements], of=False),
    ]


def _shown(shares: Sequence[Share], *, of: bool = True) -> str:
    """`47.6% of 21`: the mean share, and the mean number of images where those differ; a dash of no images."""
    known = [share for share in shares if share.size]
    if not known:
        return "-"
    size = fmean(share.size for share in shares)
    return f"{fmean(share.value for share in known):.1%}" + (f" of {size:.0f}" if of else "")


def _shown_interval(shares: Sequence[Share]) -> str:
    """`28 to 68%`, Wilson's at 95%; of a mean on the images of one: all saw the same."""
    size = shares[0].size
    if not size:
        return "-"
    hits = round(fmean(share.value for share in shares) * size)
    interval = wilson_interval(hits, size)
    return f"{100 * interval.low:.0f} to {100 * interval.high:.0f}%"


def unknown_agreement(dataset: str) -> str:
    """What is said where no examples are at hand."""
    if dataset != _PUBLISHED_FOR:
        return f"How far the oracle agrees with people on perturbed images of {dataset} is not known."
    return (
        "How far the oracle agrees with people is not known here: put the published examples "
        f"(github.com/ftramer/Excessive-Invariance, its folder {_FOLDER}/) into OTSWEEP_DATA_DIR, or name their folder "
        f"with {EXAMPLES_OPTION}."
    )
