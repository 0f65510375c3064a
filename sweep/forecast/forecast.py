"""What a sweep will take, told before anything is spent, and what it took beside that.

Everything here is arithmetic on what `rehearsal` measured. Of each quantity there are three values: the expected one,
and where it would lie if every drawn trial were as cheap, or as dear, as the space allows.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sweep.ledger import LedgerWriter, read_ledger
from sweep.plan import SweepPlan
from sweep.report import duration, trial_label
from trainer.config import TrialConfig

if TYPE_CHECKING:
    pass
from sweep.forecast.measured import ENDING_SECONDS, Packing, ProfileResult, TimedConfiguration
from sweep.forecast.quantities import EXPECTED, HIGH, HOUR, LOW, Span, size
from sweep.forecast.rungs import RungForecast, expected_rungs, length, may_be_drawn, mean_epochs, place, trial_lengths

_MLFLOW_BYTES = 330
"""Of a metric's value in MLflow's SQLite store, with all that comes with it: 33 MB per 1,000 runs of 100 values."""

KEPT_CHECKPOINTS = 2
"""As in `trainer.checkpoint`, which needs torch."""

_LEDGER_TRIALS, _LEDGER_EPOCHS = 20, 50
"""From so many trials, and at most so many epochs of each, the ledger's size is told."""

_PAYS = 1.2
"""The gain from which a pack is worth to wait for its slowest."""

_BUSY = 1.3
"""How much slower than an idle machine one is said to be busy."""


