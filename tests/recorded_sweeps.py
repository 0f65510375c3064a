"""The sweeps in `tests/recorded`, brought into a storage folder of a test, whole or up to some of their trials."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

from sweep.ledger import LedgerWriter, TrialRecord, read_ledger
from sweep.places import default_mlflow_uri
from sweep.plan import SweepPlan, read_plan
from sweep.results import Results, read_facts

RECORDED = Path(__file__).with_name("recorded")


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
            for record in records:
                write_record(ledger, record)
    plan = read_plan(name, storage=str(storage))
    return dataclasses.replace(plan, mlflow_uri=default_mlflow_uri(storage), trials=trials or plan.trials)


def write_record(ledger: LedgerWriter, record: TrialRecord) -> None:
    """A trial's events, as its driver wrote them."""
    assert record.seed is not None
    assert record.started is not None
    assert record.ended is not None
    ledger.started(
        record.number, config=record.config, seed=record.seed, attempt=1, host=record.host, time=record.started
    )
    for report in record.reports:
        ledger.reported(record.number, report, time=report["time"])
    ledger.ended(record.number, state=record.state, reason=record.reason, time=record.ended)  # type: ignore[arg-type]


def results_of(plan: SweepPlan) -> Results:
    """What a sweep's ledger holds."""
    results = Results(plan.objectives, read_ledger(plan.folder).trials, total=plan.trials)
    results.facts = read_facts(plan.folder)
    return results


def replay(plan: SweepPlan, results: Results) -> Iterator[int]:
    """Bring `results` through the sweep's course event by event, as a driver does; the trial that each concerns."""
    records = read_ledger(plan.folder).trials
    events = []
    for record in records.values():
        events.append((record.started or 0.0, 0, record.number, None))
        events += [(report["time"], 1, record.number, report) for report in record.reports]
        events.append((record.ended or 0.0, 2, record.number, None))
    for moment, kind, number, report in sorted(events, key=lambda event: event[:3]):
        record = records[number]
        if kind == 0:
            fresh = results.trials.setdefault(number, TrialRecord(number))
            fresh.begin(record.config, seed=record.seed or 0, attempt=1, host="", time=moment)
        elif report is not None:
            results.trials[number].say(report)
        else:
            results.end(number, record.state, reason=record.reason, time=moment)
        yield number
