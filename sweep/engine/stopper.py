"""TODO one line."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweep.engine.result_keys import report_of
from sweep.search import Rungs


class MultiObjectiveASHA(FIFOScheduler):
    """`Rungs` as Ray Tune asks it. Holds no state of its own: whoever holds the same `rungs` knows every decision."""

    def __init__(self, rungs: Rungs) -> None:
        super().__init__()
        self.rungs = rungs

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        self.rungs.hear(number, trial.config["config"], report_of(result))
        # Also for a trial that was brought back after its stop was decided and before it took effect.
        return TrialScheduler.STOP if self.rungs.stopped(number) else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        number, report = trial.config["number"], report_of(result)
        # Also comes with what a trial said last that failed, or for which there was no time any more.
        if report.get("final"):
            self.rungs.finish(number, trial.config["config"], report)
        self.rungs.forget(number)
