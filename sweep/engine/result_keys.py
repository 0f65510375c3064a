"""TODO one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


FAILURE = "failure"
"""Key of a result that says why its trial failed. Such a trial ends as done, so that Ray never tries it again: the same
configuration would fail in the same way. Only a lost worker is tried again."""

STORAGE = "storage"
"""Key of a result that says why the storage refused a checkpoint: no fault of the trial; a resume goes on with it."""

WARNINGS = "warnings"
"""Key of what a person should know of the trial: messages, in a list."""

FOOTPRINT = "footprint"
"""Key of the memory that the worker has taken: the fields of `Footprint`."""

REPORT = "report/"
"""How the keys of a report begin in the flat results that Ray Tune hands to schedulers and searchers."""


def report_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The report in a flat result of Ray Tune; empty where there is none."""
    return {key.removeprefix(REPORT): value for key, value in result.items() if key.startswith(REPORT)}
