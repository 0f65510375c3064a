"""The command `study`, and what `resume`, `plan` and `submit` do with a study."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.cli.console import (
    DONE,
    FAILED,
    INTERRUPTED,
    add_format,
    check_format,
    console,
    errors,
    mlflow_address,
    program,
    show_mlflow,
    warn,
)
from sweep.cli.drive import told_how_to_resume
from trainer.errors import InputError
from trainer.interrupts import SignalHandler, raise_interrupt
from trainer.progress import ProgressLine

if TYPE_CHECKING:
    from rich.console import Console

    from sweep.plan import StudyPlan
    from sweep.report import Screen
    from sweep.study import StudyResult


def add_study(parser: argparse.ArgumentParser) -> None:
    from sweep.plan import OPTIONS, SPACE_OPTIONS, STUDY_OPTIONS, add_option

    parser.add_argument(
        "study", help="a name in search_spaces/studies/ or a YAML file: run it; the name of a study: show its verdict"
    )
    add_option(parser, OPTIONS["name"], shown="the file's name and the time")
    for option in STUDY_OPTIONS:
        add_option(parser, OPTIONS[option], shown="none" if option == "keep_models" else None)
    add_option(parser, SPACE_OPTIONS["set"], shown="the file's")
    add_pilot(parser)
    parser.add_argument(
        "--report", action="store_true", help="show a study, or a folder with a study.json; run nothing"
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the study into a file: .png, .svg or .pdf")
    add_format(parser, ("table", "json"))


def add_pilot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pilot", metavar="STUDY", help="a study that tells which difference the seeds can show")


def study(arguments: argparse.Namespace) -> int:
    """Run a study, or show what one has found."""
    from sweep.plan import STUDY_OPTIONS, begin_study, has_study, make_study

    check_format(arguments)
    name = arguments.study
    if arguments.report or has_study(name, storage=arguments.storage):
        return _report(arguments)
    options = {each: getattr(arguments, each) for each in STUDY_OPTIONS}
    plan = make_study(name, name=arguments.name, options=options, settings=arguments.set or ())
    _print_head(plan, _power_of(plan, arguments.pilot), errors if arguments.format == "json" else console)
    begun = begin_study(plan)
    _check_versions(begun)
    return _run(begun, as_json=arguments.format == "json")


def _check_versions(plan: StudyPlan) -> None:
    """Refuse to go on with a study that began with other versions of what decides its numbers."""
    from sweep.plan import changed_versions, check_same_numbers

    first = plan.sweep_plan(plan.steps[0])
    if changes := changed_versions(first):
        check_same_numbers(first, changes)


def resume_study(arguments: argparse.Namespace) -> int:
    """Go on with a study."""
    from sweep.plan import EXTENDING, RESUMABLE, STUDY_OPTIONS, flag, read_study

    plan = read_study(arguments.name, storage=arguments.storage)
    if arguments.retry_failed:
        raise InputError(f"--retry-failed: {arguments.name!r} is a study; give the name of one of its sweeps")
    if not arguments.other_versions:
        _check_versions(plan)
    for option in (*RESUMABLE, *EXTENDING, "space"):
        if getattr(arguments, option) is not None and option not in STUDY_OPTIONS:
            raise InputError(
                f"{flag(option)}: {arguments.name!r} is a study, whose file says how much each arm is given"
            )
    return _run(plan.with_overrides(vars(arguments)), as_json=False)


def _print_head(plan: StudyPlan, power: str, screen: Console) -> None:
    """Print what is going to be done, and which difference that can show."""
    study, options = plan.study, plan.audit_options
    screen.print(
        f"{plan.name}: {len(study.arms)} arms on {len(study.seeds)} seeds, {study.effort} each, then audited on the "
        f"test split ({options.finalists} finalists at most, {options.seeds} fresh seeds). Control: {plan.control}",
        markup=False,
    )
    if study.question:
        screen.print(study.question, markup=False)
    screen.print(power, markup=False)


def _power_of(plan: StudyPlan, pilot: str | None) -> str:
    """Return which difference a study can show, by a pilot or the latest study that was judged alike."""
    from sweep.study import StudyResult, latest_alike, power_line

    known = latest_alike(plan) if pilot is None else StudyResult.read(plan.storage / pilot)
    deviations = [each.deviation for each in known.under(known.crowds[0]) if each.deviation] if known else []
    if pilot is not None and not deviations:
        raise InputError(f"--pilot {pilot}: has fewer than two seeds done, and so tells nothing")
    source, tests = f"study {known.name}" if known else "", len(plan.study.arms) - 1
    return power_line(deviations, len(plan.study.seeds), source, tests=tests)


def _run(plan: StudyPlan, *, as_json: bool) -> int:
    """Run what is left of a study, and show its verdict; where that is JSON, all else goes to standard error."""
    from sweep.api import run_recorded, run_recorded_study
    from sweep.study import damage

    said = errors if as_json else console

    def run_sweep(screen: Screen, fresh: bool) -> bool:
        complete, _ = run_recorded(screen, fresh=fresh)
        return complete

    resume = f"{program()} resume {plan.words()}"
    stopped = f"Stopped. Nothing that is done is lost; to resume:\n  {resume}"
    with SignalHandler(stopped), told_how_to_resume(plan.name, resume):
        complete, result = run_recorded_study(plan, said, run_sweep)
    for message in damage(plan):
        warn(message)
    if not complete:
        said.print(stopped)
        return INTERRUPTED
    _show(result, plan.folder, as_json=as_json)
    _write_to_mlflow(plan, result, said)
    return DONE if result.seeds else FAILED


def _report(arguments: argparse.Namespace) -> int:
    """Show a study of the storage as far as it is done, or a result that a folder, or the code, keeps."""
    from search_spaces import STUDY_RESULTS
    from sweep.plan import has_study, read_study
    from sweep.report import save_figure
    from sweep.study import RESULT, StudyResult, collect, damage, study_figure, write_study_files

    kept = [
        folder for folder in (Path(arguments.study), STUDY_RESULTS / arguments.study) if (folder / RESULT).is_file()
    ]
    if has_study(arguments.study, storage=arguments.storage):
        plan = read_study(arguments.study, storage=arguments.storage)
        with ProgressLine(sys.stderr) as line:
            line.update("Collecting ...", now=True)
            result, folder = collect(plan), plan.folder
            write_study_files(result, folder)
            for warning in damage(plan):
                line.log(warning)
    elif kept:
        folder = kept[0]
        result = StudyResult.read(folder)
    else:
        read_study(arguments.study, storage=arguments.storage)  # says what there is
        raise AssertionError
    if arguments.plot:
        if not result.seeds:
            raise InputError(
                f"--plot {arguments.plot}: no seed of {result.name} is done yet, so there is nothing to draw"
            )
        save_figure(study_figure(result), arguments.plot)
    _show(result, folder, as_json=arguments.format == "json")
    return DONE


def _show(result: StudyResult, folder: Path, *, as_json: bool) -> None:
    from sweep.study import PICTURE, notes, sentences, study_tables

    if as_json:
        print(result.to_json(), end="")
        return
    console.print(*([result.question] if result.question else []), *sentences(result), "", sep="\n", markup=False)
    if not result.seeds:
        return
    for table in study_tables(result):
        console.print(table, "", sep="\n", soft_wrap=False)
    console.print(*notes(result), "", sep="\n", markup=False)
    for what, path in (("picture", folder / PICTURE), ("numbers", folder / "study.json")):
        if path.exists():
            console.print(f"{what}  {path}", markup=False)


def _write_to_mlflow(plan: StudyPlan, result: StudyResult, said: Console) -> None:
    """Write the study's run, above those of its sweeps; where MLflow does not answer, say what to do."""
    from sweep.study import ended_at, study_markdown, study_metrics
    from sweep.tracking import write_summary

    first = plan.sweep_plan(plan.steps[0])
    try:
        link = write_summary(
            first,
            "study",
            plan.name,
            metrics=study_metrics(result),
            note=lambda run: study_markdown(result, run),
            folder=plan.folder,
            time=ended_at(plan),
            sweeps=[plan.sweep_plan(step) for step in plan.steps],
        )
    except InputError as error:
        errors.print(f"{error}\nWhen it answers: {program()} resume {plan.words()}", markup=False)
        return
    show_mlflow(first, f"{mlflow_address(first)}{link}", said)


