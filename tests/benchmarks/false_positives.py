"""How often two sides that are equally good are called different, and how often two that are not.

Sweeps are simulated down to the answers to single images, and then compared by the functions that `otsweep compare` and
studies use: points from answers, hypervolumes, joint draws of images, the difference of the sides. Both sides are drawn
from one population; where `own images` is above 0, each side's models find images of their own hard, other ones in each
comparison, so that the sides are equal over images and differ on those at hand. The result is the largest share of
comparisons that are called different where a claim is made; 0.05 is meant.

    python -m tests.benchmarks.false_positives [COMPARISONS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.stats import binomtest

from search_spaces.requirement import Requirement
from sweep.front.differences import Difference, detectable, difference
from sweep.front.judged_trials import JudgedTrials
from sweep.front.objectives import Objectives
from sweep.front.pareto import hypervolume
from sweep.front.resampling import resampled_hypervolumes
from tests.benchmarks.common import print_machine, print_result

OBJECTIVES = Objectives(("sensitivity_accuracy", "invariance_accuracy"), (True, True), (0.0, 0.0))
CLEAN = Requirement("clean_accuracy", True, 0.8)
IMAGES, DRAWS = 200, 100
LUCK = 0.08
"""Standard deviation of a sweep's luck, which all its trials share, in units of the difficulty of images."""


@dataclass(frozen=True)
class Case:
    """Two sides and the population that both are drawn from."""

    sweeps: tuple[int, int]
    paired: bool = False
    """Sweeps in the same places draw the same points first and share half of their luck."""
    trials: tuple[int, int] = (16, 16)
    seeds: int = 1
    require: tuple[Requirement, ...] = ()
    own_images: float = 0.0
    """Standard deviation of the difficulty of an image for one side's models alone."""
    ahead: float = 0.0
    """Amount by which the first side's models are better."""

    @property
    def equal_effort(self) -> bool:
        """True unless `otsweep compare` says that effort was unequal, and claims nothing."""
        return self.trials[0] == self.trials[1]

    def __str__(self) -> str:
        words = {
            "paired": self.paired,
            f"{self.trials[0]} and {self.trials[1]} trials": not self.equal_effort,
            f"{self.seeds} seeds": self.seeds > 1,
            "with a requirement": self.require,
            f"own images {self.own_images}": self.own_images,
            f"ahead by {self.ahead}": self.ahead,
        }
        return ", ".join(
            [f"{self.sweeps[0]} against {self.sweeps[1]}", *(word for word, said in words.items() if said)]
        )


NULL = (
    Case((1, 1)),
    Case((3, 3)),
    Case((3, 3), paired=True),
    Case((3, 3), paired=True, own_images=0.7),
    Case((5, 5), paired=True),
    Case((5, 5), paired=True, own_images=0.7),
    Case((2, 3)),
    Case((2, 3), own_images=0.7),
    Case((3, 3), require=(CLEAN,)),
    Case((3, 3), seeds=3, trials=(24, 24)),
    Case((3, 3), trials=(16, 64)),
)
PLANTED = Case((5, 5), paired=True, ahead=0.16)


def simulate(case: Case, generator: np.random.Generator) -> Difference:
    """Return the difference that is found between two simulated sides."""
    sweeps = list(_sweeps(case, generator))
    volumes = [_hypervolume(sweep, case) for sweep in sweeps]
    [drawn] = resampled_hypervolumes(
        sweeps, OBJECTIVES, require=case.require, seeds=case.seeds, seed=int(generator.integers(2**31)), draws=DRAWS
    )
    k = case.sweeps[0]
    return difference(volumes[:k], volumes[k:], resampled_a=drawn[:k], resampled_b=drawn[k:], paired=case.paired)


