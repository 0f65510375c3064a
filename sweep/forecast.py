"""What a sweep will take, told before anything is spent, and what it took beside that.

Everything here is arithmetic on what `rehearsal` measured. Of each quantity there are three values: the expected one,
and where it would lie if every drawn trial were as cheap, or as dear, as the space allows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import heapq
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table
from rich.text import Text

from sweep.ledger import LedgerWriter, read_ledger
from sweep.mirror import pull, push
from sweep.plan import SweepPlan
from sweep.results import Results
from sweep.screen import duration
from sweep.tables import label
from trainer.config import InputError, TrialConfig
from trainer.cost import Cost
from trainer.durable import write_whole

if TYPE_CHECKING:
    from sweep.slots import Node
    from sweep.trainable import Footprint

FORECAST = "forecast.json"
"""In a sweep's folder: in how many slots it runs, and what was planned, if anybody asked."""

LOW, EXPECTED, HIGH = range(3)

STANDING = (0.0, 0.25, 1.0)
"""How far the judging of a trial's epochs lies between that of models that fall at once and of models that never do.
Expected: 0.22 in the recorded sweep of the digits (tests/recorded/digits24), whose models withstood 0.14 on average."""

REPORT_SECONDS = 0.015
"""From the end of an epoch to the next one's begin, beside the checkpoint: through Ray to the driver, into the ledger,
and back."""

BETWEEN_SECONDS = 0.05
"""Of a trial's end, and from there to the next one's first epoch on the same worker. Both as in that recorded sweep."""

ENDING_SECONDS = 15.0
"""After the last trial: what MLflow lacks is written, and the front's models, galleries and pictures are made. On the
digits, on 2 cores."""

MLFLOW_BYTES = 330
"""Of a metric's value in MLflow's SQLite store, with all that comes with it: 33 MB per 1,000 runs of 100 values."""

KEPT_CHECKPOINTS = 2
"""As in `trainer.checkpoint`, which needs torch."""

LEDGER_TRIALS, LEDGER_EPOCHS = 20, 50
"""From so many trials, and at most so many epochs of each, the ledger's size is told."""

PAYS = 1.2
"""The gain from which a pack is worth to wait for its slowest."""

BUSY = 1.3
"""How much slower than an idle machine one is said to be busy."""

HOUR = 3600.0


class Span(NamedTuple):
    """A quantity as it may turn out."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Span:
        return Span(*(factor * value for value in self))

    def plus(self, other: float) -> Span:
        return Span(*(value + other for value in self))


class Candidate(NamedTuple):
    """A configuration that is to be timed."""

    config: dict[str, Any]
    point: int | None = None
    """Its place among the given points; None where it may be drawn."""
    drawn: bool = False
    """Whether it was drawn at random, so that others like it are to be expected; else it is a corner or a point."""


class Timed(NamedTuple):
    """A configuration, and what a trial of it takes."""

    candidate: Candidate
    cost: Cost


class Packing(NamedTuple):
    """What trials gain from a pack."""

    lanes: int
    """How many were tried in one: the plan's, else a few."""
    gain: float
    """How many times faster their steps are than one after the other."""


class Rehearsed(NamedTuple):
    """What was measured."""

    timed: list[Timed]
    failed: list[str]
    """Why others could not be timed."""
    slots: int
    """How many trials run at once."""
    nodes: list[Node]
    ray_seconds: float
    """Until Ray ran."""
    worker_seconds: float
    """Until the slots' workers had torch and the data."""
    preparation: dict[str, float]
    """Seconds of a core that its missing stages would take; empty where all is in the cache."""
    footprint: Footprint
    """Of the largest trial."""
    pack: Packing | None = None
    """None where a configuration can't be packed."""

    @property
    def slowness(self) -> float:
        """How many times as long all takes as on a machine where nothing else runs; 1 where that is not known."""
        return max(1.0, sum(each.cost.wall for each in self.timed) / sum(each.cost.timed for each in self.timed))


class Rung(NamedTuple):
    """Where trials are compared, or where they end."""

    epoch: int
    reach: Span
    """How many come there."""


class Course(NamedTuple):
    """Trials laid into slots."""

    seconds: float
    """From the first one's begin to the last one's end."""
    held: float
    """That they hold their slots, all together."""
    trials: int
    """How many begin."""


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
    rungs: list[Rung]
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


