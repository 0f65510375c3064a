"""Aligned nearest neighbours: images/s of `find_neighbours` over those of the reference procedure.

The reference is the procedure of the attack's authors: for every source all 775 alignments by scipy.ndimage on the
8-bit image, then scikit-learn's nearest neighbour of the 775 queries in every other class of the 60,000 MNIST training
images, in the 64-bit numbers that scikit-learn widens 8-bit images to. The same in 32 bits, which nobody describes but
which is faster, stands beside it. All sides search the same sources, interleaved, with two threads, against an index
that was built before the clock starts; the time to build each is shown beside. All must name the same neighbours.

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

from trainer.invariance.alignment_grid import AlignmentGrid
from trainer.invariance.attacks import allowed_targets
from trainer.invariance.class_index import ClassIndex
from trainer.invariance.neighbours import find_neighbours
from trainer.invariance.published import alignments_for

THREADS, PAIRS, REFERENCE_IMAGES, IMAGES = 2, 5, 1, 64
GRID = alignments_for("mnist", "linf")
assert isinstance(GRID, AlignmentGrid)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def reference_alignments(image: np.ndarray) -> np.ndarray:
    """Return the 775 versions of an 8-bit image, (775, 784)."""
    return np.stack(
        [
            ndimage.shift(ndimage.rotate(image, r, reshape=False), (down, right)).ravel()
            for r in GRID.rotations
            for down in GRID.shifts
            for right in GRID.shifts
        ]
    )


class Reference:
    """Nearest neighbours by scikit-learn in one number format."""

    def __init__(self, pixels: np.ndarray, members: dict[int, np.ndarray], kind: type) -> None:
        self.kind, self.members = kind, members
        self.fitted = {
            c: NearestNeighbors(n_neighbors=1).fit(pixels[m].reshape(len(m), -1).astype(kind))
            for c, m in members.items()
        }

    def find(self, images: np.ndarray, labels: np.ndarray) -> list[tuple[int, int, int]]:
        """Find (target, alignment, training image) of every source and other class."""
        rows = []
        for image, label in zip(images, labels, strict=True):
            queries = reference_alignments(image).astype(self.kind)
            for target, search in self.fitted.items():
                if target != label:
                    distances, positions = search.kneighbors(queries)
                    best = int(distances.argmin())
                    rows.append((target, best, int(self.members[target][positions[best, 0]])))
        return rows


def main() -> None:
    root = os.environ.get("OTSWEEP_DATA_DIR")
    if root is None:
        sys.exit("OTSWEEP_DATA_DIR is not set: it must name the folder that holds MNIST/raw")
    torch.set_num_threads(THREADS)
    train, test = MNIST(root, train=True), MNIST(root, train=False)
    pixels, classes = train.data.numpy(), train.targets.numpy()
    members = {c: np.flatnonzero(classes == c) for c in range(10)}

    def ours(part: slice) -> list[tuple[int, int, int]]:
        sources = test.data[part][:, None].float() / 255
        found = find_neighbours(sources, test.targets[part], index, alignments=GRID, allowed=allowed_targets(10))
        return list(zip(found.target.tolist(), found.alignment.tolist(), found.neighbour.tolist(), strict=True))

    with threadpool_limits(THREADS):
        built, references = {}, {}
        for name, kind in (("reference", np.float64), ("reference, 32 bits", np.float32)):
            built[name], references[name] = timed(lambda kind=kind: Reference(pixels, members, kind))
        built["ours"], index = timed(lambda: ClassIndex(train.data[:, None].float() / 255, train.targets, classes=10))
        ours(slice(0, THREADS))
        times: dict[str, list[float]] = {name: [] for name in built}
        for pair in range(PAIRS):
            part = slice(pair * IMAGES, (pair + 1) * IMAGES)
            few = slice(part.start, part.start + REFERENCE_IMAGES)
            seconds, found = timed(lambda part=part: ours(part))
            times["ours"].append(seconds / IMAGES)
            for name, reference in references.items():
                seconds, rows = timed(
                    lambda few=few, reference=reference: reference.find(
                        test.data[few].numpy(), test.targets[few].numpy()
                    )
                )
                times[name].append(seconds / REFERENCE_IMAGES)
                if rows != found[: len(rows)]:
                    sys.exit(f"sources {few}: the procedures found different neighbours; the times can't be compared")
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {THREADS} threads")
    print(
        f"versions: python {platform.python_version()}, torch {torch.__version__}, scipy {scipy.__version__}, "
        f"scikit-learn {sklearn.__version__}"
    )
    columns = (("median s/image", 16), ("least", 10), ("most", 10), ("index, s", 10))
    print(f"{'':20}" + "".join(f"{name:>{width}}" for name, width in (*columns, ("times ours", 12), *columns[1:3])))
    for name, spent in times.items():
        ratios = [one / own for one, own in zip(spent, times["ours"], strict=True)]
        print(
            f"{name:20}{statistics.median(spent):16.4f}{min(spent):10.4f}{max(spent):10.4f}{built[name]:10.2f}"
            f"{statistics.median(ratios):12.1f}{min(ratios):10.1f}{max(ratios):10.1f}"
        )
    ratios = [one / own for one, own in zip(times["reference"], times["ours"], strict=True)]
    print(f"result: invariance_neighbours {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
