"""Invariance attacks: move an image towards its aligned nearest neighbour of another class.

Tramèr et al. 2020, "Fundamental Tradeoffs between Invariance and Sensitivity to Adversarial Perturbations",
section 4 and appendix. Images are 8-bit in the published procedure and rounded after every resampling, so alignment is
done in levels, whole numbers from 0 to 255; perturbation is done in [0, 1].

Shapes: N sources, M training images, C channels, H rows, W columns, P = H W, A alignments, Q (source, target) pairs,
K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg, ndimage
from torch import Tensor
from torch.nn import functional as F

from trainer.config import InputError, did_you_mean

WHITE = 255.0
SPLINE_ORDER = 3
TIE = 1e-6
"""Slack of comparisons in [0, 1] pixel units: far under one level, far over float32's rounding."""

ROUNDING = 1e-5
"""Slack of float32 squared distances, relative to the squared lengths that they are differences of."""

BOUND_AXES = (64, 160)
"""Sizes of the subspaces that rule training images out: on MNIST they leave about 10% and then 1%."""
COVARIANCE_IMAGES = 10_000
LIKELY = 16
"""Training images per class, those of least bound, whose true distance limits what can still be nearest."""
SOURCE_BATCH, CELL_BATCH, CPU_BLOCK = 16, 1000, 256

Progress = Callable[[int, int], None]

PAPER_TARGETS = {
    0: (4, 6, 8, 9),
    1: (4, 6, 7, 9),
    2: (8,),
    3: (8,),
    4: (8, 9),
    5: (3, 8),
    6: (0,),
    7: (2, 3),
    8: (3,),
    9: (3, 4, 5),
}
"""Digits that a digit may be turned into, as chosen by the paper's authors."""


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
    """For each (source, target class) pair the nearest training image of that class, sorted by source then target."""

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

    def all(self, levels: Tensor) -> Tensor:
        """Every alignment of `levels` (N, C, H, W), as levels: (N, A, C, H, W) float64."""
        rotated = to_levels(torch.einsum("ncp,rpq->nrcq", levels.double().flatten(2), self._rotate))
        rotated = rotated.unflatten(3, levels.shape[2:])
        aside = torch.einsum("nrchw,swj->nrschj", rotated, self._right)
        return to_levels(torch.einsum("dhi,nrschj->nrdscij", self._down, aside)).flatten(1, 3)

    def each(self, levels: Tensor, alignment: Tensor) -> Tensor:
        """`levels` (N, C, H, W), each moved by its own `alignment` (N,), as levels: float64."""
        count = self.grid.shift_count
        rotation, down, right = alignment // count**2, alignment // count % count, alignment % count
        moved = torch.empty_like(levels, dtype=torch.float64)
        for r in rotation.unique().tolist():
            moved[rotation == r] = (levels[rotation == r].double().flatten(2) @ self._rotate[r]).unflatten(
                2, levels.shape[2:]
            )
        return to_levels(torch.einsum("nchw,nhi,nwj->ncij", to_levels(moved), self._down[down], self._right[right]))

    def negated(self, alignment: Tensor) -> Tensor:
        """The alignment by the opposite angle and shifts. Not the inverse: it too rotates before it shifts."""
        return self.grid.size - 1 - alignment


def rotation_matrix(degrees: float, height: int, width: int) -> Tensor:
    """(P, P) float64: row p is what the rotation makes of an image that is 1 in pixel p and 0 elsewhere."""
    basis = np.eye(height * width).reshape(-1, height, width)
    moved = ndimage.rotate(basis, degrees, axes=(2, 1), reshape=False, order=SPLINE_ORDER)
    return torch.from_numpy(moved.reshape(height * width, -1))


def shift_matrix(pixels: float, size: int) -> Tensor:
    """(size, size) float64: the shift along one axis; splines of two axes are the product of the splines of each."""
    return torch.from_numpy(np.stack([ndimage.shift(row, pixels, order=SPLINE_ORDER) for row in np.eye(size)]))


def to_levels(values: Tensor) -> Tensor:
    """Rounded half up and clipped to 0..255, as SciPy writes a result into 8-bit pixels."""
    return (values + 0.5).floor_().clamp_(0, WHITE)


