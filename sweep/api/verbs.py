"""The verbs of the command that run no sweep, as functions: `plan`, `compare`, `export`, `trial`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from sweep.api.opened import open_sweep
from sweep.api.options import RunOptions, SpaceLike, knob_words, new_plan
from sweep.plan import SweepPlan
from sweep.report import TABLE_WRITERS, Comparison, compare_sweeps, read_side
from trainer.errors import InputError
from trainer.interrupts import raise_interrupt, remembered_interrupts
from trainer.progress import ProgressLine
from trainer.words import did_you_mean

if TYPE_CHECKING:
    from sweep.forecast import Forecast
    from trainer.__main__ import TrialResult
    from trainer.report import EpochReport


class Planned(NamedTuple):
    """The plan of a sweep, and the forecast of what it would take."""

    plan: SweepPlan
    forecast: Forecast

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, those of `otsweep plan --format json` but the command."""
        return self.forecast.to_dict()


def plan(space: SpaceLike = "digits", *, progress: bool = False, **options: Unpack[RunOptions]) -> Planned:
    """Time a little of what would run, and return what the whole would take; nothing is run or logged.

    Args:
        space, options: as of `run`.
        progress: True to show how far it is.

    Raises:
        InputError: naming what is wrong.
    """
    with remembered_interrupts():
        return forecast_plan(new_plan(space, options), progress=progress)


def forecast_plan(planned: SweepPlan, *, progress: bool) -> Planned:
    """Return a plan with its forecast, which is kept for the end of the sweep."""
    from sweep.forecast import keep_forecast, make_forecast, profile_plan

    with ProgressLine(sys.stderr, shown=progress) as line:
        forecast = make_forecast(planned, profile_plan(planned, line.show))
    raise_interrupt()
    keep_forecast(planned, forecast)
    return Planned(planned, forecast)


def compare(
    a: str | Sequence[str],
    b: str | Sequence[str],
    *,
    storage: str | Path | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Comparison:
    """Compare two sides' fronts, each of one sweep or of the same one on several seeds; nothing is written.

    Args:
        a: name of a sweep, or names of several; also joined by commas.
        b: the other side; of one sweep a side no difference is claimed.
        storage: folder or URL of all sweeps; None for `OTSWEEP_STORAGE`, else `~/otsweep`.
        warn: called with a message for each part of a ledger that is damaged and left out.

    Raises:
        InputError: for a sweep that is not there, and for sides that can't be compared, with all that differs.
    """
    folder = None if storage is None else str(storage)
    first, second = (read_side(side if isinstance(side, str) else ",".join(side), storage=folder) for side in (a, b))
    for sweep in (*first.sweeps, *second.sweeps):
        for message in sweep.results.warnings:
            warn(message)
    return compare_sweeps(first, second)


_EXPORTS = ("optuna", *TABLE_WRITERS)
"""Forms in which a sweep can be written for other programs."""


def export(
    name: str,
    file: str | Path,
    *,
    to: str,
    storage: str | Path | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> list[Path]:
    """Write a sweep, finished or running, into a file for other programs, and return the files that were written.

    Args:
        name: of a sweep in the storage.
        file: path that is written, and replaced if it exists.
        to: `optuna`, an SQLite study for Optuna and its dashboard; or `csv`, `json` or `parquet`, a row per report,
            with what each column means (for `csv` in a second file, `.columns.json`).
        storage: folder or URL of all sweeps; None for `OTSWEEP_STORAGE`, else `~/otsweep`.
        warn: called with a message for each part of the ledger that is damaged and left out.

    Raises:
        InputError: for a sweep that is not there, an unknown form, or a file that can't be written.
    """
    if to not in _EXPORTS:
        raise InputError(f"--to {to!r}: {did_you_mean(to, _EXPORTS)}")
    sweep, path = open_sweep(name, storage=storage, warn=warn), Path(file).expanduser()
    if not path.parent.is_dir():
        raise InputError(f"{str(path)!r}: can't be written: there is no folder {str(path.parent)!r}")
    try:
        if to != "optuna":
            return TABLE_WRITERS[to](sweep.arrow("reports"), path)
        from sweep.search import write_optuna_study

        write_optuna_study(sweep.plan, sweep.state.trials, path)
        return [path]
    except OSError as error:
        raise InputError(f"{str(path)!r}: can't be written: {error.strerror}") from None


def trial(
    preset: str | None = None,
    *,
    set: Mapping[str, Any] | Sequence[str] = (),
    dataset: str | None = None,
    crowd: str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    data_dir: str | Path | None = None,
    storage: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    cpus_per_trial: int = 1,
    invariance_examples: str | Path | None = None,
    on_report: Callable[[EpochReport], object] | None = None,
    progress: bool = False,
) -> TrialResult:
    """Train and judge one configuration here, without Ray, as `otsweep trial` does.

    Args:
        preset: a named configuration to start from.
        set: values of knobs by name.
        on_report: called with the report of each epoch, and with the final one.
        progress: True to show how far it is.

    Raises:
        InputError: naming what is wrong, before anything is trained.
        TrialFailed: if a number is not finite.
        KeyboardInterrupt: after Ctrl-C; the same call with `out` set to the folder it names goes on.
    """
    from trainer.__main__ import options_from, run_one

    named = {
        "preset": preset,
        "set": knob_words(set),
        "dataset": dataset,
        "crowd": crowd,
        "epochs": epochs,
        "seed": seed,
    }
    named |= {"device": device, "cpus_per_trial": cpus_per_trial, "invariance_examples": invariance_examples}
    folders = {"data_dir": data_dir and Path(data_dir), "storage": storage and str(storage), "out": out and str(out)}
    with remembered_interrupts(), ProgressLine(sys.stderr, shown=progress) as line:
        return run_one(options_from(named | folders), line, on_report or (lambda report: None))
