"""The picture of a study: attainment surfaces, curves over effort and budget, and the differences to the control.

Bands are the control's alone: those of six arms hide each other. How an arm differs from the control on each seed is
what its row of differences shows.

Shapes: s seeds, n finalists, k values on an x axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.front import Objectives
from sweep.report import GRID, INK, MUTED, NORMS, budgets, draw_axes, heights, house_figure, in_units
from sweep.study.result import StudyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_SIZE = (11.5, 8.0)
_BAND = 0.12
"""Opacity of a band."""
_SEED: dict[str, Any] = {"marker": "|", "markersize": 5, "linestyle": "none"}
"""Style of one seed's difference."""


def study_figure(result: StudyResult) -> Figure:
    """Draw a study of at least one seed, on at most eight arms in different colours."""
    with house_figure(height=_SIZE[1]) as (figure, first):
        first.remove()
        figure.set_size_inches(*_SIZE)
        grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1))
        colours = {arm: _COLOURS[index % len(_COLOURS)] for index, arm in enumerate(result.arms)}
        _draw_attainment(figure.add_subplot(grid[:, 0]), result, colours)
        _draw_courses(figure.add_subplot(grid[0, 1]), result, colours)
        _draw_budgets(figure.add_subplot(grid[1, 1]), result, colours)
        _draw_differences(figure.add_subplot(grid[2, 1]), result, colours)
        handles = [figure.axes[0].plot([], [], color=colour, label=arm)[0] for arm, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(_COLOURS), frameon=False, fontsize=8)
        done, planned = len(result.seeds), result.planned_seeds
        seeds = f"{done} seeds" if done == planned else f"{done} of {planned} seeds"
        judged = budgets(result.judged, attack="full set of attacks")
        title = f"{result.name}: {seeds}, {result.effort} each\n{judged}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=INK, parse_math=False)
    return figure


