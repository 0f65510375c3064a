"""Early stopping for several objectives: epochs to the hypervolume that no stopping ends with, over no stopping's.

Trials are simulated: ZDT1-3 (Zitzler et al. 2000) and DTLZ2 (Deb et al. 2002), both minimised, with learning curves
that are noisy and biased: some configurations begin far worse than they end, which ones depends on the configuration,
so that what looks bad early is not always bad. Beside them real trials, recorded with all their epochs: `digits`, 88
trials of the digits space; a configuration that a sampler draws reports as the recorded one nearest to it. And the
trials of studies: `digits480` of 10 epochs, `mnist73` of 8, which is short; each is drawn once at most. Their ends are
judged by stronger attacks than their epochs, as in any sweep.

Decisions are those of `Rungs` and `FreezeThaw`, the very code of a sweep; each stopper gets the same budget of epochs,
the same slots, and Optuna's samplers with the same seeds. Only trials that ran to their end count for the front. The
oracle pauses and thaws by the same rule, but knows from the first rung on how every trial ends: what a better forecast
could reach.

    python -m tests.benchmarks.early_stopping [SEEDS [SAMPLER,... [none,STOPPER,...]]]
    python -m tests.benchmarks.early_stopping record    # the 88 trials anew: about an hour on 2 cores
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pyarrow.compute as pc
import pyarrow.parquet as pq
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search_spaces.reading import load_space
from search_spaces.space import Space
from search_spaces.swept import Range
from sweep.front.incremental import Front
from sweep.front.objectives import Objectives
from sweep.front.pareto import hypervolume
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SweepPlan
from sweep.search.decision import NEW, Decision
from sweep.search.freeze_thaw import FreezeThaw
from sweep.search.rungs import Rungs, rung_levels
from sweep.search.samplers import make_sampler
from tests.benchmarks.common import print_result, processor
from tests.benchmarks.recorded_curves import Course, RecordedTrials

SEEDS, SLOTS, VARIABLES = 10, 4, 2
ETA, GRACE, CHANCE = (SweepPlan.__dataclass_fields__[name].default for name in ("eta", "grace_epochs", "stop_chance"))
BIAS, NOISE = 1.0, 0.3
"""At the first epoch, in units of an objective's spread over random configurations: mean bias, and noise."""

MINIMISED = Objectives(("f1", "f2"), (False, False), (1.1, 1.1))
DRAWS = 1000

RECORDED = Path(__file__).parents[1] / "recorded"
SPACE, CURVES = RECORDED / "digits400.yaml", RECORDED / "digits400.parquet"
RECORDED_EPOCHS = 16


@dataclass(frozen=True)
class Problem:
    """What a sampler draws, and what the trial that it draws would say."""

    name: str
    draw: Callable[[optuna.Trial, np.random.Generator, set[int]], Course]
    """Takes the random numbers of a trial's noise, and the recorded trials drawn before, to which it adds."""
    best: float
    """The hypervolume of its whole front."""

    epochs: int = 27
    trials: int = 60
    """Budget of a sweep: epochs of so many whole trials."""
    objectives: Objectives = MINIMISED

    @property
    def budget(self) -> int:
        return self.trials * self.epochs


Function = Callable[[np.ndarray], np.ndarray]
"""Two objectives (2,) of variables (n,) in [0, 1]."""


def simulated(name: str, function: Function, best: float) -> Problem:
    points = np.random.default_rng(0).random((1000, VARIABLES))
    spread = np.array([function(x) for x in points]).std(axis=0)

    def draw(trial: optuna.Trial, generator: np.random.Generator, used: set[int]) -> Course:
        x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(VARIABLES)])
        reports = curve(function(x), x, spread, 27, generator)
        return Course(trial.params, reports, reports[-1])

    return Problem(name, draw, best)


def curve(
    end: np.ndarray, x: np.ndarray, spread: np.ndarray, epochs: int, generator: np.random.Generator
) -> np.ndarray:
    """A biased, noisy way (epochs, 2) to the true objectives; `spread` (2,) is their deviation over configurations."""
    left = 1 - np.arange(1, epochs + 1)[:, None] / epochs
    slow = 1 + 0.9 * np.sin(9 * x.sum() + np.array([0.0, 2.0]))
    noise = NOISE * generator.standard_normal((epochs, 2))
    return end + spread * left * (BIAS * slow * left + noise)


