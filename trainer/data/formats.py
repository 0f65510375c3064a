"""The file formats in which data sets are published: IDX, CIFAR-10's pickles, scikit-learn's digits."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.data.catalogue import CIFAR_FILES, EMNIST_FILES, IDX_FILES, IDX_MD5, SIZES, classes_of
from trainer.errors import InputError


class Pixels(NamedTuple):
    """A data set as published, training images before test images."""

    images: np.ndarray
    """(N, C, H, W) uint8; data of one's own may also be float32, where `white` is 1."""
    labels: np.ndarray
    """(N,) int64."""
    white: int
    """The pixel value that becomes 1."""
    tests: int = 0
    """Number of the last images that are a published test set; 0 if none is, so that one is drawn."""


def decode(name: str, files: list[Path]) -> Pixels:
    """Read a data set's published files."""
    if name == "digits":
        return _decode_digits()
    if name in ("cifar10", "usps", "svhn"):
        return {"cifar10": _decode_cifar, "usps": _decode_usps, "svhn": _decode_svhn}[name](files)
    members = list(EMNIST_FILES if name == "emnist" else IDX_FILES)
    arrays = [read_idx(file, name, member) for file, member in zip(files, members, strict=True)]
    images, labels = (np.concatenate(arrays[i::2]) for i in (0, 1))
    if name == "emnist":
        images = images.transpose(0, 2, 1)  # its images lie on their sides
    return Pixels(images[:, None], labels.astype(np.int64), white=255, tests=SIZES[name].test)


def _decode_digits() -> Pixels:
    """Return scikit-learn's bundled handwritten digits, 8x8, in 17 shades."""
    from sklearn.datasets import load_digits  # takes a second to import; not needed once cached

    digits: Any = load_digits()
    return Pixels(digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64), white=16)


def _decode_cifar(files: list[Path]) -> Pixels:
    """Read the six official batches. They are pickles: each is opened only if torchvision's checksum fits."""
    from torchvision.datasets import CIFAR10  # takes seconds to import; not needed once cached

    checksums = dict(CIFAR10.train_list + CIFAR10.test_list)
    batches = []
    for file, name in zip(files, CIFAR_FILES, strict=True):
        content = _read_file(file, member=f"{CIFAR10.base_folder}/{name}", limit=1 << 26)  # twice what a batch takes
        _check_md5(content, checksums[name], file)
        batches.append(pickle.loads(content, encoding="latin1"))
    images = np.concatenate([batch["data"].reshape(-1, 3, 32, 32) for batch in batches])
    labels = np.concatenate([batch["labels"] for batch in batches]).astype(np.int64)
    return Pixels(images, labels, white=255, tests=SIZES["cifar10"].test)


def _decode_usps(files: list[Path]) -> Pixels:
    """Read the text of two official files: a line is a label from 1 and `position:value` pairs, values from -1 to 1."""
    from torchvision.datasets import USPS

    lines = []
    for file, part in zip(files, ("train", "test"), strict=True):
        content = _read_file(file)
        _check_md5(content, USPS.split_list[part][2], file)
        lines += [line.split() for line in bz2.decompress(content).decode().splitlines()]
    values = np.array([[pair.partition(":")[2] for pair in pairs] for _, *pairs in lines], dtype=np.float32)
    images = ((values + 1) / 2 * 255).astype(np.uint8).reshape(-1, 1, 16, 16)
    labels = np.array([label for label, *_ in lines], dtype=np.int64) - 1
    return Pixels(images, labels, white=255, tests=SIZES["usps"].test)


def _decode_svhn(files: list[Path]) -> Pixels:
    """Read two official MATLAB files, where the label 10 stands for the digit 0."""
    from scipy.io import loadmat
    from torchvision.datasets import SVHN

    parts: list[Any] = []
    for file, part in zip(files, ("train", "test"), strict=True):
        content = _read_file(file)
        _check_md5(content, SVHN.split_list[part][2], file)
        parts.append(loadmat(io.BytesIO(content)))
    images = np.concatenate([part["X"].transpose(3, 2, 0, 1) for part in parts])
    labels = np.concatenate([part["y"][:, 0] for part in parts]).astype(np.int64) % 10
    return Pixels(images, labels, white=255, tests=SIZES["svhn"].test)


