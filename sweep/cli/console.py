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
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from trainer.errors import InputError
from trainer.progress import can_redraw, visible
from trainer.words import did_you_mean

if TYPE_CHECKING:
    from sweep.plan import SweepPlan

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""


_KNOWN_SETTINGS = ("TERM", "COLORTERM", "NO_COLOR", "COLUMNS")
"""Variables that a console minds: no other makes a terminal of a file."""
_FOLDED_WIDTH = 24
"""Least width of a table's column that folds its text."""
_MOST_COLUMNS = 10_000


class _PlainConsole(Console):
    """A console on which file names, reasons and answers of servers are text: no markup, no emoji, no control codes.

    No table is cut: where the terminal is too narrow for one, its lines are longer than the terminal's.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        known = {name: os.environ[name] for name in _KNOWN_SETTINGS if os.environ.get(name) not in (None, "", "0")}
        super().__init__(
            stderr=stderr,
            soft_wrap=True,
            highlight=False,
            markup=False,
            emoji=False,
            force_jupyter=False,
            _environ=known,
        )

    @property
    def is_terminal(self) -> bool:
        return can_redraw(self.file)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        for each in objects:
            if isinstance(each, Table):
                self._widen(each)
        super().print(*objects, **{**options, "crop": False})

    def _widen(self, table: Table) -> None:
        wide = self.options.update(max_width=_MOST_COLUMNS)
        least = Measurement.get(self, wide, table).maximum
        for column in table.columns:
            if column.overflow == "fold":
                width = max(Measurement.get(self, wide, cell).maximum for cell in (column.header, *column.cells))
                least -= max(0, width - _FOLDED_WIDTH)
        if least > self.width:
            table.width = least


console, errors = _PlainConsole(), _PlainConsole(stderr=True)


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


def warn(message: str) -> None:
    """Print a message for people on standard error."""
    errors.print(message, markup=False)


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


def _sweep_words(plan: SweepPlan) -> str:
    """Return a sweep's name as commands take it, with its storage where they would look elsewhere."""
    return plan.name + _storage_words(plan)


def _storage_words(plan: SweepPlan) -> str:
    from sweep.plan import storage_folder

    return "" if Path(plan.storage) == storage_folder() else f" --storage {shlex.quote(plan.storage)}"


def mlflow_address(plan: SweepPlan) -> str:
    """Return where MLflow shows a plan's runs: its server, or where `ui` serves its store."""
    return plan.mlflow_uri if plan.mlflow_uri.startswith("http") else "http://127.0.0.1:5000"


def show_mlflow(plan: SweepPlan, page: str, said: Console, *, is_sweep: bool = True) -> None:
    """Print where a page of MLflow is found, and how it is served where no server is named.

    Args:
        plan: names the store.
        page: link to the page.
        said: prints it.
        is_sweep: whether the plan is of a sweep, which `ui` finds by its name.
    """
    if plan.mlflow_uri.startswith("http"):
        said.print(f"MLflow   {page}", markup=False)
        return
    store = f"--mlflow-uri {shlex.quote(plan.mlflow_uri)}{_storage_words(plan)}"
    said.print(f"MLflow   {program()} ui {_sweep_words(plan) if is_sweep else store}", markup=False)
    said.print(f"opens    {page}", markup=False)


def resume_command(plan: SweepPlan) -> str:
    """Return the command that resumes a sweep."""
    return f"{program()} resume {_sweep_words(plan)}"