def zdt(second: Callable[[float, float], float]) -> Callable[[np.ndarray], np.ndarray]:
    def objectives(x: np.ndarray) -> np.ndarray:
        g = 1 + 9 * float(x[1:].mean())
        return np.array([x[0], g * second(x[0], g)])

    return objectives


def dtlz2(x: np.ndarray) -> np.ndarray:
    angle, g = x[0] * math.pi / 2, float(((x[1:] - 0.5) ** 2).sum())
    return (1 + g) * np.array([math.cos(angle), math.sin(angle)])


@cache
def recorded_trials() -> list[Course]:
    rows = pq.read_table(CURVES).to_pylist()
    trials: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        trials.setdefault(row["trial"], []).append(row)
    found = []
    for told in trials.values():
        config = {key.removeprefix("config."): value for key, value in told[0].items() if key.startswith("config.")}
        values = np.array([[row[name] for name in OBJECTIVES.names] for row in told])
        final = np.array([row["final"] for row in told])
        found.append(Course(config, values[~final], values[final][0]))
    return found


def recorded(name: str) -> Problem:
    space, trials = load_space(str(SPACE)), recorded_trials()

    def draw(trial: optuna.Trial, generator: np.random.Generator, used: set[int]) -> Course:
        config = space.sample(trial)
        nearest = min(trials, key=lambda each: distance(space, config, each.config))
        return nearest._replace(config=config)

    best = hypervolume([course.final for course in trials], OBJECTIVES)
    return Problem(name, draw, best, epochs=RECORDED_EPOCHS, trials=24, objectives=OBJECTIVES)


def recorded_study(name: str, *, trials: int) -> Problem:
    """Return the problem of drawing from a table of trials."""
    known = RecordedTrials(RECORDED / f"{name}.parquet")

    def draw(trial: optuna.Trial, generator: np.random.Generator, used: set[int]) -> Course:
        return known.draw(trial, used)

    best = hypervolume([course.final for course in known.courses], OBJECTIVES)
    return Problem(name, draw, best, epochs=len(known.courses[0].reports), trials=trials, objectives=OBJECTIVES)


def distance(space: Space, left: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """Gower's (1971): of every swept knob 1 where it differs or is on in one alone, a number's share of its range."""
    total = 0.0
    on = [space.active(side) for side in (left, right)]
    for knob in on[0].keys() | on[1].keys():
        domain = space.swept[knob].domain
        a, b = (side.get(knob) for side in on)
        if a is None or b is None or not isinstance(domain, Range):
            total += a != b
        elif domain.log:
            total += abs(math.log(a / b)) / math.log(domain.high / domain.low)
        else:
            total += abs(a - b) / (domain.high - domain.low)
    return total


@cache
def problem_of(name: str) -> Problem:
    return PROBLEMS[name]()


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "zdt1": lambda: simulated("zdt1", zdt(lambda f, g: 1 - math.sqrt(f / g)), 0.8767),
    "zdt2": lambda: simulated("zdt2", zdt(lambda f, g: 1 - (f / g) ** 2), 0.5433),
    "zdt3": lambda: simulated(
        "zdt3", zdt(lambda f, g: 1 - math.sqrt(f / g) - f / g * math.sin(10 * math.pi * f)), 1.3318
    ),
    "dtlz2": lambda: simulated("dtlz2", dtlz2, 0.4246),
    "digits": lambda: recorded("digits"),
    # Short enough that a rule which leaves every trial at the first rung does not run out of trials.
    "digits480": lambda: recorded_study("digits480", trials=60),
    "mnist73": lambda: recorded_study("mnist73", trials=18),
}


def record() -> None:
    """Run the trials of the table, with the very command of a sweep, and keep what the benchmark reads of them."""
    from sweep.cli.commands import main as otsweep

    with tempfile.TemporaryDirectory() as storage:
        words = ["run", str(SPACE), "--sampler", "qmc", "--epochs", str(RECORDED_EPOCHS), "--keep-models", "none"]
        if status := otsweep([*words, "--name", "curves", "--storage", storage]):
            sys.exit(status)
        table = pq.read_table(Path(storage) / "curves" / "ledger.parquet")
    table = table.filter(pc.field("state") == "finished")
    knobs = [f"config.{name}" for name in load_space(str(SPACE)).swept]
    kept = ["trial", "epoch", "final", *knobs, "clean_accuracy", *OBJECTIVES.names]
    pq.write_table(table.select(kept).replace_schema_metadata({}), CURVES, compression="zstd")


Stops = Callable[[int, int, np.ndarray], bool]
"""Whether a trial is stopped: its number, its epoch, and the objectives (2,) that it reports."""


