"""TODO one line."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from trainer.invariance.alignments import Tracks

AXES = {torch.float32: (61, 157), torch.bfloat16: (157,)}
"""Sizes of the subspaces that rule training images out, coarse and fine; with the three numbers that are added to them,
157 fill whole vectors."""
PRODUCT_ERROR = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}
"""Relative error of a product's result: both sums are made in float32."""
FLOAT32_ERROR = 2.0**-16
"""Error of a squared distance computed in float32, relative to the squared lengths that it is the difference of, and of
a few other operations: ample."""
COVARIANCE_IMAGES = 10_000


class Coordinates(NamedTuple):
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


class Probe(NamedTuple):
    """Points that rows are compared with."""

    weights: Tensor
    """(..., k + 2): a row times these, plus its squared length, is the squared distance of the two."""
    moved: Tensor
    """(): how far rounding has moved a point at most."""
    longest: Tensor
    """(): the greatest squared length."""


def probe_of(placed: Tensor, kind: torch.dtype) -> Probe:
    """Points `placed` (..., k) by a stage, rounded to `kind`; their squared lengths are told in two summands."""
    rounded = placed.to(kind)
    lengths = rounded.float().square().sum(-1, keepdim=True)
    most = lengths.to(kind)
    weights = torch.cat([-2 * rounded, most, (lengths - most).to(kind)], -1)
    return Probe(weights, (placed - rounded).norm(dim=-1).amax(), lengths.amax())


class Bounds(NamedTuple):
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


def widened(squared: Tensor, distance: Tensor) -> Tensor:
    """Squared distances, of points that may be so much farther; finite."""
    return ((squared.sqrt() + distance).square() * (1 + FLOAT32_ERROR)).clamp_max(FARTHEST)


FARTHEST = torch.finfo(torch.float32).max


def reach_from_knots(points: Tensor, tracks: Tracks, limit: Tensor) -> Tensor:
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
    e = ((1 - s) * from_a + s * from_b - s * (1 - s) * apart + FLOAT32_ERROR * lengths.amax()).clamp_min(0).sqrt()
    at_knots = limit[:, None, None].expand(-1, tracks.number, 1, -1)
    between = (limit.sqrt()[:, None, None] + e[..., None]).square() + (s * (1 - s) * apart)[..., None]
    return torch.cat([at_knots, between], 2).amax(2)


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
