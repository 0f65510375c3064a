"""Forecasts that are kept, so that a sweep can show what it took beside what was planned."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from sweep.forecast.forecast import Forecast
from sweep.forecast.quantities import HOUR, Span, in_hours, in_time
from sweep.plan import SweepPlan, pull_remote, push_remote
from sweep.report import duration
from sweep.state import SweepState
from trainer.errors import InputError
from trainer.files import write_whole

FORECAST = "forecast.json"
"""File in a sweep's folder: the number of its slots, and its forecast, if `otsweep plan` made one."""

_DECIDING = (
    *("cpus_per_trial", "gpus_per_trial", "pack", "max_concurrent"),
    *("measure_memory", "max_hours", "max_gpu_hours"),
)
"""Options beside the plan's hash that decide a forecast."""


def keep_forecast(plan: SweepPlan, forecast: Forecast) -> None:
    """Keep a forecast in the storage's cache, where a sweep of the same plan finds it."""
    path = kept_at(plan)
    write_whole(path, json.dumps(forecast.to_dict(), indent=2).encode())
    push_remote(path)


def kept_at(plan: SweepPlan) -> Path:
    """Return where a plan's forecast is kept: under a digest of what decides it, whatever the sweep's name."""
    deciding = [plan.hash, *(getattr(plan, option) for option in _DECIDING)]
    digest = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:16]
    return plan.cache_dir / f"forecast-{digest}.json"


def begin_forecast(plan: SweepPlan, slots: int) -> None:
    """Write, beside a sweep that begins or goes on, its number of slots and its forecast, if there is one.

    Where that can't be written, the sweep runs without.
    """
    with contextlib.suppress(OSError, InputError):
        path, kept = plan.folder / FORECAST, kept_at(plan)
        pull_remote(plan.cache_dir, only=kept.name)
        planned = _read_forecast(path).get("planned") or _read_forecast(kept) or None
        if planned and plan.measure_memory:
            slots = planned["slots"]  # this sweep finds out later
        write_whole(path, json.dumps({"slots": slots, "planned": planned}, indent=2).encode())
        push_remote(path)


def _read_forecast(path: Path) -> dict[str, Any]:
    """Return what a file holds; nothing where it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def describe_cost(plan: SweepPlan, results: SweepState) -> str:
    """Return what a sweep's trials took in all its runs, beside its forecast; empty while none has ended.

    Without a forecast it stands beside what the first tenth of the trials made one expect. Time is that for which
    trials held their slots, which leaves out pauses between two runs.
    """
    known = _read_forecast(plan.folder / FORECAST)
    slots = known.get("slots")
    if not slots or not results.ended:
        return ""
    took = f"{duration(results.slot_seconds / slots)} in {slots} slot{'s' if slots > 1 else ''}"
    if plan.gpus_per_trial:
        took += f", {plan.gpu_share * results.slot_seconds / HOUR:.2g} GPU hours"
    planned = known.get("planned")
    if planned and planned["slots"] == slots:
        took += f"; planned {in_time(Span(**planned['running_seconds']))}"
        return took + (f", {in_hours(Span(**planned['gpu_hours']))} GPU hours" if plan.gpus_per_trial else "")
    ended = sorted(results.ended.values(), key=lambda record: record.ended or 0.0)
    first = max(slots, math.ceil(plan.trials / 10))
    if 2 * first > len(ended):
        return took
    expected = fmean(record.slot_seconds for record in ended[:first]) * plan.trials / slots
    begin = f"{first} trials" if first > 1 else "trial"
    return f"{took}; after the first {begin} {duration(expected)} was to be expected"
