"""Bring an MLflow store up to a sweep's state: one parent run per sweep, one child per trial.

The ledger is the truth, and trials never talk to MLflow. Every write may be repeated: times and steps come from the
ledger, and before a run is made it is looked for by its tags wherever an earlier call may have made it unnoticed. So
whatever happens to the store or to this process, the store ends as an undisturbed writer would have left it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan, masked
from sweep.state import SweepState, read_state
from sweep.tracking.artifacts import write_artifacts
from sweep.tracking.mlflow_internals import explain_error, store_errors
from sweep.tracking.parent_run import ParentRun
from sweep.tracking.parts import Parts
from sweep.tracking.store import Log, OnProgress, Store
from sweep.tracking.trial_runs import TrialRuns
from trainer.errors import InputError
from trainer.interrupts import in_hurry

_BATCH = 50
"""Trials in one transaction."""
_CALLS_AT_ONCE = 4
"""Trials that are written to a server at once: MLflow's own has four processes, unless it is told otherwise."""


class Writer:
    """Everything that one store holds of one sweep. No state is kept: each call takes the state that it writes.

    Raises:
        InputError: from the constructor, if nothing usable answers at `uri`.
    """

    def __init__(self, plan: SweepPlan, uri: str, *, log: Log) -> None:
        self.plan, self.log = plan, log
        self.store = Store(plan, uri)
        self.parent = ParentRun(plan, self.store, log=log)
        self.trials = TrialRuns(plan, self.store)
        self.parts = Parts(self.store)
        self.is_open = False

    def open(self, state: SweepState) -> None:
        """Find this sweep's experiment and runs where an earlier writer made them, else make them.

        Raises:
            InputError: while another process writes the same sweep into the same store, or if the store is a server's
                own database.
        """
        self.store.lock()
        self.store.open_experiment(log=self.log)
        self.parent.open(state)
        with self.parts.apart("the sweep's parameters"):
            self.parent.write_parameters()
        with self.parts.apart("the data set"):
            self.store.log_data(self.parent.run_id, state.data_summary)
        with self.parts.apart("saved views"):
            self.parent.write_views()
        self.trials.adopt(self.parent.run_id)
        self.is_open = True

    def close(self) -> None:
        """Let another process write."""
        self.store.close()

    def write_front(self, state: SweepState, *, enough: Callable[[], bool] = lambda: False) -> None:
        """Write the curves by finished trials, ranks, the description and, at a bounded rate, the front's files.

        Args:
            enough: whether ranks are to wait for the next call.
        """
        parent, trials = self.parent, self.trials
        if fresh := state.course[parent.milestones :]:
            parent.write_milestones(fresh)
            trials.settled, parent.files_stale = False, True
        trials.ranking.refresh(state, over=False)
        if not trials.settled:
            for _ in trials.write_ranks(state, over=False):
                if enough():
                    break
            self._write_note(state)
        elif state.silences() != parent.silences:
            self._write_note(state)
        if parent.files_stale and time.monotonic() >= parent.files_due:
            self._write_files(state, over=False)

    def write_apart(self, number: int) -> AbstractContextManager[None]:
        """Return a context in which the writing of a trial may fail without the rest."""
        return self.parts.apart(_part(number))

    def _write_note(self, state: SweepState) -> None:
        with self.parts.apart("the description"):
            self.parent.write_note(state, {number: run.run_id for number, run in self.trials.runs.items()})

    def _write_files(self, state: SweepState, *, over: bool) -> None:
        with self.parts.apart(f"the front's files at {self.store.artifacts}"):
            self.parent.write_files(state, over=over)

    def finish(self, state: SweepState, *, over: bool, on_progress: OnProgress = lambda done, total: None) -> bool:
        """Write what is left: all trials, ranks and files, and the parent's end. A part that fails is left out.

        Args:
            over: whether no trial will end any more, so that the last ranks are final.

        Returns:
            False if a signal asked to stop and there was no time for all of it: then the runs are marked as killed.
        """
        self.store.open_experiment(log=self.log)
        total, hurried = 2 * len(state.trials), False
        for done, _ in enumerate(self._write_rest(state, over=over)):
            on_progress(min(done, total), total)
            if hurried := in_hurry():
                break
        over = over and not hurried
        if not over:
            with self.parts.apart("the states of unfinished trials"):
                self.trials.interrupt(state)
        self.parent.end(state, over=over)
        if not over and not hurried:
            self._write_files(state, over=False)
        on_progress(total, total)
        return not hurried

    def _write_rest(self, state: SweepState, *, over: bool) -> Iterator[None]:
        """Write what is left but for the parent's end; yield after each part."""
        parent, trials, apart = self.parent, self.trials, self.parts.apart
        trials.ranking.refresh(state, over=over)
        yield from self._write_trials(state, over=over)
        if self.store.doubtful:
            trials.adopt(parent.run_id)
        with apart("ranks"):
            yield from trials.write_ranks(state, over=over)
        with apart("the front's curves"):
            parent.milestones = 0
            parent.write_milestones(state.course)
        yield
        if state.course:
            self._write_note(state)
        if over:
            yield
            self._write_files(state, over=True)
            yield
            self._write_last(state)

    def _write_trials(self, state: SweepState, *, over: bool) -> Iterator[None]:
        """Write all trials; yield after each. A database takes those without a run in whole batches."""
        trials, left = self.trials, dict(state.trials)
        new = [each for each in state.ended.values() if each.number not in trials.runs and each.started and each.ended]
        for start in range(0, len(new) if self.store.inserts else 0, _BATCH):
            batch = new[start : start + _BATCH]
            try:
                trials.insert(batch, state, over=over)
            except Exception:  # noqa: BLE001 - what is wrong, and with which trial, is told when each is written
                trials.adopt(trials.parent)
                continue
            for record in batch:
                with self.write_apart(record.number):
                    del left[record.number]
                yield
        yield from self._write_each(left.values(), state, over=over)

    def _write_each(self, records: Collection[TrialRecord], state: SweepState, *, over: bool) -> Iterator[None]:
        """Write trials by calls of their own, a few at once where the store is a server; yield after each.

        What failed beside others is tried once more alone: in a server's SQLite, writers wait for one another.
        """

        def write(record: TrialRecord) -> None:
            with self.write_apart(record.number):
                self.trials.write(record, state, over=over)

        if not self.store.is_server:
            for record in records:
                write(record)
                yield
            return
        pool = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="mlflow")
        try:
            for _ in pool.map(write, records):
                yield
        finally:
            pool.shutdown(cancel_futures=True)
        for record in records:
            if _part(record.number) in self.parts.reasons:
                write(record)

    def _write_last(self, state: SweepState) -> None:
        """Write what waits until no trial will end any more."""
        from sweep.forecast import describe_cost  # Ray comes with it, which neither `compare` nor `judge` needs

        with self.parts.apart("the time taken"):
            if cost := describe_cost(self.plan, state):
                self.store.client.set_tag(self.parent.run_id, "otsweep.time", cost)
        write_artifacts(self.plan, state, self.trials, self.parts, log=self.log)
        with self.parts.apart("rank correlations"):
            self.parent.write_agreement(state)


