"""The training image of every other class that lies nearest to an image, over shifts and rotations of it.

Tramèr et al. 2020, section 4 and its appendix. Images are 8-bit in the published procedure and rounded after every
resampling, so all of this is done in levels, whole numbers from 0 to 255.

Shapes: N sources, M training images, C channels, H rows, W columns, D = C H W, A alignments, Q pairs found, T target
classes of one source, S training images of any classes, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg, ndimage
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from trainer.config import InputError, did_you_mean
from trainer.parallel import map_on_threads

WHITE = 255.0
SPLINE_ORDER = 3

AXES = {torch.float32: (64, 160), torch.bfloat16: (160,)}
"""Sizes of the subspaces that rule training images out; 64 leave about 10% of MNIST's, 160 leave 2%."""
COARSE_STEP = 3
"""Neighbouring rotations that the middle one stands for at first."""
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


@dataclass(frozen=True)
class AlignmentGrid:
    """Shifts along both axes and rotations about the centre, symmetric about 0 and evenly spaced."""

    shift_limit: float
    """In pixels."""
    shift_count: int
    rotation_limit: float
    """In degrees."""
    rotation_count: int

    @classmethod
    def for_dataset(cls, name: str) -> AlignmentGrid:
        """The paper's grid for 28x28 images, its shifts scaled for other sizes; CIFAR-10 is not rotated.

        Raises:
            InputError: for a data set that no grid is known for.
        """
        if name not in GRIDS:
            raise InputError(f"no alignment grid for data set {name!r}: {did_you_mean(name, GRIDS)}")
        return GRIDS[name]

    @property
    def shifts(self) -> np.ndarray:
        return symmetric(self.shift_limit, self.shift_count)

    @property
    def rotations(self) -> np.ndarray:
        return symmetric(self.rotation_limit, self.rotation_count)

    @property
    def size(self) -> int:
        """A. Alignment a is (rotation, down, right) in row-major order, so its negation is A - 1 - a."""
        return self.rotation_count * self.shift_count**2

    @property
    def coarse(self) -> Tensor:
        """(A,) int64: for every alignment one of the same shifts, turned at most a step further, that stands for it."""
        rotation = torch.arange(self.rotation_count)
        middle = (rotation // COARSE_STEP * COARSE_STEP + COARSE_STEP // 2).clamp_max(self.rotation_count - 1)
        return (middle[:, None] * self.shift_count**2 + torch.arange(self.shift_count**2)).flatten()


def symmetric(limit: float, count: int) -> np.ndarray:
    """`count` evenly spaced numbers in [-limit, limit], exactly symmetric about 0."""
    numbers = np.linspace(-limit, limit, count) if count > 1 else np.zeros(1)
    return (numbers - numbers[::-1]) / 2


GRIDS = {
    "mnist": AlignmentGrid(shift_limit=3, shift_count=5, rotation_limit=30, rotation_count=31),
    "fashion_mnist": AlignmentGrid(shift_limit=3, shift_count=5, rotation_limit=30, rotation_count=31),
    "digits": AlignmentGrid(shift_limit=3 * 8 / 28, shift_count=5, rotation_limit=30, rotation_count=31),
    "cifar10": AlignmentGrid(shift_limit=3 * 32 / 28, shift_count=5, rotation_limit=0, rotation_count=1),
}


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


class Aligner:
    """Rotate, then shift, as `scipy.ndimage` does it to 8-bit images: order-3 splines, rounded after each of the two.

    Both are linear maps of the image before the rounding, so they are applied as matrices, in float64: rounding to
    levels then hides the order of summation.
    """

    def __init__(self, grid: AlignmentGrid, height: int, width: int, device: torch.device | str = "cpu") -> None:
        self.grid = grid
        self._rotate = torch.stack([rotation_matrix(r, height, width) for r in grid.rotations]).to(device)
        self._down = torch.stack([shift_matrix(s, height) for s in grid.shifts]).to(device)
        self._right = torch.stack([shift_matrix(s, width) for s in grid.shifts]).to(device)
        self._rotate_all = self._rotate.transpose(0, 1).flatten(1).contiguous()
        self._right_all = self._right.transpose(0, 1).flatten(1).contiguous()

    def all(self, levels: Tensor) -> Tensor:
        """Every alignment of `levels` (N, C, H, W): (N, A, C, H, W) uint8."""
        rotated = to_levels(levels.double().flatten(2) @ self._rotate_all)
        rotated = rotated.view(*levels.shape[:2], self.grid.rotation_count, *levels.shape[2:])
        return torch.stack([self._shift(image) for image in rotated])

    def _shift(self, rotated: Tensor) -> Tensor:
        """Every shift of one image's rotations (C, R, H, W): (A, C, H, W) uint8."""
        channels, _, height, width = rotated.shape
        shifted = self._down.mT[:, None, None] @ (rotated @ self._right_all)
        shifted = (shifted + 0.5).clamp_(0, WHITE).to(torch.uint8)  # cuts off what `to_levels` rounds down
        shifts = self.grid.shift_count
        shifted = shifted.view(shifts, channels, -1, height, shifts, width).permute(2, 0, 4, 1, 3, 5)
        return shifted.reshape(-1, channels, height, width)

    def each(self, levels: Tensor, alignment: Tensor) -> Tensor:
        """`levels` (N, C, H, W), each moved by its own `alignment` (N,), as levels: uint8."""
        count = self.grid.shift_count
        rotation, down, right = alignment // count**2, alignment // count % count, alignment % count
        rotated = torch.empty_like(levels, dtype=torch.float64)
        for r in rotation.unique().tolist():
            own = levels[rotation == r].double()
            rotated[rotation == r] = (own.flatten(2) @ self._rotate[r]).view_as(own)
        return to_levels(self._down[down].mT[:, None] @ (to_levels(rotated) @ self._right[right][:, None])).to(
            torch.uint8
        )

    def negated(self, alignment: Tensor) -> Tensor:
        """The alignment by the opposite angle and shifts. Not the inverse: it too rotates before it shifts."""
        return self.grid.size - 1 - alignment


@cache
def aligner_of(grid: AlignmentGrid, height: int, width: int, device: torch.device) -> Aligner:
    """Made once: its matrices take seconds."""
    return Aligner(grid, height, width, device)


def rotation_matrix(degrees: float, height: int, width: int) -> Tensor:
    """(H W, H W) float64: row p is what the rotation makes of an image that is 1 in pixel p and 0 elsewhere."""
    basis = np.eye(height * width).reshape(-1, height, width)
    moved = ndimage.rotate(basis, degrees, axes=(2, 1), reshape=False, order=SPLINE_ORDER)
    return torch.from_numpy(moved.reshape(height * width, -1))


def shift_matrix(pixels: float, size: int) -> Tensor:
    """(size, size) float64: the shift along one axis; splines of two axes are the product of the splines of each."""
    return torch.from_numpy(np.stack([ndimage.shift(row, pixels, order=SPLINE_ORDER) for row in np.eye(size)]))


def to_levels(values: Tensor) -> Tensor:
    """Rounded half up and clipped to 0..255, as SciPy writes a result into 8-bit pixels."""
    return (values + 0.5).floor_().clamp_(0, WHITE)


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
    grid: AlignmentGrid,
    allowed: Tensor,
    nearest: int = 1,
    progress: Progress = lambda done, total: None,
) -> Neighbours:
    """The training images of every allowed class that lie nearest to any alignment of the source, in L2.

    Args:
        images: sources, (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        index: of the training images; a class that it has none of gives no pair.
        grid: the alignments of the source that are tried.
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
    aligner, coarse = aligner_of(grid, *images.shape[2:], images.device), grid.coarse.to(images.device)
    allowed = allowed.to(images.device) & index.present
    done = itertools.count(1)

    def search(part: Tensor) -> list[Neighbours]:
        found = []
        versions = aligner.all(to_levels(images[part] * WHITE)).flatten(2)
        for n, queries in zip(part.tolist(), versions, strict=True):
            targets = allowed[labels[n]].nonzero().squeeze(1)
            found.append(index.nearest(queries, coarse, targets, n, nearest=nearest))
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

    def nearest(self, queries: Tensor, coarse: Tensor, targets: Tensor, source: int, *, nearest: int) -> Neighbours:
        """The training images of each target class that lie nearest to any query.

        Of equally near ones the first query, then the first training image.

        Args:
            queries: (A, D) uint8, the alignments of one source.
            coarse: (A,) int64, for each query one like it that stands for it at first.
            targets: (T,) int64, classes that are present.
            source: what the pairs shall say.
            nearest: how many of each class.
        """
        if not len(targets):
            return NONE_FOUND
        points, exact = queries.float(), Exact(queries.double(), queries.double().square().sum(1))
        first, few = self._stages[0], coarse.unique()
        probe = self._probe(points[few], first)
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
        # The triangle inequality: no query is nearer than the one that stands for it by more than they lie apart.
        apart = (points - points[coarse]).norm(dim=1).max()
        slot, column = (bound <= (limit.sqrt() + apart)[:, None].square()).nonzero(as_tuple=True)
        for stage in self._stages:
            cell = targets[slot], column
            near = self._bound(stage.rows[cell], stage.lengths[cell], self._probe(points, stage)) <= limit[slot]
            slot, column = slot[near], column[near]
        return self._decide(slot, column, exact, targets, source, nearest)

    def _whole_blocks(self, count: int) -> int:
        """`count` rounded up. All blocks have one shape: oneDNN makes a new kernel for every other, which takes longer
        than to use it."""
        return count if self._block is None else -(-count // self._block) * self._block

    def _probe(self, points: Tensor, stage: Stage) -> Probe:
        """`points` (A, D) in the coordinates of a stage, ready to be multiplied with its rows."""
        inside = stage.place(points)
        lengths = inside.square().sum(1, keepdim=True)
        return Probe(torch.cat([-2 * inside, lengths], 1).to(self._precision).T.contiguous(), lengths.max())

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
    return [axes[:, :k].contiguous() for k in sizes]


def with_one(rows: Tensor) -> Tensor:
    """`rows` (S, k) with a last column of ones."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def bring_back(images: Tensor, neighbours: Neighbours, grid: AlignmentGrid) -> Tensor:
    """Each pair's neighbour among the training `images` (M, C, H, W), moved by the negated alignment to lie over the
    source: (Q, C, H, W) uint8."""
    aligner = aligner_of(grid, *images.shape[2:], images.device)
    levels = to_levels(images[neighbours.neighbour] * WHITE)
    return aligner.each(levels, aligner.negated(neighbours.alignment))
