"""Keys of the results that workers hand to Ray Tune, and Ray Tune to its scheduler, searcher and callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FAILURE = "failure"
"""Key of the reason for which a trial failed. Its result is marked as done, so that Ray Tune never tries it again: the
same configuration would fail in the same way. Only a lost worker is tried again."""

ENVIRONMENT = "environment"
"""Key of the answer whether a trial failed for want of its environment (data, a module, memory): again, it may not."""

STORAGE = "storage"
"""Key of the reason for which the storage refused a checkpoint. The trial has not failed: a resume continues it."""

WARNINGS = "warnings"
"""Key of the list of messages that a person should read."""

FOOTPRINT = "footprint"
"""Key of the memory that the worker has taken, as the fields of `Footprint`."""

REPORT = "report/"
"""Begin of a report's keys in the flat results that Ray Tune hands to scheduler and searcher."""


def report_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report in a flat result of Ray Tune; empty if there is none."""
    return {key.removeprefix(REPORT): value for key, value in result.items() if key.startswith(REPORT)}
