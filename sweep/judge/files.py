"""Files of models that are to be judged, each with a short name."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.errors import InputError
from trainer.plugins import is_plugin


class ModelFile(NamedTuple):
    """A file with a model."""

    name: str
    """Short name, different from those of the other models."""
    path: Path
    digest: str
    """SHA-256 of its content."""
    architecture: str
    """`python:MODULE:FACTORY` of the network that its weights are of; empty where none was named."""


def find_models(paths: Sequence[str | Path], architectures: Sequence[str]) -> list[ModelFile]:
    """Return the files that were named; nothing in them is read as a model yet.

    Args:
        paths: of the files.
        architectures: one for all files, one for each in the same order, or none.

    Raises:
        InputError: for a file that is missing or named twice, or architectures that fit neither way.
    """
    if not paths:
        raise InputError("no model is named: give the file of one, or of several")
    for each in architectures:
        if not is_plugin(each):
            raise InputError(f"--architecture {each!r}: must be python:MODULE:FACTORY; a trial's model names its own")
    if len(architectures) not in (0, 1, len(paths)):
        raise InputError(
            f"--architecture is given {len(architectures)} times for {len(paths)} models: give it once for all, or "
            "once for each in their order"
        )
    each = list(architectures) if len(architectures) == len(paths) else [*architectures, ""][:1] * len(paths)
    found = [Path(path).expanduser() for path in paths]
    twice = [str(path) for path, count in Counter(path.resolve() for path in found).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]!r} is named twice")
    digests = [_digest(path) for path in found]
    return [ModelFile(*fields) for fields in zip(_names(found), found, digests, each, strict=True)]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{str(path)!r} can't be read: {error.strerror}") from None


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the paths' ends, as many of their folders as tell them apart; a trial's model goes by its folder."""
    whole = [path.resolve() for path in paths]
    parts = [(path.parent if path.name == "model.pt" else path.with_suffix("")).parts for path in whole]
    deepest = max(map(len, parts))
    for depth in range(1, deepest + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
