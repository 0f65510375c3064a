"""The records of a sweep's trials, as read from its ledger or kept while it runs."""

from __future__ import annotations

import bisect
import json
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from sweep.ledger.table import REPORT_TYPES, TRIAL_TYPES, arrow_column, keys_in_order
from trainer.config import with_weights

EndState = Literal["finished", "stopped", "failed"]
END_STATES = ("finished", "stopped", "failed")

Event = Mapping[str, Any]
"""An event of a trial as it stands in the ledger: `sequence` (its number, from 1 without gaps), `event`
(`started`, `reported`, `decided`, `silent` or `ended`), `trial`, `time` (unix seconds), and what that method of
`LedgerWriter` adds."""


@dataclass(slots=True)
class TrialRecord:
    """The knowledge of one trial. It is replaced, never changed, so that whoever holds one keeps what it saw."""

    number: int

    config: dict[str, Any] = field(default_factory=dict)
    """The trial's settings, plain scalars by name."""

    seed: int | None = None

    state: str = "running"
    """`running` (begun and not ended, also when its driver died), `finished`, `stopped` or `failed`."""

    reason: str = ""
    """Reason of the trial's end, for people."""

    environment: bool | None = None
    """True if it failed for want of its environment (data, memory, its worker), False if by its configuration; None
    where the ledger does not tell."""

    started: float | None = None
    """Unix seconds at the first attempt's start."""

    ended: float | None = None
    """Unix seconds at the end; None while running."""

    host: str = ""
    """Host of the latest attempt."""

    attempts: int = 0
    """Number of attempts begun."""

    silence: str = ""
    """The line about a worker that says nothing, or was ended for it; empty once one is heard."""

    sampler_state: str = ""
    """State of the sampler at the trial's proposal, for the search alone; `noted` on disk."""

    slot_seconds: float = 0.0
    """Seconds in its slot, all attempts together, by a clock that never jumps; time after an attempt's last event does
    not count. On disk it is `held`."""

    ended_as: int = field(default=0, compare=False, repr=False)
    """Number of the event that ended it: orders trials by their ends, whatever the clock said."""

    reports: list[dict[str, Any]] = field(default_factory=list)
    """One flat dict per epoch, in order, then the final one; an epoch that a retry reports again is replaced."""

    replaced: tuple[float, ...] = field(default=(), compare=False, repr=False)
    """Times of reports that a retry's took the place of, in unix seconds: MLflow may hold them."""

    decisions: list[dict[str, Any]] = field(default_factory=list)
    """Decisions about it at each rung, in order, as made by `Decision.to_dict`."""

    @property
    def result(self) -> dict[str, Any] | None:
        """The final report, with the numbers of the chosen checkpoint; None before it was made."""
        return self.reports[-1] if self.reports and self.reports[-1]["final"] else None

    def apply(self, event: Event) -> TrialRecord:
        """Return the record after one of its events; live events and those read from a ledger alike."""
        after = replace(self)
        after.take(event)
        return after

    def take(self, event: Event) -> None:
        """Take in one of its events: for whoever made this record, and has not shown it to anybody yet."""
        self.slot_seconds = max(self.slot_seconds, event.get("held", 0.0))
        match event["event"]:
            case "started":
                self.config, self.seed, self.host = with_weights(event["config"]), event["seed"], event["host"]
                self.attempts, self.sampler_state = max(self.attempts, event["attempt"]), event.get("noted", "")
                self.started = event["time"] if self.started is None else self.started
                self.state, self.reason, self.ended, self.ended_as = "running", "", None, 0
                self.environment, self.silence = None, ""
            case "reported":
                self.silence = ""
                self.reports, replaced = _with_report(self.reports, event["report"])
                self.replaced += tuple(each["time"] for each in replaced if "time" in each)
            case "decided":
                self.decisions = [*self.decisions, event["decision"]]
            case "silent":
                self.silence = event["reason"]
            case "ended":
                self.silence = ""
                self.state, self.reason = event["state"], event["reason"]
                self.environment = event.get("environment")
                self.ended, self.ended_as = event["time"], event["sequence"]


