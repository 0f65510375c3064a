"""TODO one line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sweep.plan import SweepPlan, pull_remote, push_remote
from sweep.report import duration
from sweep.state import SweepState
from trainer.errors import InputError
from trainer.files import write_whole

if TYPE_CHECKING:
    pass
from sweep.forecast.forecast import Forecast
from sweep.forecast.quantities import HOUR, Span, in_hours, in_time

FORECAST = "forecast.json"
"""In a sweep's folder: in how many slots it runs, and what was planned, if anybody asked."""


# ------------------------------------------------------------------------------------------------ beside what it took


def keep_forecast(plan: SweepPlan, forecast: Forecast) -> None:
    """Keep a forecast in the storage's cache, where a sweep of the same plan finds it."""
    path = kept_at(plan)
    write_whole(path, json.dumps(forecast.to_dict(), indent=2).encode())
    push_remote(path)


def kept_at(plan: SweepPlan) -> Path:
    """Where the forecast for a plan is kept: under a digest of what decides it, whatever the sweep's name."""
    options = (
        "cpus_per_trial",
        "gpus_per_trial",
        "pack",
        "max_concurrent",
        "measure_memory",
        "max_hours",
        "max_gpu_hours",
    )
    deciding = [plan.hash, *(getattr(plan, option) for option in options)]
    digest = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:16]
    return plan.cache_dir / f"forecast-{digest}.json"


def begin_forecast(plan: SweepPlan, slots: int) -> None:
    """Put beside a sweep, which begins or goes on, in how many slots it runs and what was planned for these. Whatever
    refuses that, the sweep runs without."""
    with contextlib.suppress(OSError, InputError):
        path, kept = plan.folder / FORECAST, kept_at(plan)
        pull_remote(plan.cache_dir, only=kept.name)
        planned = _read_forecast(path).get("planned") or _read_forecast(kept) or None
        if planned and plan.measure_memory:
            slots = planned["slots"]  # this sweep finds out later
        write_whole(path, json.dumps({"slots": slots, "planned": planned}, indent=2).encode())
        push_remote(path)


def _read_forecast(path: Path) -> dict[str, Any]:
    """What a file tells; nothing where it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def describe_cost(plan: SweepPlan, results: SweepState) -> str:
    """What the trials of a sweep took, all its runs together, beside what was planned; without a plan beside what the
    first tenth of them made one expect. Empty while none has ended.

    Told by the seconds that trials held their slots, which no pause between two runs is in.
    """
    known = _read_forecast(plan.folder / FORECAST)
    slots = known.get("slots")
    if not slots or not results.ended:
        return ""
    said = f"{duration(results.held_seconds / slots)} in {slots} slot{'s' if slots > 1 else ''}"
    if plan.gpus_per_trial:
        said += f", {plan.gpu_share * results.held_seconds / HOUR:.2g} GPU hours"
    planned = known.get("planned")
    if planned and planned["slots"] == slots:
        said += f"; planned {in_time(Span(**planned['running_seconds']))}"
        return said + (f", {in_hours(Span(**planned['gpu_hours']))} GPU hours" if plan.gpus_per_trial else "")
    ended = sorted(results.ended.values(), key=lambda record: record.ended or 0.0)
    first = max(slots, math.ceil(plan.trials / 10))
    if 2 * first > len(ended):
        return said
    expected = fmean(record.held for record in ended[:first]) * plan.trials / slots
    begin = f"{first} trials" if first > 1 else "trial"
    return f"{said}; after the first {begin} {duration(expected)} was to be expected"
