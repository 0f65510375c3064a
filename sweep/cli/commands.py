"""The command `otsweep`: parse the words, run the command, print any error.

Exit status: 0 done, 1 failed, 2 bad usage or input, 130 stopped by Ctrl-C. Heavy imports wait until they are needed,
so that `--help` and a mistyped word are answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

from sweep.cli.audit import add_audit, add_trial, audit, trial
from sweep.cli.cluster import add_job, add_jobs, add_logs, jobs, logs, stop, submit
from sweep.cli.console import BAD_INPUT, DONE, FAILED, INTERRUPTED, errors
from sweep.cli.export import add_export, export
from sweep.cli.judge import add_judge, judge
from sweep.cli.mlflow import add_sync, add_ui, sync, ui
from sweep.cli.people import add_people, people
from sweep.cli.run import add_plan, add_resume, add_run, add_submit, plan, resume, run
from sweep.cli.show import add_compare, add_front, add_replay, compare, front, replay
from sweep.cli.study import add_study, study
from sweep.environment import settle_environment
from trainer.arguments import Parser
from trainer.errors import InputError, OtsweepError
from trainer.interrupts import remembered_interrupts
from trainer.output import lasting_output
from trainer.words import did_you_mean


class _Command(NamedTuple):
    """One command of `otsweep`."""

    add_arguments: Callable[[argparse.ArgumentParser], None]

    run: Callable[[argparse.Namespace], int]
    """Returns the exit status."""

    help: str


COMMANDS = {
    "run": _Command(add_run, run, "Run a sweep on this machine, or on the Ray cluster that this machine belongs to."),
    "plan": _Command(add_plan, plan, "Estimate what a sweep or a study would take, without running it."),
    "submit": _Command(add_submit, submit, "Send a sweep or a study to a Ray cluster as a job."),
    "jobs": _Command(add_jobs, jobs, "List the sweeps of a cluster."),
    "logs": _Command(add_logs, logs, "Show the log of a job."),
    "stop": _Command(add_job, stop, "Stop a job as Ctrl-C would; `resume` continues its sweep."),
    "resume": _Command(
        add_resume, resume, "Continue a sweep or a study after any crash or Ctrl-C, here or on a cluster."
    ),
    "front": _Command(add_front, front, "Show the front of a sweep, finished or running."),
    "replay": _Command(add_replay, replay, "Show what another rule for early stopping would have saved and lost."),
    "audit": _Command(add_audit, audit, "Train the finalists again and judge them on the test split by every attack."),
    "people": _Command(
        add_people, people, "Ask people on a page what images show, or predict what a crowd of people would say."
    ),
    "judge": _Command(
        add_judge, judge, "Judge any models on both axes by every attack: files of weights, TorchScript."
    ),
    "trial": _Command(add_trial, trial, "Train and judge one configuration, here, without Ray."),
    "compare": _Command(add_compare, compare, "Compare the fronts of two sweeps, each on one seed or several."),
    "study": _Command(add_study, study, "Sweep the arms of a question at equal effort, audit and compare them."),
    "export": _Command(add_export, export, "Write a sweep for other programs: Optuna, CSV, JSON, Parquet."),
    "sync": _Command(add_sync, sync, "Bring MLflow up to date from a sweep's ledger, or fill another server or store."),
    "ui": _Command(add_ui, ui, "Open MLflow on this machine's store, at the front."),
}


_SHOWN = ("plan", "jobs", "logs", "front", "replay", "compare")
"""Commands whose result is what they print: if that is lost, they failed."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; without `argv` it is the one that this process was started for."""
    if argv is not None:
        return _run(argv)
    settle_environment()
    with lasting_output() as output:
        status = _run(sys.argv[1:])
        if reason := output.lost():
            errors.print(f"otsweep: standard output can't be written: {reason}")
            status = FAILED if status == DONE and sys.argv[1] in _SHOWN else status
    return status


def _run(words: list[str]) -> int:
    try:
        parser = build_parser()
        if not words:
            parser.print_help()
            return BAD_INPUT
        _check_command(words)
        arguments = parser.parse_all(words)
        with remembered_interrupts():
            return arguments.run(arguments)
    except InputError as error:
        errors.print(f"otsweep: {error}", markup=False)
        return BAD_INPUT
    except OtsweepError as error:
        errors.print(f"otsweep: failed: {error}", markup=False)
        return FAILED
    except KeyboardInterrupt:
        errors.print("otsweep: stopped")
        return INTERRUPTED


def _check_command(words: list[str]) -> None:
    """Refuse an unknown command with the nearest one, which argparse's own answer does not name."""
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise InputError(f"unknown command {words[0]!r}: {did_you_mean(words[0], COMMANDS)}")


def build_parser() -> Parser:
    parser = Parser(prog="otsweep", description="Map how robust one classifier can be to two opposite attacks at once.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, parser=sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
