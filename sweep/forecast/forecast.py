"""The forecast of a sweep, made before anything is spent: arithmetic on what a profile measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sweep.forecast.measured import ENDING_SECONDS, ProfileResult, TimedConfiguration
from sweep.forecast.quantities import EXPECTED, HIGH, HOUR, LOW, Span
from sweep.forecast.schedule import (
    RungForecast,
    expected_rungs,
    fill_slots,
    length,
    may_be_drawn,
    mean_epochs,
    trial_lengths,
)
from sweep.plan import SweepPlan
from sweep.report import duration, size, trial_label
from trainer.config import TrialConfig
from trainer.files import KEPT

_MLFLOW_BYTES = 330
"""Bytes of a metric's value in MLflow's SQLite store, with its indices: 33 MB per 1,000 runs of 100 values."""

_LEDGER_BYTES, _LEDGER_VALUE_BYTES = 70_000, 12
"""Bytes of a ledger and its table: of their schemas, and of each reported number. As in tests/recorded."""

OTHER_WORK = "other work takes the processors"
"""Begin of the remark on a busy machine."""

_BUSY = 1.3
"""Slowness from which on a machine is reported to be busy."""


@dataclass(frozen=True)
class Forecast:
    """A plan's cost, in seconds, hours, bytes and counts."""

    trials: Span
    """Number of trials that begin; fewer than planned only where a budget ends the sweep."""
    slots: int
    cpus: float
    gpus: float
    """GPUs of the machine, or of all nodes."""
    epochs: Span
    """Epochs of all trials together."""
    rungs: list[RungForecast]
    """The rungs, with the end as the last one; empty where no trial is stopped early."""
    wall_seconds: Span
    """Time of the whole command, once the preparation is made."""
    starting_seconds: float
    """Time of starting Ray, and of the workers' imports and data."""
    preparation: list[str]
    """Parts of the preparation that the cache lacks; they are made once, and their time is not in `wall_seconds`."""
    running_seconds: Span
    """Time from the first trial's begin to the last one's end."""
    ending_seconds: float
    trial_seconds: Span
    """Time of one trial: the cheapest, the mean of what was sampled, the dearest."""
    cpu_hours: Span
    gpu_hours: Span
    cheapest: dict[str, Any]
    """The cheapest configuration, with the seconds of its `step`, `judging_low`, `judging_high` and `trial`."""
    dearest: dict[str, Any]
    timed: int
    """Number of configurations that were timed."""
    memory: dict[str, int]
    """Bytes: `host` and `gpu` of a trial, `host_total` and `gpu_total` of what there is."""
    storage: dict[str, int]
    """Bytes: `checkpoints`, `ledger`, `mlflow`, and `model` of each model that MLflow is given."""
    logged: dict[str, Any]
    """Contents of MLflow after the sweep, and its address."""
    slowness: float
    """Factor by which all takes longer than on an idle machine."""
    remarks: list[str]
    """Sentences that a person should read before the sweep is run."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON takes them; a span by its fields."""
        return _plain(vars(self))


def _plain(value: Any) -> Any:
    """Return a value with every named tuple in it as a dict."""
    value = value._asdict() if hasattr(value, "_asdict") else value
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def make_forecast(plan: SweepPlan, measured: ProfileResult) -> Forecast:
    """Forecast the plan's cost on a machine that is as busy as it was during the profile."""
    slowness = measured.slowness
    # In a pack a trial waits for its neighbours, except for what they gain from one another.
    waiting = plan.pack / measured.pack_gain
    slowed = [each._replace(cost=each.cost.slowed(slowness * waiting)) for each in measured.timed]
    measured = measured._replace(timed=slowed)
    rungs = expected_rungs(plan, measured.slots)
    per_trial = mean_epochs(plan, rungs)
    schedules = [
        fill_slots(
            trial_lengths(plan, measured, per_trial[which], which),
            measured.slots,
            plan,
            epochs=per_trial[which],
            low=which == LOW,
        )
        for which in (LOW, EXPECTED, HIGH)
    ]
    running, slot_seconds, trials = (Span(*values) for values in zip(*schedules, strict=True))
    epochs = Span(*(count * each for count, each in zip(trials, per_trial, strict=True)))
    starting = measured.ray_seconds + measured.worker_seconds
    by_cost = sorted(may_be_drawn(measured), key=_whole_trial)
    return Forecast(
        trials=trials,
        slots=measured.slots,
        cpus=sum(node.cpus for node in measured.nodes),
        gpus=sum(node.gpus for node in measured.nodes),
        epochs=epochs,
        rungs=rungs,
        wall_seconds=running.plus(starting + ENDING_SECONDS),
        starting_seconds=starting,
        preparation=measured.preparation,
        running_seconds=running,
        ending_seconds=ENDING_SECONDS,
        trial_seconds=Span(
            min(length(each, per_trial[LOW], LOW) for each in slowed),
            slot_seconds.expected / max(1, trials.expected),
            max(length(each, per_trial[HIGH], HIGH) for each in slowed),
        ),
        cpu_hours=slot_seconds.times(plan.cpu_share / HOUR),
        gpu_hours=slot_seconds.times(plan.gpu_share / HOUR),
        cheapest=_describe(plan, by_cost[0]),
        dearest=_describe(plan, by_cost[-1]),
        timed=len(slowed),
        memory={
            "host": measured.footprint.host,
            "host_total": sum(node.memory for node in measured.nodes),
            "gpu": measured.footprint.gpu,
            "gpu_total": measured.footprint.gpu_total,
        },
        storage=_storage(plan, measured, epochs.expected, trials.expected),
        logged={
            "mlflow_uri": plan.mlflow_uri,
            "experiment": plan.space.name,
            "runs": 1 + plan.trials,
            "metrics": _metric_names(measured),
            "parameters": list(TrialConfig.fields()),
            "artifacts": ["front/front.html", "front/front.png", "front/front.csv", "front/trials.json"],
            "models": plan.keep_models,
        },
        slowness=slowness,
        remarks=list(_remarks(plan, measured, trials, running.expected / slowness, slowness)),
    )


