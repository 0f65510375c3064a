"""Two fronts beside one another: who covers what, how sure that is, and what their trials have in common.

Each side is one sweep or, joined by commas, the same sweep on several seeds. The plane is that of the first two
objectives, turned so that more is better in both: x the first gain, and a front's height at x the second gain that it
reaches without giving up x.

Shapes: n trials, d objectives, s sweeps of a side, k places on the x axis.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Table

from sweep.front import Objectives, binomial_resampling, epsilon_indicator, front_mask, hypervolume
from sweep.ledger import TrialRecord, read_ledger
from sweep.plan import SweepPlan, read_plan
from sweep.report.tables import ACCURACIES, brief, percent
from sweep.state import SweepState, read_data_summary, state_of_trials
from trainer.errors import InputError
from trainer.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FOLDER = "compare"
_COLOURS = ("#0072B2", "#D55E00")
DRAWS = 1000
_FACTS = ("data_fingerprint", "judged_images", "changed_images", "oracle_accuracy", "oracle_coverage")
"""What must agree beside the evaluation: the data, the judged images and their judge."""


class Sweep(NamedTuple):
    """One sweep and what it found."""

    plan: SweepPlan
    results: SweepState


@dataclass(frozen=True)
class Side:
    """The same sweep on one or several seeds."""

    name: str
    sweeps: tuple[Sweep, ...]

    @property
    def objectives(self) -> Objectives:
        return self.sweeps[0].plan.objectives

    @property
    def trials(self) -> list[TrialRecord]:
        """All that finished."""
        return [record for sweep in self.sweeps for record in sweep.results.finished.values()]

    @property
    def points(self) -> np.ndarray:
        """Objectives (n, d) of all trials that finished."""
        return self.sweeps[0].results.points(self.trials)

    @property
    def front(self) -> list[TrialRecord]:
        """Trials on the fronts of the sweeps, each its own."""
        return [record for sweep in self.sweeps for record in sweep.results.front_records]

    @property
    def hypervolume(self) -> float:
        """Mean over the sweeps."""
        return fmean(sweep.results.hypervolume for sweep in self.sweeps)


class _Region(NamedTuple):
    """A stretch of the first objective on which one side reaches more of the second than the other."""

    leader: str
    low: float
    high: float
    """Of the first objective, in its own unit, from its worse end to its better one."""
    lead: float
    """In the second objective, at most."""


@dataclass(frozen=True)
class _Comparison:
    """All that is said about two sides; `a` minus `b` where it is a difference."""

    a: Side
    b: Side
    difference: float
    interval: Interval
    epsilon: tuple[float, float]
    """How much must be added to `a` so that it covers `b`, and the other way round."""
    only: tuple[float, float]
    """Hypervolume that only `a` covers, and that only `b` covers."""
    regions: tuple[_Region, ...]


def read_side(names: str, *, storage: str | None) -> Side:
    """One side as it is typed.

    Raises:
        InputError: for a sweep that is not there or has no finished trial, or sweeps that were judged differently.
    """
    sweeps = []
    for name in names.split(","):
        plan = read_plan(name.strip(), storage=storage)
        results = state_of_trials(plan, read_ledger(plan.folder).trials)
        results.facts = read_data_summary(plan.folder)
        if not results.finished:
            raise InputError(f"no trial of {plan.name} has finished yet: there is nothing to compare")
        sweeps.append(Sweep(plan, results))
    for other in sweeps[1:]:
        _check_comparable(sweeps[0], other)
    return Side(names, tuple(sweeps))


def _check_comparable(one: Sweep, other: Sweep) -> None:
    """Points can be compared only where the same judge asked the same questions.

    Raises:
        InputError: naming everything that differs.
    """
    mine, theirs = (
        {
            **sweep.plan.space.evaluation.to_dict(),
            "objectives": ", ".join(sweep.plan.objectives.names),
            "reference": sweep.plan.objectives.reference,
            **{name: sweep.results.facts.get(name, "unknown") for name in _FACTS},
        }
        for sweep in (one, other)
    )
    different = [f"{name} = {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]]
    if different:
        raise InputError(
            f"{one.plan.name} and {other.plan.name} were judged differently, so their points can't be compared: "
            + "; ".join(different)
        )


def compare_sweeps(a: Side, b: Side, *, seed: int = 0) -> _Comparison:
    """Compare two sides.

    Args:
        seed: of the bootstrap.

    Raises:
        InputError: if they were judged differently.
    """
    _check_comparable(a.sweeps[0], b.sweeps[0])
    objectives, both = a.objectives, np.vstack([a.points, b.points])
    whole = hypervolume(both, objectives)
    generator = np.random.default_rng(seed)
    return _Comparison(
        a,
        b,
        difference=a.hypervolume - b.hypervolume,
        interval=_difference_interval(a, b, generator=generator),
        epsilon=(
            epsilon_indicator(a.points, b.points, objectives),
            epsilon_indicator(b.points, a.points, objectives),
        ),
        only=(whole - hypervolume(b.points, objectives), whole - hypervolume(a.points, objectives)),
        regions=tuple(regions(a, b)),
    )


def _difference_interval(a: Side, b: Side, *, generator: np.random.Generator) -> Interval:
    """A 95% bootstrap interval of the difference of hypervolumes, reflected as in `pareto.hypervolume_interval`.

    Sweeps are drawn anew where a side has several, and every share is drawn as another evaluation on as many images
    might have measured it. Both sides are judged on the same images, which makes the true interval narrower.
    """
    drawn = [_draw_hypervolume(a, generator) - _draw_hypervolume(b, generator) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    measured = a.hypervolume - b.hypervolume
    return Interval(2 * measured - high, 2 * measured - low)


def _draw_hypervolume(side: Side, generator: np.random.Generator) -> float:
    """The mean over sweeps drawn with replacement, of trials measured anew."""
    chosen = generator.integers(len(side.sweeps), size=len(side.sweeps))
    return fmean(_measured_anew(side.sweeps[place], generator) for place in chosen)


def _measured_anew(sweep: Sweep, generator: np.random.Generator) -> float:
    finished = list(sweep.results.finished.values())
    points = sweep.results.points(finished)
    return hypervolume(binomial_resampling(points, _image_counts(sweep, finished))(generator), sweep.plan.objectives)


def _image_counts(sweep: Sweep, finished: Sequence[TrialRecord]) -> np.ndarray:
    """Images (n, d) behind every share."""
    images = int(sweep.results.facts.get("validation_images", 0)) or 10**9
    counts = {"invariance_accuracy": "invariance_changed_size", "invariance_stuck": "invariance_changed_size"}
    names = sweep.plan.objectives.names
    results = [record.result or {} for record in finished]
    return np.array([[int(result.get(counts.get(name, ""), images)) for name in names] for result in results])


def heights(points: np.ndarray, objectives: Objectives, x: np.ndarray) -> np.ndarray:
    """The second gain (k,) that points (n, d) reach without giving up the first gain `x` (k,); -inf for none."""
    gains = objectives.turn(points)[:, :2]
    reached = np.where(gains[None, :, 0] >= x[:, None], gains[None, :, 1], -np.inf)
    return reached.max(axis=1)


def regions(a: Side, b: Side) -> list[_Region]:
    """Stretches on which one side leads, from the worst to the best first objective; above the reference alone."""
    objectives = a.objectives
    floor = objectives.turned_reference[:2]
    edges = np.unique(np.concatenate([[floor[0]], *(objectives.turn(side.points)[:, 0] for side in (a, b))]))
    edges = edges[edges >= floor[0]]
    # Between two edges the heights are those at the upper one.
    high_a, high_b = (np.maximum(heights(side.points, objectives, edges[1:]), floor[1]) for side in (a, b))
    found: list[_Region] = []
    sign = float(objectives.signs[0])
    for low, high, lead in zip(edges[:-1].tolist(), edges[1:].tolist(), (high_a - high_b).tolist(), strict=True):
        if lead == 0:
            continue
        leader, size = (a.name, lead) if lead > 0 else (b.name, -lead)
        if found and found[-1].leader == leader and found[-1].high == low:
            found[-1] = _Region(leader, found[-1].low, high, max(found[-1].lead, size))
        else:
            found.append(_Region(leader, low, high, size))
    return [each._replace(low=each.low * sign, high=each.high * sign) for each in found]


def _parameter_rows(comparison: _Comparison) -> list[tuple[str, str, str]]:
    """What the fronts' trials were trained with, by parameter: range and median, or how many had which word."""
    spaces = [side.sweeps[0].plan.space for side in (comparison.a, comparison.b)]
    names = list(dict.fromkeys(name for space in spaces for name in space.swept))
    return [(name, _spread_of(comparison.a, name), _spread_of(comparison.b, name)) for name in names]


