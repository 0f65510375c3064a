"""Configurations on several seeds: their means as one record, and what their seeds tell beyond the means."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from search_spaces import Requirement
from sweep.front import Objectives, front_probability, mean_intervals
from sweep.ledger import TrialRecord
from trainer.intervals import Interval


class Replicates(NamedTuple):
    """Uncertainty of a configuration by the differences between its seeds."""

    intervals: tuple[Interval, ...]
    """Student's 95% interval of each objective's mean."""

    chance: float
    """Bootstrap probability of being on the front if all configurations were run on fresh seeds."""


def resample(
    groups: Sequence[Sequence[TrialRecord]], objectives: Objectives, require: Sequence[Requirement]
) -> list[Replicates]:
    """Return what the finished trials of each configuration tell; all have equally many, at least two."""
    results = [[trial.result for trial in group if trial.result is not None] for group in groups]
    measured = np.array([[[result[name] for name in objectives.names] for result in group] for group in results])
    excesses = [[[each.excess(result[each.name]) for each in require] for result in group] for group in results]
    excesses = np.array(excesses).reshape(*measured.shape[:2], -1)
    chances = front_probability(measured, objectives, excesses=excesses, seed=0)
    intervals = mean_intervals(measured)
    return [
        Replicates(tuple(Interval(*row) for row in interval.tolist()), float(chance))
        for interval, chance in zip(intervals, chances, strict=True)
    ]


def mean_record(members: Sequence[TrialRecord]) -> TrialRecord:
    """Return finished trials that differ in the seed alone as one record, with their means as its result.

    Answers have no mean: they are each trial's own.
    """
    first = members[0]
    if len(members) == 1:
        return first
    results = [trial.result for trial in members if trial.result is not None]
    means = {name: _mean([result[name] for result in results]) for name in results[0] if name != "answers"}
    ended = max(trial.ended or 0.0 for trial in members)
    return dataclasses.replace(first, ended=ended, attempts=sum(trial.attempts for trial in members), reports=[means])


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, the same in any order; values that are all equal stay as they are."""
    return values[0] if all(value == values[0] for value in values) else fmean(values)