def _whole_trial(timed: TimedConfiguration) -> float:
    """Return the expected seconds of a trial that is not stopped."""
    return length(timed, timed.candidate.config["epochs"], EXPECTED)


def _describe(plan: SweepPlan, timed: TimedConfiguration) -> dict[str, Any]:
    """Return a configuration and its cost."""
    config, cost = timed.candidate.config, timed.cost
    return {
        "label": trial_label(plan.space, config),
        "configuration": plan.space.point(config),
        "step": cost.step,
        "judging_low": cost.judging_low,
        "judging_high": cost.judging_high,
        "trial": _whole_trial(timed),
    }


def _storage(plan: SweepPlan, measured: ProfileResult, epochs: float, trials: float) -> dict[str, int]:
    """Return the bytes that the sweep leaves behind."""
    checkpoint, model = (
        fmean(getattr(each.cost, name) for each in measured.timed) for name in ("checkpoint_bytes", "model_bytes")
    )
    # All images and either half of them choose an epoch each; two different ones are usual, one and three are possible.
    checkpoint += model
    metrics = len(_metric_names(measured))
    return {
        "checkpoints": round(trials * (min(KEPT, plan.epochs_per_trial) * checkpoint + model)),
        "ledger": round(_LEDGER_BYTES + metrics * (epochs + trials) * _LEDGER_VALUE_BYTES),  # with the final reports
        "mlflow": round(metrics * epochs * _MLFLOW_BYTES),
        "model": round(model) if plan.keep_models != "none" else 0,
    }


def _metric_names(measured: ProfileResult) -> list[str]:
    """Return the names of all numbers that any trial reports after an epoch."""
    names = dict.fromkeys(name for each in measured.timed for name in each.cost.report)
    return [name for name in names if name not in ("epoch", "final")]


def _remarks(plan: SweepPlan, measured: ProfileResult, trials: Span, idle: float, slowness: float) -> Iterator[str]:
    """Yield what a person should know before the sweep is run.

    Args:
        idle: expected seconds of the trials on an idle machine.
    """
    if slowness > _BUSY:
        yield (
            f"{OTHER_WORK}: all takes {slowness:.1f} times as long as on an idle machine; "
            f"there the trials would take about {duration(idle)}"
        )
    if plan.pack > 1:
        yield f"--pack {plan.pack}: its steps are {measured.pack_gain:.2g} times as fast as one trial after the other"
    largest, have = measured.footprint.host * measured.slots, sum(node.memory for node in measured.nodes)
    if 0 < have < largest:
        yield f"{measured.slots} trials take {size(largest)} of memory, of {size(have)}: give --max-concurrent auto"
    if measured.failed:
        known = len(measured.failed) + len(measured.timed)
        yield f"{len(measured.failed)} of {known} configurations could not be timed: {measured.failed[0]}"
    for option, limit in (
        ("--budget-epochs", plan.budget_epochs),
        ("--max-hours", plan.max_hours),
        ("--max-gpu-hours", plan.max_gpu_hours),
    ):
        if limit:
            ends = f"ends it after about {trials.expected:.0f} of {plan.trials} trials"
            yield f"{option} {limit:g}: {'all trials fit' if trials.expected >= plan.trials else ends}"
    if plan.stop_when_flat:
        yield f"--stop-when-flat {plan.stop_when_flat}: may end it from trial {plan.stop_when_flat + 1} on"
