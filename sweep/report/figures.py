"""Pictures of a sweep, drawn with Matplotlib's objects alone: no global figure, no window, the same bytes every time.

In the helpers `points` are (n, 2) in the picture's units: percent for shares, else as reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.path import Path as MatplotlibPath
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from sweep.front import Objectives, front_mask, hypervolume, knee
from sweep.ledger import TrialRecord
from sweep.state import Replicates
from trainer.config import REGULARIZERS, EvaluationConfig
from trainer.errors import InputError
from trainer.intervals import wilson_interval

_SUFFIXES = (".png", ".svg", ".pdf")
DPI = 200
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": "#555555",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    # Without a salt of our own the identifiers in an SVG are random.
    "svg.hashsalt": "otsweep",
}

_OKABE_ITO = ("#999999", "#E69F00", "#56B4E9", "#009E73")
"""Colours that can be told apart with any colour vision; in grey print the shapes tell them apart."""
LOOKS: dict[str, tuple[str, str]] = dict(zip(REGULARIZERS, zip(_OKABE_ITO, "o^sD", strict=True), strict=True))
UNKNOWN_LOOK = ("#CCCCCC", "X")
INK, MUTED, _FAINT, KNEE_COLOUR, AREA_COLOUR = "#222222", "#777777", "#BDBDBD", "#D55E00", "#0072B2"

AXES = {
    "sensitivity_accuracy": "Sensitivity accuracy (%)",
    "invariance_accuracy": "Invariance accuracy (%), a proxy: judged by an oracle",
    "clean_accuracy": "Clean accuracy (%)",
    "invariance_stuck": "Invariance stuck (%), a proxy: judged by an oracle",
    "invariance_unchanged": "Invariance unchanged (%), a proxy: judged by an oracle",
}
"""Labels of the objectives that are shares and so are drawn in percent."""
NORMS = {"linf": "L∞", "l2": "L2", "l0": "L0"}

_LEGEND_COLUMNS = 5
_MOST_LABELS = 30
_LABELLED_TRIALS = 3
_LABEL_SIZE = 7.5
_MEMBER_RADIUS = 4.5
"""Of the marker of a trial on the front, in points (1/72 inch)."""
_LABEL_DISTANCES = (7, 15, 24)
"""Of a label from its trial's centre, in points."""
_LABEL_DIRECTIONS = [(0.7, 0.7), (0, 1), (1, 0), (-0.7, 0.7), (0.7, -0.7), (0, -1), (-1, 0), (-0.7, -0.7)]
"""The most wanted first: nothing dominates the front, so that the side beyond it is free."""


class Spot(NamedTuple):
    """A place on the front, in the picture's units, with every trial that lies there."""

    x: float
    y: float
    trials: list[TrialRecord]
    is_knee: bool
    chance: float | None = None
    """Of being on the front, where several seeds tell it."""

    @property
    def label(self) -> str:
        """Its trials' numbers, of many the first three, and its chance."""
        numbers = [f"{trial.number:03d}" for trial in self.trials]
        more = [f"+{len(numbers) - _LABELLED_TRIALS}"] if len(numbers) > _LABELLED_TRIALS else []
        chance = "" if self.chance is None else f" {self.chance:.0%}"
        return ", ".join(numbers[:_LABELLED_TRIALS] + more) + chance + (" (knee)" if self.is_knee else "")


