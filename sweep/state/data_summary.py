"""The summary of a sweep's data and judge, as a file beside the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.errors import InputError

DATA_SUMMARY = "prepared.json"
"""File in a sweep's folder with the data's fingerprint and what is known of the judge."""

REQUIRED_KEYS = {"data_fingerprint", "validation_images", "judged_images"}
"""Keys that every version wrote; what is known of the judge has other names in earlier ones."""

DataSummary = dict[str, Any]


def read_data_summary(folder: Path) -> DataSummary:
    """Return the data summary of a sweep; empty before it is known.

    Raises:
        InputError: for a file that is damaged.
    """
    path = folder / DATA_SUMMARY
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        missing = REQUIRED_KEYS - summary.keys()
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({error}); without it `otsweep resume` makes it anew") from None
    if missing:
        raise InputError(f"{path}: lacks {', '.join(sorted(missing))}; without the file `otsweep resume` makes it anew")
    return summary