def _hypervolume(sweep: JudgedTrials, case: Case) -> float:
    """Return the hypervolume of a sweep's contenders, as measured."""
    names = [*OBJECTIVES.names, *(each.name for each in case.require)]
    measured = sweep.measure(names, np.ones((1, IMAGES)))[0].reshape(-1, case.seeds, len(names)).mean(axis=1)
    feasible = np.ones(len(measured), dtype=bool)
    for column, bound in enumerate(case.require, start=2):
        feasible &= [bound.excess(value) <= 0 for value in measured[:, column]]
    return hypervolume(measured[feasible, :2], OBJECTIVES)


def _sweeps(case: Case, generator: np.random.Generator) -> Iterator[JudgedTrials]:
    """Yield the sweeps of both sides. A trial answers rightly where its ability and noise exceed an image's difficulty.

    Where a trial stands between the two abilities is drawn; how near it comes to the best is luck, its own and its
    sweep's. The models of a configuration's seeds differ by noise alone.
    """

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    count, images = max(case.trials) // case.seeds, IMAGES
    balances = generator.random((len(case.sweeps), max(case.sweeps), count), dtype=np.float32)
    lucks = LUCK * normal(len(case.sweeps), max(case.sweeps))
    if case.paired:
        balances[1], lucks[1] = balances[0], lucks[0]
    hard, changed = normal(2, images), generator.beta(0.6, 0.9, images)
    own = case.own_images * normal(2, 2, images)
    for side, k in enumerate(case.sweeps):
        for i in range(k):
            n = case.trials[side] // case.seeds
            balance = balances[side, i, :n]
            skill = (
                (lucks[side, i] + LUCK * normal(1)) / np.sqrt(2) - 0.3 * np.abs(normal(n)) + case.ahead * (side == 0)
            )
            abilities = (1.2 * balance - 0.9 + skill, 0.6 - 1.4 * balance + skill, 1.2 - 0.4 * balance + skill / 2)
            difficulty = (hard[0] + own[side, 0], hard[1] + own[side, 1], hard[0] + own[side, 0])
            robust, moved, clean = (
                np.repeat(ability, case.seeds)[:, None] - against + 0.5 * normal(n * case.seeds, images) > 0
                for ability, against in zip(abilities, difficulty, strict=True)
            )
            right = robust | clean
            yield JudgedTrials(
                right,
                robust,
                moved.astype(np.uint8),
                right,
                source=np.arange(images),
                labels=np.zeros(images, dtype=int),
                shares={"strict": np.stack([1 - changed, changed], axis=1).astype(np.float32)},
                others={},
            )


def claims(case: Case, comparisons: int) -> tuple[int, list[Difference]]:
    """Return in how many of so many comparisons the sides are called different, and all that was found."""
    generator = np.random.default_rng(0)
    found = [simulate(case, generator) for _ in range(comparisons)]
    return sum(each.claim for each in found), found


def main(comparisons: int = 1000) -> None:
    print_machine()
    print(f"\n{comparisons} comparisons: share that is called different, and its 95% interval\n")
    largest, spent = 0.0, 0.0
    for case in (*NULL, PLANTED):
        begun = time.process_time()
        count, found = claims(case, comparisons)
        spent += time.process_time() - begun
        share, bounds = count / comparisons, binomtest(count, comparisons).proportion_ci()
        shown = f"{share:.3f} ({bounds.low:.3f} to {bounds.high:.3f})"
        print(
            f"{case!s:48}{shown if case.equal_effort else f'not claimed, at unequal effort; else {shown}'}", flush=True
        )
        if case.ahead:
            deviation, shared = (fmean(getattr(each, name) for each in found) for name in ("deviation", "shared"))
            shown = detectable(deviation, case.sweeps[0], shared=shared)
            print(f"{'':48}difference {fmean(each.estimate for each in found):.4f}; {shown:.4f} is meant for 0.8")
        elif case.equal_effort:
            largest = max(largest, share)
    print(f"{spent:.0f} s of one core")
    print_result("false_positives", largest)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
