"""The front as a terminal table, CSV and JSON."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from rich.table import Table

from search_spaces import TRIAL_FIELDS
from sweep.ledger import arrow_column, keys_in_order
from sweep.plan import SweepPlan
from sweep.report.columns import describe_column
from sweep.report.rows import accuracies, cells, front_rows, headings, row_name, trial_label
from sweep.report.tables import csv_text, plain_table
from sweep.report.words import percent
from sweep.state import SweepState


def front_table(plan: SweepPlan, results: SweepState) -> Table:
    """Return the front as a table for a terminal."""
    rows = front_rows(plan, results)
    columns = ["trial" if plan.seeds == 1 else "trials", *headings(plan, rows), "configuration"]
    table = plain_table(*columns, fold=[len(columns) - 1])
    for row in rows:
        often = f" (in {percent(row['p_knee'])} of draws)" if "p_knee" in row else ""
        mark = f"  <- knee{often}" if row["knee"] else ""
        table.add_row(
            row_name(row), *cells(plan, row), trial_label(plan.space, results.trials[row["trial"]].config) + mark
        )
    return table


def front_csv(plan: SweepPlan, results: SweepState) -> str:
    """Return the front as CSV; a knob that a trial does not use is empty. Without a front it is the header alone."""
    rows = front_rows(plan, results)
    header = _header(plan, rows)
    return csv_text(header, ([row.get(key) for key in header] for row in rows))


def front_arrow(plan: SweepPlan, results: SweepState) -> pa.Table:
    """Return the front in Arrow's form, with the columns of `front_csv`; their fields say what they are."""
    rows = front_rows(plan, results)
    header = _header(plan, rows)
    arrays = [arrow_column(name, [row.get(name) for row in rows]) for name in header]
    fields = [
        pa.field(name, array.type, metadata=describe_column(f"config.{name}" if name in TRIAL_FIELDS else name))
        for name, array in zip(header, arrays, strict=True)
    ]
    return pa.table(arrays, schema=pa.schema(fields))


def _header(plan: SweepPlan, rows: list[dict[str, Any]]) -> list[str]:
    return list(keys_in_order(rows)) or ["trial", *accuracies(plan), *plan.space.swept]


def front_content(plan: SweepPlan, results: SweepState) -> dict[str, Any]:
    """Return the front as plain values, with what the numbers mean."""
    return {
        "sweep": plan.name,
        "evaluation": plan.space.evaluation.to_dict(),
        "hypervolume": results.hypervolume,
        "hypervolume_interval": results.uncertainty().hypervolume,
        "reference": list(plan.objectives.reference),
        "seeds": plan.seeds,
        "require": [str(each) for each in plan.space.require],
        "finished": len(results.finished),
        "infeasible": len(results.infeasible),
        "stopped": len(results.stopped),
        "front": front_rows(plan, results),
    }
