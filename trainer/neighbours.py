"""The training image of every other class that lies nearest to an image, over many alignments of it.

Tramèr et al. 2020, section 4 and its appendix. Distances are exact: in levels, whole numbers from 0 to 255.

Shapes: N sources, M training images, C channels, H rows, W columns, D = C H W, A alignments, Q pairs found, T target
classes of one source, S training images of any classes, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from trainer.alignments import WHITE, Alignments, Between, aligner_of, to_levels
from trainer.config import InputError
from trainer.parallel import map_on_threads

AXES = {torch.float32: (64, 160), torch.bfloat16: (158,)}
"""Sizes of the subspaces that rule training images out; 64 leave about 10% of MNIST's, 160 leave 2%.
With the two numbers that are added to them, 158 fill whole vectors."""
VECTOR = 32
"""Products of so many columns are fastest."""
ROUNDING = {torch.float32: 2.0**-16, torch.bfloat16: 4.5 * 2.0**-9}
"""Error of a squared distance, relative to the squared lengths that it is the difference of. bfloat16 rounds by at most
u = 2^-9: two factors and the sum of each product, 3u times 2 |q| |x|, at most 3u (|q|^2 + |x|^2), and u |q|^2."""
COVARIANCE_IMAGES = 10_000
LIKELY = 4
"""Training images per class, those of least bound, whose true distance limits what can still be nearest."""
SOURCE_BATCH, CELL_BATCH = 16, 1000
BLOCK = {torch.float32: 256, torch.bfloat16: 512}
"""Rows per matrix product on a CPU, so that the products are reduced while they are in its cache."""

Progress = Callable[[int, int], None]


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


def check_images(images: Tensor, labels: Tensor, classes: int) -> None:
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
    progress: Progress = lambda done, total: None,
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
    check_images(images, labels, len(allowed))
    if images.shape[1:] != index.shape:
        raise InputError(f"sources {tuple(images.shape[1:])}, training images {tuple(index.shape)}: differ")
    if not len(images):
        return NONE_FOUND
    aligner = aligner_of(alignments, *images.shape[2:], images.device)
    between = Between(*(part.to(images.device) for part in alignments.between))
    numbers = torch.arange(alignments.size, device=images.device)
    allowed = allowed.to(images.device) & index.present
    done = itertools.count(1)

    def search(part: Tensor) -> list[Neighbours]:
        found = []
        levels = to_levels(alignments.sought(images[part]) * WHITE)
        versions, usable = aligner.all(levels).flatten(2), aligner.usable(levels)
        # The first usable alignment stands in for those that are not, so that all sources have as many queries.
        stands = torch.where(usable, numbers, usable.int().argmax(1, keepdim=True))
        for n, queries, used in zip(part.tolist(), versions, stands, strict=True):
            targets = allowed[labels[n]].nonzero().squeeze(1)
            near = index.nearest(queries[used], between, targets, n, nearest=nearest)
            found.append(near._replace(alignment=used[near.alignment]))
            progress(next(done), len(images))
        return found

    parts = torch.arange(len(images)).split(SOURCE_BATCH)
    found = map_on_threads(search, parts) if images.device.type == "cpu" else map(search, parts)
    columns = zip(NONE_FOUND, *itertools.chain.from_iterable(found), strict=True)
    return Neighbours(*(torch.cat([part.to(images.device) for part in column]) for column in columns))


_NONE = torch.empty(0, dtype=torch.int64)
NONE_FOUND = Neighbours(_NONE, _NONE, _NONE, _NONE, torch.empty(0))


class Stage(NamedTuple):
    """Coordinates in which no two images lie further apart than they do."""

    basis: Tensor | None
    """(D, k) orthonormal columns; None for the pixels themselves."""
    centre: Tensor | None
    """(D,) the origin: near the images, so that lengths, and with them errors of rounding, are small; None for 0."""
    rows: Tensor
    """(K, M, k + 2), or (K, M, D + 1) uint8 for pixels: every training image in these coordinates, and a 1."""
    lengths: Tensor
    """(K, M) float64, squared, of the rows without their 1; infinite where a class has fewer than M images."""

    def place(self, levels: Tensor) -> Tensor:
        """`levels` (S, D) in these coordinates, (S, k + 1): those in the basis, and the length of what is outside."""
        if self.basis is None or self.centre is None:
            return levels
        centred = levels - self.centre
        inside = centred @ self.basis
        outside = centred.square().sum(1) - inside.square().sum(1)
        return torch.cat([inside, outside.clamp_min(0).sqrt()[:, None]], 1)


class Probe(NamedTuple):
    """Points that rows are compared with: a row times the weights, plus its squared length, is a squared distance."""

    weights: Tensor
    """(k + 1, A): of every point -2 times its coordinates, then its squared length."""
    longest: Tensor
    """(): the greatest squared length."""


class Exact(NamedTuple):
    """Points in whole numbers that a float64 holds."""

    levels: Tensor
    """(A, D) float64."""
    lengths: Tensor
    """(A,) float64, squared."""


class ClassIndex:
    """Exact nearest neighbours per class, most training images ruled out by a lower bound of their distance.

    For V of few orthonormal columns, |q - x|^2 >= |V'q - V'x|^2 + (|q - VV'q| - |x - VV'x|)^2: the part inside the
    subspace, and the triangle inequality outside it. So the bound is a distance between points of k + 1 coordinates,
    and all of them come from one matrix product, in half precision where the processor multiplies that faster. What
    survives is compared in whole numbers. Every class is padded to M images by some of infinite length.
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
        check_images(images, labels, classes)
        self.shape, self._precision = images.shape[1:], precision or fastest(images.device)
        self._block = BLOCK[self._precision] if images.device.type == "cpu" else None
        counts = labels.bincount(minlength=classes)
        order = torch.argsort(labels, stable=True)
        column = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
        levels = to_levels(images[order] * WHITE).flatten(1)
        size = self._whole_blocks(int(counts.max()))

        def table(values: Tensor, blank: float = 0) -> Tensor:
            """(K, M, ...) of `values` (N, ...), which stand in the order of `order`."""
            empty = values.new_full((classes, size, *values.shape[1:]), blank)
            return empty.index_put_((labels[order], column), values)

        def stage(basis: Tensor | None, kind: torch.dtype) -> Stage:
            empty = Stage(basis, None if basis is None else levels.mean(0), levels[:0], levels[:0])
            rows = empty.place(levels)
            return empty._replace(
                rows=table(with_one(rows).to(kind)), lengths=table(rows.double().square().sum(1), torch.inf)
            )

        self.present, self._counts, self._members = counts > 0, counts, table(order)
        bases = principal_bases(levels, AXES[self._precision])
        self._stages = [*(stage(basis, self._precision) for basis in bases), stage(None, torch.uint8)]

    def nearest(self, queries: Tensor, between: Between, targets: Tensor, source: int, *, nearest: int) -> Neighbours:
        """The training images of each target class that lie nearest to any query.

        Of equally near ones the first query, then the first training image.

        Args:
            queries: (A, D) uint8, the alignments of one source.
            between: which queries each lies near a line of; those are searched with first.
            targets: (T,) int64, classes that are present.
            source: what the pairs shall say.
            nearest: how many of each class.
        """
        if not len(targets):
            return NONE_FOUND
        points, exact = queries.float(), Exact(queries.double(), queries.double().square().sum(1))
        first, few = self._stages[0], torch.cat([between.first, between.second]).unique()
        inside = [stage.place(points) for stage in self._stages]
        probe = self._probe(inside[0][few])
        counts = [self._whole_blocks(n) for n in self._counts[targets].tolist()]
        bounds = [
            self._bound(first.rows[t, :n], first.lengths[t, :n], probe)
            for t, n in zip(targets.tolist(), counts, strict=True)
        ]
        bound = pad_sequence(bounds, batch_first=True, padding_value=torch.inf)
        likely = bound.topk(min(LIKELY, bound.shape[1]), largest=False).indices
        nearest = min(nearest, likely.shape[1])
        distances = self._squared(targets[:, None].expand_as(likely), likely, exact).amin(2)
        # Finite, so that padding never passes, not even in a class of fewer images than are asked for.
        limit = distances.topk(nearest, largest=False).values[:, -1].clamp_max(torch.finfo(torch.float32).max)
        slot, column = (bound <= self._reach(points, between, limit)[:, None]).nonzero(as_tuple=True)
        for stage, placed in zip(self._stages, inside, strict=True):
            cell = targets[slot] * self._members.shape[1] + column
            rows, lengths = stage.rows.flatten(0, 1).index_select(0, cell), stage.lengths.flatten()[cell]
            near = self._bound(rows, lengths, self._probe(placed)) <= limit[slot]
            slot, column = slot[near], column[near]
        return self._decide(slot, column, exact, targets, source, nearest)

    def _reach(self, points: Tensor, between: Between, limit: Tensor) -> Tensor:
        """(T,) squared: what is further from all points that stand for others is beyond `limit` (T,) from every one.

        A point q lies e from p = (1 - s) a + s b. So |q - x| >= |p - x| - e, and |p - x|^2 =
        (1 - s) |a - x|^2 + s |b - x|^2 - s (1 - s) |a - b|^2 >= min(|a - x|^2, |b - x|^2) - s (1 - s) |a - b|^2.
        """
        a, b, s = points[between.first], points[between.second], between.share[:, None]
        e = (points - torch.lerp(a, b, s)).norm(dim=1).double()
        sag = (s * (1 - s)).squeeze(1) * (a - b).square().sum(1)
        return ((limit.sqrt()[:, None] + e).square() + sag).amax(1)

    def _whole_blocks(self, count: int) -> int:
        """`count` rounded up. All blocks have one shape: oneDNN makes a new kernel for every other, which takes longer
        than to use it."""
        return count if self._block is None else -(-count // self._block) * self._block

    def _probe(self, placed: Tensor) -> Probe:
        """Points in the coordinates of a stage (A, k), ready to be multiplied with its rows."""
        placed = torch.cat([placed, placed[:1].expand(-len(placed) % VECTOR, -1)])  # the first again, to fill vectors
        lengths = placed.square().sum(1, keepdim=True)
        return Probe(torch.cat([-2 * placed, lengths], 1).to(self._precision).T.contiguous(), lengths.max())

    def _bound(self, rows: Tensor, lengths: Tensor, probe: Probe) -> Tensor:
        """(S,) float64: at most the least squared distance of every row to any point of the probe.

        Args:
            rows: (S, k + 1), ending in a 1.
            lengths: (S,), the squared lengths of the rows without their 1.
            probe: of A points.
        """
        count, kind, whole = len(rows), self._precision, self._whole_blocks(len(rows))
        blocks = (rows if whole == count else F.pad(rows, (0, 0, 0, whole - count))).split(self._block or max(count, 1))
        least = torch.cat([(block.to(kind) @ probe.weights).float().amin(1) for block in blocks])[:count]
        return least + lengths - ROUNDING[kind] * (lengths + probe.longest)

    def _squared(self, target: Tensor, column: Tensor, queries: Exact) -> Tensor:
        """(..., A) float64: squared distances in levels. Exact: all that is added are whole numbers below 2^53."""
        pixels = self._stages[-1]
        products = pixels.rows[target, column][..., :-1].double() @ queries.levels.T
        return pixels.lengths[target, column][..., None] + queries.lengths - 2 * products

    def _decide(
        self, slot: Tensor, column: Tensor, queries: Exact, targets: Tensor, source: int, nearest: int
    ) -> Neighbours:
        """Of every target the `nearest` least (distance, query, training image), packed into one whole number each."""
        size, count = self._members.shape[1], len(queries.levels)
        numbers = torch.arange(count, device=slot.device)
        keys = torch.cat(
            [
                (self._squared(targets[s], c, queries).long() * count + numbers).amin(1) * size + c
                for s, c in zip(slot.split(CELL_BATCH), column.split(CELL_BATCH), strict=True)
            ]
        )
        order = torch.argsort(keys)
        order = order[torch.argsort(slot[order], stable=True)]
        # The survivors of one target stand together; those at most `nearest` from its first are the ones sought.
        first = torch.searchsorted(slot[order], slot[order])
        order = order[torch.arange(len(order), device=order.device) - first < nearest]
        target, key = targets[slot[order]], keys[order]
        return Neighbours(
            source=torch.full_like(target, source),
            target=target,
            neighbour=self._members[target, key % size],
            alignment=key // size % count,
            distance=(key // size // count).double().sqrt().div(WHITE).float(),
        )


def fastest(device: torch.device) -> torch.dtype:
    """The number format in which `device` multiplies matrices fastest, of those that suit a lower bound."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if device.type == "cuda" or capabilities.get("amx_bf16") else torch.float32


def principal_bases(levels: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """That many principal axes of `levels` (M, D), each (D, k) float32, for those of `sizes` that are far below D."""
    sizes = tuple(k for k in sizes if 3 * k <= levels.shape[1])
    if not sizes:
        return []
    covariance = levels[:COVARIANCE_IMAGES].double().T.cov().cpu().numpy()
    _, axes = linalg.eigh(covariance, subset_by_index=[len(covariance) - max(sizes), len(covariance) - 1])
    axes = torch.from_numpy(axes[:, ::-1].astype(np.float32)).to(levels.device)
    # Pixels that are always blank leave entries below the normal range of float32, which processors are slow with.
    axes[axes.abs() < 1e-20] = 0
    return [axes[:, :k].contiguous() for k in sizes]


def with_one(rows: Tensor) -> Tensor:
    """`rows` (S, k) with a last column of ones."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def bring_back(images: Tensor, neighbours: Neighbours, alignments: Alignments) -> Tensor:
    """Each pair's neighbour among the training `images` (M, C, H, W), moved against the alignment to lie over the
    source: (Q, C, H, W) uint8."""
    aligner = aligner_of(alignments, *images.shape[2:], images.device)
    levels = to_levels(images[neighbours.neighbour] * WHITE)
    return aligner.back(levels, neighbours.alignment)
