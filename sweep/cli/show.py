"""The commands that show what sweeps found: `front`, `replay`, `compare`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.cli.console import (
    DONE,
    FAILED,
    add_format,
    add_name,
    add_storage,
    check_format,
    console,
    errors,
    mlflow_address,
    show_mlflow,
    warn,
)
from trainer.errors import InputError
from trainer.progress import ProgressLine

if TYPE_CHECKING:
    from sweep.plan import SweepPlan
    from sweep.report import Comparison
    from sweep.state import SweepState


def add_front(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    add_format(parser, ("table", "json", "csv"))
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the front into a file: .png, .svg or .pdf")


def front(arguments: argparse.Namespace) -> int:
    from sweep.api import open_sweep
    from sweep.report import front_csv, save_figure
    from sweep.state import why_no_front

    check_format(arguments)
    sweep = open_sweep(arguments.name, storage=arguments.storage, warn=warn)
    plan, results = sweep.plan, sweep.state
    if not results.front_records and not (results.finished and arguments.format == "table"):
        errors.print(f"{plan.name} has no front yet: {why_no_front(results)}", markup=False)
    if arguments.plot:
        save_figure(sweep.figure(), arguments.plot)
    if arguments.format == "json":
        print(json.dumps(sweep.to_dict(), indent=2))
    elif arguments.format == "csv":
        print(front_csv(plan, results), end="")
    elif results.finished:
        show_front(plan, results)
    return DONE


def show_front(plan: SweepPlan, results: SweepState) -> None:
    """Print the verdict, the front, and published configurations beside what was published, where any ran."""
    from sweep.report import front_table, paper_table, published_trials, verdict
    from sweep.state import why_no_front

    console.print(verdict(plan, results), "\n", sep="")
    if results.front_records:
        console.print(front_table(plan, results))
    else:
        console.print(f"{plan.name} has no front yet: {why_no_front(results)}")
    console.print()
    published = published_trials(plan, results)
    if published:
        console.print(paper_table(plan, published), "\n", sep="")


def show_agreements(plan: SweepPlan, results: SweepState) -> None:
    """Print how well the order of trials at each rung predicts that at the next, and an alarm where it does not."""
    from sweep.report import agreement_alarms, agreement_table, agreements_of

    if found := agreements_of(plan, results):
        console.print("\nOrder kept from rung to rung (Kendall's tau: 1 all of it, 0 none):")
        console.print(agreement_table(found))
        for line in agreement_alarms(found):
            console.print(line)


def add_replay(parser: argparse.ArgumentParser) -> None:
    from sweep.plan import OPTIONS, add_option

    add_name(parser)
    add_option(parser, OPTIONS["eta"], shown="several")
    for option in ("grace_epochs", "stop_chance"):
        add_option(parser, OPTIONS[option], shown="the sweep's")
    add_format(parser, ("table", "json"))


def replay(arguments: argparse.Namespace) -> int:
    from sweep.api import open_sweep
    from sweep.plan import check_option
    from sweep.report import ETAS, replay_content, replay_sweep, replay_table, step_table, steps_of, unknown_ends

    check_format(arguments)
    sweep = open_sweep(arguments.name, storage=arguments.storage, warn=warn)
    plan, results = sweep.plan, sweep.state
    etas = ETAS if arguments.eta is None else (check_option("eta", arguments.eta),)
    grace, chance = (
        getattr(plan, name) if getattr(arguments, name) is None else check_option(name, getattr(arguments, name))
        for name in ("grace_epochs", "stop_chance")
    )
    replays = replay_sweep(plan, results, etas=etas, grace_epochs=grace, stop_chance=chance)
    if arguments.format == "json":
        print(json.dumps(replay_content(plan, results, replays, stop_chance=chance), indent=2))
        return DONE
    console.print(replay_table(replays, results))
    show_agreements(plan, results)
    if steps := steps_of(results):
        console.print("\nWho had a slot, and why:")
        console.print(step_table(steps))
    if cut := unknown_ends(replays, results):
        console.print(f"\n{len(cut)} trials were stopped by the sweep itself: how they would have ended is not known.")
    return DONE


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="a sweep; A1,A2,A3 for the same one on several seeds")
    parser.add_argument("b", help="another; of one sweep a side no difference is claimed")
    add_storage(parser)
    add_format(parser, ("table", "json"))


def compare(arguments: argparse.Namespace) -> int:
    from sweep.api import compare as compare_sides
    from sweep.report import (
        comparison_json,
        comparison_markdown,
        comparison_metrics,
        write_comparison_files,
    )
    from sweep.tracking import write_summary

    check_format(arguments)
    with ProgressLine(sys.stderr) as line:
        line.update("Comparing ...", now=True)
        comparison = compare_sides(arguments.a, arguments.b, storage=arguments.storage, warn=warn)
        folder = write_comparison_files(comparison)
    if arguments.format == "json":
        print(comparison_json(comparison))
    else:
        _show_comparison(comparison, folder)
    a, b = comparison.a, comparison.b
    plan = a.sweeps[0].plan
    try:
        link = write_summary(
            plan,
            "comparison",
            f"{a.name} vs {b.name}",
            metrics=comparison_metrics(comparison),
            note=lambda run: comparison_markdown(comparison, run),
            folder=folder,
            time=max(record.ended or 0.0 for side in (a, b) for record in side.finished),
        )
    except InputError as error:
        errors.print(str(error), markup=False)
        return FAILED
    if arguments.format != "json":
        show_mlflow(plan, f"{mlflow_address(plan)}{link}", console)
    return DONE


def _show_comparison(comparison: Comparison, folder: Path) -> None:
    from sweep.report import comparison_tables, comparison_verdict

    console.print(f"A: {comparison.a.name}\nB: {comparison.b.name}", markup=False)
    console.print(comparison_verdict(comparison), "", sep="\n", markup=False, soft_wrap=False)
    for table in comparison_tables(comparison):
        console.print(table, "", sep="\n", soft_wrap=False)
    console.print(f"picture  {folder / 'compare.png'}\nnumbers  {folder / 'compare.json'}", markup=False)
