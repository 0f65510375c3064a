"""TODO one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray import tune

from sweep.engine.nodes import lost_with_its_node
from sweep.engine.pack_worker import PackFailed
from sweep.engine.packs import why_failed
from sweep.engine.slots import Slots
from sweep.engine.trainable import Footprint
from sweep.ledger import EndState, LedgerWriter
from sweep.search import FAILURE, FOOTPRINT, STORAGE, WARNINGS, Budget, Rungs
from sweep.state import SweepState
from trainer.errors import StorageFailed
from trainer.files import patiently
from trainer.report import collapse


def _never() -> bool:
    return False


class SweepStopper(tune.Stopper):
    """Tells Ray Tune to stop each trial at its next epoch once the budget is `spent`, and all at once if so `asked`."""

    def __init__(self, *, asked: Callable[[], bool] = _never, spent: Callable[[], bool] = _never) -> None:
        self.asked, self.spent = asked, spent

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.spent()

    def stop_all(self) -> bool:
        return self.asked()

    def __reduce__(self) -> tuple[Any, ...]:
        # As the callbacks: pickled by Ray Tune for a restore of its own, which is never asked for.
        return SweepStopper, ()


class LedgerCallback(tune.Callback):
    """Writes every event into the ledger before anyone acts on it, then tells `listen` which trial it was.

    Where the storage refuses for long, nothing more is written, `trouble` says why, and the sweep is to end: what comes
    after an event that could not be recorded must not be recorded either. So it ends where packs can't go on.
    """

    def __init__(
        self,
        ledger: LedgerWriter,
        results: SweepState,
        rungs: Rungs,
        budget: Budget,
        slots: Slots,
        *,
        listen: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        self.ledger, self.results, self.rungs, self.budget, self.slots = ledger, results, rungs, budget, slots
        self.listen, self.say = listen, say
        self.trouble: StorageFailed | PackFailed | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its callbacks for a restore of its own, which is never asked for.
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, config, now = trial.config["number"], trial.config["config"], time.time()
        known = self.results.trials.get(number)
        begun: dict[str, Any] = {"seed": config["seed"], "host": "", "time": now, "noted": trial.config["noted"]}
        begun["attempt"] = 1 + (known.attempts if known else 0)
        if not self.record(lambda: self.ledger.started(number, config=config, **begun)):
            return
        if number in self.budget.holding:
            self.say(f"trial {number:03d}: its worker was lost; goes on from its last epoch")
        self.budget.hold(number)
        self.results.begin(number, config, **begun)
        self.listen(number)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number = trial.config["number"]
        for warning in result.get(WARNINGS, ()):
            self.say(f"trial {number:03d}: {warning}")
        if STORAGE in result:
            self.trouble = self.trouble or StorageFailed(result[STORAGE])
        elif FAILURE in result:
            self.end(number, "failed", result[FAILURE])
        else:
            self.take(number, result["report"])
            if self.slots.heard(Footprint(*result[FOOTPRINT])) and self.slots.plan.measure_memory:
                self.say(self.slots.describe())

    def take(self, number: int, said: dict[str, Any]) -> None:
        """A report, with what the scheduler decided on it."""
        report, held = {**said, "time": time.time()}, self.budget.held(number)
        if not self.record(lambda: self.ledger.reported(number, report, time=report["time"], held=held)):
            return
        self.results.trials[number].say(report)
        self.results.trials[number].hold(held)
        self.explain_decisions(number)
        if report["final"]:
            if alarm := collapse(report):
                self.say(f"trial {number:03d}: {alarm}")
            self.end(number, "finished", "")
        elif self.rungs.stopped(number):
            self.end(number, "stopped", self.rungs.decisions[number][-1].reason)
        else:
            self.listen(number)

    def explain_decisions(self, number: int) -> None:
        """Write down what the scheduler decided on the report that the ledger holds now."""
        record = self.results.trials[number]
        for decision in self.rungs.decisions.get(number, [])[len(record.decisions) :]:
            plain = decision.to_dict(self.results.objectives)
            if self.record(lambda plain=plain: self.ledger.decided(number, plain, time=time.time())):
                record.decisions.append(plain)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if lost_with_its_node(trial.error_file):
            trial.run_metadata.num_failures = max(0, trial.run_metadata.num_failures - 1)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        if reason := why_failed(trial.error_file):
            self.trouble = self.trouble or PackFailed(reason)
        elif number in self.results.running:
            attempts = self.results.trials[number].attempts
            self.end(number, "failed", f"its worker was lost {attempts} times (killed or out of memory)")

    def end(self, number: int, state: EndState, reason: str) -> None:
        now, held = time.time(), self.budget.held(number)
        if not self.record(lambda: self.ledger.ended(number, state=state, reason=reason, time=now, held=held)):
            return
        self.results.trials[number].hold(held)
        self.results.end(number, state, reason=reason, time=now)
        self.budget.release(number)
        self.listen(number)

    def record(self, write: Callable[[], None]) -> bool:
        """Whether an event is in the ledger now; storage that refuses is waited for, until it is `trouble`."""
        if self.trouble is None:
            try:
                patiently(write, what="the ledger", log=self.say)
            except StorageFailed as error:
                self.trouble = error
        return self.trouble is None
