"""A comparison for people and programs: verdict, tables, Markdown, metrics and files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from sweep.front import Difference, detectable, seeds_needed
from sweep.report.comparison import Comparison, interval_text
from sweep.report.comparison_figure import comparison_figure
from sweep.report.rows import ACCURACIES
from sweep.report.sides import Side
from sweep.report.style import save_figure
from sweep.report.tables import plain_table
from sweep.report.words import brief, percent

_FOLDER = "compare"


def comparison_verdict(comparison: Comparison) -> str:
    """Return in a few lines whether effort was equal, which side is ahead, and what would be needed to say more."""
    a, b, found = comparison.a, comparison.b, comparison.difference
    numbers = f"hypervolume {a.hypervolume:.4f} - {b.hypervolume:.4f} = {found.estimate:+.4f}{_certainty(comparison)}"
    if comparison.effort:
        return f"Not at equal effort: {comparison.effort}; no claim is made.\n{numbers[0].upper()}{numbers[1:]}"
    if comparison.claim:
        return f"{a.name if found.estimate > 0 else b.name} is ahead: {numbers}"
    if found.needed:
        return f"No claim is made: that needs {found.needed}.\n{numbers[0].upper()}{numbers[1:]}"
    return f"No difference was shown: {numbers}{_power(comparison)}"


def _certainty(comparison: Comparison) -> str:
    """Return, in brackets, the interval of the difference and what it stands on."""
    found, kinds = comparison.difference, "paired by seed" if comparison.paired else "not paired"
    parts = [interval_text(found)] if found.interval else []
    if found.p_value is not None:
        parts += [f"p = {found.p_value:.2g}", f"{_counts(comparison)}, {kinds}"]
    return f" ({'; '.join(parts)})" if parts else ""


def _counts(comparison: Comparison) -> str:
    a, b = (len(side.sweeps) for side in (comparison.a, comparison.b))
    return f"{a} sweeps a side" if a == b else f"{a} and {b} sweeps"


def _power(comparison: Comparison) -> str:
    """Return a line on the difference that as many sweeps would show, and on the sweeps that this one would need."""
    found, k = comparison.difference, min(len(side.sweeps) for side in (comparison.a, comparison.b))
    if not found.deviation or not found.estimate:
        return ""
    shared = found.shared or 0.0
    needed = seeds_needed(found.deviation, abs(found.estimate), shared=shared)
    shown = detectable(found.deviation, k, shared=shared)
    return (
        f"\nSo many sweeps show a difference of {shown:.3g} in 4 of 5 cases; one of the size found needs "
        f"{f'{needed} a side' if needed else 'more images'}."
    )


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return tables for a terminal of 80 columns: numbers, stretches, parameters."""
    a, b = comparison.a, comparison.b
    first, second = (ACCURACIES.get(name, name) for name in a.objectives.names[:2])
    numbers = plain_table("", "A", "B", left=[0])
    numbers.add_row("sweeps", *(str(len(side.sweeps)) for side in (a, b)))
    numbers.add_row("finished trials", *(str(len(side.finished)) for side in (a, b)))
    numbers.add_row("contenders for the front", *(str(len(side.points)) for side in (a, b)))

    numbers.add_row("on the front", *(str(len(side.front)) for side in (a, b)))
    numbers.add_row("hypervolume", *(f"{side.hypervolume:.4f}" for side in (a, b)))
    numbers.add_row("covers alone", *(f"{volume:.4f}" for volume in comparison.covered_alone))
    numbers.add_row("to cover the other, each axis needs", *(f"{max(each, 0):.4f}" for each in comparison.epsilon))
    where = plain_table(f"{first} from", "to", f"{second}: A", "B", "A - B (95% for all)", "ahead", left=[5])
    for row in _stretch_rows(comparison):
        where.add_row(*row)
    parameters = plain_table("parameter", "A's front", "B's front", fold=range(3))
    for row in _parameter_rows(comparison):
        parameters.add_row(*row)
    return [numbers, where, parameters]


