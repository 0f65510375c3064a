"""The command `judge`: any models on both axes."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.cli.console import (
    DONE,
    FAILED,
    INTERRUPTED,
    add_format,
    add_storage,
    check_format,
    console,
    errors,
    mlflow_address,
    show_mlflow,
)
from trainer.errors import InputError
from trainer.human_agreement import EXAMPLES_OPTION

if TYPE_CHECKING:
    from sweep.judge import Judgement

_PASSED_ON = (
    *("architecture", "set", "crowd", "test_size", "steps", "queries", "fab", "judges", "invariance_examples"),
    *("storage", "data_dir", "mlflow_uri", "device", "cpus_per_trial"),
)
_RESULTS = "judgements"
"""Folder in the storage with the files of all judgements."""


def add_judge(parser: argparse.ArgumentParser) -> None:
    from sweep.plan import JUDGE_OPTIONS, OPTIONS, SPACE_OPTIONS, add_option

    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="file: a trial's model.pt, TorchScript, a state dict or safetensors"
    )
    parser.add_argument(
        "--architecture",
        action="append",
        default=[],
        metavar="python:MODULE:FACTORY",
        help="function that makes the network of a state dict; once for all models, or once for each in their order",
    )
    parser.add_argument(
        "--dataset", metavar="NAME", default="digits", help="data on whose test split they are judged (default: digits)"
    )
    add_option(parser, SPACE_OPTIONS["set"], shown="what is usual for the data")
    add_option(parser, SPACE_OPTIONS["crowd"], shown="strict")
    for spec in JUDGE_OPTIONS.values():
        add_option(parser, spec)
    parser.add_argument(EXAMPLES_OPTION, metavar="DIR", help="images that people labelled, to compare the models with")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the page into a file of your choice too")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the models into a file: .png, .svg or .pdf")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    for name in ("cpus_per_trial", "data_dir", "mlflow_uri"):
        add_option(parser, OPTIONS[name])
    add_storage(parser)
    add_format(parser, ("table", "json"))


def judge(arguments: argparse.Namespace) -> int:
    from sweep.api import judge as judge_files
    from sweep.judge import show_judgement
    from sweep.report import save_figure
    from trainer.files import write_whole

    check_format(arguments)
    given = {name: getattr(arguments, name) for name in _PASSED_ON}
    given["set"] = given["set"] or ()
    try:
        judgement = judge_files(arguments.models, dataset=arguments.dataset, progress=True, **given)
    except KeyboardInterrupt:
        errors.print("Stopped. The models that are done are kept: the same command goes on with the others.")
        return INTERRUPTED
    folder = Path(judgement.plan.storage) / _RESULTS / judgement.plan.name
    page, picture = judgement.write(folder)
    if arguments.plot:
        save_figure(judgement.figure(), arguments.plot)
    if arguments.html:
        try:
            write_whole(arguments.html, judgement.html().encode())
        except OSError as error:
            raise InputError(f"--html {str(arguments.html)!r} can't be written: {error.strerror}") from None
    if arguments.format == "json":
        print(json.dumps(judgement.to_dict(), indent=2))
    else:
        show_judgement(judgement, console)
        console.print(f"\npage     {page}\npicture  {picture}", markup=False)
    return _write_to_mlflow(judgement, folder, quiet=arguments.format == "json")


def _write_to_mlflow(judgement: Judgement, folder: Path, *, quiet: bool) -> int:
    """Write a run for the judgement; where MLflow does not answer, say so."""
    from sweep.judge import judgement_metrics, judgement_note
    from sweep.tracking import write_summary

    plan = judgement.plan
    try:
        link = write_summary(
            plan,
            "judgement",
            plan.name,
            metrics=judgement_metrics(judgement),
            note=lambda run: judgement_note(judgement, run),
            folder=folder,
            time=time.time(),
        )
    except InputError as error:
        errors.print(f"{error}\nThe same command writes it when it answers; no model is judged again.", markup=False)
        return FAILED
    if not quiet:
        show_mlflow(plan, f"{mlflow_address(plan)}{link}", console, is_sweep=False)
    return DONE
