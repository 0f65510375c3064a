"""The file formats in which data sets are published: IDX, CIFAR-10's pickles, scikit-learn's digits."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.data.catalogue import CIFAR_FILES, CLASSES, IDX_FILES, IDX_MD5, SIZES
from trainer.errors import InputError


class Pixels(NamedTuple):
    """A data set as published, training images before test images."""

    images: np.ndarray
    """(N, C, H, W) uint8."""
    labels: np.ndarray
    """(N,) int64."""
    white: int
    """The pixel value that becomes 1."""


def decode(name: str, files: list[Path]) -> Pixels:
    """Read a data set's published files."""
    if name == "digits":
        return _decode_digits()
    if name == "cifar10":
        return _decode_cifar(files)
    images, labels = (np.concatenate([read_idx(file, name) for file in files[i::2]]) for i in (0, 1))
    return Pixels(images[:, None], labels.astype(np.int64), white=255)


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
    return Pixels(images, np.concatenate([batch["labels"] for batch in batches]).astype(np.int64), white=255)


def read_idx(file: Path, name: str) -> np.ndarray:
    """Read an IDX file of unsigned bytes: two zero bytes, a type, the number of axes, their lengths, the values."""
    member = file.name.removesuffix(".gz")
    shape = IDX_FILES[member]
    content = _read_file(file, limit=4 + 4 * len(shape) + int(np.prod(shape)) + 1)
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
    if len(shape) == 1 and values.max() >= CLASSES:
        raise _damaged(file, f"it holds the label {values.max()}, and there are {CLASSES} classes, from 0")
    if checksum := IDX_MD5.get(name, {}).get(member):
        _check_md5(content, checksum, file)
    return values.reshape(shape)


def _read_file(file: Path, *, member: str = "", limit: int = -1) -> bytes:
    """Read a file's content up to `limit` bytes, unpacked if it is packed."""
    try:
        if file.name.endswith(".tar.gz"):
            with tarfile.open(file) as archive, archive.extractfile(member) as part:  # type: ignore[union-attr]
                return part.read(limit)
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as handle:
            return handle.read(limit)
    except PermissionError as error:
        raise InputError(f"{str(file)!r} cannot be read: {error.strerror}; ask for read permission") from error
    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError, TypeError) as error:
        raise _damaged(file, f"it cannot be read ({error})") from error


def _check_md5(content: bytes, official: str, file: Path) -> None:
    """Refuse content that is not, byte for byte, the published one."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != official:
        known = [f"; it is {name} of {data}" for data, sums in IDX_MD5.items() for name in sums if sums[name] == found]
        raise _damaged(file, f"its md5 is {found}, the official file's {official}{''.join(known)}")


def check_pixels(pixels: Pixels, name: str) -> Pixels:
    """Check what every later step relies on."""
    count = sum(SIZES[name])
    if pixels.images.dtype != np.uint8 or pixels.images.ndim != 4 or pixels.images.max() > pixels.white:
        raise InputError(f"{name}: the images are not bytes of the shape (N, C, H, W) up to {pixels.white}")
    if not len(pixels.images) == len(pixels.labels) == count:
        raise InputError(f"{name}: {len(pixels.images)} images and {len(pixels.labels)} labels, not {count} of each")
    if (classes := np.unique(pixels.labels)).tolist() != list(range(CLASSES)):
        raise InputError(f"{name}: the labels are {classes.tolist()}, not all of 0 to {CLASSES - 1}")
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
