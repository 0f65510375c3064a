"""TODO one line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Objectives:
    """What is traded off: d names with a direction and a reference each."""

    names: tuple[str, ...]

    maximise: tuple[bool, ...]

    reference: tuple[float, ...]
    """The point that hypervolume is measured from, in the objectives' own units: worse than all that counts."""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.maximise) == len(self.reference) > 0:
            raise ValueError(f"objectives {self}: each needs a name, a direction and a reference")

    def turn(self, points: ArrayLike) -> np.ndarray:
        """Points (n, d) turned so that more is better in every column; turned twice they are as they were."""
        points = np.asarray(points, dtype=float)
        points = points.reshape(0, len(self.names)) if points.size == 0 else points
        if points.ndim != 2 or points.shape[1] != len(self.names):
            raise ValueError(f"points of shape {points.shape}: must be (n, {len(self.names)}) for {self.names}")
        if not np.isfinite(points).all():
            raise ValueError(f"points {points[~np.isfinite(points).all(axis=1)].tolist()}: must be finite")
        return points * np.where(self.maximise, 1.0, -1.0)

    @property
    def turned_reference(self) -> np.ndarray:
        """The reference (d,) among gains."""
        return self.turn([self.reference])[0]
