"""A sweep's own run in MLflow, the parent of its trials' runs: description, curves of the front, files, saved views."""

from __future__ import annotations

import calendar
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sweep.plan import SweepPlan, trials_at_first
from sweep.report import write_front_files
from sweep.state import Milestone, SweepState
from sweep.tracking.description import front_markdown
from sweep.tracking.identity import identity_tags
from sweep.tracking.links import FRONT, view_key, view_label, view_link
from sweep.tracking.metrics import agreement_metrics, milestone_metrics, milliseconds
from sweep.tracking.mlflow_internals import (
    COLOUR_TAG,
    METRICS_PER_CALL,
    NOTE_TAG,
    PAGE_VERSION,
    TABLES_TAG,
    page_version,
    tables_tag,
)
from sweep.tracking.store import Log, Store
from sweep.tracking.views import DOMINATED_COLOUR, outdated, view_tags

_FILES_TIME_SHARE, _FILES_SECONDS = 0.01, 30.0
"""Maximum share of the driver's time for redrawing the front's files; minimum seconds between two redraws."""
_AGAIN_SECONDS = 600.0
"""Seconds from an upload that failed to the next one."""


class ParentRun:
    """The parent run of a sweep. `open` finds or creates it; every other method needs that first."""

    def __init__(self, plan: SweepPlan, store: Store, *, log: Log) -> None:
        self.plan, self.store, self.log = plan, store, log
        self.run_id = ""
        self.note = ""
        """The description, as MLflow has it."""
        self.silences: list[str] = []
        """Lines of the description on workers that say nothing."""
        self.milestones = 0
        """Number of points of the curves that are written."""
        self.files_due = 0.0
        """Time on the monotonic clock from which the front's files may be redrawn."""
        self.files_stale = True

    def open(self, state: SweepState) -> None:
        """Find the run that an earlier writer made, or create it."""
        self.run_id = self._find() or self._create(state)
        self.store.client.update_run(self.run_id, status="RUNNING")

    def look_up(self) -> bool:
        """Take up the run as it is, changing nothing; return whether there is one."""
        found = self.store.find_own("sweep", self.plan.name) if self.store.find_experiment() else []
        self.run_id = found[0].info.run_id if found else ""
        return bool(found)

    @property
    def link(self) -> str:
        """The link to the front on MLflow's page, which follows the server's address."""
        return view_link(self.store.experiment, view_key(FRONT, view_label(self.plan.name, self.run_id)))

    def write_parameters(self) -> None:
        """Write what the plan fixes."""
        plan = self.plan
        fixed = {"trials": trials_at_first(plan), "seeds": plan.seeds, "sampler": plan.sampler, "stopper": plan.stopper}
        fixed |= {"sweep_seed": plan.seed}
        self.store.log_batch(self.run_id, params={**plan.space.evaluation.to_dict(), **fixed})

    def _find(self) -> str | None:
        found = self.store.find_own("sweep", self.plan.name)
        if not found and (found := self.store.find_own("sweep", self.plan.name, deleted=True)[-1:]):
            self.store.client.restore_run(found[0].info.run_id)
            self.log(f"the run of {self.plan.name} had been deleted in MLflow: it is restored")
        for duplicate in found[1:]:
            self.store.client.delete_run(duplicate.info.run_id)
        if not found:
            return None
        self.note = found[0].data.tags.get(NOTE_TAG, "")
        for tag, value in identity_tags(self.plan).items():
            if found[0].data.tags.get(tag) != value:
                self.store.client.set_tag(found[0].info.run_id, tag, value)
        return found[0].info.run_id

    def _create(self, state: SweepState) -> str:
        tags = {
            **self.store.sweep_tags(state.data_summary),
            **identity_tags(self.plan),
            "otsweep.kind": "sweep",
            COLOUR_TAG: DOMINATED_COLOUR,
        }
        return self.store.create_run(self.plan.name, started=_created(self.plan), tags=tags)

    def write_views(self) -> None:
        """Write this sweep's saved views of the experiment, and delete those of the oldest sweeps."""
        if not (version := page_version(self.store.uri)).startswith(f"{PAGE_VERSION}."):
            self.log(
                f"MLflow {version}: its saved views were checked with {PAGE_VERSION} and may not open; all else does"
            )
        client, experiment = self.store.client, self.store.experiment
        known = client.get_experiment(experiment).tags
        views = {
            tag: text
            for tag, text in view_tags(self.plan, self.run_id, _created(self.plan)).items()
            if known.get(tag) != text
        }
        for tag, text in views.items():
            client.set_experiment_tag(experiment, tag, text)
        for tag in outdated({**known, **views}):
            client.delete_experiment_tag(experiment, tag)

    def write_milestones(self, milestones: Sequence[Milestone]) -> None:
        """Write further points of the curves."""
        rows = [row for each in milestones for row in milestone_metrics(self.plan, each)]
        for start in range(0, len(rows), METRICS_PER_CALL):
            self.store.log_batch(self.run_id, metrics=rows[start : start + METRICS_PER_CALL])
        self.milestones += len(milestones)

    def write_note(self, state: SweepState, trial_runs: dict[int, str]) -> None:
        """Write the description, if it changed.

        Args:
            trial_runs: the identifiers of the trials' runs.
        """
        self.silences = state.silences()
        note = front_markdown(self.plan, state, self.store.experiment, self.run_id, trial_runs)
        if note != self.note:
            self.store.client.set_tag(self.run_id, NOTE_TAG, note)
            self.note = note

    def write_files(self, state: SweepState, *, over: bool) -> None:
        """Upload the front as pictures, tables and a page that needs nothing else."""
        begun, self.files_due = time.thread_time(), time.monotonic() + _AGAIN_SECONDS
        with tempfile.TemporaryDirectory(prefix="otsweep-front-") as scratch:
            write_front_files(self.plan, state, Path(scratch), over=over)
            self.store.client.log_artifacts(self.run_id, scratch, artifact_path="front")
        self.store.client.set_tag(self.run_id, TABLES_TAG, tables_tag("front/trials.json"))
        self.files_stale = False
        self.files_due = time.monotonic() + max(_FILES_SECONDS, (time.thread_time() - begun) / _FILES_TIME_SHARE)

    def end(self, state: SweepState, *, over: bool) -> None:
        """End the run with the last trial; as killed, unless the sweep is over."""
        status = "FINISHED" if over else "KILLED"
        self.store.client.set_terminated(self.run_id, status, end_time=_last_end(state) or None)

    def write_agreement(self, state: SweepState) -> None:
        """Write how well the rungs' orders agree."""
        self.store.log_batch(self.run_id, metrics=agreement_metrics(self.plan, state, _last_end(state)))


def _last_end(state: SweepState) -> int:
    """Return when the last trial ended, in milliseconds."""
    return max((milliseconds(record.ended) for record in state.trials.values()), default=0)


def _created(plan: SweepPlan) -> int:
    """Return when the plan was made, in milliseconds."""
    return calendar.timegm(time.strptime(plan.created, "%Y-%m-%dT%H:%M:%SZ")) * 1000
