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
    find_plan,
    program,
    warn,
)
from trainer.crowds import check_crowd
from trainer.errors import InputError
from trainer.human_agreement import EXAMPLES_OPTION, find_examples
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
    from sweep.audit import Audit, command, run_audit, show_audit
    from sweep.plan import AuditOptions, url_of
    from sweep.report import AUDIT_JSON
    from sweep.state import read_state

    check_format(arguments)
    said = errors if arguments.format == "json" else console
    plan = find_plan(arguments)
    check_crowd(plan.space.evaluation)
    if url := url_of(plan.folder):
        raise InputError(f"{url}: a sweep at a URL can't be audited there; copy its folder here and give --storage DIR")
    examples = find_examples(
        arguments.invariance_examples, dataset=plan.space.evaluation.dataset, data_dir=plan.data_dir
    )
    results = read_state(plan)
    for message in results.warnings:
        warn(message)
    begun = Audit(plan, results, AuditOptions.of(vars(arguments)), examples)
    stopped = f"Stopped. Nothing that is done is lost; to resume:\n  {command(begun)}"
    with SignalHandler(stopped):
        complete = run_audit(begun, said)
    if not complete:
        said.print(stopped)
        return INTERRUPTED
    passed = show_audit(begun, said)
    if passed and arguments.format == "json":
        print((begun.folder / AUDIT_JSON).read_text(encoding="utf-8"), end="")
    _sync_audit(plan)
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
