"""The commands about MLflow: `sync`, `ui`."""

from __future__ import annotations

import argparse
import sys

from sweep.cli.console import DONE, add_name, add_storage, console, find_plan, mlflow_progress
from trainer.errors import InputError
from trainer.progress import ProgressLine


def add_sync(parser: argparse.ArgumentParser) -> None:
    from sweep.plan import OPTIONS, add_option

    add_name(parser)
    add_option(parser, OPTIONS["mlflow_uri"], shown="the sweep's")


def sync(arguments: argparse.Namespace) -> int:
    from sweep.plan import absolute_uri
    from sweep.tracking import sync as sync_sweep

    plan = find_plan(arguments)
    uri = plan.mlflow_uri if arguments.mlflow_uri is None else absolute_uri(arguments.mlflow_uri)
    line = ProgressLine(sys.stderr)
    with mlflow_progress(line) as show:
        results = sync_sweep(plan, uri, log=line.log, on_progress=show)
    if not results.trials:
        console.print(f"{plan.name} has no trial yet: there is nothing to write.")
        return DONE
    console.print(f"{plan.name}: all {len(results.trials)} trials are in MLflow at {uri}", markup=False)
    return DONE


def add_ui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="sweep to open at (default: the newest)")
    add_storage(parser)
    parser.add_argument(
        "--port", metavar="N", type=int, default=5000, help="port on 127.0.0.1; 0 takes a free one (default: 5000)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the link")


def ui(arguments: argparse.Namespace) -> int:
    from sweep.tracking import serve

    arguments.name = arguments.name or _newest(arguments.storage)
    plan = find_plan(arguments)
    return serve(plan, port=arguments.port, browser=not arguments.no_browser, log=console.print)


def _newest(storage: str | None) -> str:
    from sweep.plan import list_sweeps, storage_folder

    folder = storage_folder(storage)
    sweeps = list_sweeps(folder)
    if not sweeps:
        raise InputError(f"no sweep in {folder} yet: run one with otsweep run")
    return sweeps[0]
