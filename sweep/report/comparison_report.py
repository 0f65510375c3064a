"""A comparison for people and programs: verdict, tables, Markdown, metrics and files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from sweep.report.comparison import Comparison, Region, Side
from sweep.report.comparison_figure import comparison_figure
from sweep.report.rows import ACCURACIES
from sweep.report.style import save_figure
from sweep.report.tables import csv_text, plain_table
from sweep.report.words import brief, percent

_FOLDER = "compare"


def comparison_verdict(comparison: Comparison) -> str:
    """Return in one line which side is ahead, and whether that is more than the noise of the judged images."""
    low, high = comparison.interval
    a, b, difference = comparison.a, comparison.b, comparison.difference
    numbers = (
        f"hypervolume {a.hypervolume:.4f} - {b.hypervolume:.4f} = {difference:+.4f} (95%: {low:+.4f} to {high:+.4f})"
    )
    if low <= 0 <= high:
        return f"No difference beyond the noise: {numbers}"
    return f"{a.name if difference > 0 else b.name} is ahead: {numbers}"


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return tables for a terminal of 80 columns: numbers, regions, parameters."""
    a, b = comparison.a, comparison.b
    first, second = (ACCURACIES.get(name, name) for name in a.objectives.names[:2])
    numbers = plain_table("", "A", "B", left=[0])
    numbers.add_row("sweeps, finished trials", *(f"{len(side.sweeps)}, {len(side.trials)}" for side in (a, b)))
    numbers.add_row("on the front", *(str(len(side.front)) for side in (a, b)))
    numbers.add_row("hypervolume", *(f"{side.hypervolume:.4f}" for side in (a, b)))
    numbers.add_row("covers alone", *(f"{volume:.4f}" for volume in comparison.covered_alone))
    numbers.add_row("to cover the other, each axis needs", *(f"{max(each, 0):.4f}" for each in comparison.epsilon))
    where = plain_table("ahead", f"{first} from", "to", f"more {second}, at most", left=[0])
    for region in comparison.regions:
        side = "A" if region.leader == a.name else "B"
        where.add_row(side, percent(region.low), percent(region.high), percent(region.lead))
    parameters = plain_table("parameter", "A's front", "B's front", fold=range(3))
    for row in _parameter_rows(comparison):
        parameters.add_row(*row)
    return [numbers, where, parameters]


def _parameter_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return, by parameter, what the trials of both fronts were trained with."""
    spaces = [side.sweeps[0].plan.space for side in (comparison.a, comparison.b)]
    names = list(dict.fromkeys(name for space in spaces for name in space.swept))
    return [(name, _spread_of(comparison.a, name), _spread_of(comparison.b, name)) for name in names]


def _spread_of(side: Side, name: str) -> str:
    """Return a parameter's median and range on a side's front, or how many trials had which word."""
    space = side.sweeps[0].plan.space
    values = [active[name] for record in side.front if name in (active := space.active(record.config))]
    if not values:
        fixed = space.fixed.get(name)
        return "not used" if fixed is None else f"always {brief(fixed)}"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return f"{brief(float(median(values)))} ({brief(float(min(values)))} to {brief(float(max(values)))})"
    return ", ".join(f"{value} {count}" for value, count in Counter(map(str, values)).most_common())


def comparison_markdown(comparison: Comparison, run: str) -> str:
    """Return the description of the comparison's run in MLflow."""
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


def comparison_metrics(comparison: Comparison) -> dict[str, float]:
    """Return the numbers of a comparison as MLflow's metrics."""
    return {
        "hypervolume_difference": comparison.difference,
        "hypervolume_difference_low": comparison.interval.low,
        "hypervolume_difference_high": comparison.interval.high,
        "hypervolume_a": comparison.a.hypervolume,
        "hypervolume_b": comparison.b.hypervolume,
        "epsilon_a_covers_b": comparison.epsilon[0],
        "epsilon_b_covers_a": comparison.epsilon[1],
        "covered_by_a_alone": comparison.covered_alone[0],
        "covered_by_b_alone": comparison.covered_alone[1],
    }


def write_comparison_files(comparison: Comparison) -> Path:
    """Write picture and tables beside the first sweep of the first side; return their folder."""
    first, other = comparison.a.sweeps[0].plan, comparison.b.name.replace(",", "+").replace(" ", "")
    seeds = len(comparison.a.sweeps)
    folder = first.folder / _FOLDER / (other if seeds == 1 else f"{seeds}-{other}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(_to_dict(comparison), indent=2) + "\n")
    (folder / "regions.csv").write_text(csv_text(Region._fields, comparison.regions))
    save_figure(comparison_figure(comparison), folder / "compare.png", dpi=100)
    return folder


def _to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison in plain values, for programs."""
    a, b = comparison.a, comparison.b
    return {
        "a": a.name,
        "b": b.name,
        "evaluation": a.sweeps[0].plan.space.evaluation.to_dict(),
        "hypervolume": [a.hypervolume, b.hypervolume],
        "difference": comparison.difference,
        "interval": list(comparison.interval),
        "additive_epsilon": list(comparison.epsilon),
        "covered_alone": list(comparison.covered_alone),
        "regions": [region._asdict() for region in comparison.regions],
        "parameters": [dict(zip(("name", "a", "b"), row, strict=True)) for row in _parameter_rows(comparison)],
    }
