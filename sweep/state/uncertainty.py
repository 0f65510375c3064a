"""Uncertainty of a sweep's front: other images, other seeds; and the mean of a configuration's trials as one record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from search_spaces import Requirement
from sweep.front import (
    JudgedTrials,
    Objectives,
    excesses,
    mean_intervals,
    reflected_interval,
    resample_front,
    resample_seeds,
)
from sweep.ledger import TrialRecord
from sweep.state.judged import JudgedImages
from trainer.answers import Answers
from trainer.intervals import Interval

_MOST_DRAWN, _FEWEST, _MOST = 400_000, 200, 1000
"""Configurations times draws, about; and least and most draws: a long sweep's front is drawn less often."""


class ConfigurationDraws(NamedTuple):
    """Place of a configuration in draws of other images and seeds."""

    chance: float
    """Bootstrap probability of being on the front."""

    knee: float
    """Bootstrap probability of being its knee."""

    intervals: tuple[Interval, ...] = ()
    """Student's 95% interval of each objective's mean over several seeds; empty with one seed."""


class Uncertainty(NamedTuple):
    """Front of a sweep in draws of other images and seeds."""

    configurations: Mapping[int, ConfigurationDraws]
    """Finished configurations by the number of their first trial; empty if nothing is known."""

    hypervolume: Interval | None = None
    """The 95% interval of the hypervolume; None where answers were not kept."""


def judged_trials(
    trials: Sequence[TrialRecord], judged: JudgedImages | None, names: Sequence[str]
) -> JudgedTrials | None:
    """Return finished trials with their answers; None if there are none, as in sweeps of earlier versions.

    Args:
        judged: the images that judged them.
        names: numbers of the final report that are needed; those that answers do not tell are taken as they are.
    """
    results = [trial.result or {} for trial in trials]
    if judged is None or not results or not all(result.get("answers") for result in results):
        return None
    answers = [Answers.decode(result["answers"]) for result in results]
    return JudgedTrials(
        **{each.name: np.array([getattr(one, each.name) for one in answers]) for each in dataclasses.fields(Answers)},
        source=judged.source,
        labels=judged.labels,
        shares=judged.shares,
        others={name: np.array([float(result[name]) for result in results]) for name in names},
    )


def uncertainty_of(
    groups: Sequence[Sequence[TrialRecord]],
    objectives: Objectives,
    require: Sequence[Requirement],
    judged: JudgedImages | None,
    *,
    measured: float,
) -> Uncertainty:
    """Return what the finished trials of each configuration tell.

    Where their answers are known, images are drawn anew for all trials at once, and with several seeds these too; else
    seeds alone.

    Args:
        groups: the trials of n configurations, equally many of each.
        measured: the hypervolume of their front.
    """
    seeds = len(groups[0]) if groups else 0
    trials = [trial for group in groups for trial in group]
    names = [*objectives.names, *(each.name for each in require)]
    known = judged_trials(trials, judged, names)
    if not trials or (known is None and seeds == 1):
        return Uncertainty({})
    numbers = np.array([[(trial.result or {})[name] for name in names] for trial in trials])
    numbers = numbers.reshape(len(groups), seeds, len(names))
    samples, bounds = numbers[..., : len(objectives.names)], numbers[..., len(objectives.names) :]
    if known is None:
        drawn, interval = resample_seeds(samples, objectives, bounds=excesses(require, bounds), seed=0), None
    else:
        draws = min(max(_MOST_DRAWN // len(groups), _FEWEST), _MOST)
        drawn = resample_front(known, objectives, require=require, seeds=seeds, draws=draws)
        interval = reflected_interval(measured, drawn.hypervolumes)
    of_means = mean_intervals(samples).tolist() if seeds > 1 else [[]] * len(groups)
    told = zip(groups, drawn.on_front.tolist(), drawn.knees.tolist(), of_means, strict=True)
    return Uncertainty(
        {
            group[0].number: ConfigurationDraws(chance, knee, tuple(Interval(*each) for each in intervals))
            for group, chance, knee, intervals in told
        },
        interval,
    )


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
