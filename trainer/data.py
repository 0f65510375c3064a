"""Images in [0, 1] and their labels, as tensors that all processes on a machine share.

Published files are decoded once into `.npy` files under the cache folder, in the order train, validation, test, and
opened memory-mapped from then on: every split, and every prefix of one, is a slice of the same pages.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import http.client
import json
import os
import pickle
import queue
import shutil
import struct
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.config import EvaluationConfig, InputError

DATA_DIR_VARIABLE = "OTSWEEP_DATA_DIR"
STORED_FILES = ("images.npy", "labels.npy")
FORMAT = 1
"""Of the cached tensors; a cache of another format is left alone and a new one made beside it."""

CONNECT_SECONDS = 20.0
"""For reaching one mirror: its name's look-up and all of its addresses together."""
STALL_SECONDS = 20.0
DOWNLOAD_SECONDS = 1800.0
PROGRESS_SECONDS = 5.0


class Split(NamedTuple):
    """A part of the data: copy-on-write views of the cache's pages."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1]."""
    labels: Tensor
    """(N,) int64 in [0, K)."""


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, split."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    """K."""
    fingerprint: str
    """Hex digest of the pixels, the labels, their order, and how many images train and validation hold."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, rows, columns = self.train.images.shape[1:]
        return channels, rows, columns


class Sizes(NamedTuple):
    """Images per split, in the order in which they are stored."""

    train: int
    validation: int
    test: int


class Published(NamedTuple):
    """How a data set's files lie in a folder, as torchvision lays them out; training files before test files."""

    torchvision_name: str
    folder: str
    files: dict[str, tuple[int, ...]]
    """The shape that each file must hold, by name."""


class Pixels(NamedTuple):
    """A data set as published, training images before test images."""

    images: np.ndarray
    """(N, C, H, W) uint8."""
    labels: np.ndarray
    """(N,) int64."""
    white: int
    """The pixel value that becomes 1."""


class Stored(NamedTuple):
    """The opened cache: all splits one after the other."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1]."""
    labels: Tensor
    """(N,) int64."""
    digest: str
    """Of pixels, labels and their order."""


class Archive(NamedTuple):
    """A file to download: where it goes (relative to the data folder), its checksum, where it is to be had."""

    path: str
    md5: str
    urls: list[str]


CLASSES = 10
"""K, of every data set known so far."""
SIZES = {
    "digits": Sizes(1_200, 300, 297),
    "mnist": Sizes(50_000, 10_000, 10_000),
    "fashion_mnist": Sizes(50_000, 10_000, 10_000),
    "cifar10": Sizes(45_000, 5_000, 10_000),
}
IDX_FILES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
CIFAR_FILES = {name: (10_000, 3, 32, 32) for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")}
CIFAR_ARCHIVE = "cifar-10-python.tar.gz"
PUBLISHED = {
    "mnist": Published("MNIST", "MNIST/raw", IDX_FILES),
    "fashion_mnist": Published("FashionMNIST", "FashionMNIST/raw", IDX_FILES),
    "cifar10": Published("CIFAR10", "cifar-10-batches-py", CIFAR_FILES),
}
IDX_MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
}
"""Of unpacked files, where known: torchvision lists the checksums of the archives only."""


def load_data(evaluation: EvaluationConfig, *, data_dir: Path | None = None, cache_dir: Path) -> Data:
    """The data set that `evaluation` names, cut to its sizes.

    Args:
        evaluation: Decides the data set, its split and how much of train and validation is used.
        data_dir: Where published files are looked for first; OTSWEEP_DATA_DIR if None. Only read.
        cache_dir: Where decoded tensors are kept (`tensors/`) and files that had to be downloaded (`datasets/`).

    Raises:
        InputError: if the files are neither found nor downloaded, are damaged, or hold fewer images than asked for.
    """
    name, cache_dir = evaluation.dataset, cache_dir.expanduser().absolute()
    check_sizes(evaluation)
    try:
        files = find_files(name, data_dir, downloads=cache_dir / "datasets") if name in PUBLISHED else []
        folder = cache_dir / "tensors" / f"{name}-{source_digest(evaluation, files)}"
        stored = open_stored(folder) or build_stored(folder, evaluation, files)
    except OSError as error:
        raise InputError(
            f"cannot use the cache in {str(cache_dir)!r}: {error}; choose another with --storage"
        ) from error
    return cut(stored, evaluation)


