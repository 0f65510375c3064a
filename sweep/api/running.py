"""Sweeps run from Python: to their end, with a callback for each report, or in a thread while reports are iterated."""

from __future__ import annotations

import contextlib
import io
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack

from sweep.api.opened import Sweep
from sweep.api.options import ResumeOptions, RunOptions, SpaceLike, new_plan, typed_words
from sweep.api.recorded import run_recorded
from sweep.plan import (
    EXTENDING,
    SweepPlan,
    changed_versions,
    check_option,
    check_same_numbers,
    describe_changes,
    extended,
    read_plan,
    with_resume_overrides,
    write_plan,
)
from sweep.report import LineScreen, Screen
from sweep.state import SweepState, read_state, state_of_trials
from trainer.errors import InputError
from trainer.interrupts import remembered_interrupts
from trainer.progress import in_notebook

if TYPE_CHECKING:
    from rich.console import Console

_one_at_a_time = threading.Lock()
"""Held by the sweep that runs in this process: its Ray is not to be ended by another one."""


class Report(NamedTuple):
    """The news of a trial: one more report of it, or its end."""

    trial: int
    """Number of the trial."""

    state: str
    """`running`, `finished`, `stopped` or `failed`."""

    reason: str
    """Reason of an early end; empty else."""

    config: Mapping[str, Any]
    """Settings of the trial by name."""

    report: Mapping[str, Any]
    """Numbers of its latest epoch by name, or of the chosen epoch once `final`; empty if it failed before any."""


class Interrupted(KeyboardInterrupt):
    """A sweep was stopped by Ctrl-C or SIGTERM, after the epochs in flight; nothing is lost, and it can be resumed."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(f"{sweep.name} was stopped; nothing is lost: resume({sweep.name!r}) goes on")
        self.sweep = sweep
        """The sweep as far as it came."""


def run(
    space: SpaceLike = "digits",
    *,
    on_report: Callable[[Report], object] | None = None,
    progress: bool | Console = False,
    **options: Unpack[RunOptions],
) -> Sweep:
    """Run a sweep to its end, here or on the Ray cluster that `RAY_ADDRESS` names, and return what it found.

    Args:
        space: what is swept: a name in search_spaces/, a YAML file or its content.
        on_report: called after each epoch of each trial, and at its end.
        progress: True to show how far it is (in a notebook one line), or the console to show it on.
        options: those of `otsweep run`, by the same names; `from_` is `--from`, and `set` a dict.

    Raises:
        InputError: naming what is wrong, before anything runs.
        Interrupted: (a KeyboardInterrupt) after Ctrl-C; `resume` goes on.
        StorageFailed: if the storage refused for long; `resume` goes on from what is recorded.
    """
    return drive(new_plan(space, options), fresh=True, on_report=on_report, progress=progress)


def resume(
    name: str,
    *,
    other_versions: bool = False,
    retry_failed: bool = False,
    on_report: Callable[[Report], object] | None = None,
    progress: bool | Console = False,
    warn: Callable[[str], object] = warnings.warn,
    **options: Unpack[ResumeOptions],
) -> Sweep:
    """Continue a sweep after any crash or interrupt; finished trials are never run again.

    Args:
        name: of a sweep in the storage.
        other_versions: go on although torch or optuna is not what the sweep began with.
        retry_failed: run failed trials again, unless their configurations made them fail.
        on_report, progress: as of `run`.
        warn: called with what runs here in another version than where the sweep began.
        options: what a resume may change, as of `otsweep resume`. More `trials` or `budget_epochs` extend the sweep,
            also one that is over; another `space` is drawn from by the trials that have not begun. The plan keeps all
            of it for good.

    Raises:
        InputError, Interrupted, StorageFailed: as `run` does.
    """
    plan, remark = resumed_plan(name, options, other_versions=other_versions, retry_failed=retry_failed)
    if remark:
        warn(remark)
    return drive(plan, fresh=False, retry_failed=retry_failed, on_report=on_report, progress=progress)


def resumed_plan(
    name: str, options: Mapping[str, Any], *, other_versions: bool = False, retry_failed: bool = False
) -> tuple[SweepPlan, str]:
    """Return the plan of a sweep with what a resume changes of it, and a remark on what has another version here.

    Args:
        other_versions: whether it may go on although torch or optuna is not what the sweep began with.
        retry_failed: whether failed trials are run again.

    Raises:
        InputError: naming the option that is wrong, or versions under which the numbers would not be the same.
    """
    words = typed_words(options)
    plan = with_resume_overrides(read_plan(name, storage=words.get("storage")), words)
    state = read_state(plan) if (plan.folder / "ledger").is_dir() else None
    counts = {name: check_option(name, words[name]) for name in EXTENDING if words.get(name) is not None}
    space = words.get("space")
    if counts or space is not None:
        from sweep.search import read_space  # Optuna comes with it

        plan = extended(
            plan,
            trials=counts.get("trials", plan.trials),
            budget_epochs=counts.get("budget_epochs"),
            space=None if space is None else read_space(space, {}, storage=None),
            begun=max(state.trials, default=-1) + 1 if state else 0,
            trained=state.epochs_trained if state else 0,
        )
    return plan, _compare_versions(plan, state, allowed=other_versions, retry_failed=retry_failed)


def _compare_versions(plan: SweepPlan, state: SweepState | None, *, allowed: bool, retry_failed: bool = False) -> str:
    """Return what runs here in another version than where the sweep began; empty for nothing.

    Raises:
        InputError: if trials are still to run beside those that have, with other numbers, unless that is allowed.
    """
    changes = changed_versions(plan)
    if not changes:
        return ""
    unfinished = state is not None and (len(state.ended) < plan.trials or (retry_failed and bool(state.failed)))
    if state and state.trials and unfinished and not allowed:
        check_same_numbers(plan, changes)
    return f"{plan.name} began with other versions: {describe_changes(changes)}"


def drive(
    plan: SweepPlan,
    *,
    fresh: bool,
    written: bool = False,
    retry_failed: bool = False,
    on_report: Callable[[Report], object] | None = None,
    progress: bool | Console = False,
    stop: threading.Event | None = None,
) -> Sweep:
    """Run a fresh sweep, or what is left of one, as `run` does.

    Args:
        written: whether a fresh sweep's plan is in its folder already.
        retry_failed: whether failed trials are run again, unless their configurations made them fail.
        stop: set by another thread, asks the sweep to stop as Ctrl-C does.
    """
    with alone():
        if fresh and not written:
            plan = write_plan(plan)
        screen = _screen(plan, progress)
        news = News(screen.results, on_report)
        with remembered_interrupts():
            complete, link = run_recorded(screen, fresh=fresh, retry_failed=retry_failed, on_event=news.tell, stop=stop)
    sweep = Sweep(plan, screen.results, link=link)
    if not complete:
        raise Interrupted(sweep)
    return sweep


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold Ray for what runs in this context.

    Raises:
        InputError: if something else runs in this process already.
    """
    if not _one_at_a_time.acquire(blocking=False):
        raise InputError("a sweep runs in this process already: wait for its end, or stop it")
    try:
        yield
    finally:
        _one_at_a_time.release()


