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


SIZES = {
    "digits": Sizes(1_200, 300, 297),
    "mnist": Sizes(50_000, 10_000, 10_000),
    "fashion_mnist": Sizes(50_000, 10_000, 10_000),
    "kmnist": Sizes(50_000, 10_000, 10_000),
    "emnist": Sizes(94_000, 18_800, 18_800),
    "usps": Sizes(6_091, 1_200, 2_007),
    "cifar10": Sizes(45_000, 5_000, 10_000),
    "svhn": Sizes(65_257, 8_000, 26_032),
}
IDX_FILES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
EMNIST_FILES = {
    "emnist-balanced-train-images-idx3-ubyte": (112_800, 28, 28),
    "emnist-balanced-train-labels-idx1-ubyte": (112_800,),
    "emnist-balanced-test-images-idx3-ubyte": (18_800, 28, 28),
    "emnist-balanced-test-labels-idx1-ubyte": (18_800,),
}
CIFAR_FILES = {name: (10_000, 3, 32, 32) for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")}
CIFAR_ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVES = {"cifar10": CIFAR_ARCHIVE, "emnist": "EMNIST/raw/gzip.zip"}
"""Archives of data sets that are published in one, by their paths in the data folder."""
PUBLISHED_FILES = {
    "mnist": _PublishedFiles("MNIST", "MNIST/raw", IDX_FILES),
    "fashion_mnist": _PublishedFiles("FashionMNIST", "FashionMNIST/raw", IDX_FILES),
    "kmnist": _PublishedFiles("KMNIST", "KMNIST/raw", IDX_FILES),
    "emnist": _PublishedFiles("EMNIST", "EMNIST/raw", EMNIST_FILES),
    "usps": _PublishedFiles("USPS", ".", {"usps.bz2": (7_291, 16, 16), "usps.t.bz2": (2_007, 16, 16)}),
    "cifar10": _PublishedFiles("CIFAR10", "cifar-10-batches-py", CIFAR_FILES),
    "svhn": _PublishedFiles(
        "SVHN", ".", {"train_32x32.mat": (73_257, 3, 32, 32), "test_32x32.mat": (26_032, 3, 32, 32)}
    ),
}


def is_own(dataset: str) -> bool:
    """Return whether a data set is one's own, `KIND:...`."""
    return ":" in dataset


def classes_of(dataset: str) -> int:
    """Return the number of classes K of a published data set: of EMNIST, in its balanced split, 47."""
    return 47 if dataset == "emnist" else 10


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