def _part(number: int) -> str:
    """Return the name of a trial among the parts of a store."""
    return f"trial {number:03d}"


def is_over(plan: SweepPlan, state: SweepState) -> bool:
    """Return whether no trial of a sweep will end any more, as far as its ledger tells."""
    ended_before = bool(plan.stop_when_flat or plan.max_hours or plan.budget_epochs) and bool(state.ended)
    return not state.running and not state.paused and (len(state.ended) >= plan.trials or ended_before)


def sync(
    plan: SweepPlan, uri: str, *, log: Log, on_progress: OnProgress = lambda done, total: None
) -> tuple[SweepState, bool]:
    """Bring the store at `uri` up to date from the sweep's ledger.

    Returns:
        What the ledger holds, and whether the store has all of it; what it lacks is logged.

    Raises:
        InputError: if nothing answers there, if it fails on the way, or while another process writes the same sweep
            into the same store.
    """
    state = read_state(plan)
    for warning in state.warnings:
        log(warning)
    if not state.trials:
        return state, True
    with contextlib.closing(Writer(plan, uri, log=log)) as writer:
        try:
            writer.open(state)
            writer.finish(state, over=is_over(plan, state), on_progress=on_progress)
        except store_errors() as error:
            raise InputError(
                f"MLflow at {masked(uri)} stopped taking results ({explain_error(error)}); the same command goes on"
            ) from None
        if missing := writer.parts.missing():
            log(missing)
        return state, not missing
