"""The search for a data set's published files: in the user's folder, in the cache, on the internet."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.data.catalogue import ARCHIVES, PUBLISHED_FILES
from trainer.data.downloads import DownloadFailed, download
from trainer.errors import InputError
from trainer.files import locked

DATA_DIR_VARIABLE = "OTSWEEP_DATA_DIR"


def find_files(name: str, data_dir: Path | None, *, downloads: Path) -> list[Path]:
    """Find a data set's files, in order, in the first folder that has them all; else download them.

    Raises:
        InputError: if the download failed; says where was looked, what was missing there, and what to do.
    """
    folders = [*_given_folder(data_dir), downloads]
    for folder in folders:
        files, missing = _search(folder, name)
        if not missing:
            return files
    searched = [f"{str(folder)!r} {_absence(folder, name)}" for folder in folders]
    try:
        with locked(downloads.with_name(f"{downloads.name}.lock")):
            download(name, downloads)
    except DownloadFailed as error:
        published = PUBLISHED_FILES[name]
        raise InputError(
            f"{published.torchvision_name} is not on this machine and could not be downloaded.\n"
            f"  Looked in: {'; '.join(searched)}.\n"
            f"  Download:  {error}.\n"
            f"  To go on:  put {', '.join(published.files)} into <folder>/{published.folder} and give "
            f"--data-dir <folder> or set {DATA_DIR_VARIABLE}; or connect this machine to the internet; or choose the "
            "dataset 'digits', which needs no download."
        ) from error
    return _search(downloads, name)[0]


def _given_folder(data_dir: Path | None) -> list[Path]:
    """Return the folder that the user named, if any."""
    named = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    return [Path(named).expanduser().absolute()] if named else []


def _search(folder: Path, name: str) -> tuple[list[Path], list[str]]:
    """Return the files of a data set that a folder holds, unpacked or packed, and the names of those that it lacks."""
    published = PUBLISHED_FILES[name]
    found, missing = [], []
    for file in published.files:
        plain = folder / published.folder / file
        dotted = plain.with_name(file.replace("-idx", ".idx"))  # as the files are called after unpacking elsewhere
        packed = [each.with_name(f"{each.name}.gz") for each in (plain, dotted)]
        packed += [folder / ARCHIVES[name]] if name in ARCHIVES else []
        here = [path for path in (plain, dotted, *packed) if path.is_file()]
        found += here[:1]
        missing += [] if here else [str(Path(published.folder, file))]
    return found, missing


def _absence(folder: Path, name: str) -> str:
    """Describe what a folder lacks."""
    if not folder.is_dir():
        return "(no such folder)"
    missing = _search(folder, name)[1]
    whole = len(missing) == len(PUBLISHED_FILES[name].files)
    if whole and PUBLISHED_FILES[name].folder != ".":
        return f"(holds no {PUBLISHED_FILES[name].folder})"
    return f"(lacks {', '.join(missing)})"
