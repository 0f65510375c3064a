"""A sweep run to its end on this machine, with its ledger, its screen and MLflow beside it."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from trainer.errors import InputError
from trainer.interrupts import in_hurry

if TYPE_CHECKING:
    from sweep.plan import SweepPlan
    from sweep.report import Screen
    from sweep.state import SweepState
    from trainer.progress import ProgressLine


def run_recorded(
    screen: Screen,
    *,
    fresh: bool,
    retry_failed: bool = False,
    on_event: Callable[[int], None] = lambda number: None,
    stop: threading.Event | None = None,
) -> tuple[bool, Callable[[str], str]]:
    """Run a screen's sweep, whose plan is written.

    Args:
        retry_failed: whether failed trials are run again, unless their configurations made them fail.
        on_event: called with the number of each trial that started, reported or ended, once the state knows it.
        stop: set by another thread, asks the sweep to stop as Ctrl-C does.

    Returns:
        False if it was interrupted, and the function that makes the link to its front at an address of MLflow.
    """
    from sweep.engine import RayFailed, run_plan
    from sweep.forecast import begin_forecast
    from sweep.ledger import LedgerWriter, read_ledger
    from sweep.plan import drop_remote, push_remote, rewrite_plan
    from sweep.search import remarks
    from sweep.tracking import Tracker

    plan, results = screen.plan, screen.results
    tracker = Tracker(plan, results, log=screen.log)

    def listen(number: int) -> None:
        tracker.changed(number)
        screen.trial_changed(number)
        on_event(number)

    tracker.start()
    complete = False
    with LedgerWriter(plan.folder) as ledger:
        if not fresh:
            rewrite_plan(plan)
        recorded = read_ledger(plan.folder)
        # The writer's first: it cut a torn line off, and the reader sees none any more.
        for warning in dict.fromkeys([*ledger.warnings, *recorded.warnings]):
            screen.log(f"ledger: {warning}")
        results.load(recorded.to_go_on_from(retry_failed=retry_failed))
        results.read_data(plan.folder)
        screen.open(resumed=bool(recorded.trials), remarks=remarks(plan))
        try:
            complete = run_plan(
                plan,
                ledger,
                results,
                progress=screen.prepare,
                begin=lambda: screen,
                on_event=listen,
                log=screen.log,
                on_slots=lambda slots: begin_forecast(plan, slots),
                stop=stop,
            )
        except (InputError, RayFailed):
            if fresh and not results.trials:
                shutil.rmtree(plan.folder, ignore_errors=True)
                drop_remote(plan.folder)
            raise
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


@contextlib.contextmanager
def mlflow_progress(line: ProgressLine) -> Iterator[Callable[[int, int], None]]:
    """Show how far the writing to MLflow is; yield the function to be called with the numbers done and in all."""
    with line:
        line.update("Writing to MLflow ...", now=True)
        yield lambda done, total: line.update(f"Writing to MLflow: {done} of {total} ...")
