"""The ledger as an Arrow table: types of its columns, and values that it can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TRIAL_TYPES = {
    "trial": pa.int64(),
    "seed": pa.int64(),
    "state": pa.string(),
    "reason": pa.string(),
    "host": pa.string(),
    "attempts": pa.int64(),
    "held": pa.float64(),
    "started": pa.float64(),
    "ended": pa.float64(),
}
REPORT_TYPES = {"epoch": pa.int64(), "final": pa.bool_()}


def checked_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` after a check that each can be read back exactly and fits in a column."""
    for name, value in values.items():
        if not isinstance(value, bool | int | float | str):
            raise TypeError(f"{name} = {value!r}: must be true or false, a number or a text")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} = {value!r}: must be finite")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} = {value!r}: must fit in 64 bits")
    return dict(values)


def keys_in_order(mappings: Iterable[Mapping[str, Any]]) -> dict[str, None]:
    """Return all keys in the order of their first appearance."""
    return dict.fromkeys(key for mapping in mappings for key in mapping)


def arrow_column(name: str, values: list[Any]) -> pa.Array:
    """Return a typed column; whole numbers stay whole where there is nothing else, and a mixture becomes text."""
    kinds = {type(value) for value in values} - {type(None)}
    if name in TRIAL_TYPES | REPORT_TYPES:
        kind = (TRIAL_TYPES | REPORT_TYPES)[name]
    elif kinds <= {bool}:
        kind = pa.bool_()
    elif kinds <= {int}:
        kind = pa.int64()
    else:
        kind = pa.float64() if kinds <= {int, float} else pa.string()
    convert = {pa.float64(): float, pa.string(): _text}.get(kind, lambda value: value)
    return pa.array([None if value is None else convert(value) for value in values], kind)


def _text(value: Any) -> str:
    """Return text that Arrow accepts: a message may quote a file name that is not Unicode."""
    return str(value).encode(errors="replace").decode()


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
