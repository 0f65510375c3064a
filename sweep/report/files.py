"""The front as files: what an MLflow run carries, and what anybody can open without MLflow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from search_spaces import dump_yaml
from sweep.ledger import Ledger, parquet_bytes
from sweep.plan import SweepPlan, plan_text
from sweep.report.columns import describe_column
from sweep.report.formats import front_csv
from sweep.report.front_figure import front_picture
from sweep.report.importance import importance_csv, importance_figure, importances
from sweep.report.page import front_page
from sweep.report.rows import accuracies
from sweep.report.style import save_figure
from sweep.state import SweepState
from trainer.files import write_whole

_PAGE_DPI = 100
"""Resolution of the pictures: MLflow's page shows them in their own size, with room for about 900 pixels across."""


def write_front_files(plan: SweepPlan, results: SweepState, folder: Path, *, over: bool) -> None:
    """Write picture, page, tables, search space and plan into a folder that exists.

    Args:
        over: whether the sweep is over: the importance of its parameters is written too.
    """
    (folder / "front.csv").write_text(front_csv(plan, results), encoding="utf-8")
    (folder / "trials.json").write_text(json.dumps(_trials_table(plan, results)), encoding="utf-8")
    (folder / "plan.yaml").write_text(plan_text(plan), encoding="utf-8")
    (folder / "space.yaml").write_text(dump_yaml(plan.space.to_dict()), encoding="utf-8")
    write_ledger_table(plan, results, folder / "trials.parquet")
    if results.finished:
        save_figure(front_picture(plan, results), folder / "front.png", dpi=_PAGE_DPI)
        (folder / "front.html").write_text(front_page(plan, results), encoding="utf-8")
    if over and (found := importances(plan, results)):
        (folder / "importance.csv").write_text(importance_csv(found), encoding="utf-8")
        save_figure(importance_figure(plan, results, found), folder / "importance.png", dpi=_PAGE_DPI)


def write_ledger_table(plan: SweepPlan, results: SweepState, path: Path) -> None:
    """Write all reports of all trials as a Parquet file that says what its columns are."""
    write_whole(path, parquet_bytes(ledger_arrow(plan, results)))


def ledger_arrow(plan: SweepPlan, results: SweepState, *, last_only: bool = False) -> pa.Table:
    """Return all reports of all trials, whose fields say what they are; or of each trial its last report alone."""
    metadata = {"plan_hash": plan.hash, "code_version": plan.code_version, "sweep": plan.name}
    metadata |= {name: str(value) for name, value in results.data_summary.items()}
    front = {each.number for record in results.front_records for each in results.members(record.number)}
    trials = {
        number: dataclasses.replace(record, reports=record.reports[-1:]) if last_only else record
        for number, record in sorted(results.trials.items())
    }
    return Ledger(trials, []).to_table(metadata, front=front, describe=describe_column)


def _trials_table(plan: SweepPlan, results: SweepState) -> dict[str, Any]:
    """Return a row per trial in the form that MLflow's page shows as a table: the finished by rank, then the others."""
    ranks, swept, shown = results.ranks(), list(plan.space.swept), accuracies(plan)
    columns = ["trial", "state", "rank", *shown.values(), "epoch", *swept, "reason"]
    first = sorted(results.trials.values(), key=lambda record: (ranks.get(record.number, len(ranks)), record.number))
    rows = []
    for record in first:
        result, active = record.result or {}, plan.space.active(record.config)
        numbers = [result.get(name) for name in (*shown, "epoch")]
        settings = [active.get(name) for name in swept]
        rows.append([record.number, record.state, ranks.get(record.number), *numbers, *settings, record.reason])
    return {"columns": columns, "data": rows}