def front_figure(
    trials: Iterable[TrialRecord],
    *,
    name: str,
    objectives: Objectives,
    evaluation: EvaluationConfig,
    validation_images: int | None = None,
    infeasible: Container[int] = (),
    replicates: Mapping[int, Replicates] | None = None,
) -> Figure:
    """The front between the first two objectives: all finished trials, staircase, knee and dominated area.

    Args:
        trials: those without a final report have no place in the picture.
        name: the sweep's.
        validation_images: what clean and sensitivity accuracy were measured on; where given, the front has error bars
            (95% Wilson intervals; the number of images of invariance accuracy is in the reports).
        infeasible: numbers of those that break what is required: drawn as crosses, and on no front.
        replicates: what several seeds tell, by number: the front's error bars then, and in its labels the chance of
            being on it.
    """
    drawn = [trial for trial in trials if trial.result is not None]
    plane = objectives.plane()
    values = np.array([[_value(trial, axis) for axis in plane.names] for trial in drawn]).reshape(-1, 2)
    feasible = np.array([trial.number not in infeasible for trial in drawn], dtype=bool)
    on_front, knee_index = np.zeros(len(drawn), dtype=bool), knee(values[feasible], plane)
    on_front[feasible] = front_mask(values[feasible], plane)
    knee_index = None if knee_index is None else int(np.flatnonzero(feasible)[knee_index])
    noun = "configuration" if replicates else "trial"
    count = f"{len(drawn)} finished {noun}{'' if len(drawn) == 1 else 's'}"
    broken = "" if feasible.all() else f", {(~feasible).sum()} not as required"
    volume = hypervolume(values[feasible], plane)
    chances = "; in percent their chance of it" if replicates else ""
    summary = f"hypervolume {volume:.4f}; {count}, {on_front.sum()} on the front{chances}{broken}"
    units = np.array([100.0 if axis in AXES else 1.0 for axis in plane.names])
    points, plane = values * units, dataclasses.replace(plane, reference=tuple(units * plane.reference))
    spots = front_spots(drawn, points, on_front, knee_index)
    if replicates:
        spots = [spot._replace(chance=replicates[spot.trials[0].number].chance) for spot in spots]
        segments = _interval_segments(spots, units, replicates)
    else:
        segments = wilson_segments(spots if validation_images else [], plane, validation_images or 0)
    with house_style():
        figure = Figure(figsize=(7.2, 5.8), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        draw_axes(axes, np.vstack([points, *segments]), plane)
        _draw_infeasible(axes, points[~feasible])
        draw_trials(axes, [drawn[i] for i in np.flatnonzero(feasible)], points[feasible], on_front[feasible])
        draw_intervals(axes, segments)
        draw_staircase(axes, spots, plane)
        draw_title(axes, name, f"{budgets(evaluation)}\n{summary}")
        draw_legend(figure, axes, with_dominated=not on_front[feasible].all())
        draw_labels(figure, axes, spots, points, plane)
    return figure


def save_figure(figure: Figure, path: Path, *, dpi: float = DPI) -> None:
    """Write the picture as PNG, SVG or PDF, by the path's suffix; the same picture gives the same bytes.

    Args:
        dpi: pixels of a PNG per inch.

    Raises:
        InputError: for another suffix, or where nothing can be written.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"can't draw {str(path)!r}: its name must end in {', '.join(_SUFFIXES)}")
    undated = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[suffix]
    try:
        with house_style():
            figure.savefig(path, metadata=undated, dpi=dpi)
    except OSError as error:
        raise InputError(f"can't write the picture {str(path)!r}: {error.strerror}") from error


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Our settings on top of Matplotlib's own, whatever a user's settings file says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def front_spots(
    trials: Sequence[TrialRecord], points: np.ndarray, on_front: np.ndarray, knee_index: int | None
) -> list[Spot]:
    """The places on the front from left to right."""
    places: dict[tuple[float, float], list[int]] = {}
    for i in np.flatnonzero(on_front).tolist():
        places.setdefault((points[i, 0], points[i, 1]), []).append(i)
    return [
        Spot(x, y, [trials[i] for i in members], knee_index in members) for (x, y), members in sorted(places.items())
    ]


def staircase(spots: Sequence[Spot], plane: Objectives) -> np.ndarray:
    """The edge (2m + 1, 2) of what m spots dominate, from the reference's height to its side."""
    gains = plane.turn([(spot.x, spot.y) for spot in spots])
    gains = gains[gains[:, 0].argsort()]
    corner = np.minimum(plane.turned_reference, gains.min(axis=0))
    x, y = np.repeat(gains[:, 0], 2), np.repeat(gains[:, 1], 2)
    return plane.turn(np.column_stack([np.append(corner[0], x), np.append(y, corner[1])]))


def draw_axes(axes: Axes, points: np.ndarray, plane: Objectives) -> None:
    """Limits, labels and grid: close around the trials, with the reference where that is near."""
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
    axes.grid(color="#E8E8E8", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_trials(axes: Axes, trials: Sequence[TrialRecord], points: np.ndarray, on_front: np.ndarray) -> None:
    """By regularizer; the front's large and edged, the dominated small and faded."""
    looks = LOOKS | {"unknown": UNKNOWN_LOOK}
    names = [trial.config.get("regularizer") for trial in trials]
    names = [name if name in LOOKS else "unknown" for name in names]
    for regularizer in [name for name in looks if name in names]:
        colour, marker = looks[regularizer]
        chosen = np.array(names) == regularizer
        axes.scatter(
            *points[chosen & ~on_front].T,
            s=18,
            c=colour,
            marker=marker,
            alpha=0.6,
            linewidths=0,
            zorder=2,
            gid="dominated",
        )
        axes.scatter(
            *points[chosen & on_front].T,
            s=(1.7 * _MEMBER_RADIUS) ** 2,
            c=colour,
            marker=marker,
            edgecolors=INK,
            linewidths=0.9,
            zorder=5,
            clip_on=False,
            gid="front",
            label=regularizer,
        )


def _draw_infeasible(axes: Axes, points: np.ndarray) -> None:
    """What breaks the requirements."""
    if len(points):
        label = "not as required"
        axes.scatter(*points.T, s=16, c=MUTED, marker="x", linewidths=0.8, zorder=1, gid="infeasible", label=label)


def _interval_segments(spots: Sequence[Spot], units: np.ndarray, replicates: Mapping[int, Replicates]) -> np.ndarray:
    """Intervals (k, 2, 2) of the front's means over seeds: one end, the other end."""
    segments = []
    for spot in spots:
        across, up = (units[i] * np.array(replicates[spot.trials[0].number].intervals[i]) for i in (0, 1))
        segments += [[(x, spot.y) for x in across], [(spot.x, y) for y in up]]
    return np.array(segments).reshape(-1, 2, 2)


def wilson_segments(spots: Sequence[Spot], plane: Objectives, validation_images: int) -> np.ndarray:
    """95% Wilson intervals (k, 2, 2) of the front's accuracies: one end, the other end."""
    segments = []
    for spot in spots:
        images = {
            "clean_accuracy": validation_images,
            "sensitivity_accuracy": validation_images,
            "invariance_accuracy": int(_value(spot.trials[0], "invariance_changed_size")),
        }
        across, up = (images.get(metric, 0) for metric in plane.names)
        segments += [[(x, spot.y) for x in _wilson_percent(spot.x, across)]] if across > 0 else []
        segments += [[(spot.x, y) for y in _wilson_percent(spot.y, up)]] if up > 0 else []
    return np.array(segments).reshape(-1, 2, 2)


def _wilson_percent(percent: float, images: int) -> tuple[float, float]:
    """Wilson's score interval of a share measured on so many images."""
    interval = wilson_interval(round(percent / 100 * images), images)
    return 100 * interval.low, 100 * interval.high


def draw_intervals(axes: Axes, segments: np.ndarray) -> None:
    """Fainter where there are many."""
    if len(segments):
        alpha = min(1.0, 40 / len(segments))
        lines = LineCollection(list(segments), colors=_FAINT, linewidths=0.8, alpha=alpha, label="95% interval")
        lines.set(gid="intervals", zorder=1)
        axes.add_collection(lines)


def draw_staircase(axes: Axes, spots: Sequence[Spot], plane: Objectives) -> None:
    """The edge of the dominated area, the area itself and the knee."""
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
            axes.scatter(spot.x, spot.y, s=(3 * _MEMBER_RADIUS) ** 2, zorder=6, gid="knee", label="knee", **ring)


def budgets(evaluation: EvaluationConfig) -> str:
    """What the trials were judged by, in one line."""
    restarts = evaluation.eval_sensitivity_restarts
    return (
        f"{evaluation.dataset}; sensitivity: {NORMS[evaluation.eval_sensitivity_norm]} "
        f"{evaluation.eval_sensitivity_epsilon:g}, PGD-{evaluation.eval_sensitivity_steps}"
        f"{f', {restarts} restarts' if restarts > 1 else ''}; invariance: "
        f"{NORMS[evaluation.eval_invariance_norm]} {evaluation.eval_invariance_epsilon:g}"
    )


def draw_title(axes: Axes, name: str, lines: str) -> None:
    axes.set_title(name, loc="left", fontsize=12, fontweight="bold", color=INK, pad=33, parse_math=False)
    axes.annotate(lines, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8, color="#444444", va="bottom")


def draw_legend(figure: Figure, axes: Axes, *, with_dominated: bool) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if with_dominated:
        handles.append(Line2D([], [], color=MUTED, alpha=0.6, marker="o", markersize=4, mew=0, ls="none"))
        handles[-1].set_label("dominated trial")
    figure.legend(
        handles=handles, loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=8, columnspacing=1.6
    )


def draw_labels(figure: Figure, axes: Axes, spots: Sequence[Spot], points: np.ndarray, plane: Objectives) -> None:
    """The front's trial numbers, where they hide neither a trial nor one another; where no room is left, none."""
    if not spots:
        return
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    # The labels are placed in this layout, so it stays as it is.
    figure.set_layout_engine("none")
    to_pixels = axes.transData.transform
    radius = _MEMBER_RADIUS * figure.dpi / 72
    room = _Room(
        inside=axes.get_window_extent(renderer),
        anchors=to_pixels([(spot.x, spot.y) for spot in spots]),
        taken=[np.concatenate([mark - radius, mark + radius]) for mark in to_pixels(points)],
        edge=MatplotlibPath(to_pixels(staircase(spots, plane))),
    )
    waiting = _labelled_spots(spots)
    for distance in _LABEL_DISTANCES:
        for spot in waiting.copy():
            size = np.array(Text(text=spot.label, fontsize=_LABEL_SIZE, figure=figure).get_window_extent(renderer).size)
            push = room.take(
                to_pixels((spot.x, spot.y)), size, distance * figure.dpi / 72, near=distance == min(_LABEL_DISTANCES)
            )
            if push is not None:
                _draw_label(axes, spot, push * 72 / figure.dpi, leader=distance > min(_LABEL_DISTANCES))
                waiting.remove(spot)


def _labelled_spots(spots: Sequence[Spot]) -> list[Spot]:
    """The knee and the two ends first, as a reader looks for them, then others, evenly where there are too many."""
    first = [spot for spot in spots if spot.is_knee] + [spots[0], spots[-1]]
    others = spots[:: -(-len(spots) // _MOST_LABELS)]
    return list({(spot.x, spot.y): spot for spot in (*first, *others)}.values())


def _draw_label(axes: Axes, spot: Spot, offset: np.ndarray, *, leader: bool) -> None:
    """At an offset (2,) in points from the spot, with a line to it if it is not plain whose label it is."""
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": _MEMBER_RADIUS}
    axes.annotate(
        spot.label,
        (spot.x, spot.y),
        tuple(offset),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=_LABEL_SIZE,
        color=INK,
        arrowprops=line if leader else None,
        zorder=7,
        gid="label",
    )


@dataclass
class _Room:
    """Where labels may still stand; in pixels."""

    inside: Bbox

    anchors: np.ndarray
    """The front's spots (m, 2)."""

    taken: list[np.ndarray]
    """Rectangles (4,) that no label may touch: left, bottom, right, top."""

    edge: MatplotlibPath
    """The staircase, which a label crosses only if it must."""

    def take(self, anchor: np.ndarray, size: np.ndarray, distance: float, *, near: bool) -> np.ndarray | None:
        """The offset of the centre of a label of this size at this distance from its anchor; None if there is no room.

        Args:
            near: whether the label must lie nearer to its own spot than to any other.
        """
        free = []
        taken = np.array(self.taken)
        for direction in _LABEL_DIRECTIONS:
            # The distance is that of the label's nearest side or corner.
            push = np.multiply(direction, distance) + np.sign(direction) * size / 2
            low, high = anchor + push - size / 2, anchor + push + size / 2
            apart = (taken[:, :2] >= high).any(axis=1) | (taken[:, 2:] <= low).any(axis=1)
            if not apart.all() or (low < self.inside.min).any() or (high > self.inside.max).any():
                continue
            gaps = np.linalg.norm(np.maximum(np.maximum(low - self.anchors, self.anchors - high), 0), axis=1)
            if near and gaps.min() < np.linalg.norm(np.maximum(np.maximum(low - anchor, anchor - high), 0)):
                continue
            free.append((self.edge.intersects_bbox(Bbox([low, high]), filled=False), push, np.append(low, high)))
        if not free:
            return None
        _, push, box = min(free, key=lambda place: place[0])
        self.taken.append(box)
        return push


def _value(trial: TrialRecord, metric: str) -> float:
    assert trial.result is not None
    return trial.result[metric]
