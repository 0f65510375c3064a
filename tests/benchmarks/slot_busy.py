"""What share of the slots' time a sweep spends training and judging, beside a plain Ray Tune loop, in one run.

Both sweep the embedded digits in two slots with trials of about 20 seconds. A slot's time runs from the start of its
first trial to the end of its last: what is in it and is no epoch is the machinery's (worker processes, imports, data,
checkpoints, the driver between two reports). The plain loop is what one would write by hand: a function trainable with
OptunaSearch and MLflowLoggerCallback that loads its data and writes the same checkpoints.

    python -m tests.benchmarks.slot_busy [SECONDS_PER_TRIAL [TRIALS]]
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune

from search_spaces.reading import load_space
from sweep.ledger.reading import read_ledger
from tests.benchmarks.common import print_machine, print_result
from trainer.config import EvaluationConfig, TrialConfig

SLOTS, SECONDS, TRIALS, SEED = 2, 20.0, 16, 0
SPACE = """
description: trials of equal length
trials: {trials}
evaluation: {{dataset: digits}}
space:
  epochs: {epochs}
  cross_entropy_on: sensitivity
  sensitivity_epsilon: {{low: 0.1, high: 0.3}}
  learning_rate: {{low: 0.0003, high: 0.003, log: true}}
"""
OBJECTIVES = ["sensitivity_accuracy", "invariance_accuracy"]


class Held(NamedTuple):
    """A trial in its slot, in seconds."""

    start: float
    end: float
    busy: float
    """In epochs: training and judging."""


class Busy(NamedTuple):
    """What became of the slots' time."""

    share: float
    per_trial: float
    """Seconds of a trial's epochs."""
    first: float
    """Seconds that the first trials of the slots held them beside their epochs: processes, imports, data."""
    within: float
    """The same of later trials: checkpoints, the driver between two reports."""
    between: float
    """Seconds of a slot between two trials."""


def measure(trials: list[Held]) -> Busy:
    """The slots' time, each trial laid into the slot that was free the longest when it started."""
    slots: list[list[Held]] = [[] for _ in range(SLOTS)]
    for trial in sorted(trials):
        min(slots, key=lambda slot: slot[-1].end if slot else 0.0).append(trial)
    used = [slot for slot in slots if slot]
    total = sum(slot[-1].end - slot[0].start for slot in used)
    beside = [[trial.end - trial.start - trial.busy for trial in slot] for slot in used]
    later = [seconds for slot in beside for seconds in slot[1:]]
    gaps = [after.start - before.end for slot in used for before, after in zip(slot, slot[1:], strict=False)]
    return Busy(
        share=sum(trial.busy for trial in trials) / total,
        per_trial=sum(trial.busy for trial in trials) / len(trials),
        first=sum(slot[0] for slot in beside) / len(used),
        within=sum(later) / max(1, len(later)),
        between=sum(gaps) / max(1, len(gaps)),
    )


def ours(folder: Path) -> list[Held]:
    """The sweep by the command, as its ledger tells."""
    words = ["run", str(folder / "space.yaml"), "--name", "ours", "--max-concurrent", str(SLOTS), "--seed", str(SEED)]
    subprocess.run(
        [sys.executable, "-m", "sweep", *words, "--storage", str(folder)], check=True, stdout=subprocess.DEVNULL
    )
    return [
        Held(record.started or 0.0, record.ended or 0.0, sum(map(epoch_seconds, record.reports)))
        for record in read_ledger(folder / "ours").trials.values()
    ]


def epoch_seconds(report: dict[str, Any]) -> float:
    """Of an epoch's report; the final one repeats an earlier epoch."""
    return 0.0 if report["final"] else report["train_seconds"] + report["evaluation_seconds"]