def no_stopping(rungs: Rungs, seed: int) -> Stops:
    return lambda trial, epoch, values: False


def random_stopping(rungs: Rungs, seed: int) -> Stops:
    """At every rung all but 1/eta, by chance."""
    generator = np.random.default_rng([seed, 1])
    return lambda trial, epoch, values: epoch in rungs.levels and generator.random() > 1 / ETA


def stop_if_dominated(rungs: Rungs, seed: int) -> Stops:
    """At every rung whoever is dominated by anybody who was there before; by the means that ours looks at."""
    return lambda trial, epoch, values: bool((made := decide(rungs, trial, epoch, values)) and made.dominated_by)


def ours(rungs: Rungs, seed: int) -> Stops:
    return lambda trial, epoch, values: bool((made := decide(rungs, trial, epoch, values)) and made.stop)


def decide(rungs: Rungs, trial: int, epoch: int, values: np.ndarray) -> Decision | None:
    """What a sweep's scheduler decides on a report."""
    return rungs.observe(trial, {"number": trial}, {"epoch": epoch, **said(rungs.objectives, values)})


def said(objectives: Objectives, values: np.ndarray) -> dict[str, float]:
    """Objectives (2,) as a report has them."""
    return dict(zip(objectives.names, values.tolist(), strict=True))


class Stopper(NamedTuple):
    make: Callable[[Rungs, int], Stops] | None
    """None for pausing."""
    stop_chance: float = 1.0
    """As a sweep's; 1 for successive halving alone."""
    told: TrialState = TrialState.PRUNED
    """What the sampler hears of a trial that was stopped: as in a sweep, or FAIL, which leaves it out."""
    foreknown: bool = False
    """Whether it sees a trial's end in every report."""


STOPPERS = {
    "none": Stopper(no_stopping),
    "random": Stopper(random_stopping),
    "if dominated": Stopper(stop_if_dominated),
    "halving alone": Stopper(ours),
    "ours": Stopper(ours, CHANCE),
    "ours, left out": Stopper(ours, CHANCE, TrialState.FAIL),
    "thaw": Stopper(None, CHANCE),
    "oracle": Stopper(None, CHANCE, foreknown=True),
}

SAMPLERS = ("random", "tpe", "nsga2")


class Running(NamedTuple):
    trial: optuna.Trial
    course: Course
    reports: Iterator[tuple[int, np.ndarray]]


def simulate(name: str, sampler: str, stopper: str, seed: int) -> np.ndarray:
    """One sweep: the hypervolume over the best possible, (budget + 1,), after every epoch that any trial trained."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem = problem_of(name)
    directions = [StudyDirection.MAXIMIZE if high else StudyDirection.MINIMIZE for high in problem.objectives.maximise]
    made = make_sampler(sampler, seed, load_space(str(SPACE)), problem.trials)
    study = optuna.create_study(directions=directions, sampler=made)
    levels = rung_levels(grace_epochs=GRACE, eta=ETA, epochs=problem.epochs)
    make, stop_chance, told, foreknown = STOPPERS[stopper]
    rungs = Rungs(problem.objectives, levels=levels, eta=ETA, stop_chance=stop_chance, stops=make is not None)
    stops = make(rungs, seed) if make else None
    thaw = FreezeThaw(rungs, epochs=problem.epochs, trials=problem.budget, stop_chance=stop_chance)
    front, begun, used = Front(problem.objectives), [], set()

    def follow() -> Running:
        """The trial that a free slot goes to."""
        choice = None if stops else thaw.choose()
        if choice is None or choice.number == NEW:
            begun.append(start(study, problem, seed, used))
        following = begun[NEW if choice is None else choice.number]
        thaw.start(following.trial.number)
        return following

    volumes, running = np.zeros(problem.budget + 1), [follow() for _ in range(SLOTS)]
    for spent in range(1, problem.budget + 1):
        slot = spent % SLOTS
        trial, course, reports = running[slot]
        (epoch, values), number = next(reports), trial.number
        if epoch == problem.epochs:
            study.tell(trial, course.final.tolist())
            front.add(course.final)
            rungs.finish(number, course.config, said(problem.objectives, course.final))
            thaw.end(number, finished=True)
            running[slot] = follow()
        elif stops and stops(number, epoch, values):
            study.tell(trial, state=told)
            running[slot] = follow()
        elif not stops:
            told_now = said(problem.objectives, course.final if foreknown else values)
            if thaw.observe(number, course.config, {"epoch": epoch, **told_now}):
                running[slot] = follow()
        volumes[spent] = front.hypervolume
    return volumes / problem.best


def start(study: optuna.Study, problem: Problem, seed: int, used: set[int]) -> Running:
    """The sampler's next trial; its noise hangs on its number alone."""
    trial = study.ask()
    course = problem.draw(trial, np.random.default_rng([seed, 2, trial.number]), used)
    return Running(trial, course, iter(list(enumerate(course.reports, start=1))))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the width of its 95% interval, over seeds."""
    return float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values)))


def epochs_to_target(volumes: np.ndarray, baseline: np.ndarray) -> float:
    """Epochs until the mean curve of `volumes` (seeds, budget + 1) reaches where that of no stopping ends, over those
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


