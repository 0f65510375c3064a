"""A model's answers to the images that judge it, as bits in a short text: every accuracy follows from them.

All trials of a sweep are judged on the same images, so whoever compares two of them needs both answers to each image,
not two accuracies. Needs no torch.

Shape letters: N images of a split, M perturbed images of the judging set.
"""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Self

import numpy as np

_HEAD = struct.Struct("<BII")
"""Version, N and M."""
_VERSION = 1
_MOST_BYTES = 2**24
"""Limit of an unpacked text: a stranger's few bytes could unpack to any number."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of one model.

    Raises:
        ValueError: for arrays of other shapes or types, or if an image is robust that is not right.
    """

    right: np.ndarray
    """(N,) bool: right on the unperturbed image."""
    robust: np.ndarray
    """(N,) bool: right on the unperturbed image and under every sensitivity attack."""
    perturbed: np.ndarray
    """(M,) uint8: the class answered on each perturbed image of the judging set."""
    right_sources: np.ndarray
    """(M,) bool: right on the unperturbed source of each."""

    def __post_init__(self) -> None:
        for name, kind in (("right", bool), ("robust", bool), ("perturbed", np.uint8), ("right_sources", bool)):
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != kind:
                raise ValueError(f"{name}: {array.dtype} of shape {array.shape}, must be {np.dtype(kind)} in a row")
        if len(self.robust) != len(self.right) or len(self.right_sources) != len(self.perturbed):
            raise ValueError(
                f"{len(self.right)} images, {len(self.robust)} attacked; {len(self.perturbed)} perturbed, "
                f"{len(self.right_sources)} sources: must be as many"
            )
        if (self.robust & ~self.right).any():
            raise ValueError("an image that is wrong when clean is not robust")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answers) and self.encode() == other.encode()

    __hash__ = None  # type: ignore[assignment]

    def encode(self) -> str:
        """Return all answers as ASCII text: packed bits, compressed, in base64."""
        bits = (np.packbits(each).tobytes() for each in (self.right, self.robust, self.right_sources))
        head = _HEAD.pack(_VERSION, len(self.right), len(self.perturbed))
        return base64.b64encode(zlib.compress(b"".join([head, *bits, self.perturbed.tobytes()]), 9)).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return the answers that `encode` made a text of.

        Raises:
            ValueError: for any other text.
        """
        try:
            unpacked = zlib.decompressobj()
            content = unpacked.decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
            if not unpacked.eof:
                raise ValueError(f"not whole within {_MOST_BYTES} bytes")
            version, images, perturbed = _HEAD.unpack_from(content)
        except (ValueError, zlib.error, struct.error) as error:
            raise ValueError(f"answers {text[:20]!r}...: are damaged ({error})") from None
        sizes = [-(-count // 8) for count in (images, images, perturbed)]
        if version != _VERSION or len(content) != _HEAD.size + sum(sizes) + perturbed:
            raise ValueError(
                f"answers {text[:20]!r}...: version {version}, {len(content)} bytes for {images} and {perturbed} "
                f"images, must be version {_VERSION} and {_HEAD.size + sum(sizes) + perturbed} bytes"
            )
        data, place, bits = np.frombuffer(content, np.uint8), _HEAD.size, []
        for size, count in zip(sizes, (images, images, perturbed), strict=True):
            bits.append(np.unpackbits(data[place : place + size], count=count).view(bool))
            place += size
        right, robust, sources = bits
        return cls(right, robust, data[place:], sources)


def invariance_terms(perturbed: np.ndarray, labels: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the invariance accuracy sums over the perturbed images (..., M), and what it divides by (M,).

    Args:
        perturbed: (..., M) integers, the answers of one or more models.
        labels: (M,) integers, the classes of the sources.
        shares: (M, K) float64, the share of a crowd who give each answer.
    """
    rows = np.arange(len(labels))
    return np.where(perturbed == labels, 0.0, shares[rows, perturbed]), 1 - shares[rows, labels]
