"""MLflow: one parent run per sweep, one child per trial. Trials never talk to it.

The ledger is the truth. A `Writer` brings one store up to what the ledger tells: every write may be repeated, since
times and steps come from the ledger, and before a run is made it is looked for by its tags wherever an earlier call may
have made it unheard. So whatever happens to the store or to this process, the end is that of an undisturbed writer.
"""

from __future__ import annotations

import calendar
import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.forecast import describe_cost
from sweep.ledger import TrialRecord, read_ledger
from sweep.plan import SweepPlan, masked
from sweep.report import (
    FRONT,
    agreements_of,
    folded_command,
    front_markdown,
    run_again,
    trial_label,
    view_key,
    view_link,
)
from sweep.state import Milestone, RankTracker, SweepState, TrackedRank, read_data_summary, seconds_of, state_of_trials
from sweep.tracking.views import CHECKED_VERSION, DOMINATED_COLOUR, FRONT_COLOUR, KNEE_COLOUR, outdated, view_tags
from trainer.errors import InputError
from trainer.files import take_lock

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.entities import Run

PASS_SECONDS = 5.0
"""Between two passes at least."""
SHARE = 0.05
"""Of the driver's time that the writer may take: a pass ends, and the next one waits, accordingly."""
_FILES_SHARE = 0.01
"""Of the same that redrawing the front's files may take, and how often at most: in `FILES_SECONDS`."""
_FILES_SECONDS = 30.0

_BATCH = 800
"""Metrics in one call; MLflow takes 1,000 with at most 100 parameters and 100 tags among them."""

_FORMAT = "2"
"""Of what is written about a trial, in the tag of a run that is complete: raise it, and all are brought up to it."""
_COMPLETE = "otsweep.complete"
_RANKED = "otsweep.ranked"
"""Tag with how many configurations had finished when the run's rank was told last."""

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_CHOSEN = {
    "sensitivity_accuracy": "sel_sens",
    "invariance_accuracy": "sel_inv",
    "clean_accuracy": "sel_clean",
    "epoch": "sel_epoch",
}
"""Names of the chosen checkpoint's numbers: short, so that the page does not cut them off."""
_ONCE_PER_REPORT = ("clean_accuracy", "sel_clean")
"""Metrics of which every report has just one: their histories tell which reports a run holds."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PGCONNECT_TIMEOUT": "10",
}
_NO_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""A call that MLflow's client repeats by itself can make a second run unheard; ours are repeated by the next pass."""

_MetricRow = tuple[str, float, int, int]
"""Key, value, milliseconds, step."""

_Say = Callable[[str], None]
_Tell = Callable[[int, int], None]
"""Told how many trials are written, and of how many."""


def connect(uri: str) -> MlflowClient:
    """A client of the store at `uri`, checked by asking it something.

    Raises:
        InputError: if nothing usable answers there.
    """
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ} | _NO_RETRIES)
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # It writes the traceback of an error that it then raises: a store that is full is told in one line of ours.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if not uri.startswith("http"):
        _ask_once()
    try:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except ImportError as error:
        raise InputError(f"--mlflow-uri {masked(uri)}: this database needs the Python package {error.name}") from None
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise InputError(f"no MLflow store answers at {masked(uri)}: {_why(error)}") from None
    return client


def _ask_once() -> None:
    """MLflow asks a database that refuses ten times, over 100 seconds, and has no switch for that."""
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = 1


def _why(error: Exception) -> str:
    """A store's error in one line."""
    said = str(error)
    if "Max retries exceeded" in said:
        return "nothing listens there, or it took too long"
    return (said or type(error).__name__).splitlines()[0][:200]


@dataclass
class Child:
    """What is known of a trial's run."""

    run_id: str
    sent: set[int] | None
    """Times, in milliseconds, of the reports that were sent, acknowledged or not; None while that is not known."""
    acknowledged: int = 0
    """Reports that MLflow has for sure, of the record's first."""
    tags: dict[str, str] = field(default_factory=dict)
    """As MLflow has them for sure."""
    status: str = "RUNNING"
    described: bool = False
    """Whether its parameters are written."""
    closed: bool = False

    @property
    def ranked(self) -> int:
        """How many configurations had finished when its rank was told last."""
        return int(self.tags.get(_RANKED, 0))