def make_forecast(plan: SweepPlan, measured: Rehearsed) -> Forecast:
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
        cheapest=described(plan, drawn[order[0]]),
        dearest=described(plan, drawn[order[-1]]),
        timed=len(measured.timed),
        memory=memory(measured),
        storage=storage(plan, measured, epochs.expected, trials.expected),
        logged=logged(plan, measured),
        packing=measured.pack,
        slowness=slowness,
        remarks=list(remarks(plan, measured, trials, running.expected / slowness, slowness)),
    )


# ------------------------------------------------------------------------------------------------------------ epochs


def expected_rungs(plan: SweepPlan, slots: int) -> list[Rung]:
    """The rungs of the plan's stopper, and the end, with who comes there."""
    from sweep.scheduler import rung_levels

    if plan.stopper != "asha":
        return []
    rungs, reach = [], Span(*[float(plan.trials)] * 3)
    for level in rung_levels(grace_epochs=plan.grace_epochs, eta=plan.eta, epochs=plan.epochs_per_trial):
        rungs.append(Rung(level, reach))
        reach = Span(*(survivors(count, plan, slots)[which] for which, count in enumerate(reach)))
    return [*rungs, Rung(plan.epochs_per_trial, reach)]


def survivors(count: float, plan: SweepPlan, slots: int) -> Span:
    """Of so many trials that come to a rung, how many go on.

    Of arrivals in random order so many are expected: the i-th to come is at any place among the i so far alike, and
    ceil(i / eta) places let it go on (see `scheduler.behind`). The best 1/eta would, were all ranked at once; and all
    do where none dominates another. Seeds of a configuration go on together. Unless all who are behind are stopped, the
    first go on whatever they bring, until enough have finished to tell what may become of them.
    """
    from sweep.scheduler import CHANGES

    groups = max(1, round(count / plan.seeds))
    if groups < plan.eta:
        return Span(count, count, count)
    first = plan.eta if plan.stop_chance == 1 else max(plan.eta, slots + CHANGES)
    random_order = sum(1 if i < first else math.ceil(i / plan.eta) / i for i in range(1, groups + 1))
    return Span(
        min(count, plan.seeds * math.ceil(groups / plan.eta)), min(count, plan.seeds * random_order), float(count)
    )


def mean_epochs(plan: SweepPlan, rungs: Sequence[Rung]) -> Span:
    """Epochs of a trial on average, stopped ones among them."""
    if not rungs:
        return Span(*[float(plan.epochs_per_trial)] * 3)
    # Whoever comes to a rung has trained from the one before on.
    before = [0, *(rung.epoch for rung in rungs[:-1])]
    pairs = [(rung.epoch - epoch, rung.reach) for epoch, rung in zip(before, rungs, strict=True)]
    return Span(*(sum(epochs * reach[which] for epochs, reach in pairs) / plan.trials for which in range(3)))


# -------------------------------------------------------------------------------------------------------------- time


def length(timed: Timed, epochs: float, which: int) -> float:
    """Seconds for which a trial of so many epochs holds its slot."""
    cost = timed.cost
    return cost.beginning + epochs * (cost.epoch(STANDING[which]) + REPORT_SECONDS) + BETWEEN_SECONDS


def may_be_drawn(measured: Rehearsed) -> list[Timed]:
    """What was timed and may be drawn; where nothing is drawn, the points."""
    return [each for each in measured.timed if each.candidate.point is None] or measured.timed


def trial_lengths(plan: SweepPlan, measured: Rehearsed, epochs: float, which: int) -> list[float]:
    """Seconds of every trial, in the order in which they begin: the given points, then what is drawn."""
    whole = [length(each, epochs, which) for each in may_be_drawn(measured)]
    drawn = {LOW: [min(whole)], EXPECTED: sampled(measured, epochs), HIGH: [max(whole)]}[which]
    points = {each.candidate.point: length(each, epochs, which) for each in measured.timed}
    configurations = [points.get(number, drawn[number % len(drawn)]) for number in range(plan.configurations)]
    return [seconds for seconds in configurations for _ in range(plan.seeds)]


def sampled(measured: Rehearsed, epochs: float) -> list[float]:
    """Seconds of the configurations that were drawn as a sweep draws at its begin; without any, of all that may be."""
    drawn = [each for each in measured.timed if each.candidate.drawn]
    return [length(each, epochs, EXPECTED) for each in drawn or may_be_drawn(measured)]


