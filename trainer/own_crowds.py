"""Crowds of one's own: fitted by `otsweep people --fit`, kept in the storage, and found there by name.

`<storage>/crowds/NAME.yaml` holds a line `field: value` for the data set, the four numbers, the fingerprint of the
votes and how well the crowd predicts its people, `[value,low,high]` each. What is judged by it carries all of that by
value. Needs no torch, nor a YAML reader, as a trial runs where only torch is.
"""

from __future__ import annotations

import re
from pathlib import Path

from trainer.config import UNANIMOUS
from trainer.crowds import (
    BUILT_IN_CROWDS,
    UNCALIBRATED,
    Crowd,
    crowd_fields,
    crowd_from_fields,
    crowd_text,
    split_fields,
)
from trainer.errors import InputError
from trainer.files import write_whole
from trainer.words import did_you_mean

CROWDS = "crowds"
"""Folder of the crowds in the storage."""

_TAKEN = (*BUILT_IN_CROWDS, UNCALIBRATED.name, UNANIMOUS)
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,39}")


def check_own_name(name: str) -> str:
    """Return the name of a crowd of one's own after a check.

    Raises:
        InputError: for a name that another crowd has, or that is no plain word.
    """
    if name in _TAKEN:
        raise InputError(f"--crowd {name!r}: comes with otsweep ({', '.join(_TAKEN)} do); give yours another name")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--crowd {name!r}: must be 1 to 40 lower-case letters, digits, '.', '_' or '-', the first a letter"
        )
    return name


def write_crowd(storage: Path, crowd: Crowd) -> Path:
    """Keep a crowd of one's own in the storage, in place of an earlier one of its name; return its file."""
    path = storage / CROWDS / f"{crowd.name}.yaml"
    write_whole(path, "".join(f"{name}: {value}\n" for name, value in crowd_fields(crowd).items()).encode())
    return path


def find_crowd(name: str, storage: Path) -> str:
    """Return a crowd as an evaluation takes it: one of the storage by value, any other as it is.

    Args:
        name: of a crowd, or its text.
        storage: the folder of all sweeps.

    Raises:
        InputError: for a name that no crowd has, with the nearest one, or a damaged file.
    """
    if name in (*BUILT_IN_CROWDS, UNANIMOUS) or " " in name:
        return name
    known = {path.stem: path for path in sorted((storage / CROWDS).glob("[!.]*.yaml"))}
    if name not in known:
        raise InputError(f"crowd = {name!r}: {did_you_mean(name, (*BUILT_IN_CROWDS, *known))}")
    try:
        lines = known[name].read_text(encoding="utf-8").splitlines()
        return crowd_text(crowd_from_fields(name, split_fields(lines, ": ")))
    except (OSError, UnicodeError, InputError) as error:
        raise InputError(f"{known[name]}: is damaged ({error}); `otsweep people --fit` makes it anew") from None
