"""The facts about each data set: sizes of its splits, its published files, their shapes and checksums."""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """Numbers of images per split, in the order in which they are stored."""

    train: int
    validation: int
    test: int


class _PublishedFiles(NamedTuple):
    """Layout of a data set's files in a folder, as torchvision has it; training files before test files."""

    torchvision_name: str
    folder: str
    files: dict[str, tuple[int, ...]]
    """Shape of the array in each file, by the file's name."""


CLASSES = 10
"""Number of classes K of every data set known so far."""
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
PUBLISHED_FILES = {
    "mnist": _PublishedFiles("MNIST", "MNIST/raw", IDX_FILES),
    "fashion_mnist": _PublishedFiles("FashionMNIST", "FashionMNIST/raw", IDX_FILES),
    "cifar10": _PublishedFiles("CIFAR10", "cifar-10-batches-py", CIFAR_FILES),
}
IDX_MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
"""Checksums of unpacked files: torchvision lists those of the archives only."""