def _with_report(
    reports: Sequence[dict[str, Any]], report: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], Sequence[dict[str, Any]]]:
    """Return the reports with one more, and an earlier one whose place it takes: of its epoch, or also final."""
    place = bisect.bisect_left(reports, _order(report), key=_order)
    again = place < len(reports) and _order(reports[place]) == _order(report)
    # Each report that is unpickled or parsed has names of its own, which take more room than its numbers.
    interned = {sys.intern(name): value for name, value in report.items()}
    return [*reports[:place], interned, *reports[place + again :]], reports[place : place + again]


def _order(report: Mapping[str, Any]) -> float:
    """Return the sort key of a report among its trial's: by epoch, the final one last."""
    return math.inf if report["final"] else report["epoch"]


_FIELDS = {"trial": "number", "held": "slot_seconds"}
"""Fields of a record that have another name in the table."""


@dataclass
class Ledger:
    """A sweep as read from its ledger."""

    trials: dict[int, TrialRecord]
    """Trials by number, in ascending order; one whose start was lost is left out, as its settings are not known."""

    warnings: list[str]
    """Descriptions of what was damaged or missing and so is not in `trials`, by file and line."""

    def to_go_on_from(self, *, retry_failed: bool = False) -> dict[int, TrialRecord]:
        """Return the trials as a resume takes them up: one whose result was lost is running.

        Args:
            retry_failed: whether a failed trial is running as well, unless its configuration made it fail.
        """

        def runs_again(trial: TrialRecord) -> bool:
            lost = trial.state == "finished" and trial.result is None
            return lost or (retry_failed and trial.state == "failed" and trial.environment is not False)

        return {
            number: replace(trial, state="running") if runs_again(trial) else trial
            for number, trial in self.trials.items()
        }

    def to_table(
        self,
        metadata: Mapping[str, str] | None = None,
        *,
        front: Collection[int] | None = None,
        describe: Callable[[str], Mapping[str, str]] | None = None,
    ) -> pa.Table:
        """Return one row per report, and one with nulls for a trial without any; `metadata` goes into the schema.

        Args:
            front: numbers of the trials on the front, for a column `front`.
            describe: returns what is known of a column, for its field's metadata and, as JSON by column, for the entry
                `columns` of the schema's.

        Columns: `trial`, `seed`, `state`, `reason`, `host`, `attempts`, `held` (seconds), `started` and `ended` (unix
        seconds), then `config.<field>` for every setting, then `epoch`, `final` and every metric, and where trials were
        compared at rungs `decision.<field>` in the row of the report that was looked at.
        """
        rows = [
            (trial, _with_decision(trial, report)) for trial in self.trials.values() for report in trial.reports or [{}]
        ]
        settings = keys_in_order(trial.config for trial in self.trials.values())
        metrics = keys_in_order(report for _, report in rows)
        columns = {name: [getattr(trial, _FIELDS.get(name, name)) for trial, _ in rows] for name in TRIAL_TYPES}
        columns |= {} if front is None else {"front": [trial.number in front for trial, _ in rows]}
        columns |= {f"config.{key}": [trial.config.get(key) for trial, _ in rows] for key in settings}
        columns |= {key: [report.get(key) for _, report in rows] for key in metrics | REPORT_TYPES}
        known = {name: dict(describe(name)) for name in columns} if describe else {}
        arrays = {name: arrow_column(name, values) for name, values in columns.items()}
        fields = [pa.field(name, array.type, metadata=known.get(name)) for name, array in arrays.items()]
        metadata = dict(metadata or {}) | ({"columns": json.dumps(known)} if known else {})
        return pa.table(list(arrays.values()), schema=pa.schema(fields, metadata))


def _with_decision(trial: TrialRecord, report: dict[str, Any]) -> dict[str, Any]:
    """Return a report with the decision on it; a key that both have keeps the report's value."""
    made = [each for each in trial.decisions if each["epoch"] == report.get("epoch") and not report["final"]]
    return report | {f"decision.{key}": made[0][key] for key in made[0] if key not in report} if made else report
