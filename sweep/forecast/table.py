"""A forecast for people: a headline, and a table of a line per quantity."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from sweep.forecast.forecast import Forecast
from sweep.forecast.quantities import in_counts, in_hours, in_time
from sweep.plan import SweepPlan
from sweep.report import duration, size

_MODELS = {"front": "the front", "all": "a trial that finishes", "none": ""}
"""Trials whose models `--keep-models` keeps."""
_STORED = {"checkpoints": "checkpoints", "ledger": "ledger", "MLflow": "mlflow"}
"""Names of what is stored, and their keys in `Forecast.storage`."""


def headline(plan: SweepPlan, forecast: Forecast) -> str:
    """Return what the plan asks for."""
    points = min(len(plan.space.points), plan.configurations)
    kinds = [f"{points} given"] if points else []
    kinds += [f"{plan.configurations - points} drawn by {plan.sampler}"] if plan.configurations > points else []
    seeds = f" of {plan.configurations} configurations on {plan.seeds} seeds" if plan.seeds > 1 else ""
    machine = f"{forecast.cpus:g} CPU" + (f", {forecast.gpus:g} GPU" if forecast.gpus else "")
    return (
        f"{plan.space.name}: {plan.trials} trials{seeds} ({', '.join(kinds)}) of {plan.epochs_per_trial} epochs on "
        f"{plan.space.evaluation.dataset}, {forecast.slots} at once ({machine}). In brackets: if all that is drawn "
        "were as cheap, or as dear, as the space allows."
    )


def forecast_table(plan: SweepPlan, forecast: Forecast) -> Table:
    """Return the forecast as a table for a terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for heading, text in lines(plan, forecast):
        table.add_row(heading, Text(text))
    return table


def lines(plan: SweepPlan, forecast: Forecast) -> Iterator[tuple[str, str]]:
    """Yield heading and text of every line."""
    yield "time", in_time(forecast.wall_seconds)
    yield "  starting", duration(forecast.starting_seconds)
    missing = ", ".join(forecast.preparation)
    yield "  preparing", f"not counted, once for this data: {missing}" if missing else "0:00, all is in the cache"
    yield "  trials", in_time(forecast.running_seconds)
    yield "  ending", duration(forecast.ending_seconds)
    yield "a trial", f"{in_time(forecast.trial_seconds)}; {forecast.timed} configurations timed"
    for name, each in (("cheapest", forecast.cheapest), ("dearest", forecast.dearest)):
        step, judging = 1000 * each["step"], f"{each['judging_low']:.2g} to {each['judging_high']:.2g} s"
        yield f"  {name}", f"{step:.{0 if step >= 10 else 1}f} ms a step, {judging} to judge an epoch: {each['label']}"
    yield "CPU hours", in_hours(forecast.cpu_hours)
    if plan.gpus_per_trial:
        yield "GPU hours", in_hours(forecast.gpu_hours)
    yield "epochs", in_counts(forecast.epochs)
    for rung in forecast.rungs:
        yield f"  at {rung.epoch}", f"{in_counts(rung.reach)} trials{' end' if rung is forecast.rungs[-1] else ''}"
    host, total, gpu = (forecast.memory[name] for name in ("host", "host_total", "gpu"))
    on_gpu = f"; of a GPU's {size(forecast.memory['gpu_total'])} {size(gpu)} a trial" if gpu else ""
    yield "memory", f"{size(host)} a trial, {size(host * forecast.slots)} of {size(total)} at once{on_gpu}"
    kept = forecast.storage
    kinds = (f"{name} {size(kept[key])}" for name, key in _STORED.items())
    model = f", and {size(kept['model'])} for each model of {_MODELS[plan.keep_models]}" if kept["model"] else ""
    yield "storage", f"{size(sum(kept[key] for key in _STORED.values()))}: {', '.join(kinds)}{model}"
    logged = forecast.logged
    yield (
        "logged",
        f"MLflow experiment {logged['experiment']!r}, {logged['runs']} runs: {len(logged['parameters'])} parameters a "
        f"trial, {len(logged['metrics'])} metrics an epoch, the front as table, picture and page",
    )
    yield "  at", logged["mlflow_uri"]
    for remark in forecast.remarks:
        yield "note", remark
