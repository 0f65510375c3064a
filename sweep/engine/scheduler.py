"""The rungs, and the end of the sweep, as Ray Tune asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.stopper import NoopStopper

from sweep.engine.result_keys import report_of
from sweep.search import FreezeThaw, Rungs


class MultiObjectiveASHA(FIFOScheduler):
    """`Rungs` behind Ray Tune's interface. It has no state of its own: every decision is in `rungs`.

    Args:
        thaw: rule by which trials pause at rungs, instead of being stopped; None for stopping. To Ray Tune a pause is
            the end of a trial, so that it keeps nothing of it; what is thawed is a new trial to it.
    """

    def __init__(self, rungs: Rungs, thaw: FreezeThaw | None = None) -> None:
        super().__init__()
        self.rungs, self.thaw = rungs, thaw

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its scheduler for a restore of its own, which is never asked for.
        return FIFOScheduler, ()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        number, report = trial.config["number"], report_of(result)
        if self.thaw and report:
            pauses = self.thaw.observe(number, trial.config["config"], report)
            return TrialScheduler.STOP if pauses else TrialScheduler.CONTINUE
        self.rungs.observe(number, trial.config["config"], report)
        # This also stops a trial that was brought back after its stop was decided and before it took effect.
        return TrialScheduler.STOP if self.rungs.stopped(number) else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        number, report = trial.config["number"], report_of(result)
        # Ray Tune also calls this with the last report of a trial that failed or was stopped by the budget.
        if report.get("final"):
            self.rungs.finish(number, trial.config["config"], report)
        self.rungs.forget(number)


class SweepStopper(tune.Stopper):
    """Stops each trial at its next report once the budget is spent, and all at once on request.

    Args:
        spent: whether the budget is spent.
        requested: whether all trials are to stop now.
    """

    def __init__(self, *, spent: Callable[[], bool], requested: Callable[[], bool]) -> None:
        self.spent, self.requested = spent, requested

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.spent()

    def stop_all(self) -> bool:
        return self.requested()

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its stopper for a restore of its own, which is never asked for.
        return NoopStopper, ()