def place(lengths: Sequence[float], slots: int, plan: SweepPlan, *, low: bool = False) -> Course:
    """Trials one after the other, each into the slot that is free first, until one of the plan's budgets is spent.

    Args:
        lengths: of each trial, in seconds.
        low: whether the sweep ends as early as `--stop-when-flat` allows; else it never does.
    """
    earliest = plan.stop_when_flat + slots if plan.stop_when_flat and low else len(lengths)
    free, held, begun = [0.0] * slots, 0.0, 0
    for seconds in lengths[:earliest]:
        start = free[0]
        gpu_hours = plan.gpu_share * (held + seconds) / HOUR
        if (plan.max_hours and start >= plan.max_hours * HOUR) or (
            plan.max_gpu_hours and begun and gpu_hours > plan.max_gpu_hours
        ):
            break
        heapq.heapreplace(free, start + seconds)
        held, begun = held + seconds, begun + 1
    return Course(max(free), held, begun)


def described(plan: SweepPlan, timed: Timed) -> dict[str, Any]:
    """A configuration and what it costs."""
    config, cost = timed.candidate.config, timed.cost
    return {
        "label": label(plan.space, config),
        "configuration": plan.space.point(config),
        "step": cost.step,
        "judging_low": cost.judging_low,
        "judging_high": cost.judging_high,
        "trial": length(timed, config["epochs"], EXPECTED),
    }


# ----------------------------------------------------------------------------------------------- memory, storage, logs


def memory(measured: Rehearsed) -> dict[str, int]:
    footprint = measured.footprint
    return {
        "host": footprint.host,
        "host_total": sum(node.memory for node in measured.nodes),
        "gpu": footprint.gpu,
        "gpu_total": footprint.gpu_total,
    }


def storage(plan: SweepPlan, measured: Rehearsed, epochs: float, trials: float) -> dict[str, int]:
    """Bytes that the sweep leaves behind."""
    checkpoint, model = (
        fmean(getattr(each.cost, name) for each in measured.timed) for name in ("checkpoint_bytes", "model_bytes")
    )
    kept = min(KEPT_CHECKPOINTS, plan.epochs_per_trial)
    values = len(metric_names(measured)) * epochs
    return {
        "checkpoints": round(trials * (kept * checkpoint + model)),
        "ledger": round(ledger_bytes(plan, measured, epochs / max(1.0, trials)) * trials),
        "mlflow": round(values * MLFLOW_BYTES),
        "model": round(model) if plan.keep_models != "none" else 0,
    }


def ledger_bytes(plan: SweepPlan, measured: Rehearsed, epochs: float) -> float:
    """Of one trial: from a ledger of a few, written as the sweep writes it, with the table that is made of it."""
    generator, count = random.Random(0), max(1, min(round(epochs), LEDGER_EPOCHS))
    with tempfile.TemporaryDirectory(prefix="otsweep-ledger-") as scratch:
        folder = Path(scratch)
        with LedgerWriter(folder) as ledger:
            for number in range(LEDGER_TRIALS):
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
    return size / LEDGER_TRIALS * epochs / count


def metric_names(measured: Rehearsed) -> list[str]:
    """Of all that some trial says after an epoch."""
    names = dict.fromkeys(name for each in measured.timed for name in each.cost.report)
    return [name for name in names if name not in ("epoch", "final")]


def logged(plan: SweepPlan, measured: Rehearsed) -> dict[str, Any]:
    """What MLflow will hold."""
    return {
        "mlflow_uri": plan.mlflow_uri,
        "experiment": plan.space.name,
        "runs": 1 + plan.trials,
        "metrics": metric_names(measured),
        "parameters": list(TrialConfig.fields()),
        "artifacts": ["front/front.html", "front/front.png", "front/front.csv", "front/trials.json"],
        "models": plan.keep_models,
    }


def remarks(plan: SweepPlan, measured: Rehearsed, trials: Span, idle: float, slowness: float) -> Iterator[str]:
    """What a person should know before it is run."""
    if slowness > BUSY:
        yield (
            f"other work takes the processors: all takes {slowness:.1f} times as long as where nothing else runs; "
            f"there the trials would take about {duration(idle)}"
        )
    if measured.pack:
        yield told_packing(*measured.pack)
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


def told_packing(lanes: int, gain: float) -> str:
    """Whether it is worth to pack, for people."""
    pays = "pays" if gain > PAYS else "does not pay"
    return f"--pack {lanes} {pays} here: steps of {lanes} trials are {gain:.2g} times as fast as one after the other"


# -------------------------------------------------------------------------------------------------------- for people


