"""All reports of a sweep as a file for other programs, with what each column means."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa

from sweep.ledger import parquet_bytes
from sweep.report.tables import csv_text
from trainer.files import write_whole


def _data_dictionary(table: pa.Table) -> Mapping[str, Mapping[str, str]]:
    """Return the `description` and, where it has one, the `unit` of each column of a ledger's table."""
    return json.loads(table.schema.metadata[b"columns"])


def _write_csv(table: pa.Table, path: Path) -> list[Path]:
    """Write a CSV, and the data dictionary beside it."""
    columns = path.with_suffix(".columns.json")
    text = csv_text(table.column_names, (row.values() for row in table.to_pylist()))
    write_whole(path, text.encode())
    write_whole(columns, (json.dumps(_data_dictionary(table), indent=2) + "\n").encode())
    return [path, columns]


def _write_json(table: pa.Table, path: Path) -> list[Path]:
    content = {"columns": _data_dictionary(table), "rows": table.to_pylist()}
    write_whole(path, (json.dumps(content) + "\n").encode())
    return [path]


def _write_parquet(table: pa.Table, path: Path) -> list[Path]:
    write_whole(path, parquet_bytes(table))
    return [path]


TABLE_WRITERS: dict[str, Callable[[pa.Table, Path], list[Path]]] = {
    "csv": _write_csv,
    "json": _write_json,
    "parquet": _write_parquet,
}
"""Writers of a ledger's table by form; each returns the files that it wrote."""
