"""The commands that run sweeps or estimate them: `run`, `plan`, `resume`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING

from sweep.cli.cluster import add_address, add_wait, resume_there
from sweep.cli.console import DONE, add_format, add_name, check_format, console, errors, find_plan, program
from sweep.cli.drive import drive
from sweep.cli.study import add_pilot, plan_study, resume_study
from trainer.interrupts import raise_interrupt
from trainer.progress import ProgressLine

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


def run(arguments: argparse.Namespace) -> int:
    return drive(plan_of(arguments), fresh=True)


def plan_of(arguments: argparse.Namespace) -> SweepPlan:
    """Return the plan that the options of `run` describe."""
    from sweep.plan import OPTIONS, make_plan
    from sweep.search import read_space

    space = read_space(arguments.space, vars(arguments), storage=arguments.storage)
    return make_plan(space, **{option: getattr(arguments, option) for option in OPTIONS})


def add_plan(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_pilot(parser)
    add_format(parser, ("table", "json"))


def plan(arguments: argparse.Namespace) -> int:
    """Time a little of what would run, and print what the whole would take; nothing is run or logged."""
    from search_spaces import names_study
    from sweep.forecast import forecast_table, headline, keep_forecast, make_forecast, profile_plan

    check_format(arguments)
    if names_study(arguments.space):
        return plan_study(arguments)
    planned = plan_of(arguments)
    with ProgressLine(sys.stderr) as line:
        forecast = make_forecast(planned, profile_plan(planned, line.show))
    raise_interrupt()
    keep_forecast(planned, forecast)
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
    from sweep.plan import has_study, with_resume_overrides

    if has_study(arguments.name, storage=arguments.storage):
        return resume_study(arguments)

    plan = with_resume_overrides(find_plan(arguments), vars(arguments))
    _compare_versions(plan, allowed=arguments.other_versions, retry_failed=arguments.retry_failed)
    return drive(plan, fresh=False, retry_failed=arguments.retry_failed)


def _compare_versions(plan: SweepPlan, *, allowed: bool, retry_failed: bool) -> None:
    """Say what runs here in another version than where the sweep began.

    Raises:
        InputError: if trials are still to run beside those that have, with other numbers, unless that is allowed.
    """
    from sweep.plan import changed_versions, check_same_numbers, describe_changes
    from sweep.state import read_state

    if changes := changed_versions(plan):
        state = read_state(plan) if (plan.folder / "ledger").is_dir() else None
        unfinished = state is not None and (len(state.ended) < plan.trials or (retry_failed and bool(state.failed)))
        if state and state.trials and unfinished and not allowed:
            check_same_numbers(plan, changes)
        errors.print(f"{plan.name} began with other versions: {describe_changes(changes)}", markup=False)
