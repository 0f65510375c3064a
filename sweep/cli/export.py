"""The command `export`."""

from __future__ import annotations

import argparse

from sweep.cli.console import DONE, add_name, console, warn


def add_export(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("file", help="file to be written; one that exists is replaced")
    parser.add_argument(
        "--to",
        metavar="FORM",
        default="parquet",
        help="optuna (an SQLite study), csv, json or parquet (all reports of all trials) (default: parquet)",
    )


def export(arguments: argparse.Namespace) -> int:
    """Write a sweep into a file for other programs."""
    from sweep.api import export as export_sweep

    for path in export_sweep(arguments.name, arguments.file, to=arguments.to, storage=arguments.storage, warn=warn):
        console.print(path, markup=False)
    return DONE
