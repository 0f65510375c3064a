"""The front as a terminal table, CSV and JSON."""

from __future__ import annotations

import json

from rich.table import Table

from sweep.plan import SweepPlan
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
    header = list(dict.fromkeys(key for row in rows for key in row)) or ["trial", *accuracies(plan), *plan.space.swept]
    return csv_text(header, ([row.get(key) for key in header] for row in rows))


def front_json(plan: SweepPlan, results: SweepState) -> str:
    """Return the front as JSON, with what the numbers mean."""
    content = {
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
    return json.dumps(content, indent=2)
