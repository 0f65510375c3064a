"""The verdict of a study: paired differences of audited hypervolumes, corrected for the number of arms, in words.

A sweep is the unit: its seed decides split, initial weights, attack noise and the search's draws, the same in all arms.
Shape: s seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sweep.front import detectable, difference, holm, seeds_needed
from sweep.study.result import ArmDifference, StudyResult

_LEVEL = 0.95
_MANY_SEEDS = 1000
_MORE_SEEDS = "at least two, better five, seeds are needed"


def arm_differences(
    hypervolumes: Mapping[tuple[str, str], Sequence[float]], *, arms: Sequence[str], crowds: Sequence[str]
) -> list[ArmDifference]:
    """Return every arm's difference to the first, under every crowd.

    Args:
        hypervolumes: one per seed (s,), by arm and crowd, in the same order of seeds.
        arms: names, the control first.
        crowds: names.
    """
    found: list[ArmDifference] = []
    for crowd in crowds:
        each = [_compare(arm, crowd, hypervolumes[arm, crowd], hypervolumes[arms[0], crowd]) for arm in arms[1:]]
        adjusted = holm([1.0 if one.p_value is None else one.p_value for one in each]).tolist()
        found += [
            one if one.p_value is None else dataclasses.replace(one, adjusted=p, shown=p < 1 - _LEVEL)
            for one, p in zip(each, adjusted, strict=True)
        ]
    return found


def _compare(arm: str, crowd: str, volumes: Sequence[float], control: Sequence[float]) -> ArmDifference:
    """Return an arm's difference, not yet corrected for the others. Each seed has images of its own, so that all that
    varies is seen between seeds."""
    found = difference(volumes, control, paired=True, level=_LEVEL)
    low, high = (None, None) if found.interval is None else found.interval
    deviation, size = found.deviation, abs(found.estimate)
    return ArmDifference(
        arm=arm,
        crowd=crowd,
        estimate=found.estimate,
        low=low,
        high=high,
        p_value=found.p_value,
        adjusted=None,
        deviation=deviation,
        detectable=None if deviation is None else detectable(deviation, len(volumes)),
        needed=seeds_needed(deviation, size) if deviation and size > 0 else None,
        parts={},
        shown=False,
    )


def sentences(result: StudyResult) -> list[str]:
    """Return the verdict: a line on how far the study is, then one per arm."""
    seeds, planned = len(result.seeds), result.planned_seeds
    done = f"{seeds} seeds" if seeds == planned else f"{seeds} of {planned} seeds so far"
    if not seeds:
        return [f"{result.name}: no seed is done yet on all {len(result.arms)} arms."]
    found = {arm: [one for one in result.differences if one.arm == arm] for arm in result.arms[1:]}
    ahead, behind = (
        [arm for arm, each in found.items() if all(one.shown and sign * one.estimate > 0 for one in each)]
        for sign in (1, -1)
    )
    partly = [arm for arm, each in found.items() if any(one.shown for one in each) and arm not in (*ahead, *behind)]
    head = f"Against {result.control}, {len(ahead)} of {len(found)} arms move the front forward"
    head += " under both crowds" if len(result.crowds) == 2 else ""
    head += f" ({', '.join(ahead)})" if ahead else ""
    head += f", {len(behind)} back ({', '.join(behind)})" if behind else ""
    head += f", {len(partly)} under one of them ({', '.join(partly)})" if partly else ""
    return [f"{head}: {done}, {result.effort} each.", *(_arm_sentence(result, arm) for arm in found)]


def _arm_sentence(result: StudyResult, arm: str) -> str:
    """Return the sentence on one arm, under every crowd."""
    found = [each for each in result.differences if each.arm == arm]
    if len(found) == 1:
        return f"{arm} {_clause(found[0])}."
    if len({each.shown for each in found}) == 1 and len({each.estimate > 0 for each in found}) == 1:
        both = "under both crowds" if len(found) == 2 else "under all crowds"
        return f"{arm}, {both}: " + "; ".join(f"{each.crowd}: {_clause(each)}" for each in found) + "."
    return f"{arm}, by crowd: " + "; ".join(f"under {each.crowd} it {_clause(each)}" for each in found) + "."


def _clause(one: ArmDifference) -> str:
    """Return what is said of one difference."""
    if one.low is None or one.high is None:
        return f"is {one.estimate:+.4f} from the control on one seed; {_MORE_SEEDS} to say more"
    span = f"{one.low:+.4f} to {one.high:+.4f}"
    if one.shown:
        return f"moves the front by {one.estimate:+.4f} ({span}; p = {one.adjusted:.2g} by Holm's correction)"
    if not one.needed:
        return f"shows no difference ({one.estimate:+.4f}, {span})"
    seeds = f"{one.needed} seeds are" if one.needed <= _MANY_SEEDS else f"more than {_MANY_SEEDS} seeds would be"
    return f"shows no difference ({one.estimate:+.4f}, {span}); to show one of {abs(one.estimate):.4f}, {seeds} needed"


def power_line(deviations: Sequence[float], seeds: int, source: str) -> str:
    """Return which difference so many seeds can show.

    Args:
        deviations: standard deviations of one seed's difference, one per arm; none if nothing is known yet.
        source: where they come from.
    """
    if not deviations:
        return (
            "Which difference can be shown is not known before two seeds are done; give `--pilot STUDY`, "
            "a study of the same kind, to learn it from that one"
        )
    if seeds < 2:
        return f"One seed shows no difference; {_MORE_SEEDS}"
    usual = float(np.sqrt(np.mean(np.square(deviations))))
    return (
        f"With {seeds} seeds a true difference of {detectable(usual, seeds):.4f} in hypervolume is shown four times in "
        f"five, before Holm's correction (deviation of one seed's difference {usual:.4f}, from {source})"
    )
