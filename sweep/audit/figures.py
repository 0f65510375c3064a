"""Pictures of an audit: the audited front beside the selected one, and accuracy over epsilon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from sweep.audit.audit import Audit
from sweep.audit.finalists import Finalist
from sweep.audit.verdicts import Outcome
from sweep.front import Objectives, front_mask
from sweep.ledger import TrialRecord
from sweep.plan import AuditOptions
from sweep.report import (
    GRID,
    MUTED,
    NORMS,
    Spot,
    budgets,
    draw_axes,
    draw_front,
    draw_labels,
    draw_legend,
    draw_title,
    front_spots,
    house_figure,
    in_units,
    staircase,
)
from trainer.config import EvaluationConfig


def audit_figure(audit: Audit, found: Outcome) -> Figure:
    """Draw the audited front beside the selected one, between the first two objectives, and every finalist's shift."""
    finalists, (plane, units) = found.finalists, in_units(audit.plan.objectives)
    records = [_audited_record(one) for one in finalists]
    before = units * np.array([[one.selected[name] for name in plane.names] for one in finalists])
    after = units * np.array([[one.mean[name] for name in plane.names] for one in finalists])
    everyone = front_spots(records, after, np.ones(len(after), dtype=bool), None)
    on_front, was_front = front_mask(after, plane), front_mask(before, plane)
    intervals = _intervals(found, after, plane, units)
    with house_figure() as (figure, axes):
        draw_axes(axes, np.vstack([before, after, *intervals]), plane)
        _draw_selected(axes, before, after, front_spots(records, before, was_front, None), plane)
        spots = front_spots(records, after, on_front, None)
        draw_front(axes, records, after, on_front, spots, intervals, plane)
        draw_title(axes, f"{audit.plan.name}, audited", _budgets(audit, finalists))
        draw_legend(figure, axes, with_dominated=not on_front.all())
        draw_labels(figure, axes, everyone, np.vstack([before, after]), plane)
    return figure


def _audited_record(one: Finalist) -> TrialRecord:
    """Return the audited numbers in the shape that pictures are drawn from."""
    return TrialRecord(one.record.number, config=one.record.config, reports=[{**one.mean, "final": True}])


def _intervals(found: Outcome, after: np.ndarray, plane: Objectives, units: np.ndarray) -> np.ndarray:
    """Return the 95% intervals (2n, 2, 2) of audited numbers `after` (n, 2), across and up: one end, the other end."""
    segments = []
    for changes, (x, y) in zip(found.changes, after.tolist(), strict=True):
        across, up = (
            [scale * min(max(end, 0), 1) for end in (changes[name].audited.low, changes[name].audited.high)]
            for name, scale in zip(plane.names, units, strict=True)
        )
        segments += [[(end, y) for end in across], [(x, end) for end in up]]
    return np.array(segments)


def _draw_selected(axes: Axes, before: np.ndarray, after: np.ndarray, spots: Sequence[Spot], plane: Objectives) -> None:
    """Draw where the finalists (n, 2) were, hollow, with their front and the shift of each, in percent."""
    axes.add_collection(
        LineCollection(list(np.stack([before, after], axis=1)), colors=MUTED, linewidths=0.9, linestyles=":")
    )
    axes.scatter(*before.T, s=28, facecolors="white", edgecolors=MUTED, linewidths=1, zorder=4, label="selected")
    edge = staircase(spots, plane)
    axes.plot(*edge.T, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=3, label="selected front")


def _budgets(audit: Audit, finalists: Sequence[Finalist]) -> str:
    """Return what the picture shows, in two lines."""
    options = audit.options
    return (
        f"{budgets(audit.plan.space.evaluation, attack=f'full set of attacks, {options.steps} steps')}\n"
        f"selected on validation; audited on {finalists[0].images} test images; "
        f"mean of {options.seeds} fresh seeds, {options.judges} judges"
    )


def curves_figure(audit: Audit, finalists: Sequence[Finalist]) -> Figure:
    """Draw accuracy over the budget, a line per finalist: the mean over its trials, in a band from worst to best."""
    lines = {
        f"{one.record.number:03d}: area {one.mean['curve_area']:.3f}": [run.curve for run in one.own]
        for one in finalists
    }
    return draw_curves(lines, audit.plan.space.evaluation, audit.options, title=audit.plan.name)


def draw_curves(
    lines: Mapping[str, Sequence[Mapping[str, Sequence[float]]]],
    evaluation: EvaluationConfig,
    options: AuditOptions,
    *,
    title: str,
) -> Figure:
    """Draw accuracy over the budget, a line for each name: the mean of its curves, in a band from worst to best."""
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(lines)))
    with house_figure(height=5.0) as (figure, axes):
        for (name, curves), colour in zip(lines.items(), colours, strict=True):
            epsilons = curves[0]["epsilons"]
            accuracies = 100 * np.array([curve["accuracies"] for curve in curves])
            axes.fill_between(epsilons, accuracies.min(0), accuracies.max(0), color=colour, alpha=0.15, linewidth=0)
            axes.plot(epsilons, accuracies.mean(0), color=colour, marker="o", markersize=3.5, label=name)
        axes.axvline(evaluation.eval_sensitivity_epsilon, color=MUTED, linestyle=":", linewidth=1)
        axes.set_xlabel(f"Sensitivity epsilon ({NORMS[evaluation.eval_sensitivity_norm]}, pixel units)")
        axes.set_ylabel("Accuracy (%)")
        axes.set_ylim(-1, 101)
        axes.grid(**GRID)
        steps = max(1, options.steps // 2)
        note = f"APGD-CE and APGD-T, {steps} steps\ndotted: the budget that models are judged by"
        draw_title(axes, f"{title}: accuracy over epsilon", f"{evaluation.dataset}; {note}")
        draw_legend(figure, axes, with_dominated=False)
    return figure