def _stretch_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return, by stretch, its ends, both sides' mean heights, their difference with its interval, and who is ahead."""
    rows = []
    for each in comparison.stretches:
        found = each.difference
        span = (
            "" if found.interval is None else f" ({100 * found.interval.low:+.1f} to {100 * found.interval.high:+.1f})"
        )
        ahead = ("A" if found.estimate > 0 else "B") if found.claim and not comparison.effort else "-"
        rows.append((*map(percent, (each.low, each.high, *each.heights)), f"{100 * found.estimate:+.1f}{span}", ahead))
    return rows


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
    lines = [f"**{comparison_verdict(comparison)}**".replace("\n", "  \n"), "", f"A: {a.name}; B: {b.name}", ""]
    lines += [f"![Both fronts](get-artifact?path=compare%2Fcompare.png&run_uuid={run})", ""]
    lines += ["| from | to | A | B | A - B | ahead |", "|---:|---:|---:|---:|---:|:---|"]
    lines += [f"| {' | '.join(row)} |" for row in _stretch_rows(comparison)]
    lines += ["", "| parameter | A's front | B's front |", "|:---|:---|:---|"]
    lines += [f"| {' | '.join(row)} |" for row in _parameter_rows(comparison)]
    return "\n".join(lines)


def comparison_metrics(comparison: Comparison) -> dict[str, float]:
    """Return the numbers of a comparison as MLflow's metrics."""
    found = comparison.difference
    metrics = {
        "hypervolume_difference": found.estimate,
        "hypervolume_difference_claimed": float(comparison.claim),
        "hypervolume_a": comparison.a.hypervolume,
        "hypervolume_b": comparison.b.hypervolume,
        "epsilon_a_covers_b": comparison.epsilon[0],
        "epsilon_b_covers_a": comparison.epsilon[1],
        "covered_by_a_alone": comparison.covered_alone[0],
        "covered_by_b_alone": comparison.covered_alone[1],
    }
    if found.interval is not None:
        metrics["hypervolume_difference_low"], metrics["hypervolume_difference_high"] = found.interval
    return metrics if found.p_value is None else metrics | {"hypervolume_difference_p": found.p_value}


def write_comparison_files(comparison: Comparison) -> Path:
    """Write picture and tables beside the first sweep of the first side; return their folder."""
    first, other = comparison.a.sweeps[0].plan, comparison.b.name.replace(",", "+").replace(" ", "")
    seeds = len(comparison.a.sweeps)
    folder = first.folder / _FOLDER / (other if seeds == 1 else f"{seeds}-{other}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(comparison_json(comparison) + "\n", encoding="utf-8")
    save_figure(comparison_figure(comparison), folder / "compare.png", dpi=100)
    return folder


def comparison_json(comparison: Comparison) -> str:
    """Return a comparison for programs."""
    a, b = comparison.a, comparison.b
    sides = {
        letter: {
            "name": side.name,
            "sweeps": [sweep.plan.name for sweep in side.sweeps],
            "seeds": [sweep.plan.seed for sweep in side.sweeps],
            "hypervolumes": side.hypervolumes.tolist(),
        }
        for letter, side in (("a", a), ("b", b))
    }
    plain = {
        **sides,
        "verdict": comparison_verdict(comparison),
        "claim": comparison.claim,
        "unequal_effort": comparison.effort,
        "paired": comparison.paired,
        "difference": _difference_dict(comparison.difference),
        "additive_epsilon": list(comparison.epsilon),
        "covered_alone": list(comparison.covered_alone),
        "stretches": [
            {
                "low": each.low,
                "high": each.high,
                "heights": list(each.heights),
                "difference": _difference_dict(each.difference),
                "claim": each.difference.claim and not comparison.effort,
            }
            for each in comparison.stretches
        ],
        "parameters": [dict(zip(("name", "a", "b"), row, strict=True)) for row in _parameter_rows(comparison)],
        "evaluation": a.sweeps[0].plan.space.evaluation.to_dict(),
        "requirements": [str(each) for each in a.sweeps[0].plan.space.require],
    }
    return json.dumps(plain, indent=2)


def _difference_dict(found: Difference) -> dict[str, Any]:
    """Return a difference in plain values; infinite degrees of freedom as none."""
    degrees = found.degrees if found.degrees is None or math.isfinite(found.degrees) else None
    plain = dataclasses.asdict(found) | {"interval": found.interval and list(found.interval), "degrees": degrees}
    del plain["claim"]
    return plain
