"""Data of one's own: a folder of images by class, an `.npz` file, or what a Python function returns.

All three become the same: images, labels from 0, and how many of the last images are the test set. README.md says what
each must hold. Shapes: N images, C channels (1 or 3), H rows, W columns, K classes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.formats import Pixels
from trainer.data.image_folder import read_folder
from trainer.errors import InputError
from trainer.plugins import call_plugin, is_plugin, plugin_digest

_LEAST_SIDE, _LARGEST_SIDE = 8, 256
"""Range of H and W: the smallest that all networks take, and what the search for neighbours can afford."""

_MOST_CLASSES = 100
"""Answers are kept in a byte each, the teacher's with a sign."""

_LEAST_OF_CLASS = 12
"""Least images of a class beside the test set: judge and teacher share two thirds of them out, the rest is split."""

_DARKEST = 0.1
"""Least share of white that the brightest pixel of all has: shades counted from 0 to 1 or 16 in bytes, or divided by
255 twice, would train as black images."""

_NAMES = ("images", "labels", "train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels")
"""Arrays that a file or a function may give; those of validation join those of training, and the seed splits both."""


def own_digest(dataset: str) -> list[Any]:
    """Return what tells whether data of one's own is still what was decoded: files with their sizes and times, or the
    source of the function's module.

    Raises:
        InputError: if there is no such file, folder or module.
    """
    if is_plugin(dataset):
        return [plugin_digest("dataset", dataset)]
    kind, _, path = dataset.partition(":")
    files = read_folder(Path(path), dataset).files if kind == "folder" else [_npz_file(dataset)]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def decode_own(dataset: str) -> Pixels:
    """Read data of one's own, checked.

    Raises:
        InputError: naming what is wrong in one line.
    """
    kind, _, path = dataset.partition(":")
    if kind == "folder":
        return _check_own(read_folder(Path(path), dataset).decode(), dataset)
    given = call_plugin("dataset", dataset) if is_plugin(dataset) else _read_npz(dataset)
    return _check_own(_from_arrays(given, dataset), dataset)


def _npz_file(dataset: str) -> Path:
    path = Path(dataset.partition(":")[2])
    if not path.is_file():
        raise InputError(f"dataset = {dataset!r}: there is no such file")
    return path


