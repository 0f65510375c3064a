"""Pictures of judged models: the leaderboard between the two axes, and accuracy over the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.audit import draw_curves
from sweep.judge.result import JudgedModels
from sweep.report import (
    FAINT,
    INK,
    MEMBER_RADIUS,
    MUTED,
    Spot,
    budgets,
    draw_axes,
    draw_labels,
    draw_title,
    house_figure,
    in_units,
    staircase,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ON_FRONT, _BEHIND = "#0072B2", "#BBBBBB"
_MARK: dict[str, Any] = {"s": (1.7 * MEMBER_RADIUS) ** 2, "edgecolors": INK, "linewidths": 0.9, "zorder": 5}


def leaderboard_figure(judgement: JudgedModels) -> Figure:
    """Draw all models between the two axes with their intervals, their front, and the line that none can pass."""
    plane, units = in_units(judgement.plan.objectives)
    points, on_front = judgement.points * units, judgement.standing.on_front
    intervals = judgement.standing.intervals * units[:, None]
    chances = judgement.standing.chances.tolist()
    spots = [
        Spot(x, y, [], False, chance if len(points) > 1 else None, (model.file.name,))
        for (x, y), model, chance in zip(points.tolist(), judgement.models, chances, strict=True)
    ]
    ends = np.vstack([points, intervals[..., 0], intervals[..., 1]])
    with house_figure() as (figure, axes):
        draw_axes(axes, ends, plane)
        if len(judgement.ceiling):
            line = np.array(judgement.ceiling) * units
            axes.plot(*line.T, color=MUTED, linestyle="--", linewidth=1, zorder=1, scalex=False, scaley=False)
        for (x, y), ((left, right), (low, high)) in zip(points.tolist(), intervals.tolist(), strict=True):
            axes.plot([left, right], [y, y], color=FAINT, linewidth=1, zorder=2)
            axes.plot([x, x], [low, high], color=FAINT, linewidth=1, zorder=2)
        front = sorted(spot for spot, member in zip(spots, on_front, strict=True) if member)
        axes.plot(*staircase(front, plane).T, color=INK, linewidth=1.1, zorder=4)
        colours = [_ON_FRONT if member else _BEHIND for member in on_front]
        axes.scatter(*points.T, c=colours, clip_on=False, **_MARK)
        draw_title(axes, "Models on both axes", f"{_budgets(judgement)}\n{_legend(judgement)}")
        draw_labels(figure, axes, spots, points, plane)
    return figure


def _budgets(judgement: JudgedModels) -> str:
    steps = judgement.options.steps
    return budgets(judgement.plan.space.evaluation, attack=f"full set of attacks, {steps} steps")


def _legend(judgement: JudgedModels) -> str:
    """Return what the marks of the picture mean, in a line."""
    chances = "; blue: on the front; in percent the chance of it" if len(judgement.models) > 1 else ""
    ceiling = "; dashed: no classifier lies beyond" if len(judgement.ceiling) else ""
    return f"{judgement.images} test images; bars: 95% intervals{chances}{ceiling}"


def budget_figure(judgement: JudgedModels) -> Figure:
    """Draw accuracy over the budget, a line per model."""
    lines = {
        f"{model.file.name}: area {model.measured.numbers['curve_area']:.3f}": [model.measured.curve]
        for model in judgement.models
    }
    return draw_curves(lines, judgement.plan.space.evaluation, judgement.options, title="Models")
