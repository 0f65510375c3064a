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
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg, ndimage
from torch import Tensor

from trainer.config import InputError, did_you_mean
from trainer.parallel import map_on_threads

WHITE = 255.0
SPLINE_ORDER = 3

AXES = {torch.float32: (64, 160), torch.bfloat16: (160,)}
"""Sizes of the subspaces that rule training images out; 64 leave about 10% of MNIST's, 160 leave 2%."""
ROUNDING = {torch.float32: 2.0**-16, torch.bfloat16: 4.5 * 2.0**-9}
"""Error of a squared distance, relative to the squared lengths that it is the difference of. bfloat16 rounds by at most
u = 2^-9: two factors and the sum of each product, 3u times 2 |q| |x|, at most 3u (|q|^2 + |x|^2), and u |q|^2."""
COVARIANCE_IMAGES = 10_000
LIKELY = 8
"""Training images per class, those of least bound, whose true distance limits what can still be nearest."""
SOURCE_BATCH, CELL_BATCH = 16, 1000
CPU_BLOCK = {torch.float32: 256, torch.bfloat16: 512}
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
        self._down_all = self._down.mT.flatten(0, 1).contiguous()
        self._right_all = self._right.transpose(0, 1).flatten(1).contiguous()

    def all(self, levels: Tensor) -> Tensor:
        """Every alignment of `levels` (N, C, H, W): (N, A, C, H, W) uint8."""
        height, width = levels.shape[2:]
        shifts = self.grid.shift_count
        rotated = to_levels(levels.double().flatten(2) @ self._rotate_all)
        rotated = rotated.view(*levels.shape[:2], self.grid.rotation_count, height, width)
        shifted = self._down_all @ (rotated @ self._right_all)
        shifted = shifted.view(*rotated.shape[:3], shifts, height, shifts, width).permute(0, 2, 3, 5, 1, 4, 6)
        return to_levels(shifted).to(torch.uint8, memory_format=torch.contiguous_format).flatten(1, 3)

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
    aligner = Aligner(grid, *images.shape[2:], device=images.device)
    allowed = allowed.to(images.device) & index.present
    done = itertools.count(1)

    def search(part: Tensor) -> list[Neighbours]:
        found = []
        versions = aligner.all(to_levels(images[part] * WHITE)).flatten(2)
        for n, queries in zip(part.tolist(), versions, strict=True):
            found.append(index.nearest(queries, allowed[labels[n]].nonzero().squeeze(1), n, nearest=nearest))
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
    rows: Tensor
    """(K, M, k + 2), or (K, M, D + 1) uint8 for pixels: every training image in these coordinates, and a 1."""


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
        counts = labels.bincount(minlength=classes)
        order = torch.argsort(labels, stable=True)
        column = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
        levels = to_levels(images[order] * WHITE).flatten(1)

        def table(values: Tensor, blank: float = 0) -> Tensor:
            """(K, M, ...) of `values` (N, ...), which stand in the order of `order`."""
            empty = values.new_full((classes, int(counts.max()), *values.shape[1:]), blank)
            return empty.index_put_((labels[order], column), values)

        self.present = counts > 0
        self._members, self._lengths = table(order), table(levels.square().sum(1), torch.inf)
        self._stages = [
            Stage(basis, table(with_one(project(levels, basis)).to(self._precision)))
            for basis in principal_bases(levels, AXES[self._precision])
        ]
        self._pixels = table(with_one(levels).to(torch.uint8))
        self._stages.append(Stage(None, self._pixels))

    def nearest(self, queries: Tensor, targets: Tensor, source: int, *, nearest: int) -> Neighbours:
        """The training images of each target class that lie nearest to any query.

        Of equally near ones the first query, then the first training image.

        Args:
            queries: (A, D) uint8, the alignments of one source.
            targets: (T,) int64, classes that are present.
            source: what the pairs shall say.
            nearest: how many of each class.
        """
        if not len(targets):
            return NONE_FOUND
        first, *rest = self._stages
        points, exact = queries.float(), queries.double()
        inside = project(points, first.basis)
        bound = torch.stack([self._bound(first.rows[t], self._lengths[t], inside) for t in targets.tolist()])
        likely = bound.topk(min(LIKELY, bound.shape[1]), largest=False).indices
        nearest = min(nearest, likely.shape[1])
        distances = self._squared(targets[:, None].expand_as(likely), likely, exact).amin(2)
        # Finite, so that padding never passes, not even in a class of fewer images than are asked for.
        limit = distances.topk(nearest, largest=False).values[:, -1].clamp_max(torch.finfo(torch.float32).max)
        slot, column = (bound <= limit[:, None]).nonzero(as_tuple=True)
        for stage in rest:
            cell = targets[slot], column
            near = self._bound(stage.rows[cell], self._lengths[cell], project(points, stage.basis)) <= limit[slot]
            slot, column = slot[near], column[near]
        return self._decide(slot, column, exact, targets, source, nearest)

    def _bound(self, rows: Tensor, lengths: Tensor, points: Tensor) -> Tensor:
        """(S,) float32: at most the least squared distance of every row to any point.

        Args:
            rows: (S, k + 1), ending in a 1.
            lengths: (S,), the squared lengths of the rows without their 1.
            points: (A, k).
        """
        kind, longest = self._precision, points.square().sum(1).max()
        weights = torch.cat([-2 * points, points.square().sum(1, keepdim=True)], 1).to(kind).T.contiguous()
        blocks = rows.split(CPU_BLOCK[kind] if rows.device.type == "cpu" else max(len(rows), 1))
        least = torch.cat([(block.to(kind) @ weights).amin(1) for block in blocks]).float()
        return least + lengths - ROUNDING[kind] * (lengths + longest)

    def _squared(self, target: Tensor, column: Tensor, queries: Tensor) -> Tensor:
        """(..., A) float64: squared distances in levels. Exact: all that is added are whole numbers below 2^53."""
        levels = self._pixels[target, column][..., :-1].double()
        products = levels @ queries.T
        return self._lengths[target, column][..., None] + queries.square().sum(1) - 2 * products

    def _decide(
        self, slot: Tensor, column: Tensor, queries: Tensor, targets: Tensor, source: int, nearest: int
    ) -> Neighbours:
        """Of every target the `nearest` least (distance, query, training image), packed into one whole number each."""
        size, count = self._lengths.shape[1], len(queries)
        numbers = torch.arange(count, device=queries.device)
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


def project(levels: Tensor, basis: Tensor | None) -> Tensor:
    """(S, k + 1): coordinates of `levels` (S, D) in the basis, and the length of what lies outside it."""
    if basis is None:
        return levels
    inside = levels @ basis
    outside = levels.square().sum(1, keepdim=True) - inside.square().sum(1, keepdim=True)
    return torch.cat([inside, outside.clamp_min(0).sqrt()], 1)


def with_one(rows: Tensor) -> Tensor:
    """`rows` (S, k) with a last column of ones."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def bring_back(images: Tensor, neighbours: Neighbours, grid: AlignmentGrid) -> Tensor:
    """Each pair's neighbour among the training `images` (M, C, H, W), moved by the negated alignment to lie over the
    source: (Q, C, H, W) uint8."""
    aligner = Aligner(grid, *images.shape[2:], device=images.device)
    levels = to_levels(images[neighbours.neighbour] * WHITE)
    return aligner.each(levels, aligner.negated(neighbours.alignment))
