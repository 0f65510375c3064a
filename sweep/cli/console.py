"""The part that commands share: terminal, exit statuses, finding and naming a sweep, progress lines."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from trainer.errors import InputError
from trainer.progress import visible
from trainer.words import did_you_mean

if TYPE_CHECKING:
    from sweep.plan import SweepPlan

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""


class _PlainConsole(Console):
    """A console on which file names, reasons and answers of servers are text: no markup, no emoji, no control codes."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


console = _PlainConsole(soft_wrap=True, highlight=False, markup=False, emoji=False)
errors = _PlainConsole(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def add_storage(parser: argparse.ArgumentParser) -> None:
    from sweep.plan import OPTIONS, add_option

    add_option(parser, OPTIONS["storage"])


def add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of a sweep in the storage folder")
    add_storage(parser)


def find_plan(arguments: argparse.Namespace) -> SweepPlan:
    """Return the plan of the sweep that the arguments name."""
    from sweep.plan import read_plan

    return read_plan(arguments.name, storage=arguments.storage)


def add_format(parser: argparse.ArgumentParser, formats: Sequence[str]) -> None:
    """Add `--format`, the first format being the default."""
    parser.add_argument(
        "--format", metavar="FORMAT", default=formats[0], help=f"one of {', '.join(formats)} (default: {formats[0]})"
    )
    parser.set_defaults(formats=formats)


def check_format(arguments: argparse.Namespace) -> None:
    """Refuse a format that the command does not have.

    Raises:
        InputError: naming the formats.
    """
    if arguments.format not in arguments.formats:
        raise InputError(f"--format {arguments.format}: {did_you_mean(arguments.format, arguments.formats)}")


def program() -> str:
    """Return how this command is called again: by its name where the shell finds it, else by the path it was called
    by."""
    typed = Path(sys.argv[0])
    if typed.name != "otsweep" or shutil.which("otsweep"):
        return "otsweep"
    return shlex.quote(os.path.relpath(typed))


def sweep_words(plan: SweepPlan) -> str:
    """Return a sweep's name as commands take it, with its storage where they would look elsewhere."""
    from sweep.plan import storage_folder

    storage = "" if Path(plan.storage) == storage_folder() else f" --storage {shlex.quote(plan.storage)}"
    return plan.name + storage


def resume_command(plan: SweepPlan) -> str:
    """Return the command that resumes a sweep."""
    return f"{program()} resume {sweep_words(plan)}"
