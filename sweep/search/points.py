"""Points that a user gives a sweep to begin with: the front of an earlier sweep, or a file of points."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from search_spaces import (
    LARGEST_FILE,
    MEASURES,
    NOT_GIVEN,
    NOT_SWEPT,
    TRIAL_FIELDS,
    Located,
    Space,
    locate,
    parse_yaml,
    read_point,
    read_yaml,
)
from sweep.ledger import read_ledger
from sweep.plan import read_plan
from sweep.state import state_of_trials
from trainer.errors import InputError

_FOUND = ("trial", "seeds", "epoch", "knee", "p_front", "p_knee", *MEASURES)
"""Begins of the keys that `otsweep front` writes beside a configuration: its results."""


def with_given_points(space: Space, *, file: Path | None, sweep: str | None, storage: str | None) -> Space:
    """Return the space with the points of a file, then the front of a sweep in the storage, before its own points.

    Raises:
        InputError: naming file and line, or sweep and trial, of the first point that is wrong.
    """
    given = _read_points(file) if file else []
    given += _front_points(sweep, storage=storage) if sweep else []
    return space.beginning_with(read_point(node, space.fixed) for node in given) if given else space


def _front_points(name: str, *, storage: str | None) -> list[Located]:
    """Return the configurations on the front of a sweep, the best in the first objective first.

    Raises:
        InputError: if there is no such sweep, or no front yet.
    """
    plan = read_plan(name, storage=storage)
    state = state_of_trials(plan, read_ledger(plan.folder).trials)
    if not state.front_records:
        raise InputError(f"--from {name}: has no front yet, since no trial of it has finished")
    return [
        locate(
            {key: value for key, value in record.config.items() if key not in {*NOT_GIVEN, *NOT_SWEPT}},
            f"--from {name}, trial {record.number:03d}",
        )
        for record in state.front_records
    ]


def _read_points(path: Path) -> list[Located]:
    """Return the points in a file: a YAML or JSON list, or one under `points` or `front`, or the rows of a CSV.

    So it also reads what `otsweep front --format json` or `csv` writes.

    Raises:
        InputError: for a file that holds nothing of the kind.
    """
    if path.suffix.lower() == ".csv":
        rows = _read_csv(path)
    else:
        root = read_yaml(path)
        inside = root.value if isinstance(root.value, dict) else {"points": root}
        points = inside.get("points", inside.get("front"))
        if points is None:
            raise root.error("must be a list of points, or hold one under 'points' or 'front'")
        rows = points.items("points")
    if not rows:
        raise InputError(f"--points {path}: holds no point")
    return [_settings_in(row) for row in rows]


def _read_csv(path: Path) -> list[Located]:
    """Return the rows below a header, each with its line; empty cells are left out.

    Raises:
        InputError: if it can't be read.
    """
    try:
        text = path.read_bytes()[: LARGEST_FILE + 1].decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {getattr(error, 'strerror', None) or 'is not UTF-8 text'}") from None
    if len(text) > LARGEST_FILE:
        raise InputError(f"{path}: larger than {LARGEST_FILE // 1024} KiB, so not a file of points")
    reader, rows = csv.reader(io.StringIO(text)), []
    header = next(reader, [])
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise InputError(f"{where}: has {len(cells)} cells, and the header has {len(header)}")
        values = {
            key: Located(parse_yaml(cell.encode(), where).value, where)
            for key, cell in zip(header, cells, strict=True)
            if cell.strip()
        }
        rows.append(Located(values, where))
    return rows


def _settings_in(row: Located) -> Located:
    """Return a point without its results elsewhere."""
    entries = row.mapping("a point")
    settings = {key: item for key, item in entries.items() if key in TRIAL_FIELDS or not key.startswith(_FOUND)}
    return Located(settings, row.where)
