"""The sweeps in `tests/recorded`, brought into a storage folder of a test, whole or up to some of their trials."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.ledger.writing import LedgerWriter
from sweep.plan.mlflow_address import default_mlflow_uri
from sweep.plan.plan import SweepPlan
from sweep.plan.plan_file import read_plan
from sweep.state.data_summary import read_data_summary
from sweep.state.sweep_state import SweepState
from tests.support import events

RECORDED = Path(__file__).parents[1] / "recorded"

Event = tuple[float, int, int, TrialRecord, dict[str, Any] | None]


def recorded(name: str, storage: Path, *, trials: int | None = None) -> SweepPlan:
    """The plan of a recorded sweep, with its folder in the storage; `trials` keeps only the first so many."""
    folder = storage / name
    if trials is None:
        shutil.copytree(RECORDED / name, folder)
    else:
        folder.mkdir()
        for part in ("plan.yaml", "prepared.json"):
            shutil.copy(RECORDED / name / part, folder)
        records = list(read_ledger(RECORDED / name).trials.values())[:trials]
        with LedgerWriter(folder) as ledger:
            write_records(ledger, records)
    plan = read_plan(name, storage=str(storage))
    return dataclasses.replace(plan, mlflow_uri=default_mlflow_uri(storage), trials=trials or plan.trials)


def write_records(ledger: LedgerWriter, records: Iterable[TrialRecord]) -> None:
    """The events of trials, as their driver wrote them: one after another as they came."""
    for moment, kind, number, record, report in sorted(events_of(records), key=lambda event: event[:3]):
        if kind == 0:
            ledger.started(
                number, config=record.config, seed=record.seed or 0, attempt=1, host=record.host, time=moment
            )
        elif report is not None:
            ledger.reported(number, report, time=moment)
        else:
            ledger.ended(number, state=record.state, reason=record.reason, time=moment)  # type: ignore[arg-type]


def events_of(records: Iterable[TrialRecord]) -> Iterator[Event]:
    """Their beginnings, reports and ends: time, kind, number, the trial, and what it reported."""
    for record in records:
        yield record.started or 0.0, 0, record.number, record, None
        for report in record.reports:
            yield report["time"], 1, record.number, record, report
        yield record.ended or 0.0, 2, record.number, record, None


def results_of(plan: SweepPlan) -> SweepState:
    """What a sweep's ledger holds."""
    results = SweepState(plan.objectives, read_ledger(plan.folder).trials, total=plan.trials)
    results.data_summary = read_data_summary(plan.folder)
    return results


def replay(plan: SweepPlan, results: SweepState) -> Iterator[int]:
    """Bring `results` through the sweep's course event by event, as a driver does; the trial that each concerns."""
    records = read_ledger(plan.folder).trials.values()
    for moment, kind, number, record, report in sorted(events_of(records), key=lambda event: event[:3]):
        if kind == 0:
            results.apply(events.started(number, record.config, seed=record.seed or 0, time=moment))
        elif report is not None:
            results.apply(events.reported(number, report, time=moment))
        else:
            results.apply(events.ended(number, record.state, reason=record.reason, time=moment))
        yield number


def pq_events(path: Path) -> list[str]:
    """The events of a ledger's part, as JSON."""
    return pq.read_table(path)["event"].to_pylist()
