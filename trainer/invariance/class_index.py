"""The exact search for the training images of a class that lie nearest to any alignment of an image.

Shapes: N training images, K classes of M images at most, C channels, H rows, W columns, D = C H W, Q pairs found. Of
one search: S sources of one label, T target classes, A alignments at P positions on each of G tracks, B of them knots;
R rows of any training images, k coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.errors import InputError
from trainer.invariance.alignments import WHITE, Tracks, to_levels
from trainer.invariance.lower_bounds import (
    AXES,
    FARTHEST,
    FLOAT32_ERROR,
    PRODUCT_ERROR,
    Bounds,
    Coordinates,
    Probe,
    principal_bases,
    probe_of,
    reach_from_knots,
    widened,
)

_LIKELY = 32
"""Number of training images per class, those of least bound, whose distance limits what can still be nearest."""
_PAIR_BATCH, _CELL_BATCH = 16_384, 4096
"""Pairs of an image and a track, and of an image and a query, compared at once."""
_BLOCK = {torch.float32: 256, torch.bfloat16: 512}
"""Rows per matrix product on a CPU: products are reduced while they are in its cache."""


class Neighbours(NamedTuple):
    """Pairs of a source and a near training image of another class, sorted by source, then target, then distance."""

    source: Tensor
    """(Q,) int64 index into the sources."""
    target: Tensor
    """(Q,) int64 class."""
    neighbour: Tensor
    """(Q,) int64 index of the neighbour in the training images."""
    alignment: Tensor
    """(Q,) int64 in [0, A): the alignment of the source that lies nearest."""
    distance: Tensor
    """(Q,) float32, L2 in pixel units of [0, 1] images."""


def check_labelled_images(images: Tensor, labels: Tensor, classes: int) -> None:
    """Refuse images (N, C, H, W) outside [0, 1] and labels (N,) outside the classes.

    Raises:
        InputError: naming the range that was found.
    """
    if images.ndim != 4 or len(images) != len(labels):
        raise InputError(
            f"images {tuple(images.shape)} with labels {tuple(labels.shape)}: must be (N, C, H, W) and (N,)"
        )
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise InputError(f"images in [{images.min():g}, {images.max():g}]: pixels must lie in [0, 1]")
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(f"labels in [{labels.min()}, {labels.max()}]: must lie in [0, {classes - 1}]")


_NONE = torch.empty(0, dtype=torch.int64)
NO_NEIGHBOURS = Neighbours(_NONE, _NONE, _NONE, _NONE, torch.empty(0))
"""The result where nothing is searched for."""


class _Search(NamedTuple):
    """The alignments of some sources and the classes in which their neighbours are searched for."""

    queries: Tensor
    """(S, A, D) uint8 levels."""
    probe: Probe
    """(S, P, G, ...) in the fine coordinates."""
    targets: Tensor
    """(T,) classes."""


class ClassIndex:
    """Training images by class, for an exact search that rules most of them out by a lower bound of their distance.

    First all training images are compared with the knots of every track, by matrix products in few coordinates
    (`lower_bounds`), in half precision where the processor multiplies that faster; a knot bounds the distance to what
    lies near its line. The few pairs of an image and a track that are left are compared all along the track, in more
    coordinates; the few alignments that are left then, in pixels and whole numbers. Every class is padded to M images
    by some of infinite length.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, classes: int, precision: torch.dtype | None = None) -> None:
        """Index the training images.

        Args:
            images: (N, C, H, W) in [0, 1].
            labels: (N,) int64 in [0, K).
            classes: K.
            precision: float32 or bfloat16 for the lower bounds, None for the faster here; it changes no result.

        Raises:
            InputError: for images outside [0, 1] or labels outside the classes.
        """
        check_labelled_images(images, labels, classes)
        self.shape, self._precision = images.shape[1:], precision or _fastest(images.device)
        self._block = _BLOCK[self._precision] if images.device.type == "cpu" else None
        counts = labels.bincount(minlength=classes)
        order = torch.argsort(labels, stable=True)
        column = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
        levels = to_levels(images[order] * WHITE).flatten(1)
        size = self._whole_blocks(int(counts.max()))

        def table(values: Tensor, blank: float = 0) -> Tensor:
            """Arrange `values` (N, ...), ordered by `order`, by class: (K, M, ...)."""
            empty = values.new_full((classes, size, *values.shape[1:]), blank)
            return empty.index_put_((labels[order], column), values)

        def stage(basis: Tensor | None) -> Coordinates:
            empty = Coordinates(basis, levels.mean(0), levels[:0], levels[:0], levels[:0])
            projected = empty.project(levels)
            rows = projected.to(self._precision)
            return empty._replace(
                rows=table(torch.cat([rows, rows.new_ones(len(rows), 2)], 1)),
                lengths=table(rows.float().square().sum(1), torch.inf),
                rounded_by=(projected - rows).norm(dim=1).amax(),
            )

        self.present, self._counts = counts > 0, counts
        self._members, self._pixels = table(order), table(levels.to(torch.uint8))
        stages = [stage(basis) for basis in principal_bases(levels, AXES[self._precision]) or [None]]
        self._coarse, self._fine = stages[0], stages[-1]

    def nearest(self, queries: Tensor, tracks: Tracks, targets: Tensor, *, nearest: int) -> Neighbours:
        """Find the training images of each target class that lie nearest to any query of each source.

        Of equally near pairs the first query is taken, then the first training image.

        Args:
            queries: (S, A, D) uint8, the alignments of each source.
            tracks: the order of the alignments.
            targets: (T,) int64, classes that are present.
            nearest: number of training images of each class, at least 1; at most 32 are found.
        """
        if not len(targets):
            return NO_NEIGHBOURS
        points = queries.float().unflatten(1, (-1, tracks.number))
        counts = [self._whole_blocks(n) for n in self._counts[targets].tolist()]
        coarse = self._coarse.project(points)
        knots = probe_of(coarse[:, list(tracks.knots)].transpose(0, 1), self._precision)
        bounds = [
            self._bounds_of_knots(knots, target, count) for target, count in zip(targets.tolist(), counts, strict=True)
        ]
        count = min(_LIKELY, *counts)
        likely = torch.stack([each.least.topk(count, largest=False).indices for each in bounds], 1)
        fine = coarse if self._fine is self._coarse else self._fine.project(points)
        search = _Search(queries, probe_of(fine, torch.float32), targets)
        nearest = min(nearest, likely.shape[2])
        limit = self._limit(likely, search, nearest)
        reach = widened(reach_from_knots(points, tracks, limit), self._coarse.rounded_by + knots.rounded_by)
        left = [each.within(most) for each, most in zip(bounds, reach.unbind(2), strict=True)]
        slots = torch.repeat_interleave(torch.tensor([len(pairs) for pairs in left], device=limit.device))
        parts = torch.cat([torch.cat(left), slots[:, None]], 1).split(_PAIR_BATCH)
        measured = _concatenated(self._measure(part, search, widened(limit, self._fine.rounded_by)) for part in parts)
        return self._decide(*_least_of_each(*measured), search, nearest)

    def _whole_blocks(self, count: int) -> int:
        """Round `count` up to whole blocks: oneDNN makes a kernel for every shape, which takes longer than using it."""
        return count if self._block is None else -(-count // self._block) * self._block

    def _bounds_of_knots(self, knots: Probe, target: int, count: int) -> Bounds:
        """Bound the distances of the first rows of a class to all knots (B, S, G, ...), in the coarse coordinates."""
        weights, lengths = knots.weights.flatten(0, 2), self._coarse.lengths[target, :count]
        blocks = self._coarse.rows[target, :count].split(self._block or count)
        nearest = torch.cat([(weights @ rows.T).unflatten(0, (len(knots.weights), -1)).amin(0) for rows in blocks], 1)
        nearest = nearest.unflatten(0, knots.weights.shape[1:3])
        # The rounding error of (squared distance - squared length) is at most its share of each of the two.
        rounding = PRODUCT_ERROR[self._precision] + FLOAT32_ERROR
        lengths = lengths * (1 - rounding) - FLOAT32_ERROR * knots.longest
        return Bounds(nearest, lengths, nearest.amin(1) + lengths, rounding)

    def _limit(self, likely: Tensor, search: _Search, nearest: int) -> Tensor:
        """Return an upper bound (S, T) float32 of the squared distance of the `nearest`-th training image.

        Args:
            likely: (S, T, L) training images by their position in the class; the best fine alignment of each counts.
            search: the queries and targets that they refer to.
            nearest: rank, counted from 1.
        """
        (sources, alignments), size = search.queries.shape[:2], self._pixels.shape[1]
        cell = (search.targets[:, None] * size + likely).flatten(1)
        probes = search.probe.weights.flatten(1, 2).mT
        best = (self._fine.rows.flatten(0, 1)[cell].float() @ probes).argmin(2)
        query = torch.arange(sources, device=best.device)[:, None] * alignments + best
        squared = self._squared(cell.flatten(), search.queries.flatten(0, 1), query.flatten()).view(likely.shape)
        # Finite, so that padding never passes, not even in a class of fewer images than are asked for.
        squared = squared.float().masked_fill(self._fine.lengths.flatten()[cell].view(likely.shape).isinf(), FARTHEST)
        return squared.topk(nearest, largest=False).values[:, :, -1] * (1 + FLOAT32_ERROR)

    def _measure(self, pairs: Tensor, search: _Search, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Measure, of R pairs of a training image and a track, the images and their best alignments within the limit.

        Args:
            pairs: (R, 4) numbers of the source, the track, the image in its class, and the target class.
            search: the queries and targets that the pairs refer to.
            limit: (S, T) squared distances.

        Returns:
            Numbers (images,), ascending, of source, target and image; squared distance and alignment in one (images,).
        """
        sources, alignments = search.queries.shape[:2]
        size, tracks = self._pixels.shape[1], search.probe.weights.shape[2]
        key = pairs[:, 0] * tracks + pairs[:, 1]
        order = key.argsort()
        key, (source, _, column, slot) = key[order], pairs[order].T
        cell = search.targets[slot] * size + column
        counts = key.bincount(minlength=sources * tracks).tolist()
        rows = self._fine.rows.flatten(0, 1).index_select(0, cell).float().split(counts)
        probes = search.probe.weights.permute(0, 2, 3, 1).flatten(0, 1)
        bound = torch.cat([part @ probe for part, probe in zip(rows, probes, strict=True)])
        lengths = self._fine.lengths.flatten()[cell]
        most = limit[source, slot] - lengths + FLOAT32_ERROR * (lengths + search.probe.longest)
        pair, position = (bound <= most[:, None]).nonzero(as_tuple=True)
        alignment = position * tracks + key[pair] % tracks
        squared = self._squared(cell[pair], search.queries.flatten(0, 1), source[pair] * alignments + alignment)
        image = (source * len(search.targets) + slot)[pair] * size + column[pair]
        return _least_of_each(image, squared * alignments + alignment)

    def _squared(self, cell: Tensor, queries: Tensor, query: Tensor) -> Tensor:
        """Return squared distances (R,), in levels, of training images and queries, given by their numbers (R,)."""
        pixels = self._pixels.flatten(0, 1)
        parts = zip(cell.split(_CELL_BATCH), query.split(_CELL_BATCH), strict=True)
        return torch.cat([_squares(pixels.index_select(0, x), queries.index_select(0, q)) for x, q in parts])

    def _decide(self, image: Tensor, found: Tensor, search: _Search, nearest: int) -> Neighbours:
        """Choose, for every source and target, the `nearest` least (distance, alignment, training image)."""
        size, alignments = self._pixels.shape[1], search.queries.shape[1]
        order = found.argsort(stable=True)
        order = order[(image[order] // size).argsort(stable=True)]
        # What is left of one source and target is adjacent; the first `nearest` of each are kept.
        group = image[order] // size
        first = torch.searchsorted(group, group)
        order = order[torch.arange(len(order), device=order.device) - first < nearest]
        group, column, found = image[order] // size, image[order] % size, found[order]
        target = search.targets[group % len(search.targets)]
        return Neighbours(
            source=group // len(search.targets),
            target=target,
            neighbour=self._members[target, column],
            alignment=found % alignments,
            distance=(found // alignments).double().sqrt().div(WHITE).float(),
        )


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances (R,) int64 of `a` and `b` (R, D) uint8; sums of up to 33,000 pixels fit 32 bits."""
    difference = a.int() - b.int()
    return (difference * difference).sum(1, dtype=torch.int32).long()


def _least_of_each(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values of `key` (R,), ascending, and the least `value` of each."""
    distinct, which = key.unique(return_inverse=True)
    least = value.new_empty(len(distinct)).scatter_reduce_(0, which, value, "amin", include_self=False)
    return distinct, least


def _concatenated(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Combine pairs of tensors to one pair, each side concatenated."""
    first, second = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second)


def _fastest(device: torch.device) -> torch.dtype:
    """Return the type in which `device` multiplies matrices faster: float32 or bfloat16."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if device.type == "cuda" or capabilities.get("amx_bf16") else torch.float32
