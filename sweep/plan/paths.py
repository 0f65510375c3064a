"""The paths of sweeps: the storage folder, in it a folder per sweep, a sweep's name and what lies in its folder."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import tempfile
import time
from pathlib import Path

from sweep.plan.mlflow_address import DATABASE, masked
from sweep.plan.remote_storage import MARK, UrlStore, folder_of, is_url, pull_remote, url_of
from trainer.errors import InputError
from trainer.own_crowds import CROWDS

PLAN = "plan.yaml"
CACHE = "cache"
_RESERVED = (CACHE, CROWDS, DATABASE, "artifacts", "trials")
"""Names in the storage folder that no sweep may take."""

_NAME_LENGTH = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_NAME_LENGTH - 1}}}")
_STEM_LENGTH = 40
_SHOWN_NAMES = 10


def check_name(name: str) -> str:
    """Return a sweep's name after a check that it is a plain folder name.

    Raises:
        InputError: quoting the name.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--name {name!r}: must be 1 to {_NAME_LENGTH} letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    if name in _RESERVED:
        raise InputError(f"--name {name!r}: is reserved for what all sweeps share; choose another")
    return name


def free_name(name: str, folder: Path) -> str:
    """Return a name after a check that it is valid and that no sweep has it.

    Raises:
        InputError: quoting the name.
    """
    if (folder / check_name(name)).exists():
        raise name_taken(folder / name)
    return name


def name_taken(folder: Path) -> InputError:
    """Return the error of a name that a sweep has already."""
    return InputError(
        f"--name {folder.name!r}: exists in {folder.parent}; choose another, or resume that sweep by "
        f"`otsweep resume {folder.name}`"
    )


def default_name(space_name: str, folder: Path, *, now: float | None = None) -> str:
    """Return the space's name and the time in UTC, so that names sort by time; numbered where that is taken."""
    name = f"{_stem(space_name)}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}"
    candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if not (folder / candidate).exists())


def is_default_name(name: str, space_name: str) -> bool:
    """Return whether `default_name` made a name."""
    return re.fullmatch(rf"{re.escape(_stem(space_name))}-\d{{8}}-\d{{6}}(-\d+)?", name) is not None


def _stem(space_name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", space_name)[:_STEM_LENGTH].strip("-._") or "sweep"


def storage_folder(given: str | None = None) -> Path:
    """Return the folder of all sweeps: as given, else $OTSWEEP_STORAGE, else ~/otsweep. `open_storage` makes it.

    Raises:
        InputError: if that is no path.
    """
    source, text = _storage_text(given)
    if masked(text) != text:
        raise InputError(f"{source} {masked(text)!r}: holds a secret; set it in the environment instead")
    if is_url(text):
        return folder_of(text)
    text = text.removeprefix("file://")
    if "://" in text:
        raise InputError(f"{source} {text!r}: must be a folder, or begin with s3://, gs:// or file://")
    if "?" in text:
        raise InputError(f"{source} {text!r}: must not hold '?', which ends the path in a database's URI")
    return _absolute(source, text)


def open_storage(given: str | None = None) -> Path:
    """Return the storage folder, created if missing, after a file was written into it as a test.

    Raises:
        InputError: naming the folder and the reason.
    """
    folder, source = storage_folder(given), _storage_text(given)[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(b"otsweep")
            probe.flush()
            os.fsync(probe.fileno())
        if url := url_of(folder):
            UrlStore(url).write(MARK, url.encode())
            pull_remote(folder, only=f"/{PLAN}")
    except OSError as error:
        raise InputError(f"{source} {str(folder)!r}: can't be written: {error.strerror}") from None
    return folder


def _storage_text(given: str | None) -> tuple[str, str]:
    """Return the option or variable that names the storage, and the path."""
    if given is not None:
        return "--storage", given
    if os.environ.get("OTSWEEP_STORAGE"):
        return "OTSWEEP_STORAGE", os.environ["OTSWEEP_STORAGE"]
    return "storage", "~/otsweep"


def existing_folder(source: str, text: str) -> str:
    """Return the absolute path of a folder after a check that it exists.

    Raises:
        InputError: naming the option and the path.
    """
    folder = _absolute(source, text)
    if not folder.is_dir():
        raise InputError(f"{source} {text!r}: {'is not a folder' if folder.exists() else 'no such folder'}")
    return str(folder)


def _absolute(source: str, text: str) -> Path:
    if not text or not text.isprintable():
        raise InputError(f"{source} {text!r}: must be a path of printable characters")
    try:
        return Path(os.path.abspath(Path(text).expanduser()))
    except RuntimeError as error:
        raise InputError(f"{source} {text!r}: {error}") from None


def list_sweeps(folder: Path) -> list[str]:
    """Return the names of the sweeps in a storage folder, the latest plan first."""
    try:
        plans = sorted(folder.glob(f"[!.]*/{PLAN}"), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []
    return [path.parent.name for path in plans]


def nearest_sweeps(name: str, folder: Path) -> str:
    """Return a clause that names the sweep that was probably meant, and the latest ones."""
    sweeps = list_sweeps(folder)
    nearest = difflib.get_close_matches(name, sweeps, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    latest = f"the latest: {', '.join(sweeps[:_SHOWN_NAMES])}" if sweeps else "there is none yet"
    return hint + latest


def trial_folder(sweep_folder: str | Path, number: int) -> Path:
    """Return the folder of a trial's checkpoints and its chosen model."""
    return Path(sweep_folder) / "trials" / f"{number:04d}"
