"""What people call often, on a sweep of 10,000 trials: seconds and memory of `front`, `replay`, `compare` and `sync`.

Two such sweeps are made: ten epochs each on curves that are drawn, the answers to 300 judged images kept, half of the
trials stopped early as a rung would. Each command then runs in a process of its own, as a user calls it; the first
`sync` goes into an empty SQLite store. The aims are those of a screen that one waits for, and of a coffee.

    python -m tests.benchmarks.commands_at_scale [TRIALS] [COMMAND ...]
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.reading import load_space
from sweep.ledger.writing import LedgerWriter
from sweep.plan.from_options import make_plan
from sweep.plan.plan_file import write_plan
from sweep.state.judged import JUDGED_IMAGES, JudgedImages
from tests.benchmarks.common import curve, print_machine, print_result
from tests.support.tuned_search import TunedSearch
from trainer.answers import Answers

TRIALS, EPOCHS, IMAGES, CLASSES = 10_000, 10, 300, 10
AIMS = {"front": (3, 500), "replay": (10, 500), "compare": (10, 500), "sync": (300, 1000)}
"""Seconds and megabytes at most."""


def judged(generator: np.random.Generator) -> JudgedImages:
    labels = generator.integers(0, CLASSES, IMAGES)
    shares = generator.dirichlet(np.full(CLASSES, 0.3), IMAGES).astype(np.float32)
    return JudgedImages(np.arange(IMAGES), labels, {"strict": shares, "lenient": shares[::-1].copy()})


def answers(generator: np.random.Generator, images: JudgedImages, robust: float, follows: float) -> str:
    right = generator.random(IMAGES) < 0.95
    changed = generator.random(IMAGES) < follows
    perturbed = np.where(changed, images.shares["strict"].argmax(axis=1), images.labels)
    return Answers(right, right & (generator.random(IMAGES) < robust), perturbed.astype(np.uint8), right).encode()


def reports(number: int, images: JudgedImages, seed: int) -> Iterator[dict[str, Any]]:
    """A trial's reports, the final one among them unless it is stopped, as every second is after two epochs."""
    whole, generator = curve(seed, number, EPOCHS), np.random.default_rng((seed, number, 1))
    for report in itertools.islice(whole, 2) if number % 2 == 1 else whole:
        told = report | {"invariance_changed_mass": 90.0, "invariance_effective_size": 80.0}
        if report["final"]:
            right = (report["sensitivity_accuracy"], report["invariance_accuracy"])
            told["answers"] = answers(generator, images, *right)
        yield told


def make(storage: Path, name: str, *, trials: int, seed: int) -> None:
    """Make a sweep that has ended."""
    options = {"trials": trials, "epochs": EPOCHS, "seed": seed, "keep_models": "none", "sampler": "random"}
    uri = f"sqlite:///{storage}/mlflow.db"
    plan = write_plan(make_plan(load_space("digits"), name=name, storage=str(storage), mlflow_uri=uri, **options))
    images = judged(np.random.default_rng(0))
    (plan.folder / JUDGED_IMAGES).write_bytes(images.to_bytes())
    search = TunedSearch(plan.space, plan.objectives, sampler="random", seed=seed, configurations=trials)
    moment = time.time() - trials
    with without_fsync(), LedgerWriter(plan.folder) as ledger:
        for number in range(trials):
            config = search.suggest(str(number))["config"]
            at = moment + number
            ledger.started(number, config=config, seed=seed, attempt=1, host="node", time=at)
            final = False
            for step, report in enumerate(reports(number, images, seed)):
                ledger.reported(number, {**report, "time": at + step}, time=at + step, slot_seconds=1.5 * step)
                final |= report["final"]
            ledger.ended(number, state="finished" if final else "stopped", reason="", time=at + EPOCHS)


class without_fsync:  # noqa: N801 - a context, of this file alone
    """Makes the ledger in a minute instead of an hour; nobody needs it after a power cut."""

    def __enter__(self) -> None:
        self.fsync, os.fsync = os.fsync, lambda descriptor: None

    def __exit__(self, *_: object) -> None:
        os.fsync = self.fsync


@dataclasses.dataclass
class Cost:
    seconds: float
    cpu_seconds: float
    megabytes: float


# A process of its own, which is small: what a process takes counts from what the one that started it had taken.
RUN_AND_MEASURE = """
import resource, subprocess, sys, time
begun = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
sys.exit(done.returncode)
"""


def measured(storage: Path, *words: str) -> Cost:
    """What a command took that ended well."""
    command = [sys.executable, "-m", "sweep", *words, "--storage", str(storage)]
    done = subprocess.run([sys.executable, "-c", RUN_AND_MEASURE, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return Cost(*map(float, done.stdout.split()))


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    commands = {"front": ("front", "a"), "replay": ("replay", "a"), "compare": ("compare", "a", "b")}
    commands["sync"] = ("sync", "a")
    chosen = sys.argv[2:] or list(commands)
    print_machine("pyarrow", "mlflow")
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        for seed, name in enumerate("ab"):
            make(storage, name, trials=trials, seed=seed)
        print(
            f"{trials} trials\n{'command':10}{'seconds':>10}{'of a CPU':>10}{'aim':>8}{'MB':>8}{'aim':>8}", flush=True
        )
        shares = []
        for name in chosen:
            cost, (seconds, megabytes) = measured(storage, *commands[name]), AIMS[name]
            shares.append(cost.cpu_seconds / seconds)
            print(
                f"{name:10}{cost.seconds:10.1f}{cost.cpu_seconds:10.1f}{seconds:8}{cost.megabytes:8.0f}{megabytes:8}",
                flush=True,
            )
    print_result("commands_at_scale", max(shares))


if __name__ == "__main__":
    main()
