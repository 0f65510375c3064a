"""The picture of a front: all finished trials, the staircase, the knee, the dominated area.

In the helpers `points` are (n, 2) in the picture's units (see `spots`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.front import Objectives, front_mask, hypervolume, knee
from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.report.axes import budgets, draw_axes, draw_legend, draw_title
from sweep.report.labels import draw_labels
from sweep.report.spots import (
    Spot,
    front_spots,
    in_units,
    replicate_segments,
    staircase,
    value_of,
    wilson_segments,
)
from sweep.report.style import (
    AREA_COLOUR,
    FAINT,
    INK,
    KNEE_COLOUR,
    LOOKS,
    MEMBER_RADIUS,
    MUTED,
    OWN_LOOK,
    UNKNOWN_LOOK,
    house_figure,
)
from sweep.state import ConfigurationDraws, SweepState
from trainer.config import EvaluationConfig
from trainer.plugins import is_plugin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOMINATED: dict[str, Any] = {"s": 18, "alpha": 0.6, "linewidths": 0, "zorder": 2, "gid": "dominated"}
_MEMBER: dict[str, Any] = {"s": (1.7 * MEMBER_RADIUS) ** 2, "edgecolors": INK, "linewidths": 0.9, "zorder": 5}
_MEMBER |= {"clip_on": False, "gid": "front"}

_BOUNDED = ("sensitivity_accuracy", "invariance_accuracy")
"""Axes between which there can be a ceiling."""
_CEILING: dict[str, Any] = {"color": MUTED, "linestyle": "--", "linewidth": 1, "zorder": 1, "gid": "ceiling"}
_CEILING |= {"scalex": False, "scaley": False}


def front_picture(plan: SweepPlan, results: SweepState) -> Figure:
    """Draw all finished trials, or configurations, of a sweep and their front."""
    return front_figure(
        list(results.configurations.values()),
        infeasible=results.infeasible.keys(),
        drawn=results.uncertainty().configurations,
        name=plan.name,
        objectives=plan.objectives,
        evaluation=plan.space.evaluation,
        validation_images=results.data_summary.get("validation_images"),
        ceiling=results.data_summary.get("ceiling", ()),
    )


def front_figure(
    trials: Iterable[TrialRecord],
    *,
    name: str,
    objectives: Objectives,
    evaluation: EvaluationConfig,
    validation_images: int | None = None,
    infeasible: Container[int] = (),
    drawn: Mapping[int, ConfigurationDraws] | None = None,
    ceiling: Sequence[Sequence[float]] = (),
) -> Figure:
    """Draw the front between the first two objectives: all finished trials, staircase, knee and dominated area.

    Args:
        trials: those without a final report are left out.
        name: the sweep's.
        validation_images: what clean and sensitivity accuracy were measured on; where given, the front has error bars
            (95% Wilson intervals; the number of images of invariance accuracy is in the reports).
        infeasible: numbers of the trials that violate the requirements: drawn as crosses, and on no front.
        drawn: what is known of each configuration's uncertainty, by number: its probability of being on the front
            stands in the front's labels, and with several seeds the error bars are those of their means.
        ceiling: points (sensitivity accuracy, invariance accuracy) of the line that no classifier can cross, if there
            is one; drawn where these are the axes.
    """
    finished = [trial for trial in trials if trial.result is not None]
    plane = objectives.plane()
    values = np.array([[value_of(trial, axis) for axis in plane.names] for trial in finished]).reshape(-1, 2)
    feasible = np.array([trial.number not in infeasible for trial in finished], dtype=bool)
    on_front, knee_index = np.zeros(len(finished), dtype=bool), knee(values[feasible], plane)
    on_front[feasible] = front_mask(values[feasible], plane)
    knee_index = None if knee_index is None else int(np.flatnonzero(feasible)[knee_index])
    replicates = any(each.intervals for each in (drawn or {}).values())
    noun = "configuration" if replicates else "trial"
    count = f"{len(finished)} finished {noun}{'' if len(finished) == 1 else 's'}"
    violated = "" if feasible.all() else f", {(~feasible).sum()} not as required"
    volume = hypervolume(values[feasible], plane)
    chances = "; in percent their chance of it" if drawn else ""
    summary = f"hypervolume {volume:.4f}; {count}, {on_front.sum()} on the front{chances}{violated}"
    plane, units = in_units(objectives)
    points = values * units
    spots = front_spots(finished, points, on_front, knee_index)
    if drawn:
        spots = [spot._replace(chance=drawn[spot.trials[0].number].chance) for spot in spots]
    if drawn and replicates:
        segments = replicate_segments(spots, units, drawn)
    else:
        segments = wilson_segments(spots if validation_images else [], plane, validation_images or 0)
    with house_figure() as (figure, axes):
        draw_axes(axes, np.vstack([points, *segments]), plane)
        bounded = bool(ceiling) and plane.names == _BOUNDED
        if bounded:
            axes.plot(*(np.array(ceiling) * units).T, **_CEILING)
        _draw_infeasible(axes, points[~feasible])
        eligible = [finished[i] for i in np.flatnonzero(feasible)]
        draw_front(axes, eligible, points[feasible], on_front[feasible], spots, segments, plane)
        limit = "; dashed: no classifier lies beyond" if bounded else ""
        draw_title(axes, name, f"{budgets(evaluation)}\n{summary}{limit}")
        draw_legend(figure, axes, with_dominated=not on_front[feasible].all())
        draw_labels(figure, axes, spots, points, plane)
    return figure


def draw_front(
    axes: Axes,
    trials: Sequence[TrialRecord],
    points: np.ndarray,
    on_front: np.ndarray,
    spots: Sequence[Spot],
    segments: np.ndarray,
    plane: Objectives,
) -> None:
    """Draw n trials at points (n, 2), error bars from segments (k, 2, 2), and the staircase of the front's spots."""
    _draw_trials(axes, trials, points, on_front)
    _draw_intervals(axes, segments)
    _draw_staircase(axes, spots, plane)