def allowed_targets(classes: int, table: dict[int, tuple[int, ...]] | None = None) -> Tensor:
    """(K, K) bool: which class may be turned into which; every other class, or only those that `table` lists."""
    if table is None:
        return ~torch.eye(classes, dtype=torch.bool)
    allowed = torch.zeros(classes, classes, dtype=torch.bool)
    for source, targets in table.items():
        allowed[source, list(targets)] = True
    return allowed


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
    training_images: Tensor,
    training_labels: Tensor,
    *,
    grid: AlignmentGrid,
    allowed: Tensor,
    index: ClassIndex | None = None,
    progress: Progress = lambda done, total: None,
) -> Neighbours:
    """The training image of every allowed class that lies nearest to any alignment of the source, in L2.

    Args:
        images: sources, (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        training_images: (M, C, H, W) in [0, 1].
        training_labels: (M,) int64; a class that has none gives no pair.
        grid: the alignments of the source that are tried.
        allowed: (K, K) bool, which class may be turned into which.
        index: of the same training images, where one was built already.
        progress: told sources done and sources in all.

    Raises:
        InputError: for images outside [0, 1], of two sizes, or labels outside the classes.
    """
    check_images(images, labels, len(allowed))
    check_images(training_images, training_labels, len(allowed))
    if images.shape[1:] != training_images.shape[1:]:
        raise InputError(
            f"sources {tuple(images.shape[1:])}, training images {tuple(training_images.shape[1:])}: differ"
        )
    aligner = Aligner(grid, *images.shape[2:], device=images.device)
    index = index or ClassIndex(training_images, training_labels, classes=len(allowed))
    allowed = allowed.to(images.device) & index.present
    found = []
    for part in torch.arange(len(images)).split(SOURCE_BATCH):
        versions = aligner.all(to_levels(images[part] * WHITE)).flatten(2)
        for n, queries in zip(part.tolist(), versions, strict=True):
            targets = allowed[labels[n]].nonzero().squeeze(1)
            if len(targets):
                found.append(Neighbours(torch.full_like(targets, n), targets, *index.nearest(queries, targets)))
            progress(n + 1, len(images))
    return join(found, images.device)


