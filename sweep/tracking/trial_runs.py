"""The runs of a sweep's trials in MLflow, children of the sweep's own run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.report import trial_label
from sweep.state import SweepState, seconds_of
from sweep.tracking.description import folded_command, run_again
from sweep.tracking.metrics import (
    ONCE_PER_REPORT,
    MetricRow,
    milliseconds,
    parameter_text,
    report_batches,
    report_metrics,
)
from sweep.tracking.mlflow_internals import NOTE_TAG, PARENT_TAG, WholeRun
from sweep.tracking.ranking import Ranking
from sweep.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

_COMPLETE_TAG, _FORMAT = "otsweep.complete", "2"
"""Tag of a run that holds all of an ended trial, and its value: the format of what is written about a trial. Once that
is raised, every run is brought up to it."""

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@dataclass
class TrialRun:
    """A trial's run, as far as this process knows it."""

    run_id: str
    sent: set[int] | None
    """Times, in milliseconds, of the reports that were sent, acknowledged or not; None while that is unknown."""
    acknowledged: int = 0
    """Number of the record's first reports that MLflow has for sure."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags that MLflow has for sure."""
    status: str = "RUNNING"
    described: bool = False
    """True once the parameters are written."""
    closed: bool = False
    """True once the run holds all of a trial that has ended."""


