"""Points that a user gives a sweep to begin with: the front of an earlier sweep, or a file of points."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search_spaces import (
    MEASURES,
    NOT_GIVEN,
    NOT_SWEPT,
    TRIAL_FIELDS,
    Located,
    Space,
    fix_knobs,
    load_space,
    locate,
    parse_yaml,
    read_point,
    read_text,
    read_yaml,
    space_from_dict,
)
from sweep.ledger import TrialRecord, read_ledger
from sweep.plan import SPACE_OPTIONS, read_plan
from sweep.state import state_of_trials, why_no_front
from trainer.errors import InputError

_FEWEST_BEST = 3
"""Trials of a front whose configurations tell where the best of an objective lies, at least."""

_FOUND = ("trial", "seeds", "epoch", "knee", "p_front", "p_knee", *MEASURES)
"""Begins of the keys that `otsweep front` writes beside a configuration: its results,
of other crowds with the name of one and `/` before."""

_DELIMITERS = ",;\t|"
_SEPARATOR = re.compile(r'"?sep=([,;\t|])"?')
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]*,[0-9]+([eE][-+]?[0-9]+)?")
_INDEX_NAME = re.compile(r"|index|level_0|Unnamed: 0(\.\d+)?")
"""Names of the first columns of row numbers as pandas writes them, or reads and writes them again."""
_MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "<na>")
"""Lower-case words that spreadsheets, pandas and R write into a cell without a value."""
_YAML, _JSON_LINES = (".yaml", ".yml"), (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv", ".tab", ".txt")


def read_space(
    space: str | Path | Mapping[str, Any] | Space, options: Mapping[str, Any], *, storage: str | None
) -> Space:
    """Return a space with what the options named in `SPACE_OPTIONS` change of it.

    The points of a file, then the front of a sweep in the storage, come before its own points. Where that front has the
    best of each objective is what a space without a prior believes from then on.

    Args:
        space: a name in search_spaces/, the path of a YAML file, the content of one, or a space that was read.

    Raises:
        InputError: naming the option that is wrong; file and line, or sweep and trial, of the first wrong point.
    """
    given = {name: options.get(name) for name in SPACE_OPTIONS}
    if isinstance(space, Mapping):
        space = space_from_dict(space)
    whole = space if isinstance(space, Space) else load_space(str(space))
    whole = whole.requiring(given["require"] or ()).judged_by(given["crowd"])
    points = _read_points(Path(given["points"])) if given["points"] else []
    if given["from_"]:
        front, names = _front_of(given["from_"], storage=storage)
        points += _points_of(front, given["from_"])
        # A prior is of what a requirement may name, which some objectives are not.
        known = {name: maximise for name, maximise in names.items() if name in MEASURES}
        whole = whole.believing({name: _best(front, name, maximise) for name, maximise in known.items()})
    if points:
        whole = whole.beginning_with(read_point(node, whole.fixed) for node in points)
    return fix_knobs(whole, given["set"]) if given["set"] else whole


def _front_of(name: str, *, storage: str | None) -> tuple[list[TrialRecord], dict[str, bool]]:
    """Return the trials on the front of a sweep, the best in the first objective first, and its objectives' directions.

    Raises:
        InputError: if there is no such sweep, or no front yet.
    """
    plan = read_plan(name, storage=storage)
    state = state_of_trials(plan, read_ledger(plan.folder).trials)
    if not state.front_records:
        raise InputError(f"--from {name}: has no front yet: {why_no_front(state)}")
    return state.front_records, dict(zip(plan.objectives.names, plan.objectives.maximise, strict=True))


def _best(front: Sequence[TrialRecord], objective: str, maximise: bool) -> list[dict[str, Any]]:
    """Return the configurations of the best third of a front, and of at least `_FEWEST_BEST`, in one objective."""
    finished = [(record.result[objective], record.config) for record in front if record.result]
    finished.sort(key=lambda each: each[0], reverse=maximise)
    return [config for _, config in finished[: max(_FEWEST_BEST, math.ceil(len(finished) / 3))]]


def _points_of(front: Iterable[TrialRecord], name: str) -> list[Located]:
    """Return the configurations of a sweep's trials as points."""
    return [
        locate(
            {key: value for key, value in record.config.items() if key not in {*NOT_GIVEN, *NOT_SWEPT}},
            f"--from {name}, trial {record.number:03d}",
        )
        for record in front
    ]