def _spread_of(side: Side, name: str) -> str:
    space = side.sweeps[0].plan.space
    values = [active[name] for record in side.front if name in (active := space.active(record.config))]
    if not values:
        fixed = space.fixed.get(name)
        return "not used" if fixed is None else f"always {brief(fixed)}"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return f"{brief(float(median(values)))} ({brief(float(min(values)))} to {brief(float(max(values)))})"
    return ", ".join(f"{value} {count}" for value, count in Counter(map(str, values)).most_common())


def comparison_verdict(comparison: _Comparison) -> str:
    """In one line: who is ahead, and whether that is more than the noise of the judged images."""
    low, high = comparison.interval
    a, b, difference = comparison.a, comparison.b, comparison.difference
    said = f"hypervolume {a.hypervolume:.4f} - {b.hypervolume:.4f} = {difference:+.4f} (95%: {low:+.4f} to {high:+.4f})"
    if low <= 0 <= high:
        return f"No difference beyond the noise: {said}"
    return f"{a.name if difference > 0 else b.name} is ahead: {said}"


def comparison_tables(comparison: _Comparison) -> list[Table]:
    """For a terminal of 80 columns."""
    a, b = comparison.a, comparison.b
    first, second = (ACCURACIES.get(name, name) for name in a.objectives.names[:2])
    numbers = _plain_table("", "A", "B")
    numbers.add_row("sweeps, finished trials", *(f"{len(side.sweeps)}, {len(side.trials)}" for side in (a, b)))
    numbers.add_row("on the front", *(str(len(side.front)) for side in (a, b)))
    numbers.add_row("hypervolume", *(f"{side.hypervolume:.4f}" for side in (a, b)))
    numbers.add_row("covers alone", *(f"{only:.4f}" for only in comparison.only))
    numbers.add_row("to cover the other, each axis needs", *(f"{max(each, 0):.4f}" for each in comparison.epsilon))
    where = _plain_table("ahead", f"{first} from", "to", f"more {second}, at most")
    for region in comparison.regions:
        side = "A" if region.leader == a.name else "B"
        where.add_row(side, percent(region.low), percent(region.high), percent(region.lead))
    parameters = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("parameter", "A's front", "B's front"):
        parameters.add_column(heading, overflow="fold")
    for row in _parameter_rows(comparison):
        parameters.add_row(*row)
    return [numbers, where, parameters]