def _draw_attainment(axes: Axes, result: StudyResult, colours: dict[str, str]) -> None:
    """Draw what the audited fronts of at least half of the seeds attain, and a band from what all of the control's do
    to what any does."""
    objectives = result.objectives_of(result.crowds[0])
    plane, units = in_units(objectives)
    names = objectives.names[:2]
    fronts = {
        arm: [np.reshape([[point[name] for name in names] for point in each.points], (-1, 2)) * units for each in of]
        for arm, of in ((arm, result.of(arm)) for arm in result.arms)
    }
    everyone = np.vstack([front for each in fronts.values() for front in each])
    draw_axes(axes, everyone, plane)
    corner = np.vstack([plane.turn(everyone), plane.turned_reference]).min(axis=0)
    x = np.unique(np.append(plane.turn(everyone)[:, 0], corner[0]))
    signs = plane.signs
    for arm, each in fronts.items():
        surfaces = _attainment(each, plane, x, floor=corner[1])
        median = surfaces[(len(each) - 1) // 2]
        attained = median > corner[1]  # beyond its end a front has no line along the axis
        if attained.any():
            across, up = np.append(x[attained], x[attained][-1]), np.append(median[attained], corner[1])
            axes.step(across * signs[0], up * signs[1], where="pre", color=colours[arm], linewidth=1.5, zorder=4)
        if arm == result.control:
            low, high = surfaces[[0, -1]] * signs[1]
            axes.fill_between(x * signs[0], low, high, step="pre", color=colours[arm], alpha=_BAND, linewidth=0)
    axes.set_title(
        f"Audited fronts: what half of the seeds attain\nband, {result.control}: from what all attain to what any does",
        loc="left",
        fontsize=9,
    )


def _attainment(fronts: Sequence[np.ndarray], plane: Objectives, x: np.ndarray, *, floor: float) -> np.ndarray:
    """Return attainment surfaces (s, k), the worst first: at each x what at least s, s - 1, ... and 1 fronts reach.

    Args:
        fronts: points (n, 2) of each of s fronts.
        x: values (k,) of the first gain.
        floor: second gain where a front reaches nothing.
    """
    return np.sort([np.maximum(heights(front, plane, x), floor) for front in fronts], axis=0)


def _draw_courses(axes: Axes, result: StudyResult, colours: dict[str, str]) -> None:
    """Draw the hypervolume over the effort: its mean over the seeds, the control's in a band of all seeds."""
    for arm, colour in colours.items():
        effort, volumes = _courses([np.array(each.course).reshape(-1, 2) for each in result.of(arm)])
        axes.step(effort, volumes.mean(axis=0), where="post", color=colour, linewidth=1.4)
        if arm == result.control:
            least, largest = volumes.min(axis=0), volumes.max(axis=0)
            axes.fill_between(effort, least, largest, step="post", color=colour, alpha=_BAND, linewidth=0)
    axes.set_xlabel("Trials" if result.effort_unit == "trials" else "Hours of trials, all slots together")
    axes.set_ylabel("Hypervolume")
    axes.grid(**GRID)
    axes.set_title(
        f"Over the effort, on the validation split: mean; band, {result.control}: all seeds", loc="left", fontsize=9
    )


def _draw_budgets(axes: Axes, result: StudyResult, colours: dict[str, str]) -> None:
    """Draw the accuracy over the budget, at each that of the best finalist there: its mean over the seeds, the
    control's in a band of all seeds."""
    for arm, colour in colours.items():
        curves = [np.array(each.curve) for each in result.of(arm) if each.curve]
        if curves:
            accuracies = 100 * np.array([curve[:, 1] for curve in curves])
            axes.plot(curves[0][:, 0], accuracies.mean(axis=0), color=colour, linewidth=1.4)
            if arm == result.control:
                least, most = accuracies.min(axis=0), accuracies.max(axis=0)
                axes.fill_between(curves[0][:, 0], least, most, color=colour, alpha=_BAND, linewidth=0)
    axes.axvline(result.judged.eval_sensitivity_epsilon, color=MUTED, linewidth=1, linestyle=":")
    axes.set_xlabel(f"Sensitivity epsilon ({NORMS[result.judged.eval_sensitivity_norm]}); dotted: judged by")
    axes.set_ylabel("Accuracy (%)")
    axes.grid(**GRID)
    axes.set_title("Best finalist at each budget, on the test split: mean, and band alike", loc="left", fontsize=9)


def _courses(each: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the efforts (k,) at which any of s courses (n, 2) changes, from 0 on, and their hypervolumes (s, k)."""
    effort = np.unique(np.concatenate([[0.0], *(course[:, 0] for course in each)]))
    volumes = [np.append(0.0, course[:, 1])[np.searchsorted(course[:, 0], effort, side="right")] for course in each]
    return effort, np.array(volumes)


def _draw_differences(axes: Axes, result: StudyResult, colours: dict[str, str]) -> None:
    """Draw each arm's difference to the control with its interval and those of the seeds, a row per arm and crowd."""
    rows = [one for arm in result.arms[1:] for one in result.differences if one.arm == arm]
    for place, one in enumerate(reversed(rows)):
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [place, place], color=colours[one.arm], linewidth=1.6)
        each = result.hypervolumes(one.arm, one.crowd) - result.hypervolumes(result.control, one.crowd)
        axes.plot(each, np.full(len(each), place - 0.25), color=colours[one.arm], **_SEED)
        fill = colours[one.arm] if one.shown else "white"
        axes.plot(one.estimate, place, marker="o", color=colours[one.arm], markerfacecolor=fill, linestyle="none")
    labels = [f"{one.arm} ({one.crowd})" if len(result.crowds) > 1 else one.arm for one in reversed(rows)]
    axes.set_yticks(range(len(rows)), labels=labels)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=":")
    axes.grid(**GRID)
    axes.set_xlabel(f"Audited hypervolume minus that of {result.control}; right of 0 is better")
    axes.set_title(
        "Mean and 95% of each arm alone, below it each seed\nfilled: shown after Holm's correction",
        loc="left",
        fontsize=9,
    )
