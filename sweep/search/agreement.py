"""The agreement of neighbouring rungs: whether trials keep their order from one to the next."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sweep.front import Objectives
from sweep.ledger import TrialRecord
from sweep.search.rung import report_after
from trainer.report import STRENGTH

ALIKE = 1 / 3
"""Rank correlation between two rungs below which it is an alarm: at a third one pair of trials in three changes its
order, half way from none to a coin's toss."""

_ENOUGH = 10
"""Least number of trials for an alarm: with fewer, chance alone moves the correlation by a quarter and more."""


class Agreement(NamedTuple):
    """Rank correlation of the trials between a rung and the next."""

    lower: int
    upper: int
    """Epochs of both rungs; the upper may be the end, where the final report counts."""

    objective: str

    correlation: float
    """Kendall's tau-b over the trials that reached both: 1 for the same order, 0 for chance."""

    trials: int

    strengths: tuple[str, ...]
    """Attacks that most of them were judged with at the two rungs; empty if all evaluations are equal."""

    @property
    def low(self) -> bool:
        """Whether the correlation is so low that it is an alarm."""
        return self.trials >= _ENOUGH and self.correlation < ALIKE


def agreements(
    trials: Iterable[TrialRecord], objectives: Objectives, *, levels: Sequence[int], epochs: int
) -> list[Agreement]:
    """Return the agreement of each rung with the next in every objective in which at least two trials differ.

    A trial that was stopped between two rungs counts in neither: those that stay are more alike, so that their order is
    harder to keep.
    """
    from scipy.stats import kendalltau

    records, found = list(trials), []
    for lower, upper in itertools.pairwise([*levels, epochs]):
        both = [(report_after(record, lower, epochs), report_after(record, upper, epochs)) for record in records]
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
    """Return the attack that most of some reports were judged with."""
    return Counter(str(report.get(STRENGTH, "")) for report in reports).most_common(1)[0][0]
