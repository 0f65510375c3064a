"""Findings of a sweep's audit, as far as they stand beside its front."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sweep.plan import SweepPlan
from sweep.report.words import percent

AUDIT_FOLDER = "audit"
"""Folder of an audit in that of its sweep."""
AUDIT_JSON = "audit.json"
"""File in it with all that an audit found."""

_INVALID = "sensitivity_invalid"
AUDITED = {_INVALID: "class lost in attack"}
"""Number of an audit that stands beside a front, and its heading: the share of people who no longer see the source's
class in the images that broke the model."""


def audited_finalists(plan: SweepPlan) -> dict[int, Mapping[str, Any]]:
    """Return what the audit found of each finalist, by trial; nothing where there is no audit."""
    try:
        known = json.loads((plan.folder / AUDIT_FOLDER / AUDIT_JSON).read_bytes())
        return {each["trial"]: each for each in known["finalists"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def audited_columns(finalists: Mapping[int, Mapping[str, Any]], number: int) -> dict[str, float]:
    """Return the columns that the front's row of an audited trial has beside its own."""
    return {name: finalists[number]["numbers"][name] for name in AUDITED} if number in finalists else {}


def audited_words(plan: SweepPlan) -> str:
    """Return, for the end of a sweep's verdict, how its finalists fared when audited; nothing without an audit."""
    finalists = audited_finalists(plan)
    if not finalists:
        return ""
    held = sum(each["verdict"] == "held" for each in finalists.values())
    lost = sorted(each["numbers"][_INVALID] for each in finalists.values())
    return (
        f" Audited: {held} of {len(finalists)} finalists held; in the images that broke them {percent(lost[0])} to "
        f"{percent(lost[-1])} of the judges' people no longer see the class, so these are no failures."
    )