def forecast_table(plan: SweepPlan, forecast: Forecast) -> Table:
    """For a terminal: what is asked, and the answer."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for heading, text in lines(plan, forecast):
        table.add_row(heading, Text(text))
    return table


def headline(plan: SweepPlan, forecast: Forecast) -> str:
    """What the plan asks for."""
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


def lines(plan: SweepPlan, forecast: Forecast) -> Iterator[tuple[str, str]]:
    """Heading and text of every line."""
    yield "time", in_time(forecast.wall_seconds)
    yield "  starting", duration(forecast.starting_seconds)
    missing = sum(forecast.preparation.values())
    stages = sorted(forecast.preparation, key=forecast.preparation.__getitem__, reverse=True)
    yield "  preparing", f"{duration(missing)}, once: {', '.join(stages)}" if missing else "0:00, all is in the cache"
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
    yield "memory", told_memory(forecast)
    kept = forecast.storage
    model = f", and {size(kept['model'])} for each model of {KEPT[plan.keep_models]}" if kept["model"] else ""
    whole = kept["checkpoints"] + kept["ledger"] + kept["mlflow"]
    yield (
        "storage",
        (
            f"{size(whole)}: checkpoints {size(kept['checkpoints'])}, ledger {size(kept['ledger'])}, MLflow "
            f"{size(kept['mlflow'])}{model}"
        ),
    )
    logged = forecast.logged
    yield (
        "logged",
        (
            f"MLflow experiment {logged['experiment']!r}, {logged['runs']} runs: {len(logged['parameters'])} "
            f"parameters a trial, {len(logged['metrics'])} metrics an epoch, the front as table, picture and page"
        ),
    )
    yield "  at", logged["mlflow_uri"]
    for remark in forecast.remarks:
        yield "note", remark


KEPT = {"front": "the front", "all": "a trial that finishes", "none": ""}


def told_memory(forecast: Forecast) -> str:
    host, total, slots = forecast.memory["host"], forecast.memory["host_total"], forecast.slots
    told = f"{size(host)} a trial, {size(host * slots)} of {size(total)} at once"
    gpu = forecast.memory["gpu"]
    return f"{told}; of a GPU's {size(forecast.memory['gpu_total'])} {size(gpu)} a trial" if gpu else told


def in_time(span: Span) -> str:
    """`1:52 (1:20 to 3:40)`."""
    return told(*map(duration, span))


def in_hours(span: Span) -> str:
    return told(*(f"{hours:.2g}" for hours in span))


def in_counts(span: Span) -> str:
    return told(*(f"{count:,.0f}" for count in span))


def told(low: str, expected: str, high: str) -> str:
    return expected if low == expected == high else f"{expected} ({low} to {high})"


def size(count: float) -> str:
    """`640 KB`, `12 MB`, `2.3 GB`."""
    unit, count = "KB", count / 1000
    for larger in ("MB", "GB"):
        if count >= 999.5:
            unit, count = larger, count / 1000
    return f"{count:.2g} {unit}" if count < 9.95 else f"{count:.0f} {unit}"


# ------------------------------------------------------------------------------------------------ beside what it took


def keep(plan: SweepPlan, forecast: Forecast) -> None:
    """Keep a forecast in the storage's cache, where a sweep of the same plan finds it."""
    path = kept_at(plan)
    write_whole(path, json.dumps(forecast.to_dict(), indent=2).encode())
    push(path)


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


def begin(plan: SweepPlan, slots: int) -> None:
    """Put beside a sweep, which begins or goes on, in how many slots it runs and what was planned for these. Whatever
    refuses that, the sweep runs without."""
    with contextlib.suppress(OSError, InputError):
        path, kept = plan.folder / FORECAST, kept_at(plan)
        pull(plan.cache_dir, only=kept.name)
        planned = read(path).get("planned") or read(kept) or None
        if planned and plan.measure_memory:
            slots = planned["slots"]  # this sweep finds out later
        write_whole(path, json.dumps({"slots": slots, "planned": planned}, indent=2).encode())
        push(path)


def read(path: Path) -> dict[str, Any]:
    """What a file tells; nothing where it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def took(plan: SweepPlan, results: Results) -> str:
    """What the trials of a sweep took, all its runs together, beside what was planned; without a plan beside what the
    first tenth of them made one expect. Empty while none has ended.

    Told by the seconds that trials held their slots, which no pause between two runs is in.
    """
    known = read(plan.folder / FORECAST)
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
