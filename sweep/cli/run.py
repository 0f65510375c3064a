"""The commands that run sweeps or estimate them: `run`, `plan`, `resume`."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import TYPE_CHECKING

from sweep.cli.cluster import add_address, add_verbose, add_wait, resume_there
from sweep.cli.console import DONE, add_format, add_name, check_format, console, errors, program
from sweep.cli.drive import drive
from sweep.cli.study import add_pilot, plan_study, resume_study

if TYPE_CHECKING:
    from sweep.plan import SweepPlan


def add_run(parser: argparse.ArgumentParser) -> None:
    from sweep.plan import OPTIONS, SPACE_OPTIONS, add_option

    parser.add_argument(
        "space", nargs="?", default="digits", help="a name in search_spaces/ or a YAML file (default: digits)"
    )
    for spec in (*OPTIONS.values(), *SPACE_OPTIONS.values()):
        add_option(parser, spec)


def add_submit(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_address(parser)
    add_wait(parser)
    add_verbose(parser)


def run(arguments: argparse.Namespace) -> int:
    return drive(plan_of(arguments), fresh=True)


def plan_of(arguments: argparse.Namespace) -> SweepPlan:
    """Return the plan that the options of `run` describe."""
    from sweep.api import new_plan
    from sweep.plan import OPTIONS, SPACE_OPTIONS

    return new_plan(arguments.space, {option: getattr(arguments, option) for option in (*OPTIONS, *SPACE_OPTIONS)})


def add_plan(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_pilot(parser)
    add_format(parser, ("table", "json"))


def plan(arguments: argparse.Namespace) -> int:
    """Time a little of what would run, and print what the whole would take; nothing is run or logged."""
    from search_spaces import names_study
    from sweep.api import forecast_plan
    from sweep.forecast import forecast_table, headline

    check_format(arguments)
    if names_study(arguments.space):
        return plan_study(arguments)
    planned, forecast = forecast_plan(plan_of(arguments), progress=True)
    if arguments.format == "json":
        print(json.dumps({**forecast.to_dict(), "command": run_command(arguments)}, indent=2))
        return DONE
    console.print(headline(planned, forecast), "", sep="\n", markup=False, soft_wrap=False)
    console.print(forecast_table(planned, forecast), soft_wrap=False)
    console.print(f"\nRun it:\n  {run_command(arguments)}", markup=False)
    return DONE


def run_command(arguments: argparse.Namespace) -> str:
    """Return the command that runs what was planned, in the options that were given."""
    from sweep.plan import OPTIONS, SPACE_OPTIONS, option_words

    given = {option: getattr(arguments, option) for option in (*OPTIONS, *SPACE_OPTIONS)}
    return f"{program()} {shlex.join(['run', arguments.space, *option_words(given)])}"


def add_resume(parser: argparse.ArgumentParser) -> None:
    from sweep.plan import OPTIONS, RESUMABLE, add_option

    add_name(parser)
    for option in RESUMABLE:
        add_option(parser, OPTIONS[option], shown="the sweep's")
    add_option(parser, OPTIONS["trials"], shown="the sweep's; more extend it, also one that is over")
    add_option(parser, OPTIONS["budget_epochs"], shown="the sweep's, which may become more or less")
    parser.add_argument(
        "--space", metavar="SPACE", help="draw the trials that have not begun from another space (default: the sweep's)"
    )
    parser.add_argument(
        "--other-versions", action="store_true", help="go on although torch or optuna is not what the sweep began with"
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="run failed trials again, unless their configurations made them fail: what they lacked is there now",
    )
    add_address(parser)
    add_wait(parser)


def resume(arguments: argparse.Namespace) -> int:
    if arguments.address:
        return resume_there(arguments)
    from sweep.api import resumed_plan
    from sweep.plan import has_study

    if has_study(arguments.name, storage=arguments.storage):
        return resume_study(arguments)
    plan, remark = resumed_plan(
        arguments.name,
        vars(arguments),
        other_versions=arguments.other_versions,
        retry_failed=arguments.retry_failed,
    )
    if remark:
        errors.print(remark, markup=False)
    return drive(plan, fresh=False, retry_failed=arguments.retry_failed)
