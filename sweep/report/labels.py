"""Labels of the front's trials that hide neither a trial nor one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sweep.front import Objectives
from sweep.report.spots import Spot, staircase
from sweep.report.style import INK, MEMBER_RADIUS, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox

_MOST_LABELS = 30
_SIZE = 7.5
_DISTANCES = (7, 15, 24)
"""Distances of a label from its trial's centre, in points; the first that has room is taken."""
_DIRECTIONS = [(0.7, 0.7), (0, 1), (1, 0), (-0.7, 0.7), (0.7, -0.7), (0, -1), (-1, 0), (-0.7, -0.7)]
"""Directions of a label from its trial, the preferred first: the side beyond the front is free."""


def draw_labels(figure: Figure, axes: Axes, spots: Sequence[Spot], points: np.ndarray, plane: Objectives) -> None:
    """Draw the front's trial numbers, where they hide neither a trial nor one another; none where no room is left.

    Args:
        points: (n, 2), everything that no label may hide.
    """
    if not spots:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.path import Path
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    # The labels are placed in this layout, so it stays as it is.
    figure.set_layout_engine("none")
    to_pixels = axes.transData.transform
    radius = MEMBER_RADIUS * figure.dpi / 72
    room = _Room(
        inside=axes.get_window_extent(renderer),
        anchors=to_pixels([(spot.x, spot.y) for spot in spots]),
        taken=[np.concatenate([mark - radius, mark + radius]) for mark in to_pixels(points)],
        edge=Path(to_pixels(staircase(spots, plane))),
    )
    waiting = _labelled_spots(spots)
    for distance in _DISTANCES:
        nearest = distance == min(_DISTANCES)
        for spot in waiting.copy():
            size = np.array(Text(text=spot.label, fontsize=_SIZE, figure=figure).get_window_extent(renderer).size)
            offset = room.take(to_pixels((spot.x, spot.y)), size, distance * figure.dpi / 72, near=nearest)
            if offset is not None:
                _draw_label(axes, spot, offset * 72 / figure.dpi, leader=not nearest)
                waiting.remove(spot)


def _labelled_spots(spots: Sequence[Spot]) -> list[Spot]:
    """Return the knee and the two ends first, as a reader looks for them, then others, evenly if there are too many."""
    first = [spot for spot in spots if spot.is_knee] + [spots[0], spots[-1]]
    others = spots[:: -(-len(spots) // _MOST_LABELS)]
    return list({(spot.x, spot.y): spot for spot in (*first, *others)}.values())


def _draw_label(axes: Axes, spot: Spot, offset: np.ndarray, *, leader: bool) -> None:
    """Draw a label at an offset (2,) in points from its spot, with a leader line where it stands apart."""
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": MEMBER_RADIUS}
    axes.annotate(
        spot.label,
        (spot.x, spot.y),
        tuple(offset),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=_SIZE,
        color=INK,
        arrowprops=line if leader else None,
        zorder=7,
        gid="label",
    )


@dataclass
class _Room:
    """The space that is left for labels, in pixels."""

    inside: Bbox
    anchors: np.ndarray
    """The front's spots (m, 2)."""
    taken: list[np.ndarray]
    """Rectangles (4,) that no label may touch: left, bottom, right, top."""
    edge: Path
    """The staircase, which a label crosses only if it must."""

    def take(self, anchor: np.ndarray, size: np.ndarray, distance: float, *, near: bool) -> np.ndarray | None:
        """Take room for a label at a distance from its anchor; return the offset of its centre, or None without room.

        Args:
            near: whether the label must lie nearer to its own spot than to any other.
        """
        from matplotlib.transforms import Bbox

        free = []
        taken = np.array(self.taken)
        for direction in _DIRECTIONS:
            # The distance is that of the label's nearest side or corner.
            offset = np.multiply(direction, distance) + np.sign(direction) * size / 2
            low, high = anchor + offset - size / 2, anchor + offset + size / 2
            apart = (taken[:, :2] >= high).any(axis=1) | (taken[:, 2:] <= low).any(axis=1)
            if not apart.all() or (low < self.inside.min).any() or (high > self.inside.max).any():
                continue
            gaps = np.linalg.norm(np.maximum(np.maximum(low - self.anchors, self.anchors - high), 0), axis=1)
            if near and gaps.min() < np.linalg.norm(np.maximum(np.maximum(low - anchor, anchor - high), 0)):
                continue
            crosses = self.edge.intersects_bbox(Bbox([low, high]), filled=False)
            free.append((crosses, offset, np.append(low, high)))
        if not free:
            return None
        _, offset, box = min(free, key=lambda candidate: candidate[0])
        self.taken.append(box)
        return offset
