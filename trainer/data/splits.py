"""The division of a data set into train, validation and test; decided by a seed, the same share of classes in each."""

from __future__ import annotations

import numpy as np

from trainer.data.catalogue import Sizes

_MOST_VALIDATION = 10_000
"""Validation images drawn from data of one's own: as many as MNIST's."""


def usual_sizes(images: int, tests: int) -> Sizes:
    """Return the sizes of the splits of one's own data: a sixth each for validation and, if it has none, test.

    Args:
        images: number of all images.
        tests: number of those that are its test set; 0 if it has none.
    """
    validation = min((images - tests) // 6, _MOST_VALIDATION)
    test = tests or validation
    return Sizes(images - validation - test, validation, test)


def split_order(labels: np.ndarray, sizes: Sizes, *, tests: int, seed: int) -> np.ndarray:
    """Return the order in which published images are stored: (N,) indices, first train, then validation, then test.

    Args:
        labels: (N,) int64.
        sizes: of the splits.
        tests: number of the last images that are a published test set, which stays as it is, in its own order; 0 draws
            the test images with the rest.
        seed: decides what is drawn.
    """
    pool = len(labels) - tests
    order = stratified_order(labels[:pool], np.random.default_rng(seed))
    test, validation, train = np.split(order, [sizes.test - tests, sizes.test - tests + sizes.validation])
    return np.concatenate([train, validation, test, np.arange(pool, len(labels))])


def stratified_order(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a random order in which every prefix holds nearly the same share of each class.

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
