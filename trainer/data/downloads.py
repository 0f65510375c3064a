"""TODO one line."""

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
from typing import Any, NamedTuple

from trainer.data.catalogue import PUBLISHED_FILES

CONNECT_SECONDS = 20.0
"""For reaching one mirror: its name's look-up and all of its addresses together."""
_STALL_SECONDS = 20.0
DOWNLOAD_SECONDS = 1800.0
PROGRESS_SECONDS = 5.0


class Archive(NamedTuple):
    """A file to download: where it goes (relative to the data folder), its checksum, where it is to be had."""

    path: str
    md5: str
    urls: list[str]


class DownloadFailed(Exception):
    """Every address failed; the message says how each did."""


def download(name: str, folder: Path) -> None:
    """Fetch the archives that `folder` lacks."""
    for archive in archives(name):
        target = folder / archive.path
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(archive, target)


def archives(name: str) -> list[Archive]:
    """A data set's archives as torchvision lists them."""
    from torchvision import datasets  # takes seconds to import, and files that are there make it needless

    source: Any = getattr(datasets, PUBLISHED_FILES[name].torchvision_name)
    if name == "cifar10":
        return [Archive(source.filename, source.tgz_md5, [source.url])]
    return [
        Archive(f"{PUBLISHED_FILES[name].folder}/{file}", md5, [mirror + file for mirror in source.mirrors])
        for file, md5 in source.resources
    ]


def _fetch(archive: Archive, target: Path) -> None:
    """Download an archive from the first address that has it; what is not it, byte for byte, is never kept."""
    failures = []
    for url in archive.urls:
        partial = target.with_name(target.name + ".partial")
        try:
            found = _receive(url, partial)
            if found == archive.md5:
                partial.rename(target)
                return
            failures.append(f"{url}: sent something else (md5 {found}, not {archive.md5})")
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is the server's answer too, and holds the socket
            failures.append(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}")
        finally:
            partial.unlink(missing_ok=True)
    raise DownloadFailed("; ".join(failures))


def _receive(url: str, partial: Path) -> str:
    """Write what an address sends to `partial`, saying how far it is; its md5."""
    _say(f"downloading {url}")
    digest, received = hashlib.md5(usedforsecurity=False), 0
    started = said = time.monotonic()
    with connect(url) as response, open(partial, "wb") as file:
        size = int(response.headers.get("Content-Length") or 0)
        while chunk := response.read(1 << 18):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            now = time.monotonic()
            if now - started > DOWNLOAD_SECONDS:
                raise TimeoutError(f"not done after {DOWNLOAD_SECONDS:.0f} s")
            if now - said > PROGRESS_SECONDS:
                said = now
                _say(f"downloading {url}: {received / 1e6:.0f} MB" + (f" of {size / 1e6:.0f}" if size else ""))
    if received < size:
        raise ConnectionError(f"sent {received:,} of {size:,} bytes")
    return digest.hexdigest()


def connect(url: str) -> http.client.HTTPResponse:
    """Open an address within a bounded time.

    A socket's timeout holds for each of a name's addresses in turn and not at all for looking the name up, so the
    attempt as a whole runs in a thread that can be given up.
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


def _say(message: str) -> None:
    """Tell the person who waits; standard output belongs to results."""
    print(message, file=sys.stderr, flush=True)
