"""The division of a data set into train, validation and test; decided by a seed, the same share of classes in each."""

from __future__ import annotations

import numpy as np

from trainer.config import EvaluationConfig
from trainer.data.catalogue import PUBLISHED_FILES, SIZES


def split_order(labels: np.ndarray, evaluation: EvaluationConfig) -> np.ndarray:
    """Return the order in which published images are stored: (N,) indices, first train, then validation, then test.

    A published test set stays as it is, in its own order. Digits have none, so theirs is drawn with the rest.
    """
    sizes = SIZES[evaluation.dataset]
    held_out = sizes.test if evaluation.dataset in PUBLISHED_FILES else 0
    pool = len(labels) - held_out
    order = stratified_order(labels[:pool], np.random.default_rng(evaluation.split_seed))
    test, validation, train = np.split(order, [sizes.test - held_out, sizes.test - held_out + sizes.validation])
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
