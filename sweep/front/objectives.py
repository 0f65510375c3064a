"""The objectives of a front and their directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Objectives:
    """Objectives that are traded off: d names with a direction and a reference each."""

    names: tuple[str, ...]

    maximise: tuple[bool, ...]
    """Directions; `signs` and `turn` are what arithmetic needs of them."""

    reference: tuple[float, ...]
    """Point that hypervolume is measured from, in the objectives' own units; only what is better in all counts."""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.maximise) == len(self.reference) > 0:
            raise ValueError(f"objectives {self}: each needs a name, a direction and a reference")

    def turn(self, points: ArrayLike) -> np.ndarray:
        """Return points (n, d) turned so that more is better in every column; turned twice they are as they were."""
        points = np.asarray(points, dtype=float)
        points = points.reshape(0, len(self.names)) if points.size == 0 else points
        if points.ndim != 2 or points.shape[1] != len(self.names):
            raise ValueError(f"points of shape {points.shape}: must be (n, {len(self.names)}) for {self.names}")
        if not np.isfinite(points).all():
            raise ValueError(f"points {points[~np.isfinite(points).all(axis=1)].tolist()}: must be finite")
        return points * self.signs

    def gain(self, point: ArrayLike) -> tuple[float, ...]:
        """Return one point (d,) turned."""
        values = tuple(map(float, np.asarray(point).tolist()))
        if len(values) != len(self.names) or not all(map(math.isfinite, values)):
            self.turn([values])  # says what is wrong
        return tuple(value if more else -value for value, more in zip(values, self.maximise, strict=True))

    def plane(self, units: Sequence[float] = (1.0, 1.0)) -> Self:
        """Return the first two objectives, their reference multiplied by `units`, as figures draw them."""
        reference = (self.reference[0] * units[0], self.reference[1] * units[1])
        return type(self)(self.names[:2], self.maximise[:2], reference)

    @cached_property
    def signs(self) -> np.ndarray:
        """Signs (d,) of the objectives: 1 where more is better, -1 where less is."""
        signs = np.where(self.maximise, 1.0, -1.0)
        signs.setflags(write=False)
        return signs

    @property
    def turned_reference(self) -> np.ndarray:
        """The reference (d,), turned."""
        return self.turn([self.reference])[0]
