"""The perturbed images that judge all trials of a sweep, as a file: with it every number follows from trials' answers.

Shape letters: M perturbed images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sweep.ledger import parquet_bytes
from trainer.errors import InputError

if TYPE_CHECKING:
    from trainer.invariance import Prepared

JUDGED_IMAGES = "judged.parquet"
"""File in a sweep's folder with the judged images of the validation split."""

_SHARES = "shares/"
"""Begin of the columns that hold a crowd's answers."""


@dataclass(frozen=True, eq=False)
class JudgedImages:
    """Sources, labels and crowds' answers of a judging set's perturbed images, in order; the images are left out."""

    source: np.ndarray
    """(M,) int64: position in the split of the image that each was made from."""
    labels: np.ndarray
    """(M,) int64: class of that image."""
    shares: Mapping[str, np.ndarray]
    """Crowds by name, first that of the evaluation, each with the share (M, K) of it, float32, who give each answer."""

    def to_bytes(self) -> bytes:
        """Return the content of a Parquet file, a row for each image."""
        columns: dict[str, Any] = {"source": self.source, "label": self.labels}
        for crowd, shares in self.shares.items():
            flat = pa.array(shares.astype(np.float32).ravel())
            columns[_SHARES + crowd] = pa.FixedSizeListArray.from_arrays(flat, shares.shape[1])
        return parquet_bytes(pa.table(columns))


def judged_images(prepared: Prepared, split: str, *, judge: int = 0) -> JudgedImages:
    """Return what a judge, by its number, says of the judging set of a split, `validation` or `test`."""
    judging = prepared.judging_set(split, judge=judge)
    shares = {crowd: each.numpy() for crowd, each in judging.shares.items()}
    return JudgedImages(judging.source_index.numpy(), judging.source_labels.numpy(), shares)


def read_judged_images(path: Path) -> JudgedImages | None:
    """Return what `JudgedImages.to_bytes` wrote to a file; None if there is none, as in sweeps of earlier versions.

    Raises:
        InputError: for a file that is damaged.
    """
    if not path.exists():
        return None
    try:
        # Neither `read_table` nor `to_numpy`: both import pandas.
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read().combine_chunks()
        crowds = [name.removeprefix(_SHARES) for name in table.column_names if name.startswith(_SHARES)]
        source, labels = (np.array(table[name].to_pylist(), dtype=np.int64) for name in ("source", "label"))
        shares = {crowd: np.array(table[_SHARES + crowd].to_pylist(), dtype=np.float32) for crowd in crowds}
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: is damaged ({error}); without it `otsweep resume` makes it anew") from None
    return JudgedImages(source, labels, shares)
