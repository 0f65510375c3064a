"""A sweep run to its end on this machine, and what is shown at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sweep.cli.console import (
    DONE,
    FAILED,
    INTERRUPTED,
    console,
    mlflow_address,
    resume_command,
    show_mlflow,
)
from sweep.cli.last_word import last_word
from sweep.cli.show import show_agreements, show_front
from trainer.errors import StorageFailed
from trainer.interrupts import SignalHandler, in_hurry

if TYPE_CHECKING:
    from sweep.api import Sweep
    from sweep.plan import SweepPlan
    from sweep.state import SweepState


def drive(plan: SweepPlan, *, fresh: bool, retry_failed: bool = False) -> int:
    """Run a fresh sweep, or what is left of one, and show what it found; return the exit status.

    Args:
        retry_failed: whether failed trials are run again, unless their configurations made them fail.
    """
    from sweep.api import Interrupted
    from sweep.api import drive as run
    from sweep.plan import write_plan

    if fresh:
        plan = write_plan(plan)
    with SignalHandler(_stopped_words(plan)):
        try:
            with told_how_to_resume(plan.name, resume_command(plan)):
                sweep = run(plan, fresh=fresh, written=True, retry_failed=retry_failed, progress=console)
            complete = True
        except Interrupted as stopped:
            sweep, complete = stopped.sweep, False
        if in_hurry():
            console.print(_stopped_words(plan))
            return INTERRUPTED
        _show_end(sweep, complete=complete)
    if not complete:
        return INTERRUPTED
    return DONE if sweep.state.finished else FAILED


@contextlib.contextmanager
def told_how_to_resume(name: str, command: str) -> Iterator[None]:
    """Add the command that resumes a sweep or study to whatever keeps it from going on, be it this process's end."""
    from sweep.engine import PackFailed, RayLost

    kept = f"Nothing recorded is lost; to resume:\n  {command}"
    try:
        with last_word(f"otsweep: failed: {name} was cut off, this process being killed. {kept}"):
            yield
    except (StorageFailed, PackFailed, RayLost) as error:
        raise type(error)(f"{error}. {kept}") from None


def _show_end(sweep: Sweep, *, complete: bool) -> None:
    """Print the front, where everything is, and the one command that comes next."""
    plan, results = sweep.plan, sweep.state
    console.print()
    if results.finished:
        show_front(plan, results)
    if plan.stopper != "none" or plan.ladder:
        show_agreements(plan, results)
    for number, record in results.failed.items():
        console.print(f"trial {number:03d} failed: {record.reason}", markup=False)
    if lacking := sum(record.environment is True for record in results.failed.values()):
        console.print(
            f"{lacking} of them for want of their environment; once it is mended, to run them again:\n"
            f"  {resume_command(plan)} --retry-failed",
            markup=False,
        )
    if not complete:
        console.print(_stopped_words(plan, plan.trials - len(results.ended)))
        return
    if len(results.ended) < plan.trials:
        _show_early_end(plan, results)
    _show_places(sweep)


def _stopped_words(plan: SweepPlan, left: int | None = None) -> str:
    """Return what is said of a sweep that was stopped, with so many trials left."""
    to_go = "" if left is None else f" with {left} trials to go"
    return f"Stopped{to_go}. Nothing is lost; to resume:\n  {resume_command(plan)}"


def _show_early_end(plan: SweepPlan, results: SweepState) -> None:
    """Print why the sweep ended before all of its trials did."""
    if results.running:
        console.print(
            f"{len(results.running)} trials were stopped by the budget; to resume them with a larger one:\n"
            f"  {resume_command(plan)} --max-gpu-hours {2 * plan.max_gpu_hours:g}\n"
        )
    grown = f"; hypervolume +{results.growth(plan.stop_when_flat):.1%} over the last {plan.stop_when_flat}"
    why = grown if plan.stop_when_flat else ""
    console.print(f"Ended after {len(results.ended)} of {plan.trials} trials, as the plan has it{why}.\n")


def _show_places(sweep: Sweep) -> None:
    """Print the time taken, and where picture, ledger and MLflow's runs are."""
    from sweep.forecast import describe_cost

    plan, results, link = sweep.plan, sweep.state, sweep.link
    assert link is not None, "it was run"
    if cost := describe_cost(plan, results):
        console.print(f"time     {cost}")
    if results.finished:
        console.print(f"picture  {plan.folder / 'front.png'}")
    console.print(f"ledger   {plan.folder / 'ledger.parquet'}")
    show_mlflow(plan, link(mlflow_address(plan)), console)