def _plain_table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position == 0 else "right")
    return table


def _plain(comparison: _Comparison) -> dict[str, Any]:
    """For programs."""
    a, b = comparison.a, comparison.b
    return {
        "a": a.name,
        "b": b.name,
        "evaluation": a.sweeps[0].plan.space.evaluation.to_dict(),
        "hypervolume": [a.hypervolume, b.hypervolume],
        "difference": comparison.difference,
        "interval": list(comparison.interval),
        "additive_epsilon": list(comparison.epsilon),
        "covered_alone": list(comparison.only),
        "regions": [region._asdict() for region in comparison.regions],
        "parameters": [dict(zip(("name", "a", "b"), row, strict=True)) for row in _parameter_rows(comparison)],
    }


def write_comparison_files(comparison: _Comparison) -> Path:
    """Picture and tables, beside the first sweep of the first side; their folder."""
    from sweep.report.figures import save_figure

    first, other = comparison.a.sweeps[0].plan, comparison.b.name.replace(",", "+").replace(" ", "")
    folder = (
        first.folder / _FOLDER / (other if len(comparison.a.sweeps) == 1 else f"{len(comparison.a.sweeps)}-{other}")
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(_plain(comparison), indent=2) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["leader", "low", "high", "lead"])
    writer.writerows(comparison.regions)
    (folder / "regions.csv").write_text(text.getvalue())
    save_figure(figure(comparison), folder / "compare.png", dpi=100)
    return folder


