"""Everything that this project uses of MLflow beyond its documented interface.

MLflow promises none of this, so that a new version may change it. Each item has a test in
`tests/unit/test_canaries_mlflow.py` that says what broke. The addresses of MLflow's page are in `sweep.tracking.links`.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRIED_VERSIONS = ("3.17.2",)
"""MLflow versions with which everything here was tried."""
PAGE_VERSION = "3.17"
"""MLflow version whose page was seen to open the saved views."""

# ------------------------------------------------------------------------------------------------ tags read by the page

NOTE_TAG = "mlflow.note.content"
"""A run's description, in Markdown."""
PARENT_TAG = "mlflow.parentRunId"
COLOUR_TAG = "mlflow.runColor"
"""A run's colour in the list and in charts. Only the page's own source has this tag."""
TABLES_TAG = "mlflow.loggedArtifacts"
"""Files of a run that the page shows as tables."""
DATA_CONTEXT_TAG = "mlflow.data.context"
"""Purpose of a run's data set."""
VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the experiment tags that hold saved views. MLflow has no call that makes a view, and only the page's own
source has the format, which `sweep.tracking.views` fills in."""
LONGEST_VIEW = 20_000
"""Most characters in an experiment's tag."""


def tables_tag(*paths: str) -> str:
    """Return the value of `TABLES_TAG` that makes the page show these files of a run as tables."""
    return json.dumps([{"path": path, "type": "table"} for path in paths])


def pack_view(name: str, created: int, state: Mapping[str, Any]) -> str:
    """Return the tag that holds a saved view.

    Args:
        created: milliseconds.
        state: what the view shows, with every key that the page expects.
    """
    packed = json.dumps(state, separators=(",", ":"))
    return json.dumps({"name": name, "createdAt": created, "updatedAt": created, "state": packed})


def read_view(tag: str) -> dict[str, Any]:
    """Return the fields of a saved view; empty for a tag that holds none, as anybody may have written it."""
    try:
        view = json.loads(tag)
    except ValueError:
        return {}
    return view if isinstance(view, dict) else {}


# --------------------------------------------------------------------------------------------------- client and errors

_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PGCONNECT_TIMEOUT": "10",
}
"""Settings of the client that the user's own environment overrides."""

SERVER_ENVIRONMENT = {**_ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Settings of a local server; its background jobs would start further processes that nobody needs here."""

UNSERVED_PATHS = ("/ajax-api/3.0/mlflow/assistant", "/ajax-api/3.0/jobs", "/gateway")
"""Parts of MLflow's server that run programs on its machine or call other services."""

_NO_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""A call that the client repeats by itself can make a second run unnoticed. The writer repeats what failed instead."""

_CREDENTIALS = (
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"),
)
"""Variables with which the client authenticates itself to whatever server it is pointed at."""

METRICS_PER_CALL = 800
"""Metrics in one call. MLflow takes 1,000, with at most 100 parameters and 100 tags among them."""

SERVED_FILES = "mlflow-artifacts:"
"""Beginning of an experiment's artifact location, if its server keeps the files."""


_RESOLVED_SCHEMES = ("mlflow-artifacts", "models", "runs")
"""Schemes of locations that stand for another location, which is looked at in its turn."""


def prepare_client(uri: str) -> None:
    """Make MLflow's client quiet, and let it fail at once instead of repeating a call by itself."""
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ} | _NO_RETRIES)
    # MLflow's import would otherwise log, and sets the level of its own logger once more.
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow  # noqa: F401

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # This logger writes the traceback of an error that is raised too and then reported in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if not uri.startswith("http"):
        from mlflow.store.db import utils

        # MLflow asks a database that refuses ten times within 100 seconds, and has no option for that.
        utils.MAX_RETRY_COUNT = 1
        utils._make_parent_dirs_if_sqlite = _make_parent