def _screen(plan: SweepPlan, progress: bool | Console) -> Screen:
    from rich.console import Console

    state = state_of_trials(plan, {})
    if isinstance(progress, Console):
        return Screen(progress, plan, state)
    notebook = bool(progress) and in_notebook(sys.stdout)
    stream = sys.stdout if notebook else sys.stderr if progress else io.StringIO()
    console = Console(file=stream, soft_wrap=True, highlight=False, emoji=False, force_jupyter=False)
    return (LineScreen if notebook else Screen)(console, plan, state)


class News:
    """Tells a callback of each trial's reports and ends, not of its begins."""

    def __init__(self, state: SweepState, on_report: Callable[[Report], object] | None) -> None:
        self.state, self.on_report = state, on_report
        self._attempts: dict[int, int] = {}
        """Attempts of each trial that ran here, by its number."""

    def tell(self, number: int) -> None:
        """Take in that a trial began, reported or ended."""
        record = self.state.trials[number]
        begins = self._attempts.get(number) != record.attempts
        self._attempts[number] = record.attempts
        if self.on_report and not begins:
            last = record.reports[-1] if record.reports else {}
            self.on_report(Report(number, record.state, record.reason, record.config, last))


class Running:
    """A sweep that runs in a thread: iterate its reports as they come, `result` waits for its end, `stop` ends it.

    A context stops it where it is left early. Ctrl-C while waiting stops it too.
    """

    def __init__(self, plan: SweepPlan, *, fresh: bool, progress: bool | Console) -> None:
        self.plan = plan
        self._stop, self._reports = threading.Event(), queue.SimpleQueue[Report | None]()
        self._sweep: Sweep | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(fresh, progress), name="otsweep")
        self._thread.start()

    def __iter__(self) -> Iterator[Report]:
        """Yield reports until the sweep ends; raise what ended it early."""
        while (report := self._wait(self._reports.get)) is not None:
            yield report
        self._reports.put(None)
        if self._error is not None and not isinstance(self._error, Interrupted):
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def result(self) -> Sweep:
        """Wait for the end, and return what was found; raise as `run` does."""
        self._wait(self._thread.join)
        if self._error is not None:
            raise self._error
        assert self._sweep is not None
        return self._sweep

    def stop(self) -> None:
        """Stop after the epochs in flight, if it still runs, and wait for that; `resume` goes on."""
        self._stop.set()
        self._thread.join()

    def _wait(self, wait: Callable[[], Any]) -> Any:
        try:
            return wait()
        except KeyboardInterrupt:
            self.stop()
            raise

    def _work(self, fresh: bool, progress: bool | Console) -> None:
        try:
            self._sweep = drive(self.plan, fresh=fresh, on_report=self._reports.put, progress=progress, stop=self._stop)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
        finally:
            self._reports.put(None)


def start(space: SpaceLike = "digits", *, progress: bool | Console = False, **options: Unpack[RunOptions]) -> Running:
    """Start a sweep in a thread, and return it for iteration over its reports.

    Args:
        space, progress, options: as of `run`.

    Raises:
        InputError: naming what is wrong, before anything runs.
    """
    return Running(new_plan(space, options), fresh=True, progress=progress)