def comparison_markdown(comparison: _Comparison, run: str) -> str:
    """For the description of the comparison's run."""
    a, b = comparison.a, comparison.b
    lines = [f"**{comparison_verdict(comparison)}**", "", f"A: {a.name}; B: {b.name}", ""]
    lines += [f"![Both fronts](get-artifact?path=compare%2Fcompare.png&run_uuid={run})", ""]
    lines += ["| ahead | from | to | lead at most |", "|:---|---:|---:|---:|"]
    for region in comparison.regions:
        numbers = (region.low, region.high, region.lead)
        lines.append(f"| {region.leader} | {' | '.join(map(percent, numbers))} |")
    lines += ["", "| parameter | A's front | B's front |", "|:---|:---|:---|"]
    lines += [f"| {' | '.join(row)} |" for row in _parameter_rows(comparison)]
    return "\n".join(lines)


def comparison_metrics(comparison: _Comparison) -> dict[str, float]:
    """For MLflow."""
    return {
        "hypervolume_difference": comparison.difference,
        "hypervolume_difference_low": comparison.interval.low,
        "hypervolume_difference_high": comparison.interval.high,
        "hypervolume_a": comparison.a.hypervolume,
        "hypervolume_b": comparison.b.hypervolume,
        "epsilon_a_covers_b": comparison.epsilon[0],
        "epsilon_b_covers_a": comparison.epsilon[1],
        "covered_by_a_alone": comparison.only[0],
        "covered_by_b_alone": comparison.only[1],
    }


def figure(comparison: _Comparison) -> Figure:
    """Both fronts; where a side has several sweeps, a band from what all of them attain to what any does."""
    from matplotlib.figure import Figure

    from sweep.report import figures

    a, b = comparison.a, comparison.b
    units = np.array([100.0 if name in figures.AXES else 1.0 for name in a.objectives.names[:2]])
    plane = a.objectives.plane(units.tolist())
    with figures.house_style():
        drawn = Figure(figsize=(7.2, 5.8), dpi=figures.DPI, layout="constrained")
        axes = drawn.add_subplot()
        figures.draw_axes(axes, np.vstack([side.points[:, :2] * units for side in (a, b)]), plane)
        for side, colour, letter, marker in zip((a, b), _COLOURS, "AB", "os", strict=True):
            _draw_side(axes, side, plane, units, colour, letter, marker)
        low, high = comparison.interval
        note = f"hypervolume A - B = {comparison.difference:+.4f} (95%: {low:+.4f} to {high:+.4f})"
        evaluation = a.sweeps[0].plan.space.evaluation
        figures.draw_title(
            axes, f"A: {_shortened(a.name)}   B: {_shortened(b.name)}", f"{figures.budgets(evaluation)}\n{note}"
        )
        figures.draw_legend(drawn, axes, with_dominated=False)
    return drawn


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _draw_side(
    axes: Axes, side: Side, plane: Objectives, units: np.ndarray, colour: str, letter: str, marker: str
) -> None:
    """Its dominated trials, its fronts, and what all, half and any of its sweeps attain."""
    points = side.points[:, :2] * units
    on_front = front_mask(points, plane)
    axes.scatter(*points[~on_front].T, s=9, c=colour, marker=marker, alpha=0.25, linewidths=0, zorder=2)
    axes.scatter(*points[on_front].T, s=34, c=colour, marker=marker, edgecolors="#222222", linewidths=0.6, zorder=5)
    gains = plane.turn(points)
    corner = np.minimum(plane.turned_reference, gains.min(axis=0))
    x = np.unique(np.concatenate([[corner[0]], gains[:, 0]]))
    sweeps = [sweep.results.points(sweep.results.finished.values())[:, :2] * units for sweep in side.sweeps]
    attained = np.sort(np.maximum([heights(each, plane, x) for each in sweeps], corner[1]), axis=0)
    signs = plane.signs

    def outline(height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Each height holds from the place before up to its own.
        return np.append(x, x[-1]) * signs[0], np.append(height, corner[1]) * signs[1]

    middle = attained[(len(attained) - 1) // 2]
    axes.step(*outline(middle), where="pre", color=colour, linewidth=1.4, zorder=4, label=f"{letter}: front")
    if len(attained) > 1:
        across, low = outline(attained[0])
        _, high = outline(attained[-1])
        axes.fill_between(
            across, low, high, step="pre", color=colour, alpha=0.18, linewidth=0, label=f"{letter}: all to any seed"
        )
