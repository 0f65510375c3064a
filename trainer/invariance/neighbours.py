"""The training image of every other class that lies nearest to an image, over many alignments of it.

Tramèr et al. 2020, section 4 and its appendix. Distances are exact: in levels, whole numbers from 0 to 255.

Shapes: N sources, M training images, C channels, H rows, W columns, D = C H W, Q pairs found, K classes. Of one search:
S sources of one label, T target classes, A alignments: P positions on each of G tracks, B of them knots; R rows of any
training images, k coordinates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from trainer.errors import InputError
from trainer.invariance.alignments import WHITE, Alignments, Tracks, aligner_of, to_levels
from trainer.parallel import map_on_threads

_AXES = {torch.float32: (61, 157), torch.bfloat16: (157,)}
"""Sizes of the subspaces that rule training images out, coarse and fine; with the three numbers that are added to them,
157 fill whole vectors."""
_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}
"""Relative error of a product's result: both sums are made in float32."""
SINGLE = 2.0**-16
"""Error of a squared distance computed in float32, relative to the squared lengths that it is the difference of, and of
a few other operations: ample."""
COVARIANCE_IMAGES = 10_000
_LIKELY = 32
"""Training images per class, those of least bound, whose distance limits what can still be nearest."""
_SOURCE_BATCH = 32
_PAIR_BATCH, _CELL_BATCH = 16_384, 4096
_TOGETHER = {"cpu": 4, "cuda": 8}
"""Sources of one label that are searched for in one product."""
_BLOCK = {torch.float32: 256, torch.bfloat16: 512}
"""Rows per matrix product on a CPU, so that the products are reduced while they are in its cache."""

_Progress = Callable[[int, int], None]


class Neighbours(NamedTuple):
    """Pairs of a source and a near training image of another class, sorted by source, then target, then distance."""

    source: Tensor
    """(Q,) int64 index into the sources."""
    target: Tensor
    """(Q,) int64 class."""
    neighbour: Tensor
    """(Q,) int64 index of the neighbour in the training images."""
    alignment: Tensor
    """(Q,) int64 in [0, A): how the source was moved to lie nearest."""
    distance: Tensor
    """(Q,) float32, L2 in pixel units of [0, 1] images."""