def check_sizes(evaluation: EvaluationConfig) -> None:
    """A subset must exist and have room for every class."""
    available = SIZES[evaluation.dataset]
    for knob, size, most in (
        ("train_size", evaluation.train_size, available.train),
        ("validation_size", evaluation.validation_size, available.validation),
    ):
        if size and not CLASSES <= size <= most:
            raise InputError(
                f"{knob} = {size}: {evaluation.dataset} takes {CLASSES} (its classes) to {most}, or 0 for all"
            )


def cut(stored: Stored, evaluation: EvaluationConfig) -> Data:
    """Slices of the stored tensors; nothing is copied."""
    whole = SIZES[evaluation.dataset]
    used = Sizes(evaluation.train_size or whole.train, evaluation.validation_size or whole.validation, whole.test)
    starts = (0, whole.train, whole.train + whole.validation)
    splits = [
        Split(stored.images[start : start + size], stored.labels[start : start + size])
        for start, size in zip(starts, used, strict=True)
    ]
    fingerprint = hashlib.sha256(f"{stored.digest} {used}".encode()).hexdigest()[:16]
    return Data(evaluation.dataset, *splits, classes=CLASSES, fingerprint=fingerprint)


# Splitting


def split_order(labels: np.ndarray, evaluation: EvaluationConfig) -> np.ndarray:
    """Which published image stands where in the cache: (N,) indices in the order train, validation, test.

    A published test set stays as it is, in its own order; digits have none, so theirs is drawn with the rest.
    """
    sizes = SIZES[evaluation.dataset]
    held_out = sizes.test if evaluation.dataset in PUBLISHED else 0
    pool = len(labels) - held_out
    order = stratified_order(labels[:pool], np.random.default_rng(evaluation.split_seed))
    test, validation, train = np.split(order, [sizes.test - held_out, sizes.test - held_out + sizes.validation])
    return np.concatenate([train, validation, test, np.arange(pool, len(labels))])


def stratified_order(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random order in which every prefix holds nearly the same share of each class.

    The r-th image of a class of size m, in random order, gets the random key (r + u) / m with u in [0, 1): each class
    is spread evenly over [0, 1], sorting by the key interleaves them, and a prefix holds its share of a class to 1 / m.

    Args:
        labels: (N,) int64.
        generator: Decides the order.
    """
    shuffled = generator.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    key = (rank + generator.random(len(labels))) / np.repeat(sizes, sizes)
    return by_class[np.argsort(key, kind="stable")]


# The cache of decoded tensors


def source_digest(evaluation: EvaluationConfig, files: list[Path]) -> str:
    """Names the cache after what it was made from, so that a file put in another's place is read again."""
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([FORMAT, evaluation.split_seed, seen]).encode()).hexdigest()[:12]


