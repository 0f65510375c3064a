"""The picture of a comparison: both fronts, each with the band that its seeds span."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sweep.front import Objectives, front_mask
from sweep.report.axes import budgets, draw_axes, draw_legend, draw_title
from sweep.report.comparison import Comparison, heights, interval_text
from sweep.report.sides import Side
from sweep.report.spots import in_units
from sweep.report.style import INK, house_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00")
_LONGEST_NAME = 28


def comparison_figure(comparison: Comparison) -> Figure:
    """Draw both fronts; where a side has several sweeps, a band from what all of them attain to what any does."""
    a, b = comparison.a, comparison.b
    plane, units = in_units(a.objectives)
    with house_figure() as (figure, axes):
        draw_axes(axes, np.vstack([side.points[:, :2] * units for side in (a, b)]), plane)
        for side, colour, letter, marker in zip((a, b), _COLOURS, "AB", "os", strict=True):
            _draw_side(axes, side, plane, units, colour, letter, marker)
        found = comparison.difference
        note = f"hypervolume A - B = {found.estimate:+.4f}{f' ({text})' if (text := interval_text(found)) else ''}"
        note += (
            "; not at equal effort" if comparison.effort else "" if comparison.claim else "; no difference is claimed"
        )
        names = f"A: {_shortened(a.name)}   B: {_shortened(b.name)}"
        draw_title(axes, names, f"{budgets(a.sweeps[0].plan.space.evaluation)}\n{note}")
        draw_legend(figure, axes, with_dominated=False)
    return figure


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _draw_side(
    axes: Axes, side: Side, plane: Objectives, units: np.ndarray, colour: str, letter: str, marker: str
) -> None:
    """Draw a side's dominated trials, its fronts, and what all, half and any of its sweeps attain."""
    points = side.points[:, :2] * units
    on_front = front_mask(points, plane)
    axes.scatter(*points[~on_front].T, s=9, c=colour, marker=marker, alpha=0.25, linewidths=0, zorder=2)
    axes.scatter(*points[on_front].T, s=34, c=colour, marker=marker, edgecolors=INK, linewidths=0.6, zorder=5)
    gains = plane.turn(points)
    corner = np.minimum(plane.turned_reference, gains.min(axis=0))
    x = np.unique(np.concatenate([[corner[0]], gains[:, 0]]))
    sweeps = [sweep.points[:, :2] * units for sweep in side.sweeps]
    attained = np.sort(np.maximum([heights(each, plane, x) for each in sweeps], corner[1]), axis=0)
    signs = np.where(plane.maximise, 1.0, -1.0)

    def outline(height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Each height holds from the x before up to its own.
        return np.append(x, x[-1]) * signs[0], np.append(height, corner[1]) * signs[1]

    middle = attained[(len(attained) - 1) // 2]
    axes.step(*outline(middle), where="pre", color=colour, linewidth=1.4, zorder=4, label=f"{letter}: front")
    if len(attained) > 1:
        across, low = outline(attained[0])
        _, high = outline(attained[-1])
        axes.fill_between(
            across, low, high, step="pre", color=colour, alpha=0.18, linewidth=0, label=f"{letter}: all to any seed"
        )
