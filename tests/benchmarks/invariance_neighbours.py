"""Aligned nearest neighbours: images/s of `find_neighbours` over those of the reference procedure.

The reference is what the attack's authors describe: for every source all 775 alignments by scipy.ndimage on the 8-bit
image, then scikit-learn's nearest neighbour of the 775 queries in every other class of the 60,000 MNIST training
images. Both sides search the same sources, interleaved, with two threads, against an index that was built before the
clock starts; the time to build each is shown beside. Both must name the same neighbours.

    OTSWEEP_DATA_DIR=... python -m tests.benchmarks.invariance_neighbours
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
import sklearn
import torch
from scipy import ndimage
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torchvision.datasets import MNIST

from trainer.invariance import allowed_targets
from trainer.neighbours import AlignmentGrid, ClassIndex, find_neighbours

THREADS, PAIRS, REFERENCE_IMAGES, IMAGES = 2, 5, 1, 16
GRID = AlignmentGrid.for_dataset("mnist")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def reference_alignments(image: np.ndarray) -> np.ndarray:
    """The 775 versions of an 8-bit image, (775, 784)."""
    return np.stack(
        [
            ndimage.shift(ndimage.rotate(image, r, reshape=False), (down, right)).ravel()
            for r in GRID.rotations
            for down in GRID.shifts
            for right in GRID.shifts
        ]
    )


def reference_neighbours(
    images: np.ndarray, labels: np.ndarray, fitted: dict[int, NearestNeighbors]
) -> list[tuple[int, int, int, int]]:
    """Rows (source, target, alignment, position among the target's images)."""
    rows = []
    for n, image in enumerate(images):
        queries = reference_alignments(image).astype(np.float32)
        for target, search in fitted.items():
            if target != labels[n]:
                distances, positions = search.kneighbors(queries)
                best = int(distances.argmin())
                rows.append((n, target, best, int(positions[best, 0])))
    return rows


def main() -> None:
    root = os.environ.get("OTSWEEP_DATA_DIR")
    if root is None:
        sys.exit("OTSWEEP_DATA_DIR is not set: it must name the folder that holds MNIST/raw")
    torch.set_num_threads(THREADS)
    train, test = MNIST(root, train=True), MNIST(root, train=False)
    pixels, classes = train.data.numpy(), train.targets.numpy()
    images, labels = train.data[:, None].float() / 255, train.targets
    members = {c: np.flatnonzero(classes == c) for c in range(10)}
    with threadpool_limits(THREADS):
        fit_time, fitted = timed(
            lambda: {
                c: NearestNeighbors(n_neighbors=1).fit(pixels[m].reshape(len(m), -1).astype(np.float32))
                for c, m in members.items()
            }
        )
        index_time, index = timed(lambda: ClassIndex(images, labels, classes=10))

        def ours(part: slice) -> Any:
            sources = test.data[part][:, None].float() / 255
            return find_neighbours(sources, test.targets[part], index, grid=GRID, allowed=allowed_targets(10))

        ours(slice(0, 2))
        ours_times, reference_times = [], []
        different = checked = 0
        for pair in range(PAIRS):
            part = slice(pair * IMAGES, (pair + 1) * IMAGES)
            few = slice(part.start, part.start + REFERENCE_IMAGES)
            seconds, found = timed(lambda part=part: ours(part))
            ours_times.append(seconds / IMAGES)
            seconds, rows = timed(
                lambda few=few: reference_neighbours(test.data[few].numpy(), test.targets[few].numpy(), fitted)
            )
            reference_times.append(seconds / REFERENCE_IMAGES)
            for q, (_, target, alignment, position) in enumerate(rows):
                checked += 1
                different += (int(found.target[q]), int(found.alignment[q]), int(found.neighbour[q])) != (
                    target,
                    alignment,
                    int(members[target][position]),
                )
    ratios = [r / o for r, o in zip(reference_times, ours_times, strict=True)]
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {THREADS} threads")
    print(
        f"versions: python {platform.python_version()}, torch {torch.__version__}, scipy {scipy.__version__}, "
        f"scikit-learn {sklearn.__version__}"
    )
    print(f"{'':12}{'median s/image':>16}{'least':>10}{'most':>10}{'index, s':>10}")
    for name, times, built in (("reference", reference_times, fit_time), ("ours", ours_times, index_time)):
        print(f"{name:12}{statistics.median(times):16.4f}{min(times):10.4f}{max(times):10.4f}{built:10.2f}")
    print(f"ratio over {PAIRS} pairs: {min(ratios):.1f} to {max(ratios):.1f}")
    print(f"neighbours that differ: {different} of {checked}")
    if different:
        sys.exit("the two procedures found different neighbours: the times can't be compared")
    print(f"result: invariance_neighbours {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
