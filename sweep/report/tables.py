"""Plain tables: for a terminal, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from rich.table import Table


def plain_table(*headings: str, left: Iterable[int] = (), fold: Iterable[int] = ()) -> Table:
    """Return a table without lines, for a terminal.

    Args:
        left: columns that are aligned left; the others are aligned right.
        fold: columns that are aligned left and fold their text where there is no room.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title_style="")
    for column, heading in enumerate(headings):
        if column in fold:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="left" if column in left else "right", no_wrap=True)
    return table


def csv_text(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table as CSV; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