def _make_parent(uri: str) -> None:
    """Make the folder of an SQLite database; MLflow's own would make `my%20folder` for `my folder`."""
    if uri.startswith("sqlite:///"):
        Path(unquote(uri.removeprefix("sqlite:///"))).parent.mkdir(parents=True, exist_ok=True)


def credential_for(uri: str) -> str:
    """Return the name of a credential that a client would send to any address of this kind; empty if there is none."""
    if uri.startswith("postgresql"):
        return "PGPASSWORD" if os.environ.get("PGPASSWORD") else ""
    if not uri.startswith("http"):
        return ""
    from mlflow.utils.credentials import read_mlflow_creds

    if found := [name for name in _CREDENTIALS if os.environ.get(name)]:
        return found[0]
    return "~/.mlflow/credentials" if read_mlflow_creds().password else ""


def store_errors() -> tuple[type[Exception], ...]:
    """Return what a call of MLflow's client raises if the store refuses, fails or is away."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # A database's own errors pass through MLflow as they are.
    return MlflowException, SQLAlchemyError, OSError


def explain_error(error: Exception) -> str:
    """Return a store's error as one line."""
    text = str(error)
    if isinstance(error, ImportError):
        return f"it needs the Python package {error.name}"
    if "Max retries exceeded" in text:
        return "nothing listens there, or it took too long"
    return (text or type(error).__name__).splitlines()[0][:200]


def page_version(uri: str) -> str:
    """Return the version of the MLflow that shows the store: the server's, else the one installed here."""
    import mlflow

    if not uri.startswith("http"):
        return mlflow.__version__
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), "/version", "GET")
    return answer.text.strip() if answer is not None and answer.ok else mlflow.__version__


# ----------------------------------------------------------------------------------------------------- whole runs

TABLES_REVISION = "dc11669786a5"
"""Revision of a database's tables whose rows `insert_runs` can fill."""


class WholeRun(NamedTuple):
    """All of a run that has ended. Times are in milliseconds."""

    name: str
    status: str
    started: int
    ended: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Sequence[tuple[str, float, int, int]]
    """Key, value, time, step."""


def can_insert_runs(client: MlflowClient) -> bool:
    """Return whether the client's store is a database with the tables that `insert_runs` can fill."""
    from mlflow.store.db.utils import _get_schema_version
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = client._tracking_client.store
    return isinstance(store, SqlAlchemyStore) and _get_schema_version(store.engine) == TABLES_REVISION


def insert_runs(client: MlflowClient, experiment: str, runs: Iterable[WholeRun]) -> list[str]:
    """Insert runs into a database in one transaction, as the rows that the client's calls make of them.

    For each run those calls would take seven transactions, and ask for most rows before they write them.

    Returns:
        The runs' identifiers.
    """
    from mlflow.store.tracking.dbmodels import models

    location = client.get_experiment(experiment).artifact_location
    rows = {table: [] for table in (models.SqlRun, models.SqlTag, models.SqlParam)}
    rows |= {table: [] for table in (models.SqlMetric, models.SqlLatestMetric)}
    store, identifiers = client._tracking_client.store, []
    for run in runs:
        identifiers.append(run_id := uuid.uuid4().hex)
        metrics = [_metric_row(store, each) for each in dict.fromkeys(run.metrics)]
        latest: dict[str, dict[str, Any]] = {}
        for row in metrics:
            key = row["key"]
            latest[key] = max(
                latest.get(key, row), row, key=lambda each: (each["step"], each["timestamp"], each["value"])
            )
        params, tags = _checked_values(run, latest)
        rows[models.SqlRun].append(_run_row(run, run_id, experiment, location))
        filled = {models.SqlTag: tags, models.SqlParam: params, models.SqlMetric: metrics}
        for table, values in {**filled, models.SqlLatestMetric: latest.values()}.items():
            rows[table] += [{**row, "run_uuid": run_id} for row in values]
    with store.ManagedSessionMaker(read_only=False) as session:
        for table, filled in rows.items():
            if filled:
                session.execute(table.__table__.insert(), filled)
    return identifiers