def _draw_trials(axes: Axes, trials: Sequence[TrialRecord], points: np.ndarray, on_front: np.ndarray) -> None:
    """Draw trials by regularizer: those on the front large and edged, the dominated small and faded."""
    looks = LOOKS | {"one's own": OWN_LOOK, "unknown": UNKNOWN_LOOK}
    given = [trial.config.get("regularizer") for trial in trials]
    names = [name if name in LOOKS else "one's own" if is_plugin(name) else "unknown" for name in given]
    for regularizer in [name for name in looks if name in names]:
        colour, marker = looks[regularizer]
        chosen = np.array(names) == regularizer
        look = {"c": colour, "marker": marker}
        axes.scatter(*points[chosen & ~on_front].T, **look, **_DOMINATED)
        axes.scatter(*points[chosen & on_front].T, **look, **_MEMBER, label=regularizer)


def _draw_infeasible(axes: Axes, points: np.ndarray) -> None:
    """Draw the trials that violate the requirements."""
    if len(points):
        label = "not as required"
        axes.scatter(*points.T, s=16, c=MUTED, marker="x", linewidths=0.8, zorder=1, gid="infeasible", label=label)


def _draw_intervals(axes: Axes, segments: np.ndarray) -> None:
    """Draw segments (k, 2, 2) as error bars, fainter where there are many."""
    from matplotlib.collections import LineCollection

    if len(segments):
        alpha = min(1.0, 40 / len(segments))
        lines = LineCollection(list(segments), colors=FAINT, linewidths=0.8, alpha=alpha, label="95% interval")
        lines.set(gid="intervals", zorder=1)
        axes.add_collection(lines)


def _draw_staircase(axes: Axes, spots: Sequence[Spot], plane: Objectives) -> None:
    """Draw the edge of the dominated area, the area itself and the knee."""
    from matplotlib.patches import Polygon

    if not spots:
        axes.text(0.5, 0.5, "no finished trial yet", transform=axes.transAxes, ha="center", color=MUTED)
        return
    edge = staircase(spots, plane)
    area = np.vstack([edge, np.where(plane.maximise, edge.min(axis=0), edge.max(axis=0))])
    axes.plot(*edge.T, color=INK, linewidth=1.1, zorder=4, gid="staircase", label="front")
    axes.add_patch(Polygon(area, facecolor=AREA_COLOUR, alpha=0.07, zorder=0, gid="area", label="dominated area"))
    for spot in spots:
        if spot.is_knee:
            ring = {"facecolors": "none", "edgecolors": KNEE_COLOUR, "linewidths": 1.5}
            axes.scatter(spot.x, spot.y, s=(3 * MEMBER_RADIUS) ** 2, zorder=6, gid="knee", label="knee", **ring)
