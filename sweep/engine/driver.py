"""A plan run on Ray Tune: what all trials share is prepared, trials are scheduled, every event goes into the ledger.

Ray Tune places trials, reuses workers and brings back trials whose worker was lost. The truth stays in the ledger: a
sweep is resumed by replaying it, never by unpickling Ray's own state.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from sweep.engine.ledger_callback import LedgerCallback
from sweep.engine.nodes import check_storage
from sweep.engine.packs import LIGHT, PackCallback, PackedTrainable, Packs
from sweep.engine.preparation import WAIT_SECONDS, Progress, prepare, record_preparation
from sweep.engine.ray_start import ray_session
from sweep.engine.scheduler import MultiObjectiveASHA, SweepStopper
from sweep.engine.searcher import SlotLimiter, TuneSearcher
from sweep.engine.silence import SilenceCallback, SilenceWatch, usual_epoch
from sweep.engine.slots import Slots, concurrency, slots_now
from sweep.engine.task import Task, make_task
from sweep.engine.trainable import TrialTrainable
from sweep.ledger import LedgerWriter
from sweep.plan import SweepPlan, given_points, space_changes, trials_at_first, url_of
from sweep.ray_internals import end_worker
from sweep.search import Budget, ParetoSearch, Rungs, rung_levels
from sweep.state import SweepState
from trainer.crowds import check_crowd
from trainer.interrupts import SignalHandler

LOST_WORKER_RETRIES = 3
"""Times that a trial is brought back after its worker was lost: killed, or out of memory. Nodes that left are not
counted: on spot machines that happens any number of times."""


def run_plan(
    plan: SweepPlan,
    ledger: LedgerWriter,
    state: SweepState,
    *,
    progress: Progress,
    begin: Callable[[], contextlib.AbstractContextManager[Any]],
    on_event: Callable[[int], None],
    log: Callable[[str], None],
    on_slots: Callable[[int], None] = lambda slots: None,
    stop: threading.Event | None = None,
) -> bool:
    """Run what is left of a plan, and return False if it was interrupted and so can be resumed.

    Args:
        state: what the ledger holds already; every event is applied to it.
        progress: called with the preparation's stage, how much of it is done, and how much there is.
        begin: makes a context that is open while trials run (the live screen).
        on_event: called with the number of each trial that started, reported or ended, once the state knows it.
        log: called with messages that a person should read: a damaged checkpoint, storage that refuses.
        on_slots: called once with the number of slots on the nodes that are there.
        stop: set by another thread, asks the sweep to stop as Ctrl-C does.

    Raises:
        InputError: if the cluster can't give what one trial needs, or the data can't be had.
        StorageFailed: if the storage refused for long; the sweep can be resumed from what is recorded.
        PackFailed: if packs fail again and again; the sweep can be resumed as well.
        RayFailed: if Ray can't start on this machine.
        RayLost: if Ray ended; the sweep can be resumed as well.
    """
    if len(state.ended) >= plan.trials:
        return True
    check_crowd(plan.space.evaluation)
    with SignalHandler(stop=stop) as signals, ray_session(log):
        signals.take_back()
        concurrent = concurrency(plan, progress)
        on_slots(slots_now(plan, concurrent))
        budget = Budget(plan, state, concurrent)
        if budget.spent() or (budget.enough() and not state.running):
            return True
        check_storage(url_of(Path(plan.storage)) or plan.storage, progress)
        task = make_task(plan)
        prepared = prepare(task, plan, progress, signals)
        if prepared is None:
            return False
        record_preparation(plan.folder, prepared)
        state.data_summary, state.judged = prepared.summary, prepared.judged
        with contextlib.ExitStack() as running:
            at_once = min(concurrent, plan.trials - len(state.ended))
            packs = running.enter_context(Packs(plan, task, at_once)) if plan.pack > 1 else None
            while packs and not packs.open_slots(wait=WAIT_SECONDS):
                progress(f"packs of {plan.pack}", 0, len(packs.workers))
                if signals.asked:
                    return False
            running.enter_context(begin())
            scratch = running.enter_context(tempfile.TemporaryDirectory(prefix="otsweep-tune-"))
            rungs = make_rungs(plan, state)
            slots = Slots(plan, concurrent, known=budget.usual > 0, open_slots=packs.open_slots if packs else None)
            ledger_callback = LedgerCallback(ledger, state, rungs, budget, slots, on_event=on_event, log=log)
            stopper = SweepStopper(
                spent=budget.spent,
                requested=lambda: signals.asked or ledger_callback.trouble is not None or budget.overrun(),
            )
            _make_tuner(plan, task, state, ledger_callback, stopper, scratch, packs).fit()
            if ledger_callback.trouble is not None:
                raise ledger_callback.trouble
    return not signals.asked


def make_rungs(plan: SweepPlan, state: SweepState) -> Rungs:
    """Return the rungs at which trials are compared, as far as the ledger tells."""
    levels = rung_levels(grace_epochs=plan.grace_epochs, eta=plan.eta, epochs=plan.epochs_per_trial)
    levels = levels if plan.stopper == "asha" else []
    rungs = Rungs(
        plan.objectives, levels=levels, eta=plan.eta, require=plan.space.require, stop_chance=plan.stop_chance
    )
    rungs.restore(state.trials.values())
    return rungs


def _make_tuner(
    plan: SweepPlan,
    task: Task,
    state: SweepState,
    ledger_callback: LedgerCallback,
    stopper: SweepStopper,
    scratch: str,
    packs: Packs | None,
) -> tune.Tuner:
    """Return Ray Tune over what is left of the plan. `scratch` takes Ray's own state, which nothing reads."""
    search = ParetoSearch(
        plan.space,
        plan.objectives,
        sampler=plan.sampler,
        seed=plan.seed,
        configurations=trials_at_first(plan) // plan.seeds,
        epochs=plan.epochs,
        seeds=plan.seeds,
        require=plan.space.require,
        points=given_points(plan),
        other_space=max((until for until, _ in space_changes(plan)), default=0) // plan.seeds,
        history=state.trials.values(),
        enough=ledger_callback.budget.enough,
    )
    if packs:
        trainable, resources = tune.with_parameters(PackedTrainable, packs=packs.workers), LIGHT
    else:
        trainable = tune.with_parameters(TrialTrainable, task=task)
        resources = {"cpu": plan.cpus_per_trial, "gpu": plan.gpus_per_trial}
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=SlotLimiter(TuneSearcher(search), ledger_callback.slots, ledger_callback.budget),
            scheduler=MultiObjectiveASHA(ledger_callback.rungs),
            num_samples=plan.trials - len(state.ended),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            callbacks=[
                ledger_callback,
                _silence_callback(plan, ledger_callback, packs),
                *([PackCallback(packs)] if packs else []),
            ],
            stop=stopper,
            failure_config=tune.FailureConfig(max_failures=LOST_WORKER_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _silence_callback(plan: SweepPlan, ledger_callback: LedgerCallback, packs: Packs | None) -> SilenceCallback:
    """Return the watch over silent workers, told and recorded as `ledger_callback` does."""

    def usual(number: int) -> float:
        whole_trial = ledger_callback.budget.usual
        return usual_epoch(ledger_callback.state.trials[number], plan, whole_trial=whole_trial)

    def end(trial: Any) -> None:
        if packs:
            packs.end_silent(trial.config["number"])
        end_worker(trial)

    watch = SilenceWatch(usual, timeout=plan.epoch_timeout)
    return SilenceCallback(watch, record=ledger_callback.record_silence, end=end)
