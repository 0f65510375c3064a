"""A front as rows: what all its tables show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces import Space
from sweep.plan import SweepPlan
from sweep.report.audited import audited_columns, audited_finalists
from sweep.report.words import brief, percent
from sweep.state import ConfigurationDraws, SweepState
from trainer.config import UNANIMOUS
from trainer.crowds import other_crowds
from trainer.words import SHORT_NAMES

ACCURACIES = {
    "sensitivity_accuracy": "sensitivity",
    "invariance_accuracy": "invariance",
    "invariance_stuck": "stuck",
    "clean_accuracy": "clean",
}
"""Report fields of a front's row, and their headings."""


def accuracies(plan: SweepPlan) -> dict[str, str]:
    """Return `ACCURACIES` and, beside them, the invariance accuracy by every other crowd."""
    evaluation = plan.space.evaluation
    if evaluation.crowd == UNANIMOUS:
        return ACCURACIES
    others = other_crowds(evaluation.dataset, evaluation.crowd)
    return ACCURACIES | {f"{crowd.name}/invariance_accuracy": crowd.name for crowd in others}


def trial_label(space: Space, config: Mapping[str, Any]) -> str:
    """Return what differs between the trials of a sweep, short: `R=ot_triplet ws=0.31 m=0.05`.

    That is what was drawn, and what a point sets that the space fixes or leaves out.
    """
    return " ".join(f"{SHORT_NAMES.get(name, name)}={brief(v)}" for name, v in space.point(config).items())


def front_rows(plan: SweepPlan, results: SweepState) -> list[dict[str, Any]]:
    """Return the front from its most sensitivity-robust point on, as plain values, one dict per trial.

    It has each trial's probability of being on the front, and of being its knee, where that is known. With several
    seeds there is one dict per configuration: the number of its first trial, means and intervals.
    """
    # In this order: a trial that finishes meanwhile is in the later ones too.
    records, knee, drawn = results.front_records, results.knee, results.uncertainty().configurations
    audited = audited_finalists(plan)
    rows = []
    for record in records:
        assert record.result is not None
        rows.append(
            {
                "trial": record.number,
                **{name: record.result[name] for name in accuracies(plan) if name in record.result},
                **(_uncertainty_columns(plan, drawn[record.number]) if record.number in drawn else {}),
                **audited_columns(audited, record.number),
                "epoch": record.result["epoch"],
                "knee": record.number == knee,
                **plan.space.point(record.config),
            }
        )
    return rows


def _uncertainty_columns(plan: SweepPlan, drawn: ConfigurationDraws) -> dict[str, float]:
    """Return the columns that tell how far a row's place is a matter of luck."""
    columns: dict[str, float] = {"seeds": plan.seeds} if plan.seeds > 1 else {}
    columns |= {"p_front": drawn.chance, "p_knee": drawn.knee}
    # With one seed there are no intervals.
    for name, interval in zip(plan.objectives.names, drawn.intervals, strict=False):
        columns |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return columns


def headings(plan: SweepPlan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the headings of the rows' `cells`."""
    return [*accuracies(plan).values(), *(["P(front)"] if any("p_front" in row for row in rows) else [])]


def cells(plan: SweepPlan, row: Mapping[str, Any]) -> list[str]:
    """Return a row's accuracies, with several seeds as `40.7±3.1%` (half of the 95% interval), and its P(front)."""
    shares = []
    for name in accuracies(plan):
        half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2 if f"{name}_low" in row else None
        if name not in row:
            shares.append("-")
            continue
        shares.append(percent(row[name]) if half is None else f"{percent(row[name])[:-1]}±{percent(half)}")
    return [*shares, *([percent(row["p_front"])] if "p_front" in row else [])]


def row_name(row: Mapping[str, Any]) -> str:
    """Return the trials of a row: `003`, or `003-005`."""
    last = row["trial"] + row.get("seeds", 1) - 1
    return f"{row['trial']:03d}" if last == row["trial"] else f"{row['trial']:03d}-{last:03d}"
