"""Storage at a URL (`s3://`, `gs://`): a folder of this machine that follows it.

Code that reads pulls before, and code that writes pushes after; everything between works on plain files. In a folder
that follows no URL both do nothing, so that callers need not ask. What the URL holds is the truth: a pull removes what
it does not hold. Credentials come from the machine's own environment, where every client of such a store looks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import InputError
from trainer.files import UNFINISHED, locked, write_whole

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_SCHEMES = ("s3", "gs")
MARK = ".url"
"""Name of the file that holds the URL, in a folder that follows one."""

_CACHE_SUFFIXES = (".pt", ".sha256")
"""Suffixes of prepared data, which never changes once written: what is there with its size is not pulled again."""


def is_url(text: str | Path) -> bool:
    return str(text).partition("://")[0] in _SCHEMES


class UrlStore:
    """A `trainer.files.Store` at a URL. Such stores show an object whole or not at all."""

    def __init__(self, url: str) -> None:
        self.url = url

    @cached_property
    def root(self) -> tuple[FileSystem, str]:
        """The file system and the path in it."""
        from pyarrow.fs import FileSystem

        try:
            return FileSystem.from_uri(self.url)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.url}: {str(error).splitlines()[0]}") from None

    def files(self) -> dict[str, int]:
        """Return sizes in bytes by name, those in folders below included."""
        from pyarrow.fs import FileSelector, FileType

        system, path = self.root
        found = system.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
        files = {each.path[len(path) :].lstrip("/"): each.size for each in found if each.type == FileType.File}
        if leading_out := [name for name in files if ".." in name.split("/")]:
            raise InputError(
                f"{self.url}: holds {leading_out[0]!r}, a name that leads out of its folder; delete it there"
            )
        return files

    def names(self) -> list[str]:
        return sorted(name for name in self.files() if "/" not in name)

    def read(self, name: str) -> bytes:
        system, path = self.root
        with system.open_input_file(f"{path}/{name}") as file:
            return file.readall()

    def write(self, name: str, content: bytes) -> None:
        system, path = self.root
        try:
            with system.open_output_stream(f"{path}/{name}") as file:
                file.write(content)
        except OSError as error:
            raise InputError(f"cannot write {self.url}/{name}: {str(error).splitlines()[0][:300]}") from None

    def delete(self, name: str) -> None:
        system, path = self.root
        with contextlib.suppress(FileNotFoundError):
            system.delete_file(f"{path}/{name}")


def folder_of(url: str) -> Path:
    """Return this machine's folder that follows a URL; made, and marked, if missing."""
    folder = _cache_folder(url)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARK).exists():
        write_whole(folder / MARK, url.rstrip("/").encode())
    return folder


def _cache_folder(url: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "otsweep"
    return root / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


@lru_cache(maxsize=256)
def url_of(path: Path) -> str | None:
    """Return the URL that a path follows, if it lies in a folder that follows one.

    Raises:
        InputError: for a mark that this machine did not make: a copied or unpacked folder would have everything sent
            to whatever address it names.
    """
    for folder in (path, *path.parents):
        if (folder / MARK).is_file():
            url, rest = (folder / MARK).read_text(encoding="utf-8"), path.relative_to(folder).as_posix()
            if folder.resolve() != _cache_folder(url).resolve():
                raise InputError(
                    f"{folder / MARK}: names a URL that this folder is to follow, but was not made here; delete the "
                    "file to use the folder as it is, or give the URL itself as --storage"
                )
            return url + ("" if rest == "." else f"/{rest}")
    return None


def pull_remote(folder: Path, *, only: str = "") -> None:
    """Make a folder equal to what its URL holds, checkpoints aside; with `only`, the files whose names end so.

    Raises:
        InputError: if the URL can't be read.
    """
    url = url_of(folder)
    if url is None:
        return
    with locked(folder / ".pull.lock"), _answering(url):
        store = UrlStore(url)
        there = {
            name: size
            for name, size in store.files().items()
            if "trials/" not in name and name.endswith(only) and name.rpartition("/")[2] != MARK
        }
        for name, size in there.items():
            path = folder / name
            if not (path.exists() and path.suffix in _CACHE_SUFFIXES and path.stat().st_size == size):
                write_whole(path, store.read(name))
        for path in (folder / "ledger").glob("*"):
            if not only and f"ledger/{path.name}" not in there and path.name != "lock":
                path.unlink()


def push_remote(path: Path) -> None:
    """Copy a file, or all files below a folder, to the URL that it follows.

    Raises:
        InputError: if the URL can't be written.
    """
    url = url_of(path.parent)
    if url is None:
        return
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and file.name != "lock" and not file.name.endswith((".lock", UNFINISHED)):
            UrlStore(url).write(
                f"{path.name}/{file.relative_to(path)}" if path.is_dir() else path.name, file.read_bytes()
            )


def drop_remote(folder: Path) -> None:
    """Delete everything at the URL that a folder follows."""
    if url := url_of(folder):
        store = UrlStore(url)
        for name in store.files():
            store.delete(name)


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{url}: can't be read: {str(error).splitlines()[0][:300]}") from None
