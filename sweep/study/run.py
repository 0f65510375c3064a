"""The work of a study: its sweeps and their audits, interleaved, in one Ray session; whatever is done is skipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from sweep.audit import Audit, run_audit
from sweep.engine import ray_session
from sweep.plan import Step, StudyPlan, SweepPlan, write_plan
from sweep.report import Screen
from sweep.state import SweepState, read_state, state_of_trials
from sweep.study.progress import StudyAuditProgress, StudyClock, StudyScreen
from trainer.files import write_whole
from trainer.interrupts import SignalHandler
from trainer.progress import ProgressLine

_RunSweep = Callable[[Screen, bool], bool]
"""Runs a screen's sweep, which is fresh or goes on; False if it was interrupted."""


def run_study(plan: StudyPlan, console: Console, run_sweep: _RunSweep, on_round: Callable[[], None]) -> bool:
    """Run what is not done yet; return False if it was interrupted, and so can be resumed.

    Args:
        on_round: called whenever all arms are audited on a seed.
    """
    clock = StudyClock(len(plan.steps))
    with SignalHandler() as signals, ProgressLine(console.file, "Starting Ray ...") as line, ray_session(console.print):
        signals.take_back()
        line.clear()
        for steps in plan.rounds():
            for step in steps:
                clock.begin("sweep", step)
                if not _sweep(plan, step, console, clock, run_sweep):
                    return False
            for step in steps:
                clock.begin("audit", step)
                if not _audit(plan, step, console, clock):
                    return False
            on_round()
    return True


def _sweep(plan: StudyPlan, step: Step, console: Console, clock: StudyClock, run_sweep: _RunSweep) -> bool:
    fresh, sweep = not plan.begun(step), plan.sweep_plan(step)
    if fresh:
        sweep = write_plan(sweep)
    elif is_swept(sweep, read_state(sweep)):
        return True
    screen = StudyScreen(console, sweep, state_of_trials(sweep, {}), clock)
    complete = run_sweep(screen, fresh)
    clock.end("sweep")
    if complete:
        state = screen.results
        screen.log(
            f"{clock.heading}: {len(state.ended)} trials, hypervolume {state.hypervolume:.4f}; {clock.outlook()}"
        )
    return complete


def is_swept(sweep: SweepPlan, state: SweepState) -> bool:
    """Return whether a sweep's trials have all ended. One whose effort is a time is so once its audit has begun."""
    return len(state.ended) >= sweep.trials or (sweep.folder / "audit").is_dir()


def audit_of(plan: StudyPlan, step: Step) -> Audit | None:
    """Return the audit of a swept arm; None where no trial can be on a front, so that there is nothing to audit."""
    sweep = plan.sweep_plan(step)
    state = read_state(sweep)
    return Audit(sweep, state, plan.audit_options) if state.contenders else None


def is_audited(plan: StudyPlan, audit: Audit) -> bool:
    """Return whether all of an audit is done that can be: a training that fails on its seed is tried once a run."""
    if audit.judged() is None:
        return False
    missing = {task.name for task in audit.missing()}
    if not missing:
        return True
    failed = _failed_file(plan, audit)
    return failed.exists() and missing <= set(json.loads(failed.read_bytes()))


def _failed_file(plan: StudyPlan, audit: Audit) -> Path:
    return plan.folder / f"failed-{audit.plan.name}.json"


def _audit(plan: StudyPlan, step: Step, console: Console, clock: StudyClock) -> bool:
    audit = audit_of(plan, step)
    if audit is None or (audit.judged() and not audit.missing()):
        return True
    complete = run_audit(audit, console, StudyAuditProgress(console.file, clock))
    clock.end("audit")
    if complete and (failed := [task.name for task in audit.missing()]):
        write_whole(_failed_file(plan, audit), json.dumps(failed).encode())
    return complete