@dataclass(frozen=True)
class Forecast:
    """What a plan comes to. Seconds, hours, bytes and counts."""

    trials: Span
    """How many begin; fewer than planned only where a budget ends the sweep."""
    slots: int
    cpus: float
    gpus: float
    """Of the machine, or of all nodes."""
    epochs: Span
    """Of all trials together."""
    rungs: list[RungForecast]
    """With the end as the last one; empty where nobody is stopped early."""
    wall_seconds: Span
    """Of the whole command."""
    starting_seconds: float
    """Ray, and the workers' imports and data."""
    preparation: dict[str, float]
    """Seconds of the stages that the cache lacks."""
    running_seconds: Span
    """From the first trial's begin to the last one's end."""
    ending_seconds: float
    trial_seconds: Span
    """Of one trial: the cheapest, the mean of what was sampled, the dearest."""
    cpu_hours: Span
    gpu_hours: Span
    cheapest: dict[str, Any]
    """Configurations with their seconds: `configuration`, `step`, `judging_low`, `judging_high`, `trial`."""
    dearest: dict[str, Any]
    timed: int
    """How many configurations were."""
    memory: dict[str, int]
    """Bytes: `host` and `gpu` of a trial, `host_total` and `gpu_total` of what there is."""
    storage: dict[str, int]
    """Bytes: `checkpoints`, `ledger`, `mlflow`, and `model` of each model that MLflow is given."""
    logged: dict[str, Any]
    """What MLflow will hold, and where."""
    packing: Packing | None
    """What a pack would gain, or gains; None where trials can't be packed."""
    slowness: float
    """How many times as long all takes as on a machine where nothing else runs."""
    remarks: list[str]
    """What a person should know before it is run."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them; a span by its fields."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["rungs"] = [rung._asdict() for rung in self.rungs]
        return _plain(plain)


def _plain(value: Any) -> Any:
    if isinstance(value, (Span, Packing)):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def make_forecast(plan: SweepPlan, measured: ProfileResult) -> Forecast:
    """What the plan comes to on a machine as busy as it was when all was measured."""
    slowness = measured.slowness
    # In a pack a trial waits for its neighbours, but for what they gain from one another.
    company = plan.pack / measured.pack.gain if measured.pack and plan.pack > 1 else 1.0
    slowed = [each._replace(cost=each.cost.slowed(slowness * company)) for each in measured.timed]
    preparation = {stage: slowness * seconds for stage, seconds in measured.preparation.items()}
    measured = measured._replace(timed=slowed, preparation=preparation)
    rungs = expected_rungs(plan, measured.slots)
    per_trial = mean_epochs(plan, rungs)
    courses = [
        place(trial_lengths(plan, measured, per_trial[which], which), measured.slots, plan, low=which == LOW)
        for which in (LOW, EXPECTED, HIGH)
    ]
    running, held = (Span(*(getattr(course, name) for course in courses)) for name in ("seconds", "held"))
    trials = Span(*(course.trials for course in courses))
    epochs = Span(*(count * each for count, each in zip(trials, per_trial, strict=True)))
    starting = measured.ray_seconds + measured.worker_seconds
    drawn = may_be_drawn(measured)
    whole = [length(each, each.candidate.config["epochs"], EXPECTED) for each in drawn]
    order = sorted(range(len(drawn)), key=whole.__getitem__)
    seconds = held.expected / max(1, courses[EXPECTED].trials)
    return Forecast(
        trials=trials,
        slots=measured.slots,
        cpus=sum(node.cpus for node in measured.nodes),
        gpus=sum(node.gpus for node in measured.nodes),
        epochs=epochs,
        rungs=rungs,
        wall_seconds=running.plus(starting + sum(measured.preparation.values()) + ENDING_SECONDS),
        starting_seconds=starting,
        preparation=measured.preparation,
        running_seconds=running,
        ending_seconds=ENDING_SECONDS,
        trial_seconds=Span(
            min(length(each, per_trial[LOW], LOW) for each in measured.timed),
            seconds,
            max(length(each, per_trial[HIGH], HIGH) for each in measured.timed),
        ),
        cpu_hours=held.times(plan.cpu_share / HOUR),
        gpu_hours=held.times(plan.gpu_share / HOUR),
        cheapest=_described(plan, drawn[order[0]]),
        dearest=_described(plan, drawn[order[-1]]),
        timed=len(measured.timed),
        memory=_memory(measured),
        storage=_storage(plan, measured, epochs.expected, trials.expected),
        logged=_logged(plan, measured),
        packing=measured.pack,
        slowness=slowness,
        remarks=list(_remarks(plan, measured, trials, running.expected / slowness, slowness)),
    )


def _described(plan: SweepPlan, timed: TimedConfiguration) -> dict[str, Any]:
    """A configuration and what it costs."""
    config, cost = timed.candidate.config, timed.cost
    return {
        "label": trial_label(plan.space, config),
        "configuration": plan.space.point(config),
        "step": cost.step,
        "judging_low": cost.judging_low,
        "judging_high": cost.judging_high,
        "trial": length(timed, config["epochs"], EXPECTED),
    }


# ----------------------------------------------------------------------------------------------- memory, storage, logs


def _memory(measured: ProfileResult) -> dict[str, int]:
    footprint = measured.footprint
    return {
        "host": footprint.host,
        "host_total": sum(node.memory for node in measured.nodes),
        "gpu": footprint.gpu,
        "gpu_total": footprint.gpu_total,
    }


def _storage(plan: SweepPlan, measured: ProfileResult, epochs: float, trials: float) -> dict[str, int]:
    """Bytes that the sweep leaves behind."""
    checkpoint, model = (
        fmean(getattr(each.cost, name) for each in measured.timed) for name in ("checkpoint_bytes", "model_bytes")
    )
    kept = min(KEPT_CHECKPOINTS, plan.epochs_per_trial)
    values = len(_metric_names(measured)) * epochs
    return {
        "checkpoints": round(trials * (kept * checkpoint + model)),
        "ledger": round(ledger_bytes(plan, measured, epochs / max(1.0, trials)) * trials),
        "mlflow": round(values * _MLFLOW_BYTES),
        "model": round(model) if plan.keep_models != "none" else 0,
    }


def ledger_bytes(plan: SweepPlan, measured: ProfileResult, epochs: float) -> float:
    """Of one trial: from a ledger of a few, written as the sweep writes it, with the table that is made of it."""
    generator, count = random.Random(0), max(1, min(round(epochs), _LEDGER_EPOCHS))
    with tempfile.TemporaryDirectory(prefix="otsweep-ledger-") as scratch:
        folder = Path(scratch)
        with LedgerWriter(folder) as ledger:
            for number in range(_LEDGER_TRIALS):
                candidate, cost = measured.timed[number % len(measured.timed)]
                now = time.time() + number
                ledger.started(number, config=candidate.config, seed=0, attempt=1, host="", time=now)
                for epoch in range(count):
                    # No two numbers of a sweep are alike, so that they can't be pressed together.
                    said = {name: value * generator.random() for name, value in cost.report.items() if name != "final"}
                    ledger.reported(number, {**said, "epoch": epoch, "final": False}, time=now, held=now)
                ledger.ended(number, state="finished", time=now, held=now)
        read_ledger(folder).write_parquet(folder / "ledger.parquet")
        size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    return size / _LEDGER_TRIALS * epochs / count


def _metric_names(measured: ProfileResult) -> list[str]:
    """Of all that some trial says after an epoch."""
    names = dict.fromkeys(name for each in measured.timed for name in each.cost.report)
    return [name for name in names if name not in ("epoch", "final")]


def _logged(plan: SweepPlan, measured: ProfileResult) -> dict[str, Any]:
    """What MLflow will hold."""
    return {
        "mlflow_uri": plan.mlflow_uri,
        "experiment": plan.space.name,
        "runs": 1 + plan.trials,
        "metrics": _metric_names(measured),
        "parameters": list(TrialConfig.fields()),
        "artifacts": ["front/front.html", "front/front.png", "front/front.csv", "front/trials.json"],
        "models": plan.keep_models,
    }


def _remarks(plan: SweepPlan, measured: ProfileResult, trials: Span, idle: float, slowness: float) -> Iterator[str]:
    """What a person should know before it is run."""
    if slowness > _BUSY:
        yield (
            f"other work takes the processors: all takes {slowness:.1f} times as long as where nothing else runs; "
            f"there the trials would take about {duration(idle)}"
        )
    if measured.pack:
        yield _told_packing(*measured.pack)
    largest, have = measured.footprint.host * measured.slots, sum(node.memory for node in measured.nodes)
    if 0 < have < largest:
        yield f"{measured.slots} trials take {size(largest)} of memory, of {size(have)}: give --max-concurrent auto"
    if measured.failed:
        known = len(measured.failed) + len(measured.timed)
        yield f"{len(measured.failed)} of {known} configurations could not be timed: {measured.failed[0]}"
    for option, limit in (("--max-hours", plan.max_hours), ("--max-gpu-hours", plan.max_gpu_hours)):
        if limit:
            fits = trials.expected >= plan.trials
            said = "all trials fit" if fits else f"ends it after about {trials.expected:.0f} of {plan.trials} trials"
            yield f"{option} {limit:g}: {said}"
    if plan.stop_when_flat:
        yield f"--stop-when-flat {plan.stop_when_flat}: may end it from trial {plan.stop_when_flat + 1} on"


def _told_packing(lanes: int, gain: float) -> str:
    """Whether it is worth to pack, for people."""
    pays = "pays" if gain > _PAYS else "does not pay"
    return f"--pack {lanes} {pays} here: steps of {lanes} trials are {gain:.2g} times as fast as one after the other"
