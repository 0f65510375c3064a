"""A sweep's numbers under their names in MLflow, as plain rows; nothing here calls MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sweep.plan import SweepPlan
from sweep.report import agreements_of
from sweep.state import Milestone, SweepState, TrackedRank
from sweep.tracking.mlflow_internals import METRICS_PER_CALL

ONCE_PER_REPORT = ("clean_accuracy", "sel_clean")
"""Metrics of which every report has exactly one: their histories show which reports a run holds."""

_CHOSEN = {
    "sensitivity_accuracy": "sel_sens",
    "invariance_accuracy": "sel_inv",
    "invariance_changed_mass": "sel_inv_mass",
    "clean_accuracy": "sel_clean",
    "epoch": "sel_epoch",
}
"""Names of the chosen checkpoint's numbers: short, so that the page does not cut them off."""

_OTHER = "sel_inv_"
"""Prefix of the chosen checkpoint's invariance accuracy by another crowd, as in `sel_inv_lenient`."""


class MetricRow(NamedTuple):
    """One value of a metric, in the order of MLflow's own `Metric`."""

    key: str
    value: float
    timestamp: int
    """Milliseconds."""
    step: int


def milliseconds(seconds: float | None) -> int:
    """Return a time in MLflow's unit; 0 for an unknown one."""
    return int((seconds or 0) * 1000)


def report_metrics(report: Mapping[str, Any]) -> list[MetricRow]:
    """Return a report's numbers: an epoch's under their own names, the chosen checkpoint's under short ones."""
    timestamp = milliseconds(report["time"])
    if report["final"]:
        chosen = {name: short for name, short in _CHOSEN.items() if name in report}
        chosen |= {name: f"{_OTHER}{name.split('/')[0]}" for name in report if name.endswith("/invariance_accuracy")}
        return [MetricRow(short, float(report[name]), timestamp, 0) for name, short in chosen.items()]
    skipped = ("epoch", "final", "time")
    return [
        MetricRow(key, float(value), timestamp, report["epoch"]) for key, value in report.items() if key not in skipped
    ]


def report_batches(reports: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Divide reports among calls without splitting one: MLflow then has all of a report's numbers or none."""
    batch, size = [], 0
    for report in reports:
        if batch and size + len(report) > METRICS_PER_CALL:
            yield batch
            batch, size = [], 0
        batch.append(report)
        size += len(report)
    if batch:
        yield batch


def rank_metric(tracked: TrackedRank) -> MetricRow:
    """Return a rank as a metric. All ranks have step 0, where the page sorts and draws them; the latest counts."""
    return MetricRow("pareto_rank", float(tracked.rank), milliseconds(tracked.time), 0)


def milestone_metrics(plan: SweepPlan, milestone: Milestone) -> list[MetricRow]:
    """Return a point of the parent run's curves, whose step is the number of finished configurations."""
    values = {
        "front_hypervolume": milestone.hypervolume,
        "front_size": float(milestone.front_size),
        "front_gpu_hours": milestone.hours * plan.gpus_per_trial,
        "front_cpu_hours": milestone.hours * plan.cpus_per_trial,
    }
    timestamp = milliseconds(milestone.time)
    return [MetricRow(key, value, timestamp, milestone.finished) for key, value in values.items()]


def agreement_metrics(plan: SweepPlan, state: SweepState, timestamp: int) -> list[MetricRow]:
    """Return how far each rung ranks trials as the next one does, with the next rung's epochs as step."""
    compared = plan.stopper != "none" or plan.ladder > 0
    found = agreements_of(plan, state) if compared else []
    return [MetricRow(f"rank_correlation/{each.objective}", each.correlation, timestamp, each.upper) for each in found]


def parameter_text(value: Any) -> str:
    """Return the one form in which a parameter is written: MLflow refuses a second form of the same value."""
    return str(value).lower() if isinstance(value, bool) else str(value)
