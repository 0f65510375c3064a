"""Lower bounds of the distances between images, computed in few coordinates: most images are ruled out by them.

For V of few orthonormal columns, |q - x|^2 >= |V'q - V'x|^2 + (|q - VV'q| - |x - VV'x|)^2: the part inside the
subspace, and the triangle inequality outside it. So the bound is a distance between points of k coordinates.

Shapes: M training images of a class, K classes, D = C H W pixels, k coordinates. Of one search: S sources of one label,
T target classes, alignments at P positions on each of G tracks, R rows of any training images. Distances are in levels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from trainer.invariance.alignments import Tracks

AXES = {torch.float32: (61, 157), torch.bfloat16: (157,)}
"""Numbers of axes, coarse and fine, of the subspaces that rule training images out. With the three numbers that are
added to them, 157 fill whole vector registers."""
PRODUCT_ERROR = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}
"""Relative error of a matrix product's result by the type of its factors; sums are made in float32."""
FLOAT32_ERROR = 2.0**-16
"""Upper bound of the error of a squared distance in float32, relative to the squared lengths that it is computed from;
it covers a few more operations too."""
FARTHEST = torch.finfo(torch.float32).max
"""Squared distance that no two images have, yet finite."""
COVARIANCE_IMAGES = 10_000
"""Largest number of images from which principal axes are computed."""


class Coordinates(NamedTuple):
    """Coordinates in which no two images lie further apart than in pixels, with the training images in them."""

    basis: Tensor | None
    """(D, k - 1) orthonormal columns; None where the coordinates are the pixels themselves."""
    centre: Tensor
    """(D,) the origin, near the images, so that lengths, and with them rounding errors, are small."""
    rows: Tensor
    """(K, M, k + 2): every training image in these coordinates, rounded to the type of fast products, and two ones."""
    lengths: Tensor
    """(K, M) float32: squared lengths of the rows without their ones; infinite where a class has fewer images."""
    rounded_by: Tensor
    """(): largest distance by which rounding has moved a row."""

    def project(self, levels: Tensor) -> Tensor:
        """Project `levels` (..., D) to these coordinates (..., k): those in the basis, and the length of the rest."""
        centred = levels - self.centre
        if self.basis is None:
            return centred
        inside = centred @ self.basis
        outside = centred.square().sum(-1) - inside.square().sum(-1)
        return torch.cat([inside, outside.clamp_min(0).sqrt()[..., None]], -1)


class Probe(NamedTuple):
    """Points to compare rows with."""

    weights: Tensor
    """(..., k + 2): a row times these, plus its squared length, is the squared distance of row and point."""
    rounded_by: Tensor
    """(): largest distance by which rounding has moved a point."""
    longest: Tensor
    """(): greatest squared length."""


def probe_of(points: Tensor, kind: torch.dtype) -> Probe:
    """Round projected points (..., k) to `kind` for comparing them, their squared lengths as two summands."""
    rounded = points.to(kind)
    lengths = rounded.float().square().sum(-1, keepdim=True)
    most = lengths.to(kind)
    weights = torch.cat([-2 * rounded, most, (lengths - most).to(kind)], -1)
    return Probe(weights, (points - rounded).norm(dim=-1).amax(), lengths.amax())


class Bounds(NamedTuple):
    """Lower bounds of R rows' squared distances to the nearest knot of every track."""

    nearest: Tensor
    """(S, G, R) rounded, without the squared lengths of the rows."""
    lengths: Tensor
    """(R,) float32: squared lengths of the rows, lowered by the rounding error."""
    least: Tensor
    """(S, R) float32: the least bound over all tracks."""
    rounding: float
    """Relative rounding error of the bounds."""

    def within(self, reach: Tensor) -> Tensor:
        """Find where the distance may be within `reach` (S, G), squared: (pairs, 3), source, track and row."""
        reach = reach * (1 + self.rounding)
        # Few rows are near on any track; only those are compared track by track.
        source, row = (self.least <= reach.amax(1, keepdim=True)).nonzero(as_tuple=True)
        near, track = (self.nearest[source, :, row] + self.lengths[row, None] <= reach[source]).nonzero(as_tuple=True)
        return torch.stack([source[near], track, row[near]], 1)


def widened(squared: Tensor, distance: Tensor) -> Tensor:
    """Return squared distances of which each distance is longer by `distance` and the error of float32, kept finite."""
    return ((squared.sqrt() + distance).square() * (1 + FLOAT32_ERROR)).clamp_max(FARTHEST)


def reach_from_knots(points: Tensor, tracks: Tracks, limit: Tensor) -> Tensor:
    """Return the squared distance (S, G, T) from all knots beyond which an image is beyond `limit` of the whole track.

    A point q lies e from p = (1 - s) a + s b, for knots a and b. So |q - x| >= |p - x| - e, and |p - x|^2 =
    (1 - s) |a - x|^2 + s |b - x|^2 - s (1 - s) |a - b|^2 >= min(|a - x|^2, |b - x|^2) - s (1 - s) |a - b|^2.

    Args:
        points: (S, P, G, D) levels of every alignment.
        tracks: the order of the alignments.
        limit: (S, T) squared distances.
    """
    q, below, above, s = (part.to(points.device) for part in tracks.inner)
    a, b = (torch.tensor(tracks.knots, device=points.device)[knot] for knot in (below, above))
    products = torch.stack([track @ track.mT for track in points.transpose(1, 2)])
    lengths = products.diagonal(dim1=2, dim2=3)
    apart = (lengths[..., a] + lengths[..., b] - 2 * products[..., a, b]).clamp_min(0)
    from_a = lengths[..., q] + lengths[..., a] - 2 * products[..., q, a]
    from_b = lengths[..., q] + lengths[..., b] - 2 * products[..., q, b]
    # The same identity with q for x, rounding error added.
    e = ((1 - s) * from_a + s * from_b - s * (1 - s) * apart + FLOAT32_ERROR * lengths.amax()).clamp_min(0).sqrt()
    at_knots = limit[:, None, None].expand(-1, tracks.number, 1, -1)
    between = (limit.sqrt()[:, None, None] + e[..., None]).square() + (s * (1 - s) * apart)[..., None]
    return torch.cat([at_knots, between], 2).amax(2)


def principal_bases(levels: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Return principal axes of `levels` (N, D): (D, k) float32 for each k of `sizes` that is far below D.

    Images may be ordered by class, so the axes are computed from images at even intervals.
    """
    sizes = tuple(k for k in sizes if 3 * k <= levels.shape[1])
    if not sizes:
        return []
    covariance = levels[:: -(-len(levels) // COVARIANCE_IMAGES)].double().T.cov().cpu().numpy()
    _, axes = linalg.eigh(covariance, subset_by_index=[len(covariance) - max(sizes), len(covariance) - 1])
    axes = torch.from_numpy(axes[:, ::-1].astype(np.float32)).to(levels.device)
    # Pixels that are always blank leave entries below the normal range of float32, which slow processors down.
    axes[axes.abs() < 1e-20] = 0
    return [axes[:, :k].contiguous() for k in sizes]