class Writer:
    """Brings one store up to a sweep's results.

    Args:
        over: whether no trial will end any more, so that the last ranks are final.
        say: told what a person should know.

    Raises:
        InputError: from `open`, while another process writes the same sweep into the same store, or if the store is a
            server's own database.
    """

    def __init__(
        self, plan: SweepPlan, results: SweepState, client: MlflowClient, uri: str, *, over: bool, say: _Say
    ) -> None:
        self.plan, self.results, self.client, self.uri, self.over = plan, results, client, uri, over
        self.say = say
        self.experiment, self.parent = "", ""
        self.children: dict[int, Child] = {}
        self.doubtful = False
        """Whether a run may have been made without our hearing of it."""
        self.standings = RankTracker(results)
        self.front: frozenset[int] = frozenset()
        """Trials whose configuration is on the front, as known last; so its knee."""
        self.knee: int | None = None
        self.milestones = 0
        self.note = ""
        self.settled = True
        """Whether every trial that finished has its latest standing."""
        self.files_due = 0.0
        self.files_stale = True
        self.lock: FileLock | None = None

    # ------------------------------------------------------------------------------------------------ finding, making

    def open(self) -> None:
        """This sweep's experiment and runs: found where an earlier writer made them, else made."""
        if self.lock is None:
            digest = hashlib.sha256(self.uri.encode()).hexdigest()[:8]
            path = self.plan.folder / f"mlflow-{digest}.lock"
            self.lock = take_lock(path, f"sweep {self.plan.name!r} is already being written to this store")
        self.experiment = self.find_experiment()
        self.parent = self.find_parent() or self.create_parent()
        self.describe_parent()
        self.write_views()
        self.adopt_children()

    def close(self) -> None:
        """Let another process write."""
        if self.lock is not None:
            self.lock.release()

    def find_experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.plan.space.name)
        local = not self.uri.startswith("http")
        if found is not None:
            if local and found.artifact_location.startswith("mlflow-artifacts:"):
                raise InputError(
                    f"--mlflow-uri {masked(self.uri)}: experiment {self.plan.space.name!r} in this database was made "
                    "through an MLflow server, which keeps its files; give that server's address"
                )
            return found.experiment_id
        location = (Path(self.plan.storage) / "artifacts" / self.plan.space.name).as_uri() if local else None
        return self.client.create_experiment(self.plan.space.name, artifact_location=location)

    def find_runs(self, query: str) -> list[Run]:
        """Always in the same order."""
        runs, token = [], None
        while True:
            page = self.client.search_runs(
                [self.experiment], query, max_results=1000, page_token=token, order_by=["attributes.start_time ASC"]
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def find_parent(self) -> str | None:
        found = self.find_runs(f"tags.`otsweep.sweep` = '{self.plan.name}' and tags.`otsweep.kind` = 'sweep'")
        for twin in found[1:]:
            self.client.delete_run(twin.info.run_id)
        if not found:
            return None
        self.note = found[0].data.tags.get("mlflow.note.content", "")
        return found[0].info.run_id

    def adopt_children(self) -> None:
        """The trials' runs that the store holds; of those that one trial has twice one is kept."""
        self.children = {}
        for run in self.find_runs(f"tags.`mlflow.parentRunId` = '{self.parent}'"):
            number, child = int(run.data.tags["otsweep.trial"]), _child_of(run)
            known = self.children.get(number)
            twin = child if known and (known.closed or not child.closed) else known
            if twin is not None:
                self.client.delete_run(twin.run_id)
            if twin is not child:
                self.children[number] = child
        self.doubtful = False

    def identity(self) -> dict[str, str]:
        """Tags that parent and children share."""
        plan = self.plan
        return {
            "otsweep.sweep": plan.name,
            "otsweep.plan_hash": plan.hash,
            "otsweep.code_version": plan.code_version,
            "otsweep.data_fingerprint": self.results.facts.get("data_fingerprint", ""),
        }

    def create_run(self, **given: Any) -> str:
        """A new run; if the call fails, whether it was made is not known."""
        self.doubtful = True
        run_id = self.client.create_run(self.experiment, **given).info.run_id
        self.doubtful = False
        return run_id

    def create_parent(self) -> str:
        tags = {**self.identity(), "otsweep.kind": "sweep", "mlflow.runColor": DOMINATED_COLOUR}
        return self.create_run(start_time=self.created(), run_name=self.plan.name, tags=tags)

    def describe_parent(self) -> None:
        """What the plan fixes, and the data that every trial is judged on."""
        plan, evaluation = self.plan, self.plan.space.evaluation
        fixed = {"trials": plan.trials, "seeds": plan.seeds, "sampler": plan.sampler, "stopper": plan.stopper}
        fixed |= {"sweep_seed": plan.seed}
        self.log(self.parent, params={**evaluation.to_dict(), **fixed})
        self.client.update_run(self.parent, status="RUNNING")
        self.log_data(self.parent)

    def log_data(self, run_id: str) -> None:
        """What a run's trials are judged on, once that is known."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if facts := self.results.facts:
            name = self.plan.space.evaluation.dataset
            data = Dataset(name, facts["data_fingerprint"], "local", f'{{"uri": "{name}"}}')
            judged = DatasetInput(data, [InputTag("mlflow.data.context", "validation")])
            self.client.log_inputs(run_id, datasets=[judged])

    def created(self) -> int:
        """When the plan was made, in milliseconds."""
        return calendar.timegm(time.strptime(self.plan.created, "%Y-%m-%dT%H:%M:%SZ")) * 1000

    def write_views(self) -> None:
        """The experiment's saved views of this sweep; those of sweeps long past make room."""
        if not (version := _page_version(self.uri)).startswith(f"{CHECKED_VERSION}."):
            self.say(
                f"MLflow {version}: its saved views were checked with {CHECKED_VERSION} and may not open; all else does"
            )
        known = self.client.get_experiment(self.experiment).tags
        views = {tag: text for tag, text in view_tags(self.plan, self.created()).items() if known.get(tag) != text}
        for tag, text in views.items():
            self.client.set_experiment_tag(self.experiment, tag, text)
        for tag in outdated({**known, **views}):
            self.client.delete_experiment_tag(self.experiment, tag)

    # --------------------------------------------------------------------------------------------------------- trials

    def write_trial(self, record: TrialRecord) -> None:
        """Everything of a trial that is not in MLflow yet."""
        if self.doubtful:
            self.adopt_children()
        # In this order: whoever has ended has said everything.
        ended = record.state != "running"
        reports = list(record.reports)
        child = self.children.get(record.number)
        if child is not None and child.closed:
            return
        if child is not None and not self.sent_of(child) <= set(map(_milliseconds, reports)):
            # A retry said an epoch once more. MLflow can't take a number back, so the run is made anew.
            self.client.delete_run(child.run_id)
            child = None
        child = child or self.create_child(record)
        batches = list(_in_batches(reports[child.acknowledged :]))
        for batch in batches[:-1]:
            self.write_reports(child, record, batch)
        self.write_reports(child, record, batches[-1] if batches else [], last=ended)
        if ended:
            self.end_child(child, record)
        elif child.status != "RUNNING":
            self.client.update_run(child.run_id, status="RUNNING")
            child.status = "RUNNING"

    def sent_of(self, child: Child) -> set[int]:
        if child.sent is None:
            histories = [self.client.get_metric_history(child.run_id, key) for key in _ONCE_PER_REPORT]
            child.sent = {metric.timestamp for history in histories for metric in history}
        return child.sent

    def create_child(self, record: TrialRecord) -> Child:
        tags, started = self.first_words(record), int((record.started or 0) * 1000)
        name = f"{record.number:03d} {trial_label(self.plan.space, record.config)}"
        run_id = self.create_run(start_time=started, run_name=name, tags=tags)
        child = self.children[record.number] = Child(run_id, set(), tags=tags)
        return child

    def first_words(self, record: TrialRecord) -> dict[str, str]:
        """Tags of a trial that begins."""
        return {
            **self.identity(),
            "mlflow.parentRunId": self.parent,
            "otsweep.kind": "trial",
            "otsweep.trial": str(record.number),
            "otsweep.seed": str(record.seed),
            "otsweep.configuration": str(record.number - record.number % self.plan.seeds),
            "otsweep.resources": f"{self.plan.cpu_share:g} CPU, {self.plan.gpu_share:g} GPU",
            **self.place_tags(record.number),
        }

    def write_reports(
        self, child: Child, record: TrialRecord, reports: list[dict[str, Any]], *, last: bool = False
    ) -> None:
        """Some reports and, once, the parameters; with the `last` of a trial all else that is to be said of it."""
        assert child.sent is not None
        child.sent |= set(map(_milliseconds, reports))
        metrics = [metric for report in reports for metric in _metrics_of(report)]
        params = {} if child.described else record.config
        # An earlier version of this writer may have said less.
        tags = {key: value for key, value in self.first_words(record).items() if key not in child.tags}
        if last:
            standing_metrics, standing_tags = self.standing_of(child, record.number)
            metrics += standing_metrics
            tags |= self.last_words(record) | standing_tags
        self.log(child.run_id, metrics=metrics, params=params, tags=tags)
        child.acknowledged += len(reports)
        child.described = True
        child.tags |= tags

    def last_words(self, record: TrialRecord) -> dict[str, str]:
        """Tags of a trial that has ended."""
        plan, hours = self.plan, seconds_of(record) / 3600
        command = folded_command(run_again(plan, record.config))
        tags = {
            "otsweep.cost": f"{hours * plan.cpus_per_trial:.4g} CPU hours, {hours * plan.gpus_per_trial:.4g} GPU hours",
            "mlflow.note.content": f"Run this point again:\n\n```\n{command}\n```",
            _COMPLETE: _FORMAT,
        }
        return tags | ({"otsweep.reason": record.reason} if record.reason else {})

    def end_child(self, child: Child, record: TrialRecord) -> None:
        """The status is written last, so that a run that has ended is known to be complete."""
        child.status = _STATUS[record.state]
        self.client.set_terminated(child.run_id, child.status, end_time=int((record.ended or 0) * 1000))
        child.closed = True

    def log(
        self,
        run_id: str,
        *,
        metrics: Iterable[_MetricRow] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """In one call."""
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(
            run_id,
            metrics=[Metric(key, value, timestamp, step) for key, value, timestamp, step in metrics],
            params=[Param(key, _parameter_text(value)) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        )

    # ------------------------------------------------------------------------------------------------------- standings

    def place_tags(self, number: int) -> dict[str, str]:
        """Whether a trial is on the front, and its knee; by the colour of its run too."""
        on_front, is_knee = number in self.front, number == self.knee
        colour = KNEE_COLOUR if is_knee else FRONT_COLOUR if on_front else DOMINATED_COLOUR
        return {
            "pareto.front": str(on_front).lower(),
            "pareto.knee": str(is_knee).lower(),
            "mlflow.runColor": colour,
        }

    def standing_of(self, child: Child, number: int) -> tuple[list[_MetricRow], dict[str, str]]:
        """What of a trial's place and ranks its run has not: metrics, tags."""
        tags = {key: value for key, value in self.place_tags(number).items() if child.tags.get(key) != value}
        told = self.standings.of(number, after=child.ranked)
        metrics = [_standing_metric(each) for each in told]
        if told:
            tags |= {"pareto.rank": str(told[-1].rank), _RANKED: str(told[-1].finished)}
            if self.over:
                together = self.results.told_together(number, self.results.replicates())
                metrics += [(key, value, int(told[-1].time * 1000), 0) for key, value in together.items()]
        return metrics, tags

    def write_standing(self, child: Child, number: int) -> None:
        metrics, tags = self.standing_of(child, number)
        if tags:
            self.log(child.run_id, metrics=metrics, tags=tags)
            child.tags |= tags

    def look_up(self) -> None:
        """Who is on the front, who is the knee, and who stands where by now."""
        if self.standings.finished == len(self.results.course) and not self.over:
            return
        on_front = (self.results.members(record.number) for record in self.results.front_records)
        self.front = frozenset(each.number for members in on_front for each in members)
        self.knee = self.results.knee
        self.standings.catch_up(over=self.over)

    def write_standings(self) -> Iterator[None]:
        """At once who came to the front or left it; then the ranks, one trial after another."""
        ended = {number: child for number, child in self.children.items() if child.closed}
        for number, child in ended.items():
            if self.place_tags(number).items() - child.tags.items():
                self.write_standing(child, number)
        for number, child in ended.items():
            self.write_standing(child, number)
            yield
        self.settled = len(ended) == len(self.results.ended)

    # ------------------------------------------------------------------------------------------------------- exhibits

    def write_exhibits(self) -> None:
        """What the front's trials show of themselves; models of the others too, where the plan asks for them."""
        from sweep.plan import trial_folder
        from sweep.tracking.model_export import MODEL, export_models

        if self.plan.keep_models == "none":
            return
        front = [record.number for record in self.results.front_records]
        kept = front if self.plan.keep_models == "front" else list(self.results.finished)
        if problem := export_models(self.plan, front, models=kept):
            self.say(f"models and galleries could not be made for MLflow: {problem}")
        for number in sorted({*front, *kept}):
            child, folder = self.children[number], trial_folder(self.plan.folder, number)
            if number in kept and (folder / MODEL / "MLmodel").exists():
                self.once(child, "otsweep.model", "mlflow.pytorch", partial(self.write_model, child, number, folder))
            if number in front:
                self.write_pictures(child, number, folder)

    def once(self, child: Child, tag: str, value: str, write: Callable[[], None]) -> None:
        """Write what a tag says is there, and then the tag."""
        if child.tags.get(tag) != value:
            write()
            self.client.set_tag(child.run_id, tag, value)
            child.tags[tag] = value

    def write_pictures(self, child: Child, number: int, folder: Path) -> None:
        """The worst examples, and where it was audited accuracy over epsilon."""
        from sweep.tracking.curves import write_curves
        from sweep.tracking.gallery import GALLERY

        def upload(path: Path, where: str | None) -> Callable[[], None]:
            return lambda: self.client.log_artifact(child.run_id, str(path), where)

        if (folder / GALLERY).exists():
            self.once(child, "otsweep.gallery", GALLERY, upload(folder / GALLERY, None))
        with tempfile.TemporaryDirectory(prefix="otsweep-curve-") as scratch:
            audited = Path(scratch) / "audit"
            if digest := write_curves(self.plan, self.results, number, audited):
                self.once(child, "otsweep.audit", digest, upload(audited, None))

    def write_model(self, child: Child, number: int, folder: Path) -> None:
        """An MLflow model, linked to the run and to the numbers that it earned."""
        from mlflow.entities import LoggedModelOutput, Metric

        from sweep.tracking.model_export import MODEL

        source = f"source_run_id = '{child.run_id}'"
        for unfinished in self.client.search_logged_models([self.experiment], filter_string=source):
            self.client.delete_logged_model(unfinished.model_id)
        record = self.results.trials[number]
        active = {key: _parameter_text(value) for key, value in self.plan.space.active(record.config).items()}
        model = self.client.create_logged_model(
            self.experiment, f"{self.plan.name}-{number:03d}", child.run_id, params=active, model_type="classifier"
        )
        self.client.log_model_artifacts(model.model_id, str(folder / MODEL))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(child.run_id, [LoggedModelOutput(model.model_id, step=0)])
        earned = [
            Metric(
                *row,
                model_id=model.model_id,
                dataset_name=self.plan.space.evaluation.dataset,
                dataset_digest=self.results.facts.get("data_fingerprint", ""),
                run_id=child.run_id,
            )
            for row in _metrics_of(record.reports[-1])
        ]
        self.client.log_batch(child.run_id, metrics=earned)

    # ---------------------------------------------------------------------------------------------------- the parent

    def write_front(self, *, enough: Callable[[], bool] = lambda: False) -> None:
        """The parent's curves by finished trials, who stands where, the description and, at a bounded rate, the files.

        Args:
            enough: whether ranks are to wait for the next call.
        """
        if fresh := self.results.course[self.milestones :]:
            self.write_course(fresh)
            self.settled, self.files_stale = False, True
        self.look_up()
        if not self.settled:
            for _ in self.write_standings():
                if enough():
                    break
            self.write_note()
        if self.files_stale and time.monotonic() >= self.files_due:
            self.write_files()

    def write_course(self, milestones: Sequence[Milestone]) -> None:
        rows = [row for each in milestones for row in _milestone_metrics(self.plan, each)]
        for start in range(0, len(rows), _BATCH):
            self.log(self.parent, metrics=rows[start : start + _BATCH])
        self.milestones += len(milestones)

    def write_note(self) -> None:
        runs = {number: child.run_id for number, child in self.children.items()}
        note = front_markdown(self.plan, self.results, self.experiment, self.parent, runs)
        if note != self.note:
            self.client.set_tag(self.parent, "mlflow.note.content", note)
            self.note = note

    def write_files(self) -> None:
        """The front as pictures, tables and a page that needs nothing else."""
        from sweep.report import LOGGED_TABLES, write_front_files

        begun = time.thread_time()
        with tempfile.TemporaryDirectory(prefix="otsweep-front-") as scratch:
            write_front_files(self.plan, self.results, Path(scratch), over=self.over)
            self.client.log_artifacts(self.parent, scratch, artifact_path="front")
        self.client.set_tag(self.parent, "mlflow.loggedArtifacts", LOGGED_TABLES)
        self.files_stale = False
        self.files_due = time.monotonic() + max(_FILES_SECONDS, (time.thread_time() - begun) / _FILES_SHARE)

    def finish(self, tell: _Tell = lambda done, total: None) -> None:
        """Write what is left: all trials, ranks and files, then the parent's end."""
        records = list(self.results.trials.values())
        total = 2 * len(records)
        self.look_up()
        for done, record in enumerate(records):
            tell(done, total)
            self.write_trial(record)
        if self.doubtful:
            self.adopt_children()
        for done, _ in enumerate(self.write_standings(), len(records)):
            tell(done, total)
        if self.over:
            if said := describe_cost(self.plan, self.results):
                self.client.set_tag(self.parent, "otsweep.time", said)
            self.write_exhibits()
        else:
            self.interrupt_children()
        self.milestones = 0
        self.write_course(self.results.course)
        if self.results.course:
            self.write_note()
        self.write_files()
        last = max((record.ended or 0.0 for record in records), default=0.0)
        if self.over:
            self.log(self.parent, metrics=_agreement_metrics(self.plan, self.results, int(last * 1000)))
        self.client.set_terminated(
            self.parent, "FINISHED" if self.over else "KILLED", end_time=int(last * 1000) or None
        )
        tell(total, total)

    def interrupt_children(self) -> None:
        """A trial that will be gone on with is not running now."""
        for number in self.results.running:
            child = self.children[number]
            self.client.update_run(child.run_id, status="KILLED")
            child.status = "KILLED"


def _page_version(uri: str) -> str:
    """Of the MLflow that shows the store: the server's, else the one installed here."""
    import mlflow

    if not uri.startswith("http"):
        return mlflow.__version__
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), "/version", "GET")
    return answer.text.strip() if answer is not None and answer.ok else mlflow.__version__


def _child_of(run: Run) -> Child:
    """What a trial's run tells of itself."""
    tags = run.data.tags
    closed = tags.get(_COMPLETE) == _FORMAT and run.info.status in _STATUS.values()
    return Child(run.info.run_id, None, tags=dict(tags), status=run.info.status, closed=closed)


def _standing_metric(standing: TrackedRank) -> _MetricRow:
    """All at step 0, where the page sorts and draws it; the latest is what counts."""
    return "pareto_rank", float(standing.rank), int(standing.time * 1000), 0


def _milliseconds(report: Mapping[str, Any]) -> int:
    return int(report["time"] * 1000)


def _milestone_metrics(plan: SweepPlan, milestone: Milestone) -> list[_MetricRow]:
    """The parent's curves, with the number of finished trials as step."""
    values = {
        "front_hypervolume": milestone.hypervolume,
        "front_size": float(milestone.front_size),
        "front_gpu_hours": milestone.hours * plan.gpus_per_trial,
        "front_cpu_hours": milestone.hours * plan.cpus_per_trial,
    }
    return [(key, value, int(milestone.time * 1000), milestone.finished) for key, value in values.items()]


def _agreement_metrics(plan: SweepPlan, results: SweepState, moment: int) -> list[_MetricRow]:
    """How far each rung orders trials as the next one does, with the next one's epochs as step."""
    compared = plan.stopper != "none" or plan.ladder > 0
    found = agreements_of(plan, results) if compared else []
    return [(f"rank_correlation/{each.objective}", each.correlation, moment, each.upper) for each in found]


def _metrics_of(report: Mapping[str, Any]) -> list[_MetricRow]:
    """Of a report: per epoch as they are, chosen ones under their short names."""
    timestamp = _milliseconds(report)
    if report["final"]:
        return [(short, float(report[name]), timestamp, 0) for name, short in _CHOSEN.items()]
    skipped = ("epoch", "final", "time")
    return [(key, float(value), timestamp, report["epoch"]) for key, value in report.items() if key not in skipped]


def _in_batches(reports: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Whole reports, as many as one call takes: a report is then in MLflow with all its numbers or not at all."""
    batch, size = [], 0
    for report in reports:
        if batch and size + len(report) > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(report)
        size += len(report)
    if batch:
        yield batch


def _parameter_text(value: Any) -> str:
    """The one form in which a parameter is written: MLflow refuses a second form of the same value."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Tracker:
    """A `Writer` at work beside a running sweep, in a thread of its own: neither trials nor the driver wait for it."""

    def __init__(self, plan: SweepPlan, results: SweepState, say: _Say) -> None:
        self.plan, self.results, self.say = plan, results, say
        self.writer: Writer | None = None
        self.waiting: dict[int, None] = {}
        """Trials of which something is not written, those that have waited longest first."""
        self.loaded = False
        self.away = False
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.work, name="mlflow", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def changed(self, number: int) -> None:
        """A trial began, reported or ended."""
        self.waiting[number] = None

    def close(self, *, complete: bool, tell: _Tell = lambda done, total: None) -> None:
        """Write what is left; the parent run is ended if the sweep is complete."""
        self.ending.set()
        self.thread.join()
        if not self.results.trials:
            return
        if not self.attempt(lambda: self.finish(complete, tell)):
            self.say(f"MLflow lacks some of the results: `otsweep sync {self.plan.name}` writes them once it answers")
        if self.writer is not None:
            self.writer.close()

    def work(self) -> None:
        pause = PASS_SECONDS
        while not self.ending.wait(pause):
            begun = time.thread_time()
            self.attempt(self.write_pass)
            pause = max(PASS_SECONDS, (time.thread_time() - begun) / SHARE)

    def attempt(self, write: Callable[[], None]) -> bool:
        """Whether it went through; the first failure in a row is said, and the next pass tries again."""
        try:
            write()
        except Exception as error:  # noqa: BLE001 - whatever the store answers, the sweep goes on
            if not self.away:
                self.say(f"MLflow does not take results at the moment ({_why(error)}); going on without it")
            self.away = True
            return False
        self.away = False
        return True

    def link(self, address: str) -> str:
        """What opens the sweep's front on MLflow's page at `address`; the page alone while that is not known."""
        experiment = self.writer.experiment if self.writer else ""
        return address + view_link(experiment, view_key(FRONT, self.plan.name)) if experiment else address

    def connected(self, *, over: bool) -> Writer:
        """The writer, with the store asked what it holds already."""
        if self.writer is None:
            client = connect(self.plan.mlflow_uri)
            self.writer = Writer(self.plan, self.results, client, self.plan.mlflow_uri, over=over, say=self.say)
        if not self.writer.parent:
            self.writer.open()
        self.writer.over = over
        return self.writer

    def write_pass(self) -> None:
        """What is missing, as much as fits; nothing before the first trial: a sweep that can't begin leaves no run."""
        if not self.results.trials:
            return
        begun = time.thread_time()

        def spent() -> bool:
            return time.thread_time() - begun >= SHARE * PASS_SECONDS

        writer = self.connected(over=False)
        if not self.loaded:
            for number in list(self.results.trials):
                self.waiting.setdefault(number)
            self.loaded = True
        writer.look_up()
        while self.waiting and not self.ending.is_set() and not spent():
            number = next(iter(self.waiting))
            # Taken out first: what is reported meanwhile puts it in again.
            del self.waiting[number]
            try:
                writer.write_trial(self.results.trials[number])
            except BaseException:
                self.waiting[number] = None
                raise
        writer.write_front(enough=lambda: self.ending.is_set() or spent())

    def finish(self, complete: bool, tell: _Tell) -> None:
        self.connected(over=complete).finish(tell)


def is_over(plan: SweepPlan, results: SweepState) -> bool:
    """Whether no trial of a sweep will end any more, as far as its ledger tells."""
    ended_before = bool(plan.stop_when_flat or plan.max_hours) and bool(results.ended)
    return not results.running and (len(results.ended) >= plan.trials or ended_before)


def sync(plan: SweepPlan, uri: str, *, say: _Say, tell: _Tell = lambda done, total: None) -> SweepState:
    """Bring the store at `uri` up to date from the sweep's ledger; what the ledger holds.

    Raises:
        InputError: if nothing answers there, if it fails on the way, or while another process writes the same sweep
            into the same store.
    """
    results = state_of_trials(plan, read_ledger(plan.folder).trials)
    results.facts = read_data_summary(plan.folder)
    if not results.trials:
        return results
    client = connect(uri)
    writer = Writer(plan, results, client, uri, over=is_over(plan, results), say=say)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with contextlib.closing(writer):
        try:
            writer.open()
            writer.finish(tell)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise InputError(
                f"MLflow at {masked(uri)} stopped taking results ({_why(error)}); the same command goes on"
            ) from None
    return results


def write_comparison(
    plan: SweepPlan,
    name: str,
    *,
    metrics: Mapping[str, float],
    note: Callable[[str], str],
    folder: Path,
    time: float,
    say: _Say,
) -> str:
    """A run of its own for what compares several sweeps, in the place of an earlier one of the same name; its link.

    Args:
        plan: of the sweep in whose experiment it stands.
        note: from the run's identifier to its description.
        folder: files that it carries.
        time: of what it tells, in unix seconds.

    Raises:
        InputError: if nothing usable answers.
    """
    from mlflow.exceptions import MlflowException

    results = SweepState(plan.objectives, {}, total=0)
    results.facts = read_data_summary(plan.folder)
    writer = Writer(plan, results, connect(plan.mlflow_uri), plan.mlflow_uri, over=True, say=say)
    moment = int(time * 1000)
    try:
        writer.experiment = writer.find_experiment()
        for earlier in writer.find_runs(f"tags.`otsweep.comparison` = '{name}'"):
            writer.client.delete_run(earlier.info.run_id)
        tags = {"otsweep.kind": "comparison", "otsweep.comparison": name}
        run_id = writer.create_run(start_time=moment, run_name=name, tags=tags)
        rows = [(key, value, moment, 0) for key, value in metrics.items()]
        writer.log(
            run_id, metrics=rows, params=plan.space.evaluation.to_dict(), tags={"mlflow.note.content": note(run_id)}
        )
        writer.log_data(run_id)
        writer.client.log_artifacts(run_id, str(folder), artifact_path="compare")
        writer.client.set_terminated(run_id, "FINISHED", end_time=moment)
    except (MlflowException, OSError) as error:
        raise InputError(f"MLflow at {masked(plan.mlflow_uri)} did not take the comparison ({_why(error)})") from None
    return f"/#/experiments/{writer.experiment}/runs/{run_id}"