def _run_row(run: WholeRun, run_id: str, experiment: str, location: str) -> dict[str, Any]:
    """Return a run's row in the table of runs."""
    from mlflow.utils.uri import append_to_uri_path

    return {
        "run_uuid": run_id,
        "name": run.name,
        "experiment_id": int(experiment),
        "artifact_uri": append_to_uri_path(location, run_id, "artifacts"),
        "status": run.status,
        "start_time": run.started,
        "end_time": run.ended,
        "lifecycle_stage": "active",
        "user_id": "unknown",
        "source_type": "UNKNOWN",
        "source_name": "",
        "source_version": "",
        "entry_point_name": "",
    }


def _metric_row(store: Any, metric: tuple[str, float, int, int]) -> dict[str, Any]:
    key, given, timestamp, step = metric
    is_nan, value = store.sanitize_metric_value(given)
    return {"key": key, "value": value, "is_nan": is_nan, "timestamp": timestamp, "step": step}


def _checked_values(run: WholeRun, metrics: Iterable[str]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return a run's parameters and tags as rows, checked and cut as MLflow's calls do it; check its metrics' names."""
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
    from mlflow.utils.validation import _validate_batch_log_data

    given = {**run.tags, MLFLOW_RUN_NAME: run.name}
    _, params, tags = _validate_batch_log_data(
        [Metric(name, 0.0, 0, 0) for name in metrics],
        [Param(*item) for item in run.params.items()],
        [RunTag(*item) for item in given.items()],
    )
    return [{"key": each.key, "value": each.value} for each in params], [
        {"key": each.key, "value": each.value} for each in tags
    ]


# ---------------------------------------------------------------------------------------------------- page server


def page_app(uri: str, artifacts: str) -> Any:
    """Return MLflow's ASGI application for a store, which reads and writes no file outside of its artifact folders.

    Args:
        uri: the database.
        artifacts: folder of the files that are uploaded through the server. Beside it are the locations of experiments
            as sweeps make them.
    """
    prepare_client(uri)
    from mlflow.server import constants, handlers

    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = uri
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = SERVED_FILES + "/"
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = Path(artifacts).as_uri()
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
    handlers.initialize_backend_stores(uri, uri, SERVED_FILES + "/")
    keep_artifacts_inside([Path(artifacts), *_experiment_folders(uri)])
    from mlflow.server.fastapi_app import app

    return app


def _experiment_folders(uri: str) -> list[Path]:
    """Return the folders of experiments whose location is one that a sweep gives: `.../artifacts/EXPERIMENT`."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType
    from mlflow.utils.file_utils import local_file_uri_to_path

    known, client, token = [], MlflowClient(tracking_uri=uri), None
    while True:
        page = client.search_experiments(ViewType.ALL, page_token=token)
        known += [(each.name, each.artifact_location) for each in page if each.artifact_location.startswith("file:")]
        if not (token := page.token):
            break
    folders = [(name, Path(local_file_uri_to_path(location))) for name, location in known]
    return [folder for name, folder in folders if folder.parts[-2:] == ("artifacts", name)]


def keep_artifacts_inside(folders: Iterable[Path]) -> None:
    """Let MLflow's server open files in these folders alone, whatever locations its page's API is told."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import ArtifactRepositoryRegistry as Registry
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import get_uri_scheme

    inside, find = [folder.resolve() for folder in folders], Registry.get_artifact_repository

    def find_inside(self: Registry, artifact_uri: str, *args: Any, **options: Any) -> Any:
        scheme = get_uri_scheme(artifact_uri)
        if scheme in ("", "file"):
            path = Path(local_file_uri_to_path(artifact_uri)).resolve()
            allowed = any(path.is_relative_to(folder) for folder in inside)
        else:
            allowed = scheme in _RESOLVED_SCHEMES
        if not allowed:
            raise MlflowException.invalid_parameter_value("this location lies outside of the folders of artifacts")
        return find(self, artifact_uri, *args, **options)

    Registry.get_artifact_repository = find_inside
