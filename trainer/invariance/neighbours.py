"""The training images of every other class that lie nearest to an image, over many alignments of it.

Tramèr et al. 2020, section 4 and its appendix. Distances are exact: in levels, whole numbers from 0 to 255.

Shapes: N sources, M training images, C channels, H rows, W columns, Q pairs found, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainer.errors import InputError
from trainer.invariance.alignments import WHITE, Alignments, aligner_of, to_levels
from trainer.invariance.class_index import NO_NEIGHBOURS, ClassIndex, Neighbours, check_labelled_images
from trainer.parallel import map_on_threads

_SOURCE_BATCH = 32
"""Number of sources aligned at once."""
_TOGETHER = {"cpu": 4, "cuda": 8}
"""Number of sources of one label that one product compares."""

_Progress = Callable[[int, int], None]
"""Function of (done, total)."""


def find_neighbours(
    images: Tensor,
    labels: Tensor,
    index: ClassIndex,
    *,
    alignments: Alignments,
    allowed: Tensor,
    nearest: int = 1,
    progress: _Progress = lambda done, total: None,
) -> Neighbours:
    """Find the training images of every allowed class that lie nearest to any alignment of the source, in L2.

    Args:
        images: sources, (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        index: the training images as `alignments.sought` returns them; a class without any gives no pair.
        alignments: the ways to move a source that are tried.
        allowed: (K, K) bool, True where the first class may be turned into the second.
        nearest: number of training images of each class, 1 to 32; a smaller class gives all it has.
        progress: called with the number of sources done and of all sources.

    Raises:
        InputError: for images outside [0, 1] or not of the training images' size, or labels outside the classes.
    """
    check_labelled_images(images, labels, len(allowed))
    if images.shape[1:] != index.shape:
        raise InputError(f"sources {tuple(images.shape[1:])}, training images {tuple(index.shape)}: differ")
    if not len(images):
        return NO_NEIGHBOURS
    aligner = aligner_of(alignments, *images.shape[2:], images.device)
    numbers = torch.arange(alignments.size, device=images.device)
    allowed = allowed.to(images.device) & index.present
    done = itertools.count(1)

    def search(part: Tensor) -> list[Neighbours]:
        found = []
        levels = to_levels(alignments.sought(images[part]) * WHITE)
        versions, usable = aligner.all(levels).flatten(2), aligner.usable(levels)
        # The first usable alignment replaces those that are not, so that all sources have as many queries.
        stands = torch.where(usable, numbers, usable.int().argmax(1, keepdim=True))
        for together in _of_one_label(labels[part], _TOGETHER[images.device.type]):
            queries = torch.stack([versions[n][stands[n]] for n in together])
            targets = allowed[labels[part[together[0]]]].nonzero().squeeze(1)
            near = index.nearest(queries, alignments.tracks, targets, nearest=nearest)
            used = stands[together][near.source, near.alignment]
            found.append(near._replace(source=part.to(images.device)[together][near.source], alignment=used))
            for _ in together:
                progress(next(done), len(images))
        return found

    parts = labels.argsort(stable=True).cpu().split(_SOURCE_BATCH)
    found = map_on_threads(search, parts) if images.device.type == "cpu" else map(search, parts)
    columns = zip(NO_NEIGHBOURS, *itertools.chain.from_iterable(found), strict=True)
    pairs = Neighbours(*(torch.cat([part.to(images.device) for part in column]) for column in columns))
    order = pairs.source.argsort(stable=True)
    return Neighbours(*(column[order] for column in pairs))


def _of_one_label(labels: Tensor, most: int) -> Iterator[list[int]]:
    """Yield the positions of at most `most` adjacent `labels` (N,) that are equal."""
    for _, run in itertools.groupby(range(len(labels)), labels.tolist().__getitem__):
        positions = list(run)
        yield from (positions[start : start + most] for start in range(0, len(positions), most))


def bring_back(images: Tensor, neighbours: Neighbours, alignments: Alignments) -> Tensor:
    """Move each pair's neighbour among the training `images` (M, C, H, W) against the alignment, over the source.

    Returns:
        (Q, C, H, W) uint8 levels.
    """
    aligner = aligner_of(alignments, *images.shape[2:], images.device)
    levels = to_levels(images[neighbours.neighbour] * WHITE)
    return aligner.back(levels, neighbours.alignment)
