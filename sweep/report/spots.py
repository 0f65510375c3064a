"""The geometry of a front in a picture: points in its units, the front's spots, the staircase, intervals.

A picture shows the plane of the first two objectives. Its units are percent for shares, and else those of the reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sweep.front import Objectives
from sweep.ledger import TrialRecord
from sweep.state import ConfigurationDraws
from trainer.intervals import wilson_interval
from trainer.report import images_behind

AXES = {
    "sensitivity_accuracy": "Sensitivity accuracy (%)",
    "invariance_accuracy": "Invariance accuracy (%), a proxy: read by the judge",
    "clean_accuracy": "Clean accuracy (%)",
    "invariance_stuck": "Invariance stuck (%), a proxy: read by the judge",
    "invariance_unchanged": "Invariance unchanged (%), a proxy: read by the judge",
}
"""Labels of the objectives that are shares, and so are drawn in percent."""

_LABELLED_TRIALS = 3


class Spot(NamedTuple):
    """A point of the front, in the picture's units, with every trial that lies there."""

    x: float
    y: float
    trials: list[TrialRecord]
    is_knee: bool
    chance: float | None = None
    """Its probability of being on the front, where that is known."""
    names: Sequence[str] = ()
    """The names of what lies there, where that is no trials."""

    @property
    def label(self) -> str:
        """The numbers of its trials, or its names, of many the first three, and its chance."""
        numbers = self.names or [f"{trial.number:03d}" for trial in self.trials]
        more = [f"+{len(numbers) - _LABELLED_TRIALS}"] if len(numbers) > _LABELLED_TRIALS else []
        chance = "" if self.chance is None else f" {self.chance:.0%}"
        return ", ".join([*numbers[:_LABELLED_TRIALS], *more]) + chance + (" (knee)" if self.is_knee else "")


def in_units(objectives: Objectives) -> tuple[Objectives, np.ndarray]:
    """Return the plane of the first two objectives in the picture's units, and the factors (2,) that lead to them."""
    units = np.array([100.0 if name in AXES else 1.0 for name in objectives.names[:2]])
    return objectives.plane(units.tolist()), units


def front_spots(
    trials: Sequence[TrialRecord], points: np.ndarray, on_front: np.ndarray, knee_index: int | None
) -> list[Spot]:
    """Return the spots of the front from left to right.

    Args:
        points: (n, 2), a row per trial.
        on_front: (n,) bool.
    """
    members: dict[tuple[float, float], list[int]] = {}
    for i in np.flatnonzero(on_front).tolist():
        members.setdefault((points[i, 0], points[i, 1]), []).append(i)
    return [Spot(x, y, [trials[i] for i in here], knee_index in here) for (x, y), here in sorted(members.items())]


def staircase(spots: Sequence[Spot], plane: Objectives) -> np.ndarray:
    """Return the edge (2m + 1, 2) of what m spots dominate, from the reference's height to its side."""
    gains = plane.turn([(spot.x, spot.y) for spot in spots])
    gains = gains[gains[:, 0].argsort()]
    corner = np.minimum(plane.turned_reference, gains.min(axis=0))
    x, y = np.repeat(gains[:, 0], 2), np.repeat(gains[:, 1], 2)
    return plane.turn(np.column_stack([np.append(corner[0], x), np.append(y, corner[1])]))


def wilson_segments(spots: Sequence[Spot], plane: Objectives, validation_images: int) -> np.ndarray:
    """Return 95% Wilson intervals (k, 2, 2) of the front's accuracies: one end, the other end."""
    segments = []
    for spot in spots:
        images = {
            "clean_accuracy": validation_images,
            "sensitivity_accuracy": validation_images,
            "invariance_accuracy": images_behind(spot.trials[0].result or {}),
        }
        across, up = (images.get(metric, 0) for metric in plane.names)
        segments += [[(x, spot.y) for x in _wilson_percent(spot.x, across)]] if across > 0 else []
        segments += [[(spot.x, y) for y in _wilson_percent(spot.y, up)]] if up > 0 else []
    return np.array(segments).reshape(-1, 2, 2)


def _wilson_percent(percent: float, images: int) -> tuple[float, float]:
    """Return Wilson's score interval of a share measured on so many images."""
    interval = wilson_interval(round(percent / 100 * images), images)
    return 100 * interval.low, 100 * interval.high


def replicate_segments(spots: Sequence[Spot], units: np.ndarray, drawn: Mapping[int, ConfigurationDraws]) -> np.ndarray:
    """Return the intervals (k, 2, 2) of the front's means over seeds: one end, the other end."""
    segments = []
    for spot in spots:
        across, up = (units[i] * np.array(drawn[spot.trials[0].number].intervals[i]) for i in (0, 1))
        segments += [[(x, spot.y) for x in across], [(spot.x, y) for y in up]]
    return np.array(segments).reshape(-1, 2, 2)


def value_of(trial: TrialRecord, metric: str) -> float:
    """Return a number of a finished trial's final report."""
    assert trial.result is not None
    return trial.result[metric]
