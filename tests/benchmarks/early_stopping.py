"""Early stopping for several objectives: epochs to the hypervolume that no stopping ends with, over no stopping's.

Trials are simulated: ZDT1-3 (Zitzler et al. 2000) and DTLZ2 (Deb et al. 2002), both minimised, with learning curves
that are noisy and biased: some configurations begin far worse than they end, which ones depends on the configuration,
so that what looks bad early is not always bad. Decisions are those of `sweep.scheduler.Rungs`, the very code of a
sweep; each stopper gets the same budget of epochs, the same slots, and Optuna's samplers with the same seeds. Only
trials that ran to their end count for the front.

    python -m tests.benchmarks.early_stopping [SEEDS [SAMPLER ...]]
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweep.pareto import Front, Objectives
from sweep.scheduler import Rungs, rung_levels
from sweep.search import make_sampler
from tests.benchmarks.common import print_result, processor

SEEDS, SLOTS, EPOCHS, TRIALS = 10, 4, 27, 60
BUDGET = TRIALS * EPOCHS
"""Epochs of a sweep: enough for `TRIALS` trials if none is stopped."""

ETA, GRACE, VARIABLES = 2, 1, 2
BIAS, NOISE = 1.0, 0.3
"""At the first epoch, in units of an objective's spread over random configurations: mean bias, and noise."""

OBJECTIVES = Objectives(("f1", "f2"), (False, False), (1.1, 1.1))
DRAWS = 1000


@dataclass(frozen=True)
class Problem:
    """Two objectives (2,) of variables (n,) in [0, 1]."""

    name: str
    objectives: Callable[[np.ndarray], np.ndarray]
    best: float
    """The hypervolume of its whole front at (1.1, 1.1)."""


def zdt(second: Callable[[float, float], float]) -> Callable[[np.ndarray], np.ndarray]:
    def objectives(x: np.ndarray) -> np.ndarray:
        g = 1 + 9 * float(x[1:].mean())
        return np.array([x[0], g * second(x[0], g)])

    return objectives


def dtlz2(x: np.ndarray) -> np.ndarray:
    angle, g = x[0] * math.pi / 2, float(((x[1:] - 0.5) ** 2).sum())
    return (1 + g) * np.array([math.cos(angle), math.sin(angle)])


PROBLEMS = {
    each.name: each
    for each in [
        Problem("zdt1", zdt(lambda f, g: 1 - math.sqrt(f / g)), 0.8767),
        Problem("zdt2", zdt(lambda f, g: 1 - (f / g) ** 2), 0.5433),
        Problem("zdt3", zdt(lambda f, g: 1 - math.sqrt(f / g) - f / g * math.sin(10 * math.pi * f)), 1.3318),
        Problem("dtlz2", dtlz2, 0.4246),
    ]
}


@cache
def spread(name: str) -> np.ndarray:
    """The objectives' standard deviations (2,) over random configurations."""
    points = np.random.default_rng(0).random((1000, VARIABLES))
    return np.array([PROBLEMS[name].objectives(x) for x in points]).std(axis=0)