def open_stored(folder: Path) -> Stored | None:
    """The cached tensors, memory-mapped; None where they are absent or damaged."""
    try:
        record = json.loads((folder / "record.json").read_bytes())
        if record["checks"] != measure(folder):
            return None
        # Copy-on-write: writing to a tensor by mistake stays in the process that does it.
        images, labels = (
            torch.from_numpy(np.load(folder / name, mmap_mode="c", allow_pickle=False)) for name in STORED_FILES
        )
        return Stored(images, labels, str(record["digest"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def build_stored(folder: Path, evaluation: EvaluationConfig, files: list[Path]) -> Stored:
    """Decode, split and store, in one process while the others wait for it."""
    with locked(folder):
        if stored := open_stored(folder):
            return stored
        pixels = check_pixels(decode(evaluation.dataset, files), evaluation.dataset)
        order = split_order(pixels.labels, evaluation)
        store(folder, pixels._replace(images=pixels.images[order], labels=pixels.labels[order]))
        stored = open_stored(folder)
    if stored is None:
        raise OSError(f"what was just written to {folder} reads back differently")
    return stored


def store(folder: Path, pixels: Pixels) -> None:
    """Write the tensors under a temporary name, then put them in place whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    digest = hashlib.sha256(pixels.images.tobytes() + pixels.labels.tobytes()).hexdigest()
    np.save(partial / "images.npy", np.divide(pixels.images, pixels.white, dtype=np.float32))
    np.save(partial / "labels.npy", pixels.labels)
    (partial / "record.json").write_text(json.dumps({"digest": digest, "checks": measure(partial)}))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def measure(folder: Path, *, blocks: int = 64, block: int = 1 << 14) -> dict[str, list[int]]:
    """Size and checksum of evenly spaced blocks of each stored file: all of a small file, 1 MiB of a large one.

    Enough for what happens to files (cut short, zeroed by a crash, overwritten) at a cost that each trial can pay.
    """
    measured = {}
    for name in STORED_FILES:
        with open(folder / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            checksum = 0
            for start in np.linspace(0, max(0, size - block), min(blocks, -(-size // block))).astype(int):
                file.seek(start)
                checksum = zlib.crc32(file.read(block), checksum)
        measured[name] = [size, checksum]
    return measured


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path`'s lock against every other process on this machine; the system frees it if this one is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# Decoding


def decode(name: str, files: list[Path]) -> Pixels:
    """Read a data set's published files."""
    if name == "digits":
        return decode_digits()
    if name == "cifar10":
        return decode_cifar(files)
    images, labels = (np.concatenate([read_idx(file, name) for file in files[i::2]]) for i in (0, 1))
    return Pixels(images[:, None], labels.astype(np.int64), white=255)


def decode_digits() -> Pixels:
    """scikit-learn's bundled handwritten digits, 8x8, in 17 shades."""
    from sklearn.datasets import load_digits  # takes a second to import, and a cache makes it needless

    digits: Any = load_digits()
    return Pixels(digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64), white=16)


def decode_cifar(files: list[Path]) -> Pixels:
    """The six official batches, which are pickles: torchvision's checksum is what makes one safe to open."""
    from torchvision.datasets import CIFAR10  # takes seconds to import, and a cache makes it needless

    checksums = dict(CIFAR10.train_list + CIFAR10.test_list)
    batches = []
    for file, name in zip(files, CIFAR_FILES, strict=True):
        content = read_file(file, member=f"{CIFAR10.base_folder}/{name}", limit=1 << 26)  # twice what a batch takes
        check_md5(content, checksums[name], file)
        batches.append(pickle.loads(content, encoding="latin1"))
    images = np.concatenate([batch["data"].reshape(-1, 3, 32, 32) for batch in batches])
    return Pixels(images, np.concatenate([batch["labels"] for batch in batches]).astype(np.int64), white=255)


def read_idx(file: Path, name: str) -> np.ndarray:
    """The unsigned bytes of an IDX file: two zero bytes, a type, the number of axes, their lengths, the values."""
    member = file.name.removesuffix(".gz")
    shape = IDX_FILES[member]
    content = read_file(file, limit=4 + 4 * len(shape) + int(np.prod(shape)) + 1)
    magic = bytes([0, 0, 8, len(shape)])
    if content[:4] != magic:
        raise damaged(
            file, f"it begins with {content[:4].hex() or 'nothing'}, an IDX file of its kind with {magic.hex()}"
        )
    header = magic + struct.pack(f">{len(shape)}I", *shape)
    if len(content) < len(header):
        raise damaged(file, f"it ends inside its header, after {len(content)} bytes")
    if content[: len(header)] != header:
        found = struct.unpack_from(f">{len(shape)}I", content, 4)
        raise damaged(file, f"it says that it holds {times(found)} values, the official file {times(shape)}")
    values = np.frombuffer(content, np.uint8, offset=len(header))
    if values.size != np.prod(shape):
        held = f"{values.size:,} of" if values.size < np.prod(shape) else "more than"
        raise damaged(file, f"it holds {held} the {int(np.prod(shape)):,} values that its header promises")
    if len(shape) == 1 and values.max() >= CLASSES:
        raise damaged(file, f"it holds the label {values.max()}, and there are {CLASSES} classes, from 0")
    if checksum := IDX_MD5.get(name, {}).get(member):
        check_md5(content, checksum, file)
    return values.reshape(shape)


def read_file(file: Path, *, member: str = "", limit: int = -1) -> bytes:
    """A file's content, unpacked where it is packed, up to `limit` bytes."""
    try:
        if file.name.endswith(".tar.gz"):
            with tarfile.open(file) as archive, archive.extractfile(member) as part:  # type: ignore[union-attr]
                return part.read(limit)
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as handle:
            return handle.read(limit)
    except PermissionError as error:
        raise InputError(f"{str(file)!r} cannot be read: {error.strerror}; ask for read permission") from error
    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError, TypeError) as error:
        raise damaged(file, f"it cannot be read ({error})") from error


def check_md5(content: bytes, official: str, file: Path) -> None:
    """Refuse content that is not, byte for byte, the published one."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != official:
        raise damaged(file, f"its md5 is {found}, the official file's {official}")


def check_pixels(pixels: Pixels, name: str) -> Pixels:
    """What every later step relies on."""
    count = sum(SIZES[name])
    if pixels.images.dtype != np.uint8 or pixels.images.ndim != 4 or pixels.images.max() > pixels.white:
        raise InputError(f"{name}: the images are not bytes of the shape (N, C, H, W) up to {pixels.white}")
    if not len(pixels.images) == len(pixels.labels) == count:
        raise InputError(f"{name}: {len(pixels.images)} images and {len(pixels.labels)} labels, not {count} of each")
    if (classes := np.unique(pixels.labels)).tolist() != list(range(CLASSES)):
        raise InputError(f"{name}: the labels are {classes.tolist()}, not all of 0 to {CLASSES - 1}")
    return pixels


def damaged(file: Path, reason: str) -> InputError:
    """The error for a file that is there and is wrong."""
    return InputError(
        f"{str(file)!r} is damaged or not the official file: {reason}. "
        "Put the official file in its place, or remove it to have it downloaded"
    )


def times(shape: tuple[int, ...]) -> str:
    """`60000x28x28`."""
    return "x".join(map(str, shape))


# Finding and downloading


def find_files(name: str, data_dir: Path | None, *, downloads: Path) -> list[Path]:
    """A data set's files, in order: from the first folder that has them all, else downloaded.

    Raises:
        InputError: saying which folders were looked in, what was missing there, why the download failed, what to do.
    """
    folders = [*given_folder(data_dir), downloads]
    for folder in folders:
        files, missing = search(folder, name)
        if not missing:
            return files
    looked = [f"{str(folder)!r} {absence(folder, name)}" for folder in folders]
    try:
        with locked(downloads):
            download(name, downloads)
    except DownloadFailed as error:
        published = PUBLISHED[name]
        raise InputError(
            f"{published.torchvision_name} is not on this machine and could not be downloaded.\n"
            f"  Looked in: {'; '.join(looked)}.\n"
            f"  Download:  {error}.\n"
            f"  To go on:  put {', '.join(published.files)} into <folder>/{published.folder} and give "
            f"--data-dir <folder> or set {DATA_DIR_VARIABLE}; or connect this machine to the internet; or choose the "
            "dataset 'digits', which needs no download."
        ) from error
    return search(downloads, name)[0]


def given_folder(data_dir: Path | None) -> list[Path]:
    """The folder that the user named, if any."""
    named = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    return [Path(named).expanduser().absolute()] if named else []


def search(folder: Path, name: str) -> tuple[list[Path], list[str]]:
    """The files of a data set that a folder holds, unpacked or packed, and the names of those that it lacks."""
    published = PUBLISHED[name]
    found, missing = [], []
    for file in published.files:
        plain = folder / published.folder / file
        packed = folder / CIFAR_ARCHIVE if name == "cifar10" else plain.with_name(f"{file}.gz")
        here = [path for path in (plain, packed) if path.is_file()]
        found += here[:1]
        missing += [] if here else [f"{published.folder}/{file}"]
    return found, missing


def absence(folder: Path, name: str) -> str:
    """What a folder lacks, in words."""
    if not folder.is_dir():
        return "(no such folder)"
    missing = search(folder, name)[1]
    whole = len(missing) == len(PUBLISHED[name].files)
    return f"(holds no {PUBLISHED[name].folder})" if whole else f"(lacks {', '.join(missing)})"


class DownloadFailed(Exception):
    """Every address failed; the message says how each did."""


def download(name: str, folder: Path) -> None:
    """Fetch the archives that `folder` lacks."""
    for archive in archives(name):
        target = folder / archive.path
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            fetch(archive, target)


def archives(name: str) -> list[Archive]:
    """A data set's archives as torchvision lists them."""
    from torchvision import datasets  # takes seconds to import, and files that are there make it needless

    source: Any = getattr(datasets, PUBLISHED[name].torchvision_name)
    if name == "cifar10":
        return [Archive(source.filename, source.tgz_md5, [source.url])]
    return [
        Archive(f"{PUBLISHED[name].folder}/{file}", md5, [mirror + file for mirror in source.mirrors])
        for file, md5 in source.resources
    ]


def fetch(archive: Archive, target: Path) -> None:
    """Download an archive from the first address that has it; what is not it, byte for byte, is never kept."""
    failures = []
    for url in archive.urls:
        partial = target.with_name(target.name + ".partial")
        try:
            found = receive(url, partial)
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


def receive(url: str, partial: Path) -> str:
    """Write what an address sends to `partial`, saying how far it is; its md5."""
    say(f"downloading {url}")
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
                say(f"downloading {url}: {received / 1e6:.0f} MB" + (f" of {size / 1e6:.0f}" if size else ""))
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
            answer.put(urllib.request.urlopen(url, timeout=STALL_SECONDS))
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


def say(message: str) -> None:
    """Tell the person who waits; standard output belongs to results."""
    print(message, file=sys.stderr, flush=True)