def _check_images(images: Tensor, labels: Tensor, classes: int) -> None:
    """Refuse images outside [0, 1] and labels outside the classes.

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
    _check_images(images, labels, len(allowed))
    if images.shape[1:] != index.shape:
        raise InputError(f"sources {tuple(images.shape[1:])}, training images {tuple(index.shape)}: differ")
    if not len(images):
        return _NONE_FOUND
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
    columns = zip(_NONE_FOUND, *itertools.chain.from_iterable(found), strict=True)
    pairs = Neighbours(*(torch.cat([part.to(images.device) for part in column]) for column in columns))
    order = pairs.source.argsort(stable=True)
    return Neighbours(*(column[order] for column in pairs))


def _of_one_label(labels: Tensor, most: int) -> Iterator[list[int]]:
    """Positions of at most so many neighbouring `labels` (N,) that are alike."""
    for _, run in itertools.groupby(range(len(labels)), labels.tolist().__getitem__):
        positions = list(run)
        yield from (positions[start : start + most] for start in range(0, len(positions), most))


_NONE = torch.empty(0, dtype=torch.int64)
_NONE_FOUND = Neighbours(_NONE, _NONE, _NONE, _NONE, torch.empty(0))


class _Stage(NamedTuple):
    """Coordinates in which no two images lie further apart than they do."""

    basis: Tensor | None
    """(D, k - 1) orthonormal columns; None for the pixels themselves."""
    centre: Tensor
    """(D,) the origin: near the images, so that lengths, and with them errors of rounding, are small."""
    rows: Tensor
    """(K, M, k + 2): every training image in these coordinates, rounded to where products are fast, and two ones."""
    lengths: Tensor
    """(K, M) float32, squared, of the rows without their ones; infinite where a class has fewer than M images."""
    moved: Tensor
    """(): how far the rounding has moved a row at most."""

    def place(self, levels: Tensor) -> Tensor:
        """`levels` (..., D) in these coordinates, (..., k): those in the basis, and the length of what is outside."""
        centred = levels - self.centre
        if self.basis is None:
            return centred
        inside = centred @ self.basis
        outside = centred.square().sum(-1) - inside.square().sum(-1)
        return torch.cat([inside, outside.clamp_min(0).sqrt()[..., None]], -1)


class _Probe(NamedTuple):
    """Points that rows are compared with."""

    weights: Tensor
    """(..., k + 2): a row times these, plus its squared length, is the squared distance of the two."""
    moved: Tensor
    """(): how far rounding has moved a point at most."""
    longest: Tensor
    """(): the greatest squared length."""


def probe_of(placed: Tensor, kind: torch.dtype) -> _Probe:
    """Points `placed` (..., k) by a stage, rounded to `kind`; their squared lengths are told in two summands."""
    rounded = placed.to(kind)
    lengths = rounded.float().square().sum(-1, keepdim=True)
    most = lengths.to(kind)
    weights = torch.cat([-2 * rounded, most, (lengths - most).to(kind)], -1)
    return _Probe(weights, (placed - rounded).norm(dim=-1).amax(), lengths.amax())


class _Bounds(NamedTuple):
    """Lower bounds of R rows' squared distances to the nearest knot of every track."""

    nearest: Tensor
    """(S, G, R) rounded, less the squared lengths of the rows."""
    lengths: Tensor
    """(R,) float32."""
    least: Tensor
    """(S, R) float32, over all tracks."""
    rounding: float
    """Relative error."""

    def within(self, reach: Tensor) -> Tensor:
        """(pairs, 3) number of source, track and row where the distance may be within `reach` (S, G), squared."""
        reach = reach * (1 + self.rounding)
        # Few rows are near at all, so only those are looked at track by track.
        source, row = (self.least <= reach.amax(1, keepdim=True)).nonzero(as_tuple=True)
        near, track = (self.nearest[source, :, row] + self.lengths[row, None] <= reach[source]).nonzero(as_tuple=True)
        return torch.stack([source[near], track, row[near]], 1)


class _Search(NamedTuple):
    """What is sought."""

    queries: Tensor
    """(S, A, D) uint8."""
    probe: _Probe
    """(S, P, G, ...) of the fine stage."""
    targets: Tensor
    """(T,) classes."""


