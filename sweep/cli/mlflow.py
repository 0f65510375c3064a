"""The commands about MLflow: `sync`, `ui`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.cli.console import DONE, FAILED, add_name, add_storage, console, errors, find_plan
from trainer.errors import InputError
from trainer.progress import ProgressLine

if TYPE_CHECKING:
    from sweep.plan import SweepPlan


def add_sync(parser: argparse.ArgumentParser) -> None:
    from sweep.plan import OPTIONS, add_option

    add_name(parser)
    add_option(parser, OPTIONS["mlflow_uri"], shown="the sweep's")


def sync(arguments: argparse.Namespace) -> int:
    from sweep.api import mlflow_progress
    from sweep.plan import given_uri
    from sweep.tracking import sync as sync_sweep

    plan = find_plan(arguments)
    uri = plan.mlflow_uri if arguments.mlflow_uri is None else given_uri(arguments.mlflow_uri)
    line = ProgressLine(sys.stderr)
    with mlflow_progress(line) as show:
        results, whole = sync_sweep(plan, uri, log=line.log, on_progress=show)
    if not results.trials:
        console.print(f"{plan.name} has no trial yet: there is nothing to write.")
        return DONE
    if not whole:
        return FAILED
    console.print(f"{plan.name}: all {len(results.trials)} trials are in MLflow at {uri}", markup=False)
    return DONE


def add_ui(parser: argparse.ArgumentParser) -> None:
    from sweep.plan import OPTIONS, add_option

    parser.add_argument("name", nargs="?", help="sweep to open at (default: the newest)")
    add_option(parser, OPTIONS["mlflow_uri"], shown="the sweep's")
    add_storage(parser)
    parser.add_argument(
        "--port", metavar="N", type=int, default=5000, help="port on 127.0.0.1; 0 takes a free one (default: 5000)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the link")


def ui(arguments: argparse.Namespace) -> int:
    from sweep.plan import given_uri, storage_folder
    from sweep.tracking import serve

    shown = {"port": arguments.port, "browser": not arguments.no_browser, "log": console.print}
    if arguments.mlflow_uri is None:
        plan = find_plan(arguments) if arguments.name else _newest(arguments.storage)
        return serve(plan.mlflow_uri, Path(plan.storage), plan, **shown)
    plan = find_plan(arguments) if arguments.name else None
    return serve(given_uri(arguments.mlflow_uri), storage_folder(arguments.storage), plan, **shown)


def _newest(storage: str | None) -> SweepPlan:
    """Return the newest plan in a storage folder; copies and damaged ones are told and left out."""
    from sweep.plan import list_sweeps, read_plan, storage_folder

    folder = storage_folder(storage)
    for name in list_sweeps(folder):
        try:
            return read_plan(name, storage=storage)
        except InputError as error:
            errors.print(str(error), markup=False)
    raise InputError(f"no sweep in {folder} yet: run one with otsweep run")
