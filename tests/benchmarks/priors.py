"""What a prior is worth: the hypervolume of a sweep with a right one and with the worst one, over that with none.

The trials are test problems (ZDT1, 2, DTLZ2, of two variables), the search that of a sweep. Of both objectives the
right prior believes in the best place, the wrong one in the place that is farthest from the front. The figure is the
number of cases in which the wrong prior ends worse than none by more than the 95% interval of the difference, paired by
seed.

    python -m tests.benchmarks.priors [SEEDS]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np

from search_spaces.prior import Belief, Prior
from search_spaces.space import Space
from search_spaces.swept import Range, Swept
from sweep.front.objectives import Objectives
from sweep.front.pareto import hypervolume
from sweep.search.search import ParetoSearch
from tests.benchmarks.common import print_machine, print_result
from tests.benchmarks.early_stopping import dtlz2, interval, zdt
from trainer.config import EvaluationConfig

TRIALS, SEEDS = 60, 10
KNOBS = "certified_epsilon", "certified_ramp"
"""Any two knobs from 0 to 1 stand for the variables."""
NAMES = "sensitivity_accuracy", "invariance_accuracy"
OBJECTIVES = Objectives(NAMES, (False, False), (1.1, 1.1))
SPACE = Space("priors", "", EvaluationConfig(), {}, {name: Swept(Range(0.0, 1.0)) for name in KNOBS})
PROBLEMS = {
    "zdt1": zdt(lambda f, g: 1 - math.sqrt(f / g)),
    "zdt2": zdt(lambda f, g: 1 - (f / g) ** 2),
    "dtlz2": dtlz2,
}
RIGHT = {"zdt1": ((0.0, 0.0), (1.0, 0.0)), "zdt2": ((0.0, 0.0), (1.0, 0.0)), "dtlz2": ((1.0, 0.5), (0.0, 0.5))}
"""Where either objective is at its best on the front."""
WRONG = {"zdt1": ((1.0, 1.0),) * 2, "zdt2": ((1.0, 1.0),) * 2, "dtlz2": ((0.5, 0.0),) * 2}


def prior_at(places: tuple[tuple[float, float], ...]) -> Prior:
    """Return the belief, as sure as most people are, that each objective is best at a place."""
    return Prior(
        {
            name: {knob: Belief(value, 0.8) for knob, value in zip(KNOBS, place, strict=True)}
            for name, place in zip(NAMES, places, strict=True)
        }
    )


def swept(function: Callable[[np.ndarray], np.ndarray], prior: Prior, sampler: str, seed: int) -> float:
    """Return the hypervolume that a sweep ends with."""
    space = Space(SPACE.name, "", SPACE.evaluation, {}, SPACE.swept, prior=prior)
    search = ParetoSearch(space, OBJECTIVES, sampler=sampler, seed=seed, configurations=TRIALS)
    points = []
    for _ in range(TRIALS):
        proposal = search.propose()
        points.append(function(np.array([proposal.config[name] for name in KNOBS])))
        search.end(proposal.number, "finished", dict(zip(NAMES, points[-1].tolist(), strict=True)))
    return hypervolume(np.array(points), OBJECTIVES)


def main(seeds: str = str(SEEDS)) -> None:
    print_machine("optuna")
    print(f"\n{'':16}{'none':>8}{'right, minus none':>24}{'wrong, minus none':>24}")
    worse = 0
    for sampler in ("random", "tpe", "nsga2"):
        for name, function in PROBLEMS.items():
            priors = {"none": Prior(), "right": prior_at(RIGHT[name]), "wrong": prior_at(WRONG[name])}
            found = {
                kind: np.array([swept(function, prior, sampler, seed) for seed in range(int(seeds))])
                for kind, prior in priors.items()
            }
            gains = {kind: interval(found[kind] - found["none"]) for kind in ("right", "wrong")}
            told = "".join(f"{f'{mean:+.4f} ± {half:.4f}':>24}" for mean, half in gains.values())
            print(f"{sampler:8}{name:8}{found['none'].mean():8.4f}{told}", flush=True)
            worse += sum(gains["wrong"]) < 0
    print_result("priors", worse)


if __name__ == "__main__":
    main(*sys.argv[1:2])