class ClassIndex:
    """Exact nearest neighbours per class, most training images ruled out by a lower bound of their distance.

    For V of few orthonormal columns, |q - x|^2 >= |V'q - V'x|^2 + (|q - VV'q| - |x - VV'x|)^2: the part inside the
    subspace, and the triangle inequality outside it. So the bound is a distance between points of k coordinates. First
    all training images are compared with the knots of every track, in matrix products, in half precision where the
    processor multiplies that faster; a knot bounds the distance to what lies near its line. The few pairs of an image
    and a track that are left are compared all along the track, and the few alignments that then are left, in pixels, in
    whole numbers. Every class is padded to M images by some of infinite length.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, classes: int, precision: torch.dtype | None = None) -> None:
        """
        Args:
            images: (N, C, H, W) in [0, 1].
            labels: (N,) int64 in [0, K).
            classes: K.
            precision: float32 or bfloat16 for the lower bounds; None takes what is fastest here. The neighbours found
                are the same.
        """
        _check_images(images, labels, classes)
        self.shape, self._precision = images.shape[1:], precision or _fastest(images.device)
        self._block = _BLOCK[self._precision] if images.device.type == "cpu" else None
        counts = labels.bincount(minlength=classes)
        order = torch.argsort(labels, stable=True)
        column = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
        levels = to_levels(images[order] * WHITE).flatten(1)
        size = self._whole_blocks(int(counts.max()))

        def table(values: Tensor, blank: float = 0) -> Tensor:
            """(K, M, ...) of `values` (N, ...), which stand in the order of `order`."""
            empty = values.new_full((classes, size, *values.shape[1:]), blank)
            return empty.index_put_((labels[order], column), values)

        def stage(basis: Tensor | None) -> _Stage:
            empty = _Stage(basis, levels.mean(0), levels[:0], levels[:0], levels[:0])
            placed = empty.place(levels)
            rows = placed.to(self._precision)
            return empty._replace(
                rows=table(torch.cat([rows, rows.new_ones(len(rows), 2)], 1)),
                lengths=table(rows.float().square().sum(1), torch.inf),
                moved=(placed - rows).norm(dim=1).amax(),
            )

        self.present, self._counts = counts > 0, counts
        self._members, self._pixels = table(order), table(levels.to(torch.uint8))
        stages = [stage(basis) for basis in principal_bases(levels, _AXES[self._precision]) or [None]]
        self._coarse, self._fine = stages[0], stages[-1]

    def nearest(self, queries: Tensor, tracks: Tracks, targets: Tensor, *, nearest: int) -> Neighbours:
        """The training images of each target class that lie nearest to any query of each source.

        Of equally near ones the first query, then the first training image.

        Args:
            queries: (S, A, D) uint8, the alignments of each source.
            tracks: how they are ordered.
            targets: (T,) int64, classes that are present.
            nearest: how many of each class.
        """
        if not len(targets):
            return _NONE_FOUND
        points = queries.float().unflatten(1, (-1, tracks.number))
        counts = [self._whole_blocks(n) for n in self._counts[targets].tolist()]
        coarse = self._coarse.place(points)
        knots = probe_of(coarse[:, list(tracks.knots)].transpose(0, 1), self._precision)
        bounds = [
            self._bounds_of_knots(knots, target, count) for target, count in zip(targets.tolist(), counts, strict=True)
        ]
        count = min(_LIKELY, *counts)
        likely = torch.stack([each.least.topk(count, largest=False).indices for each in bounds], 1)
        fine = coarse if self._fine is self._coarse else self._fine.place(points)
        search = _Search(queries, probe_of(fine, torch.float32), targets)
        nearest = min(nearest, likely.shape[2])
        limit = self._limit(likely, search, nearest)
        reach = widened(_beyond(points, tracks, limit), self._coarse.moved + knots.moved)
        left = [each.within(most) for each, most in zip(bounds, reach.unbind(2), strict=True)]
        slots = torch.repeat_interleave(torch.tensor([len(pairs) for pairs in left], device=limit.device))
        parts = torch.cat([torch.cat(left), slots[:, None]], 1).split(_PAIR_BATCH)
        measured = _concatenated(self._measure(part, search, widened(limit, self._fine.moved)) for part in parts)
        return self._decide(*_least_of_each(*measured), search, nearest)

    def _whole_blocks(self, count: int) -> int:
        """`count` rounded up. All blocks have one shape: oneDNN makes a new kernel for every other, which takes longer
        than to use it."""
        return count if self._block is None else -(-count // self._block) * self._block

    def _bounds_of_knots(self, knots: _Probe, target: int, count: int) -> _Bounds:
        """Of the first rows of a class, from all knots (B, S, G, ...) in the coarse stage."""
        weights, lengths = knots.weights.flatten(0, 2), self._coarse.lengths[target, :count]
        blocks = self._coarse.rows[target, :count].split(self._block or count)
        nearest = torch.cat([(weights @ rows.T).unflatten(0, (len(knots.weights), -1)).amin(0) for rows in blocks], 1)
        nearest = nearest.unflatten(0, knots.weights.shape[1:3])
        # Rounding errs by a share of a squared distance less a squared length: at most that of each of the two.
        rounding = _ROUNDING[self._precision] + SINGLE
        lengths = lengths * (1 - rounding) - SINGLE * knots.longest
        return _Bounds(nearest, lengths, nearest.amin(1) + lengths, rounding)

    def _limit(self, likely: Tensor, search: _Search, nearest: int) -> Tensor:
        """(S, T) float32: at least the squared distance of the `nearest`-th training image.

        Args:
            likely: (S, T, L) columns of training images, of which that many are moved best as the fine stage sees it.
        """
        (sources, alignments), size = search.queries.shape[:2], self._pixels.shape[1]
        cell = (search.targets[:, None] * size + likely).flatten(1)
        probes = search.probe.weights.flatten(1, 2).mT
        best = (self._fine.rows.flatten(0, 1)[cell].float() @ probes).argmin(2)
        query = torch.arange(sources, device=best.device)[:, None] * alignments + best
        squared = (
            self._squared(cell.flatten(), search.queries.flatten(0, 1), query.flatten()).float().view(likely.shape)
        )
        # Finite, so that padding never passes, not even in a class of fewer images than are asked for.
        squared = squared.masked_fill(self._fine.lengths.flatten()[cell].view(likely.shape).isinf(), _FARTHEST)
        return squared.topk(nearest, largest=False).values[:, :, -1] * (1 + SINGLE)

    def _measure(self, pairs: Tensor, search: _Search, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Of R pairs of a training image and a track, the images and the best of their alignments within the limit.

        Args:
            pairs: (R, 4) number of the source, of the track, of the image in its class, and of the target class.
            limit: (S, T) squared distance.

        Returns:
            Source, target and image in one number, (images,) ascending, and squared distance and alignment in one.
        """
        (sources, alignments), (size, tracks) = (
            search.queries.shape[:2],
            (self._pixels.shape[1], search.probe.weights.shape[2]),
        )
        key = pairs[:, 0] * tracks + pairs[:, 1]
        order = key.argsort()
        key, (source, _, column, slot) = key[order], pairs[order].T
        cell = search.targets[slot] * size + column
        counts = key.bincount(minlength=sources * tracks).tolist()
        rows = self._fine.rows.flatten(0, 1).index_select(0, cell).float().split(counts)
        probes = search.probe.weights.permute(0, 2, 3, 1).flatten(0, 1)
        bound = torch.cat([part @ probe for part, probe in zip(rows, probes, strict=True)])
        lengths = self._fine.lengths.flatten()[cell]
        most = limit[source, slot] - lengths + SINGLE * (lengths + search.probe.longest)
        pair, position = (bound <= most[:, None]).nonzero(as_tuple=True)
        alignment = position * tracks + key[pair] % tracks
        squared = self._squared(cell[pair], search.queries.flatten(0, 1), source[pair] * alignments + alignment)
        image = (source * len(search.targets) + slot)[pair] * size + column[pair]
        return _least_of_each(image, squared * alignments + alignment)

    def _squared(self, cell: Tensor, queries: Tensor, query: Tensor) -> Tensor:
        """(R,) squared distances in levels between training images and queries, by their numbers (R,) each."""
        pixels = self._pixels.flatten(0, 1)
        parts = zip(cell.split(_CELL_BATCH), query.split(_CELL_BATCH), strict=True)
        return torch.cat([_squares(pixels.index_select(0, x), queries.index_select(0, q)) for x, q in parts])

    def _decide(self, image: Tensor, found: Tensor, search: _Search, nearest: int) -> Neighbours:
        """Of every source and target the `nearest` least (distance, alignment, training image) measured."""
        size, alignments = self._pixels.shape[1], search.queries.shape[1]
        order = found.argsort(stable=True)
        order = order[(image[order] // size).argsort(stable=True)]
        # What one source and target have left stands together; those at most `nearest` from its first are sought.
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
    """(R,) int64 squared distances between `a` and `b` (R, D) uint8; those of up to 33,000 pixels fit 32 bits."""
    difference = a.int() - b.int()
    return (difference * difference).sum(1, dtype=torch.int32).long()


def _least_of_each(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ones of `key` (R,), ascending, and of each the least `value`."""
    distinct, which = key.unique(return_inverse=True)
    least = value.new_empty(len(distinct)).scatter_reduce_(0, which, value, "amin", include_self=False)
    return distinct, least


def _concatenated(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    first, second = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second)


def widened(squared: Tensor, distance: Tensor) -> Tensor:
    """Squared distances, of points that may be so much farther; finite."""
    return ((squared.sqrt() + distance).square() * (1 + SINGLE)).clamp_max(_FARTHEST)


_FARTHEST = torch.finfo(torch.float32).max


def _beyond(points: Tensor, tracks: Tracks, limit: Tensor) -> Tensor:
    """(S, G, T) squared: what is further from all knots of a track is beyond `limit` (S, T) from all of the track.

    A point q lies e from p = (1 - s) a + s b, for knots a and b. So |q - x| >= |p - x| - e, and |p - x|^2 =
    (1 - s) |a - x|^2 + s |b - x|^2 - s (1 - s) |a - b|^2 >= min(|a - x|^2, |b - x|^2) - s (1 - s) |a - b|^2.

    Args:
        points: (S, P, G, D) levels.
    """
    q, below, above, s = (part.to(points.device) for part in tracks.inner)
    a, b = (torch.tensor(tracks.knots, device=points.device)[knot] for knot in (below, above))
    products = torch.stack([track @ track.mT for track in points.transpose(1, 2)])
    lengths = products.diagonal(dim1=2, dim2=3)
    apart = (lengths[..., a] + lengths[..., b] - 2 * products[..., a, b]).clamp_min(0)
    from_a = lengths[..., q] + lengths[..., a] - 2 * products[..., q, a]
    from_b = lengths[..., q] + lengths[..., b] - 2 * products[..., q, b]
    # The same identity with q for x.
    e = ((1 - s) * from_a + s * from_b - s * (1 - s) * apart + SINGLE * lengths.amax()).clamp_min(0).sqrt()
    at_knots = limit[:, None, None].expand(-1, tracks.number, 1, -1)
    between = (limit.sqrt()[:, None, None] + e[..., None]).square() + (s * (1 - s) * apart)[..., None]
    return torch.cat([at_knots, between], 2).amax(2)


def _fastest(device: torch.device) -> torch.dtype:
    """The number format in which `device` multiplies matrices fastest, of those that suit a lower bound."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if device.type == "cuda" or capabilities.get("amx_bf16") else torch.float32


def principal_bases(levels: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """That many principal axes of `levels` (M, D), each (D, k) float32, for those of `sizes` that are far below D.

    They may stand in the order of their classes, so those that the axes are found from are taken from all over.
    """
    sizes = tuple(k for k in sizes if 3 * k <= levels.shape[1])
    if not sizes:
        return []
    covariance = levels[:: -(-len(levels) // COVARIANCE_IMAGES)].double().T.cov().cpu().numpy()
    _, axes = linalg.eigh(covariance, subset_by_index=[len(covariance) - max(sizes), len(covariance) - 1])
    axes = torch.from_numpy(axes[:, ::-1].astype(np.float32)).to(levels.device)
    # Pixels that are always blank leave entries below the normal range of float32, which processors are slow with.
    axes[axes.abs() < 1e-20] = 0
    return [axes[:, :k].contiguous() for k in sizes]


def bring_back(images: Tensor, neighbours: Neighbours, alignments: Alignments) -> Tensor:
    """Each pair's neighbour among the training `images` (M, C, H, W), moved against the alignment to lie over the
    source: (Q, C, H, W) uint8."""
    aligner = aligner_of(alignments, *images.shape[2:], images.device)
    levels = to_levels(images[neighbours.neighbour] * WHITE)
    return aligner.back(levels, neighbours.alignment)