def _read_npz(dataset: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file; none is unpickled."""
    path = _npz_file(dataset)
    if not zipfile.is_zipfile(path):
        raise InputError(f"dataset = {dataset!r}: can't be read as .npz: is no whole archive, as numpy.savez writes it")
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name in _NAMES}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"dataset = {dataset!r}: can't be read as .npz: {error}") from error


def _from_arrays(given: Any, dataset: str) -> Pixels:
    """Join the arrays that a file or a function gives, training before test, channels first."""
    if not isinstance(given, Mapping):
        raise InputError(
            f"dataset = {dataset!r}: returned {type(given).__name__}, must be a dict with images and labels, or "
            "train_images, train_labels, test_images and test_labels"
        )
    arrays = {name: _array(given[name], name, dataset) for name in _NAMES if name in given}
    training = [part for part in ("images", "train_images", "val_images") if part in arrays]
    if not training or ("images" in arrays) == ("train_images" in arrays):
        found = ", ".join(map(str, given)) or "nothing"
        raise InputError(
            f"dataset = {dataset!r}: holds {found}, must hold images and labels, or train_images and train_labels "
            "(with val_... and test_... if there are)"
        )
    parts = [*training, *(["test_images"] if "test_images" in arrays else [])]
    labels = [_labels(arrays, part, dataset) for part in parts]
    images = [_channels_first(arrays[part], part, dataset) for part in parts]
    if len({(each.shape[1:], each.dtype) for each in images}) > 1:
        shapes = ", ".join(f"{part} {arrays[part].shape} {arrays[part].dtype}" for part in parts)
        raise InputError(f"dataset = {dataset!r}: {shapes}: must be of one size and type")
    white = 255 if images[0].dtype == np.uint8 else 1
    tests = len(images[-1]) if parts[-1] == "test_images" else 0
    return Pixels(np.concatenate(images), np.concatenate(labels), white, tests)


def _array(value: Any, name: str, dataset: str) -> np.ndarray:
    """Return a tensor or array as an array that NumPy can compute with."""
    try:
        array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal lengths, types that NumPy lacks
        raise InputError(f"dataset = {dataset!r}: {name} is no array: {str(error).splitlines()[0]}") from None
    if array.dtype.kind not in "buif":
        raise InputError(f"dataset = {dataset!r}: {name} holds {array.dtype}, must hold numbers")
    return array


def _labels(arrays: Mapping[str, np.ndarray], part: str, dataset: str) -> np.ndarray:
    """Return the labels of a part, (N,) int64."""
    name = part.replace("images", "labels")
    if name not in arrays:
        raise InputError(f"dataset = {dataset!r}: holds {part} without {name}")
    labels = arrays[name]
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or len(labels) != len(arrays[part]):
        raise InputError(
            f"dataset = {dataset!r}: {name} has the shape {arrays[name].shape}, must be one label for each of "
            f"{len(arrays[part])} images"
        )
    if labels.dtype.kind not in "ui":
        raise InputError(f"dataset = {dataset!r}: {name} holds {labels.dtype}, must hold whole numbers from 0")
    return labels.astype(np.int64)


def _channels_first(images: np.ndarray, name: str, dataset: str) -> np.ndarray:
    """Return images (N, H, W), (N, C, H, W) or (N, H, W, C) as (N, C, H, W) of uint8 or float32."""
    if images.dtype == np.uint8:
        typed = images
    elif images.dtype.kind == "f":
        typed = images.astype(np.float32)
    else:
        raise InputError(f"dataset = {dataset!r}: {name} holds {images.dtype}, must hold uint8, or floats from 0 to 1")
    if typed.ndim == 3:
        return typed[:, None]
    first, last = (typed.ndim == 4 and typed.shape[axis] in (1, 3) for axis in (1, 3))
    if first == last:
        raise InputError(
            f"dataset = {dataset!r}: {name} has the shape {images.shape}, must be (N, H, W), (N, C, H, W) or "
            "(N, H, W, C) with C = 1 or 3"
        )
    return typed if first else np.ascontiguousarray(typed.transpose(0, 3, 1, 2))


def _check_own(pixels: Pixels, dataset: str) -> Pixels:
    """Return data of one's own after a check of what every later step relies on.

    Raises:
        InputError: for a size, a range or labels that are wrong, or too few images.
    """
    images, labels = pixels.images, pixels.labels
    rows, columns = images.shape[2:]
    pool, classes = labels[: len(labels) - pixels.tests], int(labels.max(initial=0)) + 1
    counts = np.bincount(pool.clip(0, _MOST_CLASSES), minlength=min(classes, _MOST_CLASSES))
    wrong = ""
    if not len(pool):
        wrong = "holds no images"
    elif not _LEAST_SIDE <= min(rows, columns) <= max(rows, columns) <= _LARGEST_SIDE:
        wrong = f"its images have {rows}x{columns} pixels, must have {_LEAST_SIDE} to {_LARGEST_SIDE} a side"
    elif pixels.white == 1 and not (images.min() >= 0 and images.max() <= 1):  # false for NaN too
        wrong = f"its images reach from {images.min():g} to {images.max():g}, must lie in [0, 1], or be uint8"
    elif images.max() == images.min():
        wrong = f"all its pixels are {images.max():g}"
    elif images.max() < _DARKEST * pixels.white:
        wrong = f"its brightest pixel is {images.max():g}, and {pixels.white} is white: scale it"
    elif labels.min() < 0:
        wrong = f"it has the label {labels.min()}, must have labels from 0"
    elif np.count_nonzero(counts) < 2:
        wrong = "all its images are of one class, must be of 2 or more"
    elif classes > _MOST_CLASSES:
        wrong = f"it has labels up to {classes - 1}, must have at most {_MOST_CLASSES} classes, numbered from 0"
    elif counts.min() < _LEAST_OF_CLASS:
        few = int(counts.argmin())
        wrong = f"class {few} has {counts[few]} images beside the test set, must have {_LEAST_OF_CLASS} or more"
    if wrong:
        raise InputError(f"dataset = {dataset!r}: {wrong}")
    return pixels
