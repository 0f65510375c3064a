"""An MLflow store: connecting to it, and the calls that find, make and fill the runs of an experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.plan import SweepPlan, is_named, masked
from sweep.state import DataSummary
from sweep.tracking.identity import SWEEP_ID_TAG, is_own
from sweep.tracking.metrics import MetricRow, parameter_text
from sweep.tracking.mlflow_internals import (
    DATA_CONTEXT_TAG,
    SERVED_FILES,
    WholeRun,
    can_insert_runs,
    credential_for,
    explain_error,
    insert_runs,
    prepare_client,
    store_errors,
)
from trainer.errors import InputError
from trainer.files import take_lock

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.entities import Run

Log = Callable[[str], None]
"""Called with each message that a person should read."""
OnProgress = Callable[[int, int], None]
"""Called with how many steps are done, and how many there are."""


def connect(uri: str) -> MlflowClient:
    """Return a client of the store at `uri` that has answered a first question.

    Raises:
        InputError: if nothing usable answers there.
    """
    prepare_client(uri)
    check_named(uri)
    from mlflow import MlflowClient

    try:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except ImportError as error:
        raise InputError(f"--mlflow-uri {masked(uri)}: this database needs the Python package {error.name}") from None
    except store_errors() as error:
        raise InputError(f"no MLflow store answers at {masked(uri)}: {explain_error(error)}") from None
    return client


def check_named(uri: str) -> None:
    """Check that no credential of this user goes to an address that only a plan's file names: it may be a stranger's.

    Raises:
        InputError: naming the credential, and how to say that the address is meant.
    """
    if not is_named(uri) and (credential := credential_for(uri)):
        raise InputError(
            f"MLflow at {masked(uri)}: that address stands in the plan's file alone, and {credential} is sent to none "
            f"that you did not name; if you trust it, set MLFLOW_TRACKING_URI={masked(uri)}"
        )


class Store:
    """The experiment of a sweep's search space in an MLflow store."""

    def __init__(self, plan: SweepPlan, uri: str) -> None:
        self.plan, self.uri, self.client = plan, uri, connect(uri)
        self.experiment = ""
        self.artifacts = ""
        """Location of the experiment's files, without any secret."""
        self.is_server = uri.startswith("http")
        self.inserts = not self.is_server and can_insert_runs(self.client)
        """True if the store is a database that takes whole runs."""
        self.doubtful: set[str] = set()
        """Names of runs that may exist although their creation was never acknowledged."""
        self._lock: FileLock | None = None
        self._plan_tags = {
            "otsweep.sweep": plan.name,
            **({SWEEP_ID_TAG: plan.id} if plan.id else {}),
            "otsweep.plan_hash": plan.hash,
            "otsweep.code_version": plan.code_version,
        }

    def lock(self) -> None:
        """Keep other processes from writing this sweep into this store until `close`.

        Raises:
            InputError: if another process has locked it.
        """
        if self._lock is None:
            digest = hashlib.sha256(self.uri.encode()).hexdigest()[:8]
            path = self.plan.folder / f"mlflow-{digest}.lock"
            self._lock = take_lock(path, f"sweep {self.plan.name!r} is already being written to this store")

    def close(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            self._lock.release()

    def open_experiment(self, *, log: Log = lambda message: None) -> None:
        """Find the experiment of the search space, or create it; restore one that was deleted on MLflow's page.

        Raises:
            InputError: if the store is a server's own database, or a deleted experiment can't be restored.
        """
        name = self.plan.space.name
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if not self.is_server and found.artifact_location.startswith(SERVED_FILES):
                raise InputError(
                    f"--mlflow-uri {masked(self.uri)}: experiment {name!r} in this database was made through an MLflow "
                    "server, which keeps its files; give that server's address"
                )
            self.experiment, self.artifacts = found.experiment_id, masked(found.artifact_location)
            if found.lifecycle_stage == "deleted":
                self._restore(log)
        else:
            location = None if self.is_server else (Path(self.plan.storage) / "artifacts" / name).as_uri()
            self.experiment = self.client.create_experiment(name, artifact_location=location)
            self.artifacts = masked(self.client.get_experiment(self.experiment).artifact_location)

    def _restore(self, log: Log) -> None:
        name = self.plan.space.name
        try:
            self.client.restore_experiment(self.experiment)
        except store_errors() as error:
            raise InputError(
                f"MLflow at {masked(self.uri)}: experiment {name!r} was deleted, and can't be restored "
                f"({explain_error(error)}); restore it there, or remove it for good by `mlflow gc`"
            ) from None
        log(f"MLflow's experiment {name!r} had been deleted: it is restored")

    def find_experiment(self) -> bool:
        """Take up the experiment of the search space as it is; return whether there is one."""
        found = self.client.get_experiment_by_name(self.plan.space.name)
        self.experiment = found.experiment_id if found is not None else ""
        return found is not None

    def find_own(self, kind: str, name: str, *, deleted: bool = False) -> list[Run]:
        """Return this sweep's own runs of a kind and name; those of others, and of copies, are passed over."""
        found = self.find_runs(f"tags.`otsweep.{kind}` = '{name}' and tags.`otsweep.kind` = '{kind}'", deleted=deleted)
        return [run for run in found if is_own(self.plan, run.data.tags)]

    def find_runs(self, query: str, *, deleted: bool = False) -> list[Run]:
        """Return the runs that match, in the order in which they started; with `deleted` those that were deleted."""
        from mlflow.entities import ViewType

        runs, token, view = [], None, ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        while True:
            page = self.client.search_runs(
                [self.experiment], query, view, 1000, page_token=token, order_by=["attributes.start_time ASC"]
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def create_run(self, name: str, *, started: int, tags: Mapping[str, str]) -> str:
        """Create a run and return its identifier. If the call fails, the run may exist all the same (`doubtful`).

        Args:
            started: milliseconds.
        """
        self.doubtful.add(name)
        run = self.client.create_run(self.experiment, start_time=started, run_name=name, tags=dict(tags))
        self.doubtful.remove(name)
        return run.info.run_id

    def insert_runs(self, runs: Sequence[WholeRun]) -> list[str]:
        """Write whole runs, all or none, and return their identifiers. If the call fails they are `doubtful`."""
        names = {run.name for run in runs}
        self.doubtful |= names
        identifiers = insert_runs(self.client, self.experiment, runs)
        self.doubtful -= names
        return identifiers

    def log_batch(
        self,
        run_id: str,
        *,
        metrics: Iterable[MetricRow] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write metrics, parameters and tags of a run in one call."""
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(
            run_id,
            metrics=[Metric(*row) for row in metrics],
            params=[Param(key, parameter_text(value)) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        )

    def log_data(self, run_id: str, summary: DataSummary) -> None:
        """Write the data set that a run's trials are judged on, once that is known."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if summary:
            name = self.plan.space.evaluation.dataset
            data = Dataset(name, summary["data_fingerprint"], "local", json.dumps({"uri": name}))
            judged = DatasetInput(data, [InputTag(DATA_CONTEXT_TAG, "validation")])
            self.client.log_inputs(run_id, datasets=[judged])

    def sweep_tags(self, summary: DataSummary) -> dict[str, str]:
        """Return the tags that all runs of a sweep share."""
        return {**self._plan_tags, "otsweep.data_fingerprint": summary.get("data_fingerprint", "")}