def cases(samplers: list[str], stoppers: list[str]) -> list[tuple[str, str, str]]:
    return [
        (sampler, problem, stopper)
        for sampler in samplers
        for problem in PROBLEMS
        for stopper in stoppers
        # Only TPE makes something of trials that were pruned.
        if sampler == "tpe" or stopper != "ours, left out"
    ]


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS
    samplers, stoppers = (
        sys.argv[at].split(",") if len(sys.argv) > at else list(every) for at, every in ((2, SAMPLERS), (3, STOPPERS))
    )
    wanted = cases(samplers, stoppers)
    began = time.monotonic()
    print(f"machine: {processor()}, {os.cpu_count()} cores; python {platform.python_version()}, ", end="")
    print(f"optuna {importlib.metadata.version('optuna')}, numpy {np.__version__}")
    print(f"{seeds} seeds, {SLOTS} slots; ours: eta {ETA}, grace {GRACE}, stop chance {CHANCE}")
    for problem in map(problem_of, PROBLEMS):
        print(f"{problem.name}: the epochs of {problem.trials} trials of {problem.epochs}")
    with ProcessPoolExecutor() as pool:
        futures = {
            case: [pool.submit(simulate, case[1], case[0], case[2], seed) for seed in range(seeds)] for case in wanted
        }
        volumes = {case: np.array([future.result() for future in each]) for case, each in futures.items()}
    print(f"\n{'sampler':9}{'problem':9}{'stopper':16}{'1/4 budget':>16}{'whole budget':>16}{'epochs to none':>24}")
    for case in wanted:
        sampler, problem, stopper = case
        baseline = volumes[sampler, problem, "none"]
        budget = problem_of(problem).budget
        shares = ["{:.3f} ± {:.3f}".format(*interval(volumes[case][:, at])) for at in (budget // 4, budget)]
        low, high = ratio_interval(volumes[case], baseline)
        ratio = f"{epochs_to_target(volumes[case], baseline):.2f} [{low:.2f}, {high:.2f}]"
        print(f"{sampler:9}{problem:9}{stopper:16}{shares[0]:>16}{shares[1]:>16}{ratio:>24}")
    print("\nhypervolume over the whole front's, mean over seeds ± half its 95% interval; epochs: 95% by bootstrap")
    figures = {rule: summary(rule, volumes) for rule in ("ours", "thaw", "oracle") if rule in stoppers}
    print(f"{time.monotonic() - began:.0f} s")
    print_result("early_stopping", figures.get("thaw", math.nan))


def summary(rule: str, volumes: Mapping[tuple[str, str, str], np.ndarray]) -> float:
    """Print how a rule does beside no stopping and the simplest one; return its median of epochs over no stopping's."""
    mine = [case for case in volumes if case[2] == rule]
    for other in ("none", "if dominated"):
        pairs = [
            (case[:2], volumes[case][:, -1] - volumes[*case[:2], other][:, -1])
            for case in mine
            if (*case[:2], other) in volumes
        ]
        gains = {case: interval(difference) for case, difference in pairs}
        worse = [case for case, (mean, half) in gains.items() if mean + half < 0]
        better = [case for case, (mean, half) in gains.items() if mean - half > 0]
        print(f"{rule} at the end, by more than the interval: worse than '{other}' {worse or 'nowhere'}, ", end="")
        print(f"better in {len(better)} of {len(gains)} cases")
    figures = [epochs_to_target(volumes[case], volumes[*case[:2], "none"]) for case in mine]
    print(
        f"{rule} over none, epochs: median {np.median(figures):.2f}, worst {max(figures):.2f} of {len(figures)} cases"
    )
    return float(np.median(figures))


if __name__ == "__main__":
    if sys.argv[1:] == ["record"]:
        record()
    else:
        main()
