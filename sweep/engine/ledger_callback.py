"""The way of every event from Ray Tune into the ledger, from there into the state, and on to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray import tune

from sweep.engine.pack_worker import PackFailed
from sweep.engine.result_keys import ENVIRONMENT, FAILURE, FOOTPRINT, STORAGE, WARNINGS
from sweep.engine.silence import Silence
from sweep.engine.slots import Slots
from sweep.engine.trainable import Footprint
from sweep.ledger import EndState, Event, LedgerWriter
from sweep.ray_internals import forgive_failure, last_message, lost_with_its_node
from sweep.search import Budget, Rungs
from sweep.state import SweepState
from trainer.errors import StorageFailed
from trainer.files import patiently
from trainer.report import alarms


class LedgerCallback(tune.Callback):
    """A callback that writes every event into the ledger before anything acts on it, then applies it to the state.

    If the storage refuses for long, nothing more is written, `trouble` says why, and the sweep is to end: what follows
    an event that could not be recorded must not be recorded either. The same holds if packs can't go on.

    Args:
        on_event: called with the number of a trial that has started, reported or ended.
        log: called with a message for people.
    """

    def __init__(
        self,
        ledger: LedgerWriter,
        state: SweepState,
        rungs: Rungs,
        budget: Budget,
        slots: Slots,
        *,
        on_event: Callable[[int], None],
        log: Callable[[str], None],
    ) -> None:
        self.ledger, self.state, self.rungs, self.budget, self.slots = ledger, state, rungs, budget, slots
        self.on_event, self.log = on_event, log
        self.trouble: StorageFailed | PackFailed | None = None
        """The reason for which nothing more can be recorded."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its callbacks for a restore of its own, which is never asked for.
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, config = trial.config["number"], trial.config["config"]
        known = self.state.trials.get(number)
        attempt = {"seed": config["seed"], "attempt": 1 + (known.attempts if known else 0), "host": ""}
        attempt |= {"time": time.time(), "sampler_state": trial.config["sampler_state"]}
        if self._record(lambda: self.ledger.started(number, config=config, **attempt)):
            if self.budget.runs(number):
                self.log(f"trial {number:03d}: its worker was lost; it continues from its last epoch")
            self.budget.hold(number)
            self.on_event(number)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number = trial.config["number"]
        for warning in result.get(WARNINGS, ()):
            self.log(f"trial {number:03d}: {warning}")
        if STORAGE in result:
            self.trouble = self.trouble or StorageFailed(result[STORAGE])
        elif FAILURE in result:
            self._end(number, "failed", result[FAILURE], environment=result.get(ENVIRONMENT, False))
        else:
            self._report(number, result["report"])
            if self.slots.observe(Footprint(*result[FOOTPRINT])) and self.slots.plan.measure_memory:
                self.log(self.slots.describe())

    def _report(self, number: int, report: dict[str, Any]) -> None:
        """Record a report, with what the scheduler decided on it."""
        report, seconds = {**report, "time": time.time()}, self.budget.slot_seconds(number)
        if not self._record(lambda: self.ledger.reported(number, report, time=report["time"], slot_seconds=seconds)):
            return
        self._record_decisions(number)
        if report["final"]:
            for alarm in alarms(report):
                self.log(f"trial {number:03d}: {alarm}")
            self._end(number, "finished", "")
        elif self.rungs.stopped(number):
            self._end(number, "stopped", self.rungs.decisions[number][-1].reason)
        else:
            self.on_event(number)

    def _record_decisions(self, number: int) -> None:
        """Record what the scheduler decided on the report that the ledger holds now."""
        recorded = len(self.state.trials[number].decisions)
        for decision in self.rungs.decisions.get(number, [])[recorded:]:
            plain = decision.to_dict(self.state.objectives)
            self._record(lambda plain=plain: self.ledger.decided(number, plain, time=time.time()))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if lost_with_its_node(trial.error_file):
            forgive_failure(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        if reason := last_message(trial.error_file, PackFailed):
            self.trouble = self.trouble or PackFailed(reason)
        elif number in self.state.running:
            lost = self.state.trials[number]
            reason = f"its worker was lost {lost.attempts} times ({lost.silence or 'killed or out of memory'})"
            self._end(number, "failed", reason, environment=True)

    def record_silence(self, silence: Silence) -> bool:
        """Record and tell that a trial's worker says nothing; return whether it is in the ledger now."""
        number, reason = silence.number, silence.reason
        recorded = self._record(lambda: self.ledger.silent(number, reason, ended=silence.ended, time=time.time()))
        if recorded:
            self.log(f"trial {number:03d}: {reason}")
        return recorded

    def _end(self, number: int, state: EndState, reason: str, *, environment: bool | None = None) -> None:
        end: dict[str, Any] = {"state": state, "reason": reason, "environment": environment}
        end |= {"time": time.time(), "slot_seconds": self.budget.slot_seconds(number)}
        if self._record(lambda: self.ledger.ended(number, **end)):
            self.budget.release(number)
            self.on_event(number)

    def _record(self, write: Callable[[], Event]) -> bool:
        """Write an event into the ledger and apply it; return whether it is there now.

        Storage that refuses is waited for, until that is `trouble`.
        """
        if self.trouble is None:
            try:
                self.state.apply(patiently(write, what="the ledger", log=self.log))
            except StorageFailed as error:
                self.trouble = error
        return self.trouble is None
