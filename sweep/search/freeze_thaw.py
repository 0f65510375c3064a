"""Pause trials at rungs, and thaw those that are worth their epochs: nothing is thrown away while a sweep runs.

A trial's end is forecast at a rung from how finished trials changed since then (`ExpectedGains`). It goes on if with
more than `stop_chance` that adds to the front. Else its slot is free, and goes to whoever brings most per epoch: a
paused trial, a new one, or itself. A paused trial brings the hypervolume that its end is expected to add, over the
epochs that it still needs. Running trials count as if their expected ends were on the front already.

What a new trial brings is what the latest trials at the first rung would have brought, with the right to leave those
that disappoint there: the best ratio of expected gain to expected epochs, over all bounds below which a trial is left
(the reservation value of Weitzman 1979, "Optimal search for the best alternative").

Until a few trials have finished, from which to forecast, as few go on to their ends, and all others pause.

`FreezeThaw` is the whole of it, without Ray and without chance. Its state is rebuilt from the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from sweep.ledger import TrialRecord
from sweep.search.decision import CHANGES, NEW, Decision, describe_gains
from sweep.search.expected_gains import ExpectedGains
from sweep.search.rungs import Rungs


class Choice(NamedTuple):
    """The trial that a free slot goes to."""

    number: int
    """Its number; `NEW` for one that is to begin."""

    gain: float | None = None
    """Hypervolume that it is expected to add per epoch; None while nothing can be forecast."""

    other: int | None = None
    """The next best, as `number` names it; None where there is none, or nothing can be forecast."""

    other_gain: float | None = None
    """The same of the next best."""

    @property
    def reason(self) -> str:
        """The reason for it, for people."""
        return describe_gains(self.gain, self.other, self.other_gain)


class FreezeThaw:
    """The paused trials of a sweep, and the choice of who goes on.

    Args:
        rungs: rungs of the sweep, which stop no trial themselves.
        epochs: epochs of a whole trial.
        trials: trials that may begin.
        seeds: trials of a configuration.
        stop_chance: a trial may pause if its probability of adding to the front is at most this, and then is not thawed
            once no other may begin.
        budget_epochs: epochs that all trials may train together; 0 for no limit.
        enough: returns whether no trial is to begin or be thawed, for another reason.
    """

    def __init__(
        self,
        rungs: Rungs,
        *,
        epochs: int,
        trials: int,
        stop_chance: float,
        seeds: int = 1,
        budget_epochs: int = 0,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        self.rungs, self.epochs, self.trials, self.seeds = rungs, epochs, trials, seeds
        self.stop_chance, self.budget, self.enough = stop_chance, budget_epochs or math.inf, enough
        self.live: dict[int, int] = {}
        """Trials that have a slot, or are given one, with the epoch of the rung that they reach next."""
        self.paused: dict[int, tuple[int, str]] = {}
        """Paused trials with the keys of their rungs."""
        self._waiting: dict[tuple[int, str], set[int]] = {}
        """The same by rung."""
        self._trained: dict[int, int] = {}
        """Epochs that each trial that has begun has trained."""
        self._spent = 0
        """The sum of these."""
        self._finished = 0

    # ------------------------------------------------------------------------------------------------- what happens

    def start(self, number: int) -> None:
        """Take in that a trial is given a slot: a new one, a paused one, or one that was interrupted."""
        if number in self.paused:
            self._waiting[self.paused.pop(number)].remove(number)
        self._count(number, 0)
        self.live[number] = next((each for each in self.rungs.levels if each > self._trained[number]), self.epochs)

    def observe(self, number: int, config: Mapping[str, Any], report: Mapping[str, Any]) -> bool:
        """Take in a running trial's report; return whether it is paused."""
        self._count(number, report["epoch"])
        decision, made = self.rungs.observe(number, config, report), self.rungs.decisions.get(number, [])
        if decision is not None:
            self._pause(number, decision)
            made[-1] = self._judge(number, decision)
            if not made[-1].pause:
                self.start(number)
        elif number in self.paused:
            # Its worker was lost before the pause took effect, so it was brought back.
            made.append(made[-1])
        return number in self.paused

    def end(self, number: int, *, finished: bool) -> None:
        """Take in that a running trial has ended."""
        self.live.pop(number, None)
        self._finished += finished

    def restore(self, records: Iterable[TrialRecord]) -> None:
        """Rebuild the state from what a ledger holds, once the rungs are restored."""
        for record in records:
            self._count(record.number, max((report["epoch"] for report in record.reports), default=0))
            if record.state == "paused":
                self._pause(record.number, self.rungs.decisions[record.number][-1])
            elif record.state == "running":
                self.start(record.number)
            self._finished += record.state == "finished"

    def _count(self, number: int, epoch: int) -> None:
        """Count the epochs that a trial has trained."""
        before = self._trained.get(number, 0)
        self._trained[number] = max(before, epoch)
        self._spent += self._trained[number] - before

    def _pause(self, number: int, decision: Decision) -> None:
        key = self.paused[number] = decision.rung, decision.strength
        self._waiting.setdefault(key, set()).add(number)
        self.live.pop(number, None)

    # -------------------------------------------------------------------------------------------------- who goes on

    def choose(self) -> Choice | None:
        """Return who is to have a free slot; None if nobody."""
        begins = max(self._trained, default=-1) + 1 < self.trials and self.epochs <= self._left
        if not self._can_forecast:
            first = min(filter(self._fits, self.paused), default=None)
            if first is not None and (self._committed < CHANGES or not begins):
                return Choice(first)
            return Choice(NEW) if begins else None
        expected = self._expected_gains()
        left = self._left
        waiting = {key: numbers for key, numbers in self._waiting.items() if self.epochs - key[0] <= left}
        best = expected.best(waiting, least_chance=0.0 if begins else self.stop_chance)
        if not begins:
            return Choice(best.number, best.gain) if best else None
        gain = expected.of_new()
        if best is None or best.gain < gain:
            return Choice(NEW, gain, best.number, best.gain) if best else Choice(NEW, gain)
        return Choice(best.number, best.gain, NEW, gain)

    def _judge(self, number: int, decision: Decision) -> Decision:
        """Return the decision on a trial that has just reached a rung, with whether it pauses there, and why."""
        if not self._can_forecast:
            waits = decision.rung == self._first and self._committed >= CHANGES
            return decision._replace(pause=waits or not self._fits(number))
        [own] = self._expected_gains().of(self.paused[number], [number])
        decision = decision._replace(pause=False, chance=own.chance, gain=own.gain)
        if own.chance > self.stop_chance and self._fits(number):
            return decision
        choice = None if self.enough() else self.choose()
        if choice is None:
            return decision._replace(pause=True)
        if choice.number == number:
            return decision._replace(instead=choice.other, instead_gain=choice.other_gain)
        return decision._replace(pause=True, instead=choice.number, instead_gain=choice.gain)

    def _expected_gains(self) -> ExpectedGains:
        return ExpectedGains(self.rungs, epochs=self.epochs, seeds=self.seeds, running=self.live)

    def _fits(self, number: int) -> bool:
        """Return whether the budget suffices for the rest of a paused trial."""
        return self.epochs - self.paused[number][0] <= self._left

    @property
    def _left(self) -> float:
        """Epochs of the budget that are not promised to a running trial on its way to its next rung."""
        return self.budget - self._spent - sum(level - self._trained[number] for number, level in self.live.items())

    @property
    def _can_forecast(self) -> bool:
        firsts = (rung for (level, _), rung in self.rungs.rungs.items() if level == self._first)
        return any(len(rung.changes) >= CHANGES for rung in firsts)

    @property
    def _committed(self) -> int:
        """Number of trials that have finished, or are on their way from the first rung to the end."""
        return self._finished + sum(self._trained[number] >= self._first for number in self.live)

    @property
    def _first(self) -> int:
        return self.rungs.levels[0] if self.rungs.levels else self.epochs
