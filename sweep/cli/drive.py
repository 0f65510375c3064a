"""A sweep run to its end on this machine: its ledger, its screen, MLflow, and what is shown at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from sweep.cli.console import (
    DONE,
    FAILED,
    INTERRUPTED,
    console,
    mlflow_progress,
    program,
    resume_command,
    sweep_words,
)
from sweep.cli.last_word import last_word
from sweep.cli.show import show_agreements, show_front
from trainer.errors import InputError, StorageFailed
from trainer.interrupts import SignalHandler, in_hurry

if TYPE_CHECKING:
    from sweep.plan import SweepPlan
    from sweep.report import Screen
    from sweep.state import SweepState


def drive(plan: SweepPlan, *, fresh: bool, retry_failed: bool = False) -> int:
    """Run a fresh sweep, or what is left of one, and show what it found; return the exit status.

    Args:
        retry_failed: whether failed trials are run again, unless their configurations made them fail.
    """
    from sweep.plan import write_plan
    from sweep.report import Screen
    from sweep.state import state_of_trials

    if fresh:
        plan = write_plan(plan)
    screen = Screen(console, plan, state_of_trials(plan, {}))
    with SignalHandler(_stopped_words(plan)):
        complete, link = run_recorded(screen, fresh=fresh, retry_failed=retry_failed)
        if in_hurry():
            console.print(_stopped_words(plan))
            return INTERRUPTED
        _show_end(plan, screen.results, link, complete=complete)
    if not complete:
        return INTERRUPTED
    return DONE if screen.results.finished else FAILED


def run_recorded(screen: Screen, *, fresh: bool, retry_failed: bool = False) -> tuple[bool, Callable[[str], str]]:
    """Run a screen's sweep, whose plan is written, with its ledger and MLflow beside it.

    Returns:
        False if it was interrupted, and the function that makes the link to its front at an address of MLflow.
    """
    from sweep.engine import PackFailed, RayFailed, RayLost, run_plan
    from sweep.forecast import begin_forecast
    from sweep.ledger import LedgerWriter, read_ledger
    from sweep.plan import drop_remote, push_remote
    from sweep.search import remarks
    from sweep.tracking import Tracker

    plan, results = screen.plan, screen.results
    tracker = Tracker(plan, results, log=screen.log)

    def listen(number: int) -> None:
        tracker.changed(number)
        screen.trial_changed(number)

    tracker.start()
    complete = False
    with LedgerWriter(plan.folder) as ledger:
        recorded = read_ledger(plan.folder)
        # The writer's first: it cut a torn line off, and the reader sees none any more.
        for warning in dict.fromkeys([*ledger.warnings, *recorded.warnings]):
            screen.log(f"ledger: {warning}")
        results.load(recorded.to_go_on_from(retry_failed=retry_failed))
        results.read_data(plan.folder)
        screen.open(resumed=bool(recorded.trials), remarks=remarks(plan))
        kept = f"Nothing recorded is lost; to resume:\n  {resume_command(plan)}"
        try:
            with last_word(f"otsweep: failed: {plan.name} was cut off, this process being killed. {kept}"):
                complete = run_plan(
                    plan,
                    ledger,
                    results,
                    progress=screen.prepare,
                    begin=lambda: screen,
                    on_event=listen,
                    log=screen.log,
                    on_slots=lambda slots: begin_forecast(plan, slots),
                )
        except (InputError, RayFailed):
            if fresh and not results.trials:
                shutil.rmtree(plan.folder, ignore_errors=True)
                drop_remote(plan.folder)
            raise
        except (StorageFailed, PackFailed, RayLost) as error:
            raise type(error)(f"{error}. {kept}") from None
        finally:
            screen.close()
            with mlflow_progress(screen.line) as show:
                tracker.close(complete=complete, on_progress=show)
    if in_hurry():
        return complete, tracker.link
    try:
        _save_front(plan, results)
        push_remote(plan.folder)
    except (OSError, InputError) as error:
        screen.log(f"the front's table and picture are not written: {error}; `otsweep front` shows it")
    return complete, tracker.link


def _save_front(plan: SweepPlan, results: SweepState) -> None:
    """Write the flat table and the picture beside the ledger."""
    from sweep.report import front_picture, save_figure, write_ledger_table

    write_ledger_table(plan, results, plan.folder / "ledger.parquet")
    if results.finished:
        save_figure(front_picture(plan, results), plan.folder / "front.png")


def _show_end(plan: SweepPlan, results: SweepState, link: Callable[[str], str], *, complete: bool) -> None:
    """Print the front, where everything is, and the one command that comes next."""
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
    _show_places(plan, results, link)


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


def _show_places(plan: SweepPlan, results: SweepState, link: Callable[[str], str]) -> None:
    """Print the time taken, and where picture, ledger and MLflow's runs are."""
    from sweep.forecast import describe_cost

    if cost := describe_cost(plan, results):
        console.print(f"time     {cost}")
    if results.finished:
        console.print(f"picture  {plan.folder / 'front.png'}")
    console.print(f"ledger   {plan.folder / 'ledger.parquet'}")
    if plan.mlflow_uri.startswith("http"):
        console.print(f"MLflow   {link(plan.mlflow_uri)}")
        return
    console.print(f"MLflow   {program()} ui {sweep_words(plan)}")
    console.print(f"opens    {link('http://127.0.0.1:5000')}")