def _read_points(path: Path) -> list[Located]:
    """Return the points in a file: a YAML or JSON list, or one under `points` or `front`, the lines of a JSONL file, or
    the rows of a table.

    So it also reads what `otsweep front --format json` or `csv` writes.

    Raises:
        InputError: for a file that holds nothing of the kind.
    """
    if path.suffix.lower() in _TABLES:
        rows = _read_table(path)
    else:
        root = _read_lines(path) if path.suffix.lower() in _JSON_LINES else read_yaml(path)
        inside = root.value if isinstance(root.value, dict) else {"points": root}
        points = inside.get("points", inside.get("front"))
        if points is None:
            raise root.error(
                "must be a list of points, or hold one under 'points' or 'front' (pandas: to_json(orient='records'))"
            )
        rows = points.items("points")
    if not rows:
        raise InputError(f"--points {path}: holds no point")
    return [_settings_in(row, empty=path.suffix.lower() not in _YAML) for row in rows]


def _read_lines(path: Path) -> Located:
    """Return the list of what the lines of a file hold, each a point in JSON."""
    lines = read_text(path).rstrip().splitlines()
    whole = ",\n".join(lines)
    return parse_yaml(f"[{whole}]".encode(), str(path))


def _read_table(path: Path) -> list[Located]:
    """Return the rows below a header, each with its line; blank rows, empty cells and an index are left out.

    Cells stand between commas, semicolons, tabs or bars; where commas don't part them, a number may have a decimal
    comma, as spreadsheets write them in many countries. A line such as `sep=;` before the header, as Excel writes it,
    names what stands between.

    Raises:
        InputError: if it can't be read.
    """
    lines = io.StringIO(read_text(path), newline=None).read().split("\n")
    named = _SEPARATOR.fullmatch(lines[0])
    lines[0] = "" if named else lines[0]
    delimiter = named[1] if named else max(_DELIMITERS, key=next(filter(str.strip, lines), "").count)
    reader = csv.reader([f"{line}\n" for line in lines], delimiter=delimiter, strict=True)
    try:
        found = [(f"{path}, line {reader.line_num}", [_cell(cell) for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; is a quotation mark left open?") from None
    (where, header), *rows = [(where, cells) for where, cells in found if any(cells)] or [("", [])]
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{line}: has {len(cells)} cells, and the header has {len(header)}")
    named = _named_columns(header, [cells for _, cells in rows], where)
    return [
        Located({name: _read_cell(cells[i], delimiter, line) for i, name in named.items() if cells[i]}, line)
        for line, cells in rows
    ]


def _named_columns(header: list[str], rows: list[list[str]], where: str) -> dict[int, str]:
    """Return the names of the columns that hold something, by position, without the index that pandas writes.

    Raises:
        InputError: for a name that stands twice, and for values without a name.
    """
    named = {}
    for i, name in enumerate(header):
        cells = [row[i] for row in rows]
        is_index = not named and _INDEX_NAME.fullmatch(name) and all(map(str.isdecimal, cells))
        if not any(cells) or is_index:
            continue
        if not name:
            raise InputError(f"{where}: column {i + 1} has values and no name")
        if name in named.values():
            raise InputError(f"{where}: {name!r} stands twice in the header; which of both columns counts?")
        named[i] = name
    return named


def _cell(text: str) -> str:
    """Return the text of a cell; an empty one if it says that there is no value."""
    text = text.strip()
    return "" if text.lower() in _MISSING else text


def _read_cell(cell: str, delimiter: str, where: str) -> Located:
    """Return a cell's text, which a field reads as a number where it is one."""
    if not cell.isprintable():
        raise InputError(f"{where}: {cell!r} holds a character that can't be printed")
    if delimiter != "," and _DECIMAL_COMMA.fullmatch(cell):
        cell = cell.replace(",", ".")
    return Located(cell, where)


def _settings_in(row: Located, *, empty: bool) -> Located:
    """Return a point without its results elsewhere; without what is null too if a program wrote it, to fill a table."""
    entries = row.mapping("a point")
    found = [key for key in entries if key not in TRIAL_FIELDS and key.rpartition("/")[2].startswith(_FOUND)]
    settings = {key: item for key, item in entries.items() if key not in found and not (empty and item.value is None)}
    return Located(settings, row.where)
