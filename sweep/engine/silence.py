"""The watch over workers that say nothing: told after a multiple of a trial's usual epoch, ended after a larger one.

Ray knows when a worker's process ends, not when it hangs: on a network's file system, a driver of a GPU, a lock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ray import tune

from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan

_TOLD_EPOCHS, _ENDED_EPOCHS = 5, 20
"""Usual epochs of a trial after which its worker's silence is told, and after which the worker is ended."""

_TOLD_SECONDS, _ENDED_SECONDS = 300.0, 900.0
"""Least times for the same: a short epoch says little about a disk or a network that is busy for minutes."""

_UNKNOWN_SECONDS = 1800.0
"""Silence that is told where no trial of the sweep has shown yet how long one takes; nothing is ended then."""

_TARGETS = 9
"""Targets of the targeted attacks on a chosen epoch, at most: of an earlier version's sweep."""

_LONGEST_STEP = 5.0
"""Seconds between two looks that count at most. This process itself may have been stopped or have waited for the
storage: reports may then wait to be read."""


class Patience(NamedTuple):
    """Times of silence in seconds after which a worker is spoken of, and ended (infinite: never)."""

    told: float
    ended: float


def usual_epoch(record: TrialRecord, plan: SweepPlan, *, whole_trial: float) -> float:
    """Return the seconds that a trial usually takes to its next report; 0 if nothing is known.

    Args:
        record: the trial; its own longest epoch counts.
        whole_trial: seconds of a usual whole trial of the sweep, in place of an epoch of a trial that has none.
    """
    epochs = [report for report in record.reports if not report["final"]]
    if not epochs:
        return plan.pack * whole_trial
    usual = max(report["train_seconds"] + report["evaluation_seconds"] for report in epochs)
    if epochs[-1]["epoch"] >= record.config["epochs"]:
        evaluation = plan.space.evaluation
        steps = (1 + _TARGETS) * evaluation.eval_final_steps + _TARGETS * evaluation.eval_targeted_steps
        rounds = steps / evaluation.eval_sensitivity_steps
        usual = max(usual, rounds * max(report["evaluation_seconds"] for report in epochs))
    return plan.pack * usual  # the trials of a pack wait for each other


def patience(usual: float, *, timeout: float) -> Patience:
    """Return how long a worker may say nothing.

    Args:
        usual: seconds of a usual epoch; 0 if that is unknown.
        timeout: seconds after which it is ended in any case; 0 for a time by its usual epoch.
    """
    told = max(_TOLD_SECONDS, _TOLD_EPOCHS * usual) if usual else _UNKNOWN_SECONDS
    ended = timeout or (max(_ENDED_SECONDS, _ENDED_EPOCHS * usual) if usual else math.inf)
    return Patience(min(told, ended / 2), ended)


class Silence(NamedTuple):
    """A worker that says nothing."""

    number: int
    """Number of its trial."""

    reason: str
    """The line about it, for people."""

    ended: bool
    """True if it has said nothing for so long that it is to be ended."""


class SilenceWatch:
    """The times since which workers have said nothing, by a clock that counts only while this process looks.

    Args:
        usual: returns the seconds of a trial's usual epoch, as `usual_epoch` does.
        timeout: the option of the plan.
        clock: returns seconds; never jumps back.
    """

    def __init__(
        self, usual: Callable[[int], float], *, timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._usual, self._timeout, self._clock = usual, timeout, clock
        self._watched, self._looked = 0.0, clock()
        self._heard: dict[int, float] = {}
        """Times at which the workers of trials were heard last."""
        self._told: set[int] = set()
        self._least = min(patience(usual=1e-9, timeout=timeout).told, _UNKNOWN_SECONDS)

    def hear(self, number: int) -> None:
        """Take note that a trial has begun or reported."""
        self._heard[number] = self._watched
        self._told.discard(number)

    def forget(self, number: int) -> None:
        """Take note that a trial has no worker any more."""
        self._heard.pop(number, None)
        self._told.discard(number)

    def look(self) -> list[Silence]:
        """Return what is to be told now; a worker that is to be ended is watched no more."""
        now = self._clock()
        self._watched += min(now - self._looked, _LONGEST_STEP)
        self._looked = now
        found = [self._judge(number, self._watched - heard) for number, heard in self._heard.items()]
        silences = [each for each in found if each is not None]
        for silence in silences:
            self.forget(silence.number) if silence.ended else self._told.add(silence.number)
        return silences

    def _judge(self, number: int, seconds: float) -> Silence | None:
        if seconds < self._least:
            return None
        usual = self._usual(number)
        told, ended = patience(usual, timeout=self._timeout)
        if seconds < told or (number in self._told and seconds < ended):
            return None
        reason = f"its worker has reported nothing for {_words(seconds)}"
        if usual:
            reason += f", where it usually takes at most {_words(usual)}"
        if seconds >= ended:
            return Silence(number, f"{reason}: ended (--epoch-timeout)", True)
        limit = f"; it will be ended after {_words(ended)}" if math.isfinite(ended) else ""
        return Silence(number, reason + limit, False)


def _words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class SilenceCallback(tune.Callback):
    """A callback that has silences told, and silent workers ended, so that Ray Tune brings their trials back.

    Args:
        record: called with a trial's number and what is told of its silence; returns False if nothing is to be ended.
        end: called with a Ray Tune trial whose worker is to be ended.
    """

    def __init__(self, watch: SilenceWatch, *, record: Callable[[Silence], bool], end: Callable[[Any], None]) -> None:
        self.watch, self.record, self.end = watch, record, end
        self._trials: dict[int, Any] = {}
        """Ray Tune's trials that run, by their numbers."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its callbacks for a restore of its own, which is never asked for.
        return tune.Callback, ()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for silence in self.watch.look():
            if self.record(silence) and silence.ended:
                self.end(self._trials[silence.number])

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials[trial.config["number"]] = trial
        self.watch.hear(trial.config["number"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.watch.hear(trial.config["number"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials.pop(trial.config["number"], None)
        self.watch.forget(trial.config["number"])

    on_trial_recover = on_trial_error = on_trial_complete
