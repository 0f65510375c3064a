"""Downloads of published files, each checked against its checksum before it gets its name."""

from __future__ import annotations

import hashlib
import http.client
import queue
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from trainer.data.catalogue import ARCHIVES, PUBLISHED_FILES
from trainer.files import open_whole
from trainer.progress import ProgressLine

CONNECT_SECONDS = 20.0
"""Maximum time for reaching one mirror: looking up its name and trying all of its addresses."""
_STALL_SECONDS = 20.0
DOWNLOAD_SECONDS = 1800.0
"""Maximum time for one file."""


class Archive(NamedTuple):
    """A file to download."""

    path: str
    """Path relative to the data folder."""
    md5: str
    urls: list[str]
    """Addresses that have it, the preferred one first."""


class DownloadFailed(Exception):
    """All addresses of a file failed; the message says how each did."""


class _WrongFile(Exception):
    """An address sent something else than the file."""


def download(name: str, folder: Path) -> None:
    """Download the archives that `folder` lacks."""
    for archive in archives(name):
        if not (folder / archive.path).is_file():
            _fetch(archive, folder / archive.path)


def archives(name: str) -> list[Archive]:
    """Return a data set's archives as torchvision lists them."""
    from torchvision import datasets  # takes seconds to import; not needed once downloaded

    source: Any = getattr(datasets, PUBLISHED_FILES[name].torchvision_name)
    if name == "cifar10":
        return [Archive(ARCHIVES[name], source.tgz_md5, [source.url])]
    if name == "emnist":
        return [Archive(ARCHIVES[name], source.md5, [source.url])]
    if name in ("usps", "svhn"):
        return [Archive(file, md5, [url]) for url, file, md5 in (source.split_list[part] for part in ("train", "test"))]
    return [
        Archive(f"{PUBLISHED_FILES[name].folder}/{file}", md5, [mirror + file for mirror in source.mirrors])
        for file, md5 in source.resources
    ]


def _fetch(archive: Archive, target: Path) -> None:
    """Download an archive from the first address that has it; anything but the official bytes is thrown away."""
    failures = []
    for url in archive.urls:
        try:
            with open_whole(target) as file, ProgressLine(sys.stderr) as line:
                found = _receive(url, file, line)
                if found != archive.md5:
                    raise _WrongFile(f"sent something else (md5 {found}, not {archive.md5})")
            return
        except (OSError, http.client.HTTPException, _WrongFile) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is the server's answer too, and holds the socket
            failures.append(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}")
    raise DownloadFailed("; ".join(failures))


def _receive(url: str, file: BinaryIO, line: ProgressLine) -> str:
    """Write what an address sends to `file` and return its md5."""
    line.begin(f"downloading {url}")
    digest, received, started = hashlib.md5(usedforsecurity=False), 0, time.monotonic()
    with connect(url) as response:
        size = int(response.headers.get("Content-Length") or 0)
        while chunk := response.read(1 << 18):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            if time.monotonic() - started > DOWNLOAD_SECONDS:
                raise TimeoutError(f"not done after {DOWNLOAD_SECONDS:.0f} s")
            line.update(f"downloading {url}: {received / 1e6:.0f} MB" + (f" of {size / 1e6:.0f}" if size else ""))
    if received < size:
        raise ConnectionError(f"sent {received:,} of {size:,} bytes")
    return digest.hexdigest()


def connect(url: str) -> http.client.HTTPResponse:
    """Open an address within a bounded time.

    A socket's timeout holds for each address of a name in turn and does not hold for looking the name up. So the
    whole attempt runs in a thread that can be abandoned.
    """
    answer: queue.Queue[Any] = queue.Queue()

    def attempt() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=_STALL_SECONDS))
        except Exception as error:  # noqa: BLE001 - handed to the waiting thread, which raises it
            answer.put(error)

    threading.Thread(target=attempt, daemon=True).start()
    try:
        outcome = answer.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no connection within {CONNECT_SECONDS:.0f} s") from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
