"""Everything around the points of a picture: axes, title, legend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sweep.front import Objectives
from sweep.report.spots import AXES
from sweep.report.style import GRID, INK, MUTED
from sweep.report.words import attack_words
from trainer.config import UNANIMOUS, EvaluationConfig
from trainer.crowds import crowd_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NORMS = {"linf": "L∞", "l2": "L2", "l0": "L0"}
_LEGEND_COLUMNS = 5


def draw_axes(axes: Axes, points: np.ndarray, plane: Objectives) -> None:
    """Draw limits, labels and grid: close around the points (n, 2), with the reference where that is near."""
    for axis, metric in enumerate(plane.names):
        shown = points[:, axis] if len(points) else np.array([0.0, 100.0 if metric in AXES else 1.0])
        low, high, reference = shown.min(), shown.max(), plane.reference[axis]
        if max(low - reference, reference - high) < 0.5 * (high - low):
            low, high = min(low, reference), max(high, reference)
        margin = 0.1 * (max(high - low, 0.04 * abs(high)) or 1.0)
        low, high = low - margin, high + margin
        if metric in AXES:
            # A sliver beyond 0 and 100 keeps markers whole that lie there.
            low, high = max(low, -0.3 * margin), min(high, 100 + 0.3 * margin)
        (axes.set_xlim if axis == 0 else axes.set_ylim)(low, high)
    axes.set_xlabel(AXES.get(plane.names[0], plane.names[0]))
    axes.set_ylabel(AXES.get(plane.names[1], plane.names[1]))
    axes.grid(**GRID)
    axes.set_axisbelow(True)


def draw_title(axes: Axes, name: str, lines: str) -> None:
    """Draw a name in bold with two smaller lines below it."""
    axes.set_title(name, loc="left", fontsize=12, fontweight="bold", color=INK, pad=33, parse_math=False)
    axes.annotate(lines, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8, color="#444444", va="bottom")


def draw_legend(figure: Figure, axes: Axes, *, with_dominated: bool) -> None:
    """Draw the legend below the axes, with an entry for dominated trials where there are any."""
    from matplotlib.lines import Line2D

    handles, _ = axes.get_legend_handles_labels()
    if with_dominated:
        handles.append(Line2D([], [], color=MUTED, alpha=0.6, marker="o", markersize=4, mew=0, ls="none"))
        handles[-1].set_label("dominated trial")
    figure.legend(
        handles=handles, loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=8, columnspacing=1.6
    )


def budgets(evaluation: EvaluationConfig, *, attack: str = "") -> str:
    """Return what the trials were judged by, in one line.

    Args:
        attack: the sensitivity attack in words; empty for that of a sweep.
    """
    return (
        f"{evaluation.dataset}; sensitivity: {NORMS[evaluation.eval_sensitivity_norm]} "
        f"{evaluation.eval_sensitivity_epsilon:g}, {attack or attack_words(evaluation)}; invariance: "
        f"{NORMS[evaluation.eval_invariance_norm]} {evaluation.eval_invariance_epsilon:g}, {_crowd_name(evaluation)}"
    )


def _crowd_name(evaluation: EvaluationConfig) -> str:
    """Return whose answers the invariance axis goes by, as a picture names them."""
    if evaluation.crowd == UNANIMOUS:
        return "judge of an earlier version"
    return f"{crowd_for(evaluation.dataset, evaluation.crowd).name} crowd"