def curve(problem: Problem, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What a trial would report, (EPOCHS, 2): at the end its true objectives."""
    left = 1 - np.arange(1, EPOCHS + 1)[:, None] / EPOCHS
    slow = 1 + 0.9 * np.sin(9 * x.sum() + np.array([0.0, 2.0]))
    noise = NOISE * generator.standard_normal((EPOCHS, 2))
    return problem.objectives(x) + spread(problem.name) * left * (BIAS * slow * left + noise)


Stops = Callable[[int, int, np.ndarray], bool]
"""Whether a trial is stopped: its number, its epoch, and the objectives (2,) that it reports."""


def no_stopping(seed: int) -> Stops:
    return lambda trial, epoch, values: False


def random_stopping(seed: int) -> Stops:
    """At every rung all but 1/eta, by chance."""
    generator, levels = np.random.default_rng([seed, 1]), rung_levels(grace_epochs=GRACE, eta=ETA, epochs=EPOCHS)
    return lambda trial, epoch, values: epoch in levels and generator.random() > 1 / ETA


def stop_if_dominated(seed: int) -> Stops:
    """At every rung whoever is dominated by anybody who was there before."""
    rungs = fresh_rungs()

    def stops(trial: int, epoch: int, values: np.ndarray) -> bool:
        decision = rungs.decide(trial, str(trial), epoch, values.tolist())
        return decision is not None and bool(decision.dominated_by)

    return stops


def ours(seed: int, *, eta: int = ETA, grace: int = GRACE) -> Stops:
    rungs = fresh_rungs(eta=eta, grace=grace)

    def stops(trial: int, epoch: int, values: np.ndarray) -> bool:
        decision = rungs.decide(trial, str(trial), epoch, values.tolist())
        return decision is not None and decision.stop

    return stops


def fresh_rungs(*, eta: int = ETA, grace: int = GRACE) -> Rungs:
    return Rungs(OBJECTIVES, levels=rung_levels(grace_epochs=grace, eta=eta, epochs=EPOCHS), eta=eta)


class Stopper(NamedTuple):
    make: Callable[[int], Stops]
    told: TrialState = TrialState.PRUNED
    """What the sampler hears of a trial that was stopped: as in a sweep, or FAIL, which leaves it out."""


STOPPERS = {
    "none": Stopper(no_stopping),
    "random": Stopper(random_stopping),
    "if dominated": Stopper(stop_if_dominated),
    "ours": Stopper(ours),
    "ours, left out": Stopper(ours, TrialState.FAIL),
}

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: make_sampler("random", seed),
    "tpe": lambda seed: make_sampler("tpe", seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=16),
}


class Running(NamedTuple):
    trial: optuna.Trial
    reports: Iterator[tuple[int, np.ndarray]]


def simulate(problem: str, sampler: str, stopper: str, seed: int) -> np.ndarray:
    """One sweep: the hypervolume over the best possible, (BUDGET + 1,), after every epoch that any trial trained."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=[StudyDirection.MINIMIZE] * 2, sampler=SAMPLERS[sampler](seed))
    stops, front = STOPPERS[stopper].make(seed), Front(OBJECTIVES)
    volumes, running = np.zeros(BUDGET + 1), [start(study, problem, seed) for _ in range(SLOTS)]
    for spent in range(1, BUDGET + 1):
        slot = spent % SLOTS
        epoch, values = next(running[slot].reports)
        if epoch == EPOCHS:
            study.tell(running[slot].trial, values.tolist())
            front.add(values)
            running[slot] = start(study, problem, seed)
        elif stops(running[slot].trial.number, epoch, values):
            study.tell(running[slot].trial, state=STOPPERS[stopper].told)
            running[slot] = start(study, problem, seed)
        volumes[spent] = front.hypervolume
    return volumes / PROBLEMS[problem].best


def start(study: optuna.Study, problem: str, seed: int) -> Running:
    """The sampler's next trial; its noise hangs on its number alone."""
    trial = study.ask()
    x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(VARIABLES)])
    reports = curve(PROBLEMS[problem], x, np.random.default_rng([seed, 2, trial.number]))
    return Running(trial, iter(list(enumerate(reports, start=1))))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the width of its 95% interval, over seeds."""
    return float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values)))


def epochs_to_target(volumes: np.ndarray, baseline: np.ndarray) -> float:
    """Epochs until the mean curve of `volumes` (seeds, BUDGET + 1) reaches where that of no stopping ends, over those
    that no stopping itself takes; infinite if it does not within the budget."""
    target = baseline.mean(axis=0)[-1]
    reached = [np.flatnonzero(curves.mean(axis=0) >= target) for curves in (volumes, baseline)]
    return float(reached[0][0] / max(reached[1][0], 1)) if len(reached[0]) else math.inf


def ratio_interval(volumes: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
    """95% by bootstrap over seeds."""
    generator, count = np.random.default_rng(0), len(volumes)
    picks = generator.integers(0, count, (DRAWS, count))
    low, high = np.quantile(
        [epochs_to_target(volumes[p], baseline[p]) for p in picks], [0.025, 0.975], method="nearest"
    )
    return float(low), float(high)


def cases(samplers: list[str]) -> list[tuple[str, str, str]]:
    return [
        (sampler, problem, stopper)
        for sampler in samplers
        for problem in PROBLEMS
        for stopper in STOPPERS
        # Only TPE makes something of trials that were pruned.
        if sampler == "tpe" or stopper != "ours, left out"
    ]


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS
    wanted = cases(sys.argv[2:] or list(SAMPLERS))
    began = time.monotonic()
    print(f"machine: {processor()}, {os.cpu_count()} cores; python {platform.python_version()}, ", end="")
    print(f"optuna {importlib.metadata.version('optuna')}, numpy {np.__version__}")
    print(f"{seeds} seeds, {BUDGET} epochs, trials of {EPOCHS}, {SLOTS} slots, {VARIABLES} variables; ours: eta {ETA}")
    with ProcessPoolExecutor() as pool:
        futures = {
            case: [pool.submit(simulate, case[1], case[0], case[2], seed) for seed in range(seeds)] for case in wanted
        }
        volumes = {case: np.array([future.result() for future in each]) for case, each in futures.items()}
    print(f"\n{'sampler':9}{'problem':9}{'stopper':16}{'1/4 budget':>16}{'whole budget':>16}{'epochs to none':>24}")
    for case in wanted:
        sampler, problem, stopper = case
        baseline = volumes[sampler, problem, "none"]
        shares = ["{:.3f} ± {:.3f}".format(*interval(volumes[case][:, at])) for at in (BUDGET // 4, BUDGET)]
        low, high = ratio_interval(volumes[case], baseline)
        ratio = f"{epochs_to_target(volumes[case], baseline):.2f} [{low:.2f}, {high:.2f}]"
        print(f"{sampler:9}{problem:9}{stopper:16}{shares[0]:>16}{shares[1]:>16}{ratio:>24}")
    print("\nhypervolume over the whole front's, mean over seeds ± half its 95% interval; epochs: 95% by bootstrap")
    behind = [
        case[:2]
        for case in wanted
        if case[2] == "ours"
        for mean, half in [interval(volumes[case][:, -1] - volumes[*case[:2], "if dominated"][:, -1])]
        if mean + half < 0
    ]
    print(f"worse than 'if dominated' by more than the interval: {behind or 'nowhere'}")
    figures = [epochs_to_target(volumes[case], volumes[*case[:2], "none"]) for case in wanted if case[2] == "ours"]
    print(f"ours over none, epochs: median {np.median(figures):.2f}, worst {max(figures):.2f} of {len(figures)} cases")
    print(f"{time.monotonic() - began:.0f} s")
    print_result("early_stopping", float(np.median(figures)))


if __name__ == "__main__":
    main()