def plan_study(arguments: argparse.Namespace) -> int:
    """Time a little of every arm, and print what the whole study would take; nothing is run or logged."""
    from sweep.plan import make_study
    from sweep.study import price_study, price_table

    study = make_study(
        arguments.space, name=arguments.name, options=study_options(arguments), settings=arguments.set or ()
    )
    power = _power_of(study, arguments.pilot)
    if arguments.format != "json":
        _print_head(study, power, console)
    with ProgressLine(sys.stderr) as line:
        price = price_study(study, line.show)
    raise_interrupt()
    if arguments.format == "json":
        print(json.dumps({**price.to_dict(), "power": power, "command": _study_command(arguments)}, indent=2))
        return DONE
    console.print("", price_table(price), sep="\n", soft_wrap=False)
    console.print(*price.notes(), f"\nRun it:\n  {_study_command(arguments)}", sep="\n", markup=False)
    return DONE


def study_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a study among those of a sweep.

    Raises:
        InputError: for one that a study's file decides.
    """
    from sweep.plan import OPTIONS, SPACE_OPTIONS, STUDY_OPTIONS, flag

    for name in (name for name in (*OPTIONS, *SPACE_OPTIONS) if getattr(arguments, name) is not None):
        if name not in (*STUDY_OPTIONS, "name", "set"):
            raise InputError(f"{flag(name)}: {arguments.space} is a study, and its file says that for all arms alike")
    return {name: getattr(arguments, name) for name in STUDY_OPTIONS}


def _study_command(arguments: argparse.Namespace) -> str:
    """Return the command that runs a study in the options that were given."""
    from sweep.plan import STUDY_OPTIONS, option_words

    given = {name: getattr(arguments, name) for name in (*STUDY_OPTIONS, "name", "set")}
    return f"{program()} {shlex.join(['study', arguments.space, *option_words(given)])}"