class Watch(tune.Callback):
    """When each trial of the plain loop held its slot."""

    def __init__(self, path: Path) -> None:
        self.path, self.starts, self.busy, self.held = path, {}, {}, []

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.starts[trial.trial_id], self.busy[trial.trial_id] = time.time(), 0.0

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        self.busy[trial.trial_id] += epoch_seconds(result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.held.append(Held(self.starts[trial.trial_id], time.time(), self.busy[trial.trial_id]))
        self.path.write_text(json.dumps(self.held))


def proposed(trial: Any) -> dict[str, Any]:
    """The space, as OptunaSearch asks for it."""
    return {"settings": load_space(os.environ["SLOT_BUSY_SPACE"]).sample(trial)}


def plain_trial(config: dict[str, Any]) -> None:
    import torch

    from trainer.files.checkpoints import FolderStore
    from trainer.invariance.preparation import prepare
    from trainer.training.loop import run_trial

    torch.set_num_threads(1)
    evaluation, folder = EvaluationConfig(dataset="digits"), Path(os.environ["SLOT_BUSY_FOLDER"])
    prepared = prepare(evaluation, cache_dir=folder / "cache")
    store = FolderStore(folder / "plain-trials" / tune.get_context().get_trial_id())
    for report in run_trial(TrialConfig(**config["settings"]), evaluation, prepared, store=store):
        tune.report(report.to_dict())


def run_plain(folder: Path) -> None:
    """The loop that one would write by hand; in a process of its own."""
    import optuna
    import ray
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=SEED)
    search = OptunaSearch(proposed, metric=OBJECTIVES, mode=["max", "max"], sampler=sampler)
    logger = MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder / 'plain.db'}", experiment_name="plain")
    tune.Tuner(
        tune.with_resources(plain_trial, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=load_space(os.environ["SLOT_BUSY_SPACE"]).trials,
            max_concurrent_trials=SLOTS,
        ),
        run_config=tune.RunConfig(
            name="plain", storage_path=str(folder), callbacks=[Watch(folder / "plain.json"), logger], verbose=0
        ),
    ).fit()


def plain(folder: Path) -> list[Held]:
    """The same sweep by the plain loop."""
    environment = os.environ | {"SLOT_BUSY_FOLDER": str(folder), "SLOT_BUSY_SPACE": str(folder / "space.yaml")}
    command = [sys.executable, "-m", "tests.benchmarks.slot_busy", "--plain", str(folder)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [Held(*each) for each in json.loads((folder / "plain.json").read_text())]


def seconds_per_epoch(folder: Path) -> float:
    """Of one trial of the space alone, when everything is warm; fills the cache of what all trials share."""
    import torch

    from trainer.invariance.preparation import prepare
    from trainer.training.loop import run_trial

    torch.set_num_threads(1)
    evaluation = EvaluationConfig(dataset="digits")
    config = TrialConfig(clean_ce_weight=0.0, sensitivity_ce_weight=1.0, epochs=3)
    reports = list(run_trial(config, evaluation, prepare(evaluation, cache_dir=folder / "cache")))
    return epoch_seconds(reports[-2].to_dict())


def main(words: list[str]) -> None:
    seconds, trials = float(words[0]) if words else SECONDS, int(words[1]) if len(words) > 1 else TRIALS
    print_machine("ray", "optuna", "mlflow")
    with tempfile.TemporaryDirectory(prefix="slot-busy-") as scratch:
        folder = Path(scratch)
        epochs = max(2, round(seconds / seconds_per_epoch(folder)))
        (folder / "space.yaml").write_text(SPACE.format(trials=trials, epochs=epochs))
        print(f"\n{trials} trials of {epochs} epochs in {SLOTS} slots; seconds of a slot\n")
        print(f"{'':24}{'busy':>8}{'a trial':>10}{'first, beside':>16}{'later, beside':>16}{'between':>10}")
        found = {}
        for name, run in {"otsweep": ours, "plain Ray Tune loop": plain}.items():
            found[name] = measure(run(folder))
            share, *rest = found[name]
            widths = (10, 16, 16, 10)
            print(f"{name:24}{share:>8.3f}" + "".join(f"{s:>{w}.2f}" for s, w in zip(rest, widths, strict=True)))
    print_result("slot_busy", found["otsweep"].share)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        run_plain(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
