"""TODO one line."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sweep.front import Objectives
from sweep.ledger import TrialRecord
from sweep.search.rung import at
from trainer.report import STRENGTH

ALIKE, _ENOUGH = 1 / 3, 10
"""Rank correlation between two rungs below which it is an alarm, and trials from which on: at a third one pair of
trials in three changes its order, half way from every pair's staying to a coin's toss; of fewer than ten trials chance
alone moves it by a quarter and more."""


class Agreement(NamedTuple):
    """How far a rung orders trials as the next one does."""

    lower: int
    upper: int
    """Epochs of both; the upper may be the end, where the final report counts."""

    objective: str

    correlation: float
    """Kendall's tau-b over the trials that came to both: 1 for the same order, 0 for chance."""

    trials: int

    strengths: tuple[str, ...]
    """What most of them were judged with there; empty where all evaluations are equal."""

    @property
    def low(self) -> bool:
        """Whether it is an alarm."""
        return self.trials >= _ENOUGH and self.correlation < ALIKE


def agreements(
    trials: Iterable[TrialRecord], objectives: Objectives, *, levels: Sequence[int], epochs: int
) -> list[Agreement]:
    """Between each rung and the next, for every objective; none where fewer than two trials differ in it.

    Whoever was stopped between two rungs counts in neither: of those that stay the order is harder to keep.
    """
    from scipy.stats import kendalltau

    records, found = list(trials), []
    for lower, upper in itertools.pairwise([*levels, epochs]):
        both = [(at(record, lower, epochs), at(record, upper, epochs)) for record in records]
        both = [(early, late) for early, late in both if early and late]
        if len(both) < 2:
            continue
        strengths = [_usual_strength(side) for side in zip(*both, strict=True)]
        for name in objectives.names:
            early, late = np.array([[report[name] for report in pair] for pair in both]).T
            if np.ptp(early) > 0 and np.ptp(late) > 0:
                tau = float(np.asarray(kendalltau(early, late))[0])
                found.append(Agreement(lower, upper, name, tau, len(both), tuple(strengths)))
    return found


def _usual_strength(reports: Iterable[Mapping[str, Any]]) -> str:
    """What most of some reports were measured with."""
    return Counter(str(report.get(STRENGTH, "")) for report in reports).most_common(1)[0][0]