def read_idx(file: Path, name: str, member: str = "") -> np.ndarray:
    """Read an IDX file of unsigned bytes: two zero bytes, a type, the number of axes, their lengths, the values.

    Args:
        file: the file, packed or not, or an archive that holds it.
        name: that of the data set.
        member: the official name of the file, if it is not the file's own.
    """
    member = member or file.name.removesuffix(".gz")
    shape = (IDX_FILES | EMNIST_FILES)[member]
    content = _read_file(file, member=f"gzip/{member}.gz", limit=4 + 4 * len(shape) + int(np.prod(shape)) + 1)
    magic = bytes([0, 0, 8, len(shape)])
    if content[:4] != magic:
        raise _damaged(
            file, f"it begins with {content[:4].hex() or 'nothing'}, not with {magic.hex()} as an IDX file of its kind"
        )
    header = magic + struct.pack(f">{len(shape)}I", *shape)
    if len(content) < len(header):
        raise _damaged(file, f"it ends inside its header, after {len(content)} bytes")
    if content[: len(header)] != header:
        found = struct.unpack_from(f">{len(shape)}I", content, 4)
        raise _damaged(file, f"its header promises {_times(found)} values, the official file has {_times(shape)}")
    values = np.frombuffer(content, np.uint8, offset=len(header))
    if values.size != np.prod(shape):
        held = f"{values.size:,} of" if values.size < np.prod(shape) else "more than"
        raise _damaged(file, f"it holds {held} the {int(np.prod(shape)):,} values that its header promises")
    if len(shape) == 1 and values.max() >= (classes := classes_of(name)):
        raise _damaged(file, f"it holds the label {values.max()}, and there are {classes} classes, from 0")
    _check_md5(content, IDX_MD5.get(name, {}).get(member, ""), file)
    return values.reshape(shape)


def _read_file(file: Path, *, member: str = "", limit: int = -1) -> bytes:
    """Read a file's content up to `limit` bytes, unpacked if it is packed."""
    try:
        if file.name.endswith(".tar.gz"):
            with tarfile.open(file) as archive, archive.extractfile(member) as part:  # type: ignore[union-attr]
                return part.read(limit)
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive, archive.open(member) as part, gzip.open(part) as unpacked:
                return unpacked.read(limit)
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as handle:
            return handle.read(limit)
    except PermissionError as error:
        raise InputError(f"{str(file)!r} cannot be read: {error.strerror}; ask for read permission") from error
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, KeyError, TypeError) as error:
        raise _damaged(file, f"it cannot be read ({error})") from error


def _check_md5(content: bytes, official: str, file: Path) -> None:
    """Refuse content that is not, byte for byte, the published one; where its sum is not known, one that is another."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    known = [f"; it is {name} of {data}" for data, sums in IDX_MD5.items() for name in sums if sums[name] == found]
    if found != official and (official or known):
        raise _damaged(file, f"its md5 is {found}, the official file's {official or 'is not known'}{''.join(known)}")


def check_pixels(pixels: Pixels, name: str) -> Pixels:
    """Check what every later step relies on."""
    count = sum(SIZES[name])
    if pixels.images.dtype != np.uint8 or pixels.images.ndim != 4 or pixels.images.max() > pixels.white:
        raise InputError(f"{name}: the images are not bytes of the shape (N, C, H, W) up to {pixels.white}")
    if not len(pixels.images) == len(pixels.labels) == count:
        raise InputError(f"{name}: {len(pixels.images)} images and {len(pixels.labels)} labels, not {count} of each")
    if (classes := np.unique(pixels.labels)).tolist() != list(range(classes_of(name))):
        raise InputError(f"{name}: the labels are {classes.tolist()}, not all of 0 to {classes_of(name) - 1}")
    return pixels


def _damaged(file: Path, reason: str) -> InputError:
    """Return the error for a file that exists and is wrong."""
    return InputError(
        f"{str(file)!r} is damaged or not the official file: {reason}. "
        "Put the official file in its place, or remove it to have it downloaded"
    )


def _times(shape: tuple[int, ...]) -> str:
    """Return a shape such as "60000x28x28"."""
    return "x".join(map(str, shape))