def join(found: list[Neighbours], device: torch.device) -> Neighbours:
    """Pairs of several sources in one record."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    return Neighbours(*(torch.cat(parts) for parts in zip(Neighbours(none, none, none, none, none.float()), *found)))


class Stage(NamedTuple):
    """Coordinates in which no two images lie further apart than they do."""

    basis: Tensor | None
    """(D, k) orthonormal columns; None for the pixels themselves."""
    rows: Tensor
    """(K, M, k + 1) float32, or (K, M, D) uint8 for pixels: every training image in these coordinates."""


class ClassIndex:
    """Exact nearest neighbours per class, most training images ruled out by a lower bound of their distance.

    For V of few orthonormal columns, |q - x|^2 >= |V'q - V'x|^2 + (|q - VV'q| - |x - VV'x|)^2: the part inside the
    subspace, and the triangle inequality outside it. So the bound is a distance between points of k + 1 coordinates,
    and all of them come from one matrix product. What is left within rounding of the least distance is compared in
    whole numbers. Every class is padded to M images by some of infinite length.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, classes: int) -> None:
        counts = labels.bincount(minlength=classes)
        order = torch.argsort(labels, stable=True)
        column = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
        levels = to_levels(images[order] * WHITE).flatten(1)
        lengths = levels.square().sum(1)

        def table(values: Tensor, blank: float = 0) -> Tensor:
            """(K, M, ...) of `values` (N, ...), which stand in the order of `order`."""
            empty = values.new_full((classes, int(counts.max()), *values.shape[1:]), blank)
            return empty.index_put_((labels[order], column), values)

        self.present = counts > 0
        self._members, self._lengths, self._longest = table(order), table(lengths, torch.inf), lengths.max()
        self._levels = table(levels.to(torch.uint8))
        self._stages = [Stage(basis, table(project(levels, basis))) for basis in principal_bases(levels)]
        self._stages.append(Stage(None, self._levels))

    def nearest(self, queries: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The training image of each target class that lies nearest to any query.

        Args:
            queries: (A, D) float64 levels.
            targets: (T,) int64, classes that are present.

        Returns:
            Index of the training image (T,), of the query (T,), and the distance (T,) in pixel units. Of equally near
            ones the first query, then the first training image.
        """
        first, *rest = self._stages
        points = project(queries.float(), first.basis)
        bound = torch.stack([least_squared(first.rows[t], self._lengths[t], points) for t in targets.tolist()])
        likely = bound.topk(min(LIKELY, bound.shape[1]), largest=False).indices
        exact = self._exact(targets[:, None].expand_as(likely).flatten(), likely.flatten(), queries).amin(1)
        limit = exact.view_as(likely).amin(1) + ROUNDING * (queries.square().sum(1).max() + self._longest)
        slot, column = (bound <= limit[:, None]).nonzero(as_tuple=True)
        for stage in rest:
            cell, points = (targets[slot], column), project(queries.float(), stage.basis)
            near = least_squared(stage.rows[cell], self._lengths[cell], points) <= limit[slot]
            slot, column = slot[near], column[near]
        return self._decide(slot, column, queries, targets)

    def _exact(self, target: Tensor, column: Tensor, queries: Tensor) -> Tensor:
        """(S, A) float64: squared distances in levels. Exact: all that is added are whole numbers below 2^53."""
        levels = self._levels[target, column].double()
        squared = torch.addmm(queries.square().sum(1), levels, queries.T, alpha=-2)
        return squared + self._lengths[target, column, None]

    def _decide(self, slot: Tensor, column: Tensor, queries: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The least (distance, query, training image) of every target, the three packed into one whole number."""
        size = self._lengths.shape[1]
        keys = torch.cat(
            [
                (
                    self._exact(targets[s], c, queries).long() * len(queries)
                    + torch.arange(len(queries), device=s.device)
                )
                .amin(1)
                .mul(size)
                .add(c)
                for s, c in zip(slot.split(CELL_BATCH), column.split(CELL_BATCH), strict=True)
            ]
        )
        least = keys.new_full(targets.shape, torch.iinfo(torch.int64).max).scatter_reduce_(0, slot, keys, "amin")
        squared, query = least // size // len(queries), least // size % len(queries)
        return self._members[targets, least % size], query, (squared.double().sqrt() / WHITE).float()


def least_squared(rows: Tensor, lengths: Tensor, points: Tensor) -> Tensor:
    """(S,) float32: the least squared distance of every row to any point.

    Args:
        rows: (S, k).
        lengths: (S,), the rows' squared lengths.
        points: (A, k) float32.
    """
    weights = torch.cat([-2 * points, points.square().sum(1, keepdim=True)], 1).T.contiguous()
    # Small blocks on a CPU: the products are reduced while they are still in its cache.
    blocks = rows.split(CPU_BLOCK if rows.device.type == "cpu" else max(len(rows), 1))
    return torch.cat([(F.pad(block.float(), (0, 1), value=1) @ weights).amin(1) for block in blocks]) + lengths


def project(levels: Tensor, basis: Tensor | None) -> Tensor:
    """(S, k + 1): coordinates of `levels` (S, D) in the basis and the length of what lies outside it; (S, D) without."""
    if basis is None:
        return levels
    inside = levels @ basis
    outside = levels.square().sum(1, keepdim=True) - inside.square().sum(1, keepdim=True)
    return torch.cat([inside, outside.clamp_min(0).sqrt()], 1)


def principal_bases(levels: Tensor) -> list[Tensor]:
    """For each of `BOUND_AXES` that is far fewer than pixels, that many principal axes of `levels` (M, D): (D, k)."""
    sizes = [k for k in BOUND_AXES if 3 * k <= levels.shape[1]]
    if not sizes:
        return []
    covariance = levels[:COVARIANCE_IMAGES].T.cov().double().cpu().numpy()
    _, axes = linalg.eigh(covariance, subset_by_index=[len(covariance) - max(sizes), len(covariance) - 1])
    axes = torch.from_numpy(axes[:, ::-1].astype(np.float32)).to(levels.device)
    return [axes[:, :k] for k in sizes]


def bring_back(training_images: Tensor, neighbours: Neighbours, grid: AlignmentGrid) -> Tensor:
    """Each pair's neighbour, (Q, C, H, W) uint8 levels, moved by the negated alignment to lie over the source."""
    aligner = Aligner(grid, *training_images.shape[2:], device=training_images.device)
    levels = to_levels(training_images[neighbours.neighbour] * WHITE)
    return aligner.each(levels, aligner.negated(neighbours.alignment)).to(torch.uint8)


def linf_perturb(images: Tensor, neighbours: Tensor, *, epsilon: float | Tensor) -> Tensor:
    """Move every pixel towards the aligned neighbour's by at most `epsilon`; a blank pixel never takes a fainter ink.

    Args:
        images: (Q, C, H, W) in [0, 1].
        neighbours: (Q, C, H, W) uint8 levels, aligned.
        epsilon: in pixel units of [0, 1], one number or one per image (Q,).
    """
    budget = torch.as_tensor(epsilon, dtype=images.dtype, device=images.device).reshape(-1, 1, 1, 1)
    wanted = neighbours.to(images.dtype) / WHITE - images
    moved = wanted.clamp(-budget, budget)
    stays = (images == 0) & (wanted <= budget + TIE)
    return torch.where(stays, images, images + moved).clamp(0, 1)


def ink_removed(images: Tensor, perturbed: Tensor) -> Tensor:
    """(Q,): how much darker `perturbed` (Q, C, H, W) is than `images`, summed over the pixels that lost ink."""
    return (images - perturbed).clamp_min(0).flatten(1).sum(1)


def least_ink(neighbours: Neighbours, removed: Tensor, sources: int) -> Tensor:
    """(N,) int64: of each source's pairs the one with the least `removed` (Q,), the first of equals; -1 for none."""
    order = torch.argsort(removed, stable=True)
    order = order[torch.argsort(neighbours.source[order], stable=True)]
    by_source = neighbours.source[order]
    first = torch.ones_like(by_source, dtype=torch.bool)
    first[1:] = by_source[1:] != by_source[:-1]
    chosen = torch.full((sources,), -1, dtype=torch.int64, device=removed.device)
    chosen[by_source[first]] = order[first]
    return chosen


class Attack(NamedTuple):
    """How an invariance norm perturbs, and the budgets at which its images are labelled."""

    perturb: Callable[..., Tensor]
    """(images (Q, C, H, W), aligned neighbours (Q, C, H, W) uint8, *, epsilon) -> perturbed images."""
    budgets: tuple[float, ...]
    """Ascending from 0, in the norm's unit."""


ATTACKS = {"linf": Attack(linf_perturb, budgets=tuple(round(0.05 * g, 2) for g in range(13)) + (0.8, 1.0))}
"""By norm."""
