"""The commands that judge configurations anew: `audit`, `trial`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from sweep.cli.console import (
    DONE,
    FAILED,
    INTERRUPTED,
    add_format,
    add_name,
    check_format,
    console,
    errors,
    program,
    warn,
)
from trainer.errors import InputError
from trainer.human_agreement import EXAMPLES_OPTION
from trainer.interrupts import SignalHandler
from trainer.progress import ProgressLine

if TYPE_CHECKING:
    from sweep.plan import SweepPlan


def add_audit(parser: argparse.ArgumentParser) -> None:
    from sweep.plan import AUDIT_OPTIONS, add_option

    add_name(parser)
    for spec in AUDIT_OPTIONS.values():
        add_option(parser, spec)
    parser.add_argument(
        EXAMPLES_OPTION, metavar="DIR", help="images that people labelled, to compare the models and the judge with"
    )
    add_format(parser, ("table", "json"))


def audit(arguments: argparse.Namespace) -> int:
    from sweep.api import open_audit
    from sweep.audit import command, run_audit, show_audit
    from sweep.report import AUDIT_JSON

    check_format(arguments)
    said = errors if arguments.format == "json" else console
    begun = open_audit(
        arguments.name,
        vars(arguments),
        storage=arguments.storage,
        invariance_examples=arguments.invariance_examples,
        warn=warn,
    )
    stopped = f"Stopped. Nothing that is done is lost; to resume:\n  {command(begun)}"
    with SignalHandler(stopped):
        complete = run_audit(begun, said)
    if not complete:
        said.print(stopped)
        return INTERRUPTED
    passed = show_audit(begun, said)
    if passed and arguments.format == "json":
        print((begun.folder / AUDIT_JSON).read_text(encoding="utf-8"), end="")
    _sync_audit(begun.plan)
    return DONE if passed else FAILED


def _sync_audit(plan: SweepPlan) -> None:
    """Bring MLflow up to date with an audit; where it does not answer, print the command that does so later."""
    from sweep.api import mlflow_progress
    from sweep.tracking import sync

    try:
        line = ProgressLine(sys.stderr)
        with mlflow_progress(line) as show:
            sync(plan, plan.mlflow_uri, log=line.log, on_progress=show)
    except InputError as error:
        errors.print(f"{error}\nWhen it answers: {program()} sync {plan.name}", markup=False)


def add_trial(parser: argparse.ArgumentParser) -> None:
    from trainer.__main__ import add_arguments

    add_arguments(parser)


def trial(arguments: argparse.Namespace) -> int:
    from trainer.__main__ import run

    return run(arguments)
