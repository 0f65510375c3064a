"""Images in a folder for each class, PNG or JPEG, below `train/` and `test/` if these are there.

Shapes: N images, C channels (1 or 3), H rows, W columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.data.formats import Pixels
from trainer.errors import InputError

_ENDINGS = (".png", ".jpg", ".jpeg")
_GREY, _COLOUR = ("1", "L"), ("RGB", "P", "CMYK", "YCbCr")
"""Pillow's kinds of images that are read: an image with transparency or 16 bits would lose something."""
_PARTS = ("train", "test")
_DESKTOPS = ("Thumbs.db", "desktop.ini", "Icon\r", "__MACOSX")
"""Names of files and folders that Windows and Macs leave in folders and archives."""


class _ImageFolder(NamedTuple):
    """The files of a folder, training before test."""

    files: list[Path]
    labels: list[int]
    tests: int
    """Number of the last that are the test set."""

    def decode(self) -> Pixels:
        """Read all images, in grey if all of them are.

        Raises:
            InputError: for a file that is broken, transparent, of 16 bits or of another size than the first.
        """
        images = [_open(file) for file in self.files]
        for file, image in zip(self.files, images, strict=True):
            if image.size != images[0].size:
                width, height = image.size
                raise InputError(
                    f"{str(file)!r} has {width}x{height} pixels, and {str(self.files[0])!r} "
                    f"{'x'.join(map(str, images[0].size))}: all images must be of one size"
                )
        grey = all(image.mode in _GREY for image in images)
        arrays = np.stack([np.asarray(image.convert("L" if grey else "RGB")) for image in images])
        planes = arrays[:, None] if grey else np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))
        return Pixels(planes, np.array(self.labels, dtype=np.int64), 255, self.tests)


def read_folder(folder: Path, dataset: str) -> _ImageFolder:
    """Return the files of a folder with their classes: its subfolders in the order of their names, or of the numbers
    that these all are.

    Args:
        folder: holds the classes' folders; or `train/`, with `test/` beside it, that hold them.
        dataset: the knob's value, for errors.

    Raises:
        InputError: for a folder that is missing, holds something else, or whose test set has other classes.
    """
    if not folder.is_dir():
        raise InputError(f"dataset = {dataset!r}: there is no such folder")
    inside = [each.name for each in _visible(folder)]
    parts = [folder / part for part in _PARTS if part in inside] if set(inside) <= set(_PARTS) else [folder]
    if not inside or not parts or parts == [folder / "test"]:
        raise InputError(
            f"dataset = {dataset!r}: holds {', '.join(inside) or 'nothing'}, must hold a folder for each class"
        )
    names = _class_names(parts[0])
    files, labels, tests = [], [], 0
    for part in parts:
        if unknown := sorted(set(_class_names(part)) - set(names)):
            raise InputError(f"{str(part / unknown[0])!r}: there is no class {unknown[0]!r} in {str(parts[0])!r}")
        found = [(file, label) for label, name in enumerate(names) for file in _images(part / name)]
        files += [file for file, _ in found]
        labels += [label for _, label in found]
        tests = len(found) if part.name == "test" and len(parts) > 1 else 0
    return _ImageFolder(files, labels, tests)


def _visible(folder: Path) -> list[Path]:
    """Return what a folder holds, in the order of names, without what a desktop hides there."""
    return sorted(each for each in folder.iterdir() if not each.name.startswith(".") and each.name not in _DESKTOPS)


def _class_names(folder: Path) -> list[str]:
    found = _visible(folder)
    if files := [each for each in found if not each.is_dir()]:
        raise InputError(f"{str(files[0])!r} lies beside the classes' folders: put it into one, or elsewhere")
    names = [each.name for each in found]
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def _images(folder: Path) -> list[Path]:
    files = _visible(folder) if folder.is_dir() else []
    for file in files:
        if file.is_dir() or file.suffix.lower() not in _ENDINGS:
            raise InputError(f"{str(file)!r} is neither PNG nor JPEG ({', '.join(_ENDINGS)})")
    return files


def _open(file: Path) -> Any:
    """Return a file's image, decoded.

    Raises:
        InputError: naming the file.
    """
    from PIL import Image, ImageOps  # comes with torchvision; not needed once cached

    try:
        with Image.open(file, formats=("PNG", "JPEG")) as opened:
            image = ImageOps.exif_transpose(opened)  # a camera says so which side is up
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{str(file)!r} is broken: {error}") from error
    if image.mode not in (*_GREY, *_COLOUR) or "transparency" in image.info:
        raise InputError(
            f"{str(file)!r} is an image of mode {image.mode}"
            f"{' with transparency' if 'transparency' in image.info else ''}: save it as 8-bit grey or RGB"
        )
    return image
