"""The training image of every other class that lies nearest to an image, over many alignments of it.

Tramèr et al. 2020, section 4 and its appendix. Distances are exact: in levels, whole numbers from 0 to 255.

Shapes: N sources, M training images, C channels, H rows, W columns, D = C H W, Q pairs found, K classes. Of one search:
S sources of one label, T target classes, A alignments: P positions on each of G tracks, B of them knots; R rows of any
training images, k coordinates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainer.errors import InputError
from trainer.invariance.alignments import WHITE, Alignments, aligner_of, to_levels
from trainer.invariance.class_index import (
    NO_NEIGHBOURS,
    ClassIndex,
    Neighbours,
    check_labelled_images,
)
from trainer.parallel import map_on_threads

_SOURCE_BATCH = 32
_TOGETHER = {"cpu": 4, "cuda": 8}
"""Sources of one label that are searched for in one product."""

_Progress = Callable[[int, int], None]


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
    """The training images of every allowed class that lie nearest to any alignment of the source, in L2.

    Args:
        images: sources, (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        index: of what `alignments` compare of the training images; a class that it has none of gives no pair.
        alignments: those of the source that are tried.
        allowed: (K, K) bool, which class may be turned into which.
        nearest: how many training images of each class, at most `LIKELY`.
        progress: told sources done and sources in all.

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
        # The first usable alignment stands in for those that are not, so that all sources have as many queries.
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
    """Positions of at most so many neighbouring `labels` (N,) that are alike."""
    for _, run in itertools.groupby(range(len(labels)), labels.tolist().__getitem__):
        positions = list(run)
        yield from (positions[start : start + most] for start in range(0, len(positions), most))


def bring_back(images: Tensor, neighbours: Neighbours, alignments: Alignments) -> Tensor:
    """Each pair's neighbour among the training `images` (M, C, H, W), moved against the alignment to lie over the
    source: (Q, C, H, W) uint8."""
    aligner = aligner_of(alignments, *images.shape[2:], images.device)
    levels = to_levels(images[neighbours.neighbour] * WHITE)
    return aligner.back(levels, neighbours.alignment)
