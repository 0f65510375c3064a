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
        control = hypervolumes[arms[0], crowd]
        each = [_compare(arm, crowd, hypervolumes[arm, crowd], control, tests=len(arms) - 1) for arm in arms[1:]]
        adjusted = holm([1.0 if one.p_value is None else one.p_value for one in each]).tolist()
        found += [
            one if one.p_value is None else dataclasses.replace(one, adjusted=p, shown=p < 1 - _LEVEL)
            for one, p in zip(each, adjusted, strict=True)
        ]
    return found


def _compare(arm: str, crowd: str, volumes: Sequence[float], control: Sequence[float], *, tests: int) -> ArmDifference:
    """Return an arm's difference, of so many tests; its p-value and interval are not yet corrected for the others.

    All that varies is seen between seeds, but for the test images that the splits of two seeds have in common.
    """
    found = difference(volumes, control, paired=True, level=_LEVEL)
    low, high = (None, None) if found.interval is None else found.interval
    deviation, size, level = found.deviation, abs(found.estimate), _corrected_level(tests)
    return ArmDifference(
        arm=arm,
        crowd=crowd,
        estimate=found.estimate,
        low=low,
        high=high,
        p_value=found.p_value,
        adjusted=None,
        deviation=deviation,
        detectable=None if deviation is None else detectable(deviation, len(volumes), level=level),
        needed=seeds_needed(deviation, size, level=level) if deviation and size > 0 else None,
        parts={},
        shown=False,
    )


def _corrected_level(tests: int) -> float:
    """Return the level that Holm's correction asks of the first of so many tests: who is shown alone must pass it."""
    return 1 - (1 - _LEVEL) / tests


def sentences(result: StudyResult) -> list[str]:
    """Return the verdict: a line on how far the study is, then one per arm."""
    seeds, planned = len(result.seeds), result.planned_seeds
    done = f"{seeds} seeds" if seeds == planned else f"{seeds} of {planned} seeds so far"
    effort = f"{done}, {result.effort} of each arm on each seed."
    if not seeds:
        return [f"{result.name}: no seed is done yet on all {len(result.arms)} arms."]
    if seeds == 1:
        lead = f"Nothing is claimed about {result.control} and the others: {_MORE_SEEDS}; {effort}"
        return [lead, *(_arm_sentence(result, arm) for arm in result.arms[1:])]
    found = {arm: [one for one in result.differences if one.arm == arm] for arm in result.arms[1:]}
    ahead, behind = (
        [arm for arm, each in found.items() if all(one.shown and sign * one.estimate > 0 for one in each)]
        for sign in (1, -1)
    )
    partly = [arm for arm, each in found.items() if any(one.shown for one in each) and arm not in (*ahead, *behind)]
    move = "arm is" if len(found) == 1 else "arms are"
    head = f"Against {result.control}, {len(ahead)} of {len(found)} {move} shown to move the front forward"
    head += " under both crowds" if len(result.crowds) == 2 else ""
    head += f" ({', '.join(ahead)})" if ahead else ""
    head += f", {len(behind)} back ({', '.join(behind)})" if behind else ""
    head += f", {len(partly)} under one of them ({', '.join(partly)})" if partly else ""
    return [f"{head}: {effort}", *(_arm_sentence(result, arm) for arm in found)]


def _arm_sentence(result: StudyResult, arm: str) -> str:
    """Return the sentence on one arm, under every crowd."""
    found = [each for each in result.differences if each.arm == arm]
    if len(found) == 1:
        return f"{arm}: {_clause(found[0])}."
    if len({each.shown for each in found}) == 1 and len({each.estimate > 0 for each in found}) == 1:
        both = "under both crowds" if len(found) == 2 else "under all crowds"
        return f"{arm}, {both}: " + "; ".join(f"{each.crowd}: {_clause(each)}" for each in found) + "."
    return f"{arm}, by crowd: " + "; ".join(f"under {each.crowd} {_clause(each)}" for each in found) + "."


def _clause(one: ArmDifference) -> str:
    """Return what is said of one difference.

    That none was shown says little without the difference that would have been. The seeds that one as large as the
    estimate needs are a rough number: the deviation that they follow from is itself known from these seeds alone.
    """
    if one.low is None or one.high is None:
        return f"{one.estimate:+.4f} on one seed"
    span = f"95%: {one.low:+.4f} to {one.high:+.4f}"
    if one.shown:
        way = "forward" if one.estimate > 0 else "back"
        return f"moves the front {way}, {one.estimate:+.4f} ({span}; p = {one.adjusted:.2g} by Holm's correction)"
    said = f"no difference was shown, {one.estimate:+.4f} ({span})"
    if not one.needed or not one.detectable:
        return said
    seeds = f"about {one.needed}" if one.needed <= _MANY_SEEDS else f"more than {_MANY_SEEDS}"
    return (
        f"{said}; so many seeds show one of {one.detectable:.4f} in 4 of 5 cases, "
        f"{seeds} would one of {abs(one.estimate):.4f}"
    )


def power_line(deviations: Sequence[float], seeds: int, source: str, *, tests: int) -> str:
    """Return which difference so many seeds can show.

    Args:
        deviations: standard deviations of one seed's difference, one per arm; none if nothing is known yet.
        source: where they come from.
        tests: number of arms that are compared with the control, at least 1.
    """
    if not deviations:
        return (
            "Which difference can be shown is not known before two seeds are done; give `--pilot STUDY`, "
            "a study of the same kind, to learn it from that one"
        )
    if seeds < 2:
        return f"One seed shows no difference; {_MORE_SEEDS}"
    usual = float(np.sqrt(np.mean(np.square(deviations))))
    shown = detectable(usual, seeds, level=_corrected_level(tests))
    return (
        f"With {seeds} seeds a true difference of {shown:.4f} in hypervolume is shown four times in five, "
        f"{f'corrected for {tests} arms' if tests > 1 else 'of one arm'} (deviation of one seed's difference "
        f"{usual:.4f}, from {source})"
    )