class TrialRuns:
    """The runs of one sweep's trials, by the number of the trial."""

    def __init__(self, plan: SweepPlan, store: Store) -> None:
        self.plan, self.store = plan, store
        self.parent = ""
        """Identifier of the sweep's own run."""
        self.runs: dict[int, TrialRun] = {}
        self.ranking = Ranking(plan)
        self.settled = True
        """True while every trial that ended has its latest rank."""

    def adopt(self, parent: str) -> None:
        """Take over the runs that a writer made below a parent; of two runs of one trial, delete one.

        Whatever else somebody put below it is passed over.
        """
        self.parent, self.runs = parent, {}
        for found in self.store.find_runs(f"tags.`{PARENT_TAG}` = '{parent}' and tags.`otsweep.kind` = 'trial'"):
            number, run = int(found.data.tags["otsweep.trial"]), _trial_run(found)
            known = self.runs.get(number)
            duplicate = run if known and (known.closed or not run.closed) else known
            if duplicate is not None:
                self.store.client.delete_run(duplicate.run_id)
            if duplicate is not run:
                self.runs[number] = run
        self.store.doubtful.clear()

    def insert(self, records: Sequence[TrialRecord], state: SweepState, *, over: bool) -> None:
        """Write ended trials that have no run yet, all or none, in one transaction of a store that `inserts`."""
        runs = [self._whole_run(record, state, over=over) for record in records]
        for record, run, run_id in zip(records, runs, self.store.insert_runs(runs), strict=True):
            self.runs[record.number] = TrialRun(
                run_id, None, len(record.reports), dict(run.tags), run.status, described=True, closed=True
            )

    def _whole_run(self, record: TrialRecord, state: SweepState, *, over: bool) -> WholeRun:
        """Return what `write` makes of a trial that has ended."""
        tags = self._first_tags(record, state)
        metrics, rank_tags = self.ranking.changes(record.number, state, tags, over=over)
        return WholeRun(
            self._name(record),
            _STATUS[record.state],
            started=milliseconds(record.started),
            ended=milliseconds(record.ended),
            params={key: parameter_text(value) for key, value in record.config.items()},
            tags=tags | self._last_tags(record) | rank_tags,
            metrics=[*(row for report in record.reports for row in report_metrics(report)), *metrics],
        )

    def write(self, record: TrialRecord, state: SweepState, *, over: bool = False) -> None:
        """Write everything of a trial that MLflow lacks."""
        if self._name(record) in self.store.doubtful:
            self.adopt(self.parent)
        # In this order: a trial that has ended reports no more.
        ended = record.state in _STATUS
        reports = list(record.reports)
        run = self.runs.get(record.number)
        if run is not None and run.closed:
            return
        if run is not None and self._sent_times(run) & _replaced_times(record, reports):
            # A retry reported an epoch again. MLflow takes no number back, so the run is made anew. What this ledger
            # never held is left where it is: a newer state of the same ledger may have written it.
            self.store.client.delete_run(run.run_id)
            run = None
        run = run or self._create(record, state)
        *earlier, last = list(report_batches(reports[run.acknowledged :])) or [[]]
        for batch in earlier:
            self._log_reports(run, record, batch, tags=self._missing_tags(run, record, state))
        tags = self._missing_tags(run, record, state)
        if not ended:
            self._log_reports(run, record, last, tags=tags)
            if run.status != "RUNNING":
                self._set_status(run, "RUNNING")
            return
        metrics, rank_tags = self.ranking.changes(record.number, state, run.tags, over=over)
        self._log_reports(run, record, last, metrics=metrics, tags=tags | self._last_tags(record) | rank_tags)
        # The status is written last: a run that has ended is then known to be complete.
        run.status = _STATUS[record.state]
        self.store.client.set_terminated(run.run_id, run.status, end_time=milliseconds(record.ended))
        run.closed = True

    def _sent_times(self, run: TrialRun) -> set[int]:
        """Return the times of the reports that a run may hold; ask the store where this process did not send them."""
        if run.sent is None:
            histories = [self.store.client.get_metric_history(run.run_id, key) for key in ONCE_PER_REPORT]
            run.sent = {metric.timestamp for history in histories for metric in history}
        return run.sent

    def _create(self, record: TrialRecord, state: SweepState) -> TrialRun:
        tags = self._first_tags(record, state)
        run_id = self.store.create_run(self._name(record), started=milliseconds(record.started), tags=tags)
        run = self.runs[record.number] = TrialRun(run_id, set(), tags=tags)
        return run

    def _name(self, record: TrialRecord) -> str:
        return f"{record.number:03d} {trial_label(self.plan.space, record.config)}"

    def _first_tags(self, record: TrialRecord, state: SweepState) -> dict[str, str]:
        """Return the tags of a trial that begins."""
        return {
            **self.store.sweep_tags(state.data_summary),
            PARENT_TAG: self.parent,
            "otsweep.kind": "trial",
            "otsweep.trial": str(record.number),
            "otsweep.seed": str(record.seed),
            "otsweep.configuration": str(record.number - record.number % self.plan.seeds),
            "otsweep.resources": f"{self.plan.cpu_share:g} CPU, {self.plan.gpu_share:g} GPU",
            **self.ranking.front_tags(record.number),
        }

    def _missing_tags(self, run: TrialRun, record: TrialRecord, state: SweepState) -> dict[str, str]:
        """Return the first tags that a run lacks: an earlier version may have written fewer."""
        return {key: value for key, value in self._first_tags(record, state).items() if key not in run.tags}

    def _last_tags(self, record: TrialRecord) -> dict[str, str]:
        """Return the tags of a trial that has ended."""
        plan, hours = self.plan, seconds_of(record) / 3600
        command = folded_command(run_again(plan, record.config))
        tags = {
            "otsweep.cost": f"{hours * plan.cpus_per_trial:.4g} CPU hours, {hours * plan.gpus_per_trial:.4g} GPU hours",
            NOTE_TAG: f"Run this point again:\n\n```\n{command}\n```",
            _COMPLETE_TAG: _FORMAT,
        }
        return tags | ({"otsweep.reason": record.reason} if record.reason else {})

    def _log_reports(
        self,
        run: TrialRun,
        record: TrialRecord,
        reports: list[dict[str, Any]],
        *,
        metrics: Iterable[MetricRow] = (),
        tags: dict[str, str],
    ) -> None:
        """Write some reports with further metrics and tags; with the first of a run, the parameters too."""
        assert run.sent is not None
        run.sent |= _times(reports)
        rows = [row for report in reports for row in report_metrics(report)]
        params = {} if run.described else record.config
        self.store.log_batch(run.run_id, metrics=[*rows, *metrics], params=params, tags=tags)
        run.acknowledged += len(reports)
        run.described = True
        run.tags |= tags

    def _set_status(self, run: TrialRun, status: str) -> None:
        self.store.client.update_run(run.run_id, status=status)
        run.status = status

    def write_ranks(self, state: SweepState, *, over: bool) -> Iterator[None]:
        """Write at once which trials came to the front or left it; then the ranks, one trial at each step."""
        ended = {number: run for number, run in self.runs.items() if run.closed}
        for number, run in ended.items():
            if self.ranking.front_tags(number).items() - run.tags.items():
                self._write_rank(run, number, state, over=over)
        for number, run in ended.items():
            self._write_rank(run, number, state, over=over)
            yield
        self.settled = len(ended) == len(state.ended)

    def _write_rank(self, run: TrialRun, number: int, state: SweepState, *, over: bool) -> None:
        metrics, tags = self.ranking.changes(number, state, run.tags, over=over)
        if tags:
            self.store.log_batch(run.run_id, metrics=metrics, tags=tags)
            run.tags |= tags

    def interrupt(self, state: SweepState) -> None:
        """Mark the runs of unfinished trials as killed until the sweep is resumed."""
        for number in self.runs.keys() & (state.under_way | state.waiting):
            self._set_status(self.runs[number], "KILLED")


def _trial_run(found: Run) -> TrialRun:
    """Read what a trial's run in the store tells of itself."""
    tags, status = found.data.tags, found.info.status
    closed = tags.get(_COMPLETE_TAG) == _FORMAT and status in _STATUS.values()
    return TrialRun(found.info.run_id, None, tags=dict(tags), status=status, closed=closed)


def _replaced_times(record: TrialRecord, reports: Iterable[Mapping[str, Any]]) -> set[int]:
    """Return the times, in milliseconds, of reports that a later one took the place of."""
    return {milliseconds(time) for time in record.replaced} - _times(reports)


def _times(reports: Iterable[Mapping[str, Any]]) -> set[int]:
    """Return the times of reports in milliseconds, by which MLflow's copies are recognised."""
    return {milliseconds(report["time"]) for report in reports}
