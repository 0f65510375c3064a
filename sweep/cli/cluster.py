"""The commands about a cluster's jobs: `submit`, `jobs`, `logs`, `stop`."""

from __future__ import annotations

import argparse

from sweep.cli.console import console, errors
from sweep.cli.run import add_address, add_run, add_wait


def add_submit(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_address(parser)
    add_wait(parser)


def submit(arguments: argparse.Namespace) -> int:
    from sweep.cluster import submit_sweep

    return submit_sweep(arguments, console, errors)


def jobs(arguments: argparse.Namespace) -> int:
    from sweep.cluster import show_jobs

    return show_jobs(arguments, console)


def add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="id of a job, or the name of its sweep")
    add_address(parser)


def add_logs(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument(
        "--follow", action="store_true", help="show new lines until the job ends, and exit with its status"
    )


def logs(arguments: argparse.Namespace) -> int:
    from sweep.cluster import show_logs

    return show_logs(arguments, console, errors)


def stop(arguments: argparse.Namespace) -> int:
    from sweep.cluster import stop_job

    return stop_job(arguments, console)
