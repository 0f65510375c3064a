"""Everything undocumented of MLflow that `sweep.tracking.mlflow_internals` uses: one test per symbol or format.

A failure names the symbol, what it is for and the versions that had it. No test needs a server or the network.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from functools import cache
from pathlib import Path

import mlflow
import pytest
from mlflow import environment_variables
from mlflow.store.db import utils as database_utils
from mlflow.utils import mlflow_tags, validation

from sweep.plan.plan_file import read_plan
from sweep.tracking import mlflow_internals as internals
from sweep.tracking.links import FRONT, view_key, view_link
from sweep.tracking.metrics import MetricRow
from sweep.tracking.views import view_tags

pytestmark = pytest.mark.canary

RECORDED = Path(__file__).parents[1] / "recorded"


def told(symbol: str, purpose: str) -> str:
    """The message of a failure."""
    tried = ", ".join(internals.TRIED_VERSIONS)
    return f"{symbol} ({purpose}) is not in MLflow {mlflow.__version__} as it was in {tried}"


def source_of(module: str) -> str:
    """The text of a module that is not imported: MLflow's server takes seconds."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, told(module, "module")
    assert spec.origin is not None
    return Path(spec.origin).read_text()


@cache
def page_source() -> str:
    """All scripts of MLflow's page."""
    folder = Path(str(mlflow.__file__)).parent / "server" / "js" / "build"
    return "".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*.js")))


def test_the_page_has_the_version_whose_views_were_seen_to_open() -> None:
    """When this fails: look at the page (test_page.py), mend views.py, then raise `PAGE_VERSION`."""
    symbol = f"PAGE_VERSION {internals.PAGE_VERSION}"
    assert mlflow.__version__.startswith(f"{internals.PAGE_VERSION}."), told(symbol, "the format of saved views")


@pytest.mark.parametrize(
    ("text", "purpose"),
    [
        (internals.VIEW_TAG, "experiment tags that hold saved views"),
        (internals.COLOUR_TAG, "a run's colour"),
        ("viewStateShareKey", "the link that opens a saved view"),
        ("compareRunsMode", "the link's chart mode"),
        ("workflowType", "the link's choice of the page for training runs"),
    ],
)
def test_texts_of_the_page(text: str, purpose: str) -> None:
    assert text in page_source(), told(text, purpose)


def test_the_link_has_no_other_word_of_the_page() -> None:
    _, _, words = view_link("1", view_key(FRONT, "digits24")).partition("?")
    assert [word.partition("=")[0] for word in words.split("&")] == [
        "viewStateShareKey",
        "compareRunsMode",
        "workflowType",
    ]


def test_the_page_reads_every_key_of_a_saved_view() -> None:
    plan = read_plan("digits24", storage=str(RECORDED))
    for text in view_tags(plan, "0123456789abcdef", 0).values():
        view = internals.read_view(text)
        assert view.keys() == {"name", "createdAt", "updatedAt", "state"}
        state = json.loads(view["state"])
        charts, sections = state["compareRunCharts"], state["compareRunSections"]
        for key in {*view, *state, *(key for each in (*charts, *sections) for key in each)}:
            assert key in page_source(), told(key, "a key of saved views")
        for kind in {chart["type"] for chart in charts}:
            assert f'"{kind}"' in page_source(), told(kind, "a kind of chart in saved views")


@pytest.mark.parametrize(
    ("symbol", "ours", "purpose"),
    [
        ("MLFLOW_RUN_NOTE", internals.NOTE_TAG, "a run's description"),
        ("MLFLOW_PARENT_RUN_ID", internals.PARENT_TAG, "trials below their sweep"),
        ("MLFLOW_LOGGED_ARTIFACTS", internals.TABLES_TAG, "files shown as tables"),
        ("MLFLOW_DATASET_CONTEXT", internals.DATA_CONTEXT_TAG, "the purpose of a data set"),
    ],
)
def test_tags(symbol: str, ours: str, purpose: str) -> None:
    assert getattr(mlflow_tags, symbol, None) == ours, told(f"mlflow.utils.mlflow_tags.{symbol}", purpose)


def test_tables_are_listed_by_path_and_type() -> None:
    assert internals.tables_tag("front/trials.json") == '[{"path": "front/trials.json", "type": "table"}]'
    source = source_of("mlflow.tracking.client")
    assert "MLFLOW_LOGGED_ARTIFACTS" in source, told("MlflowClient._record_logged_artifact", "files shown as tables")
    assert '{"path": artifact_file, "type": "table"}' in source, told("type: table", "files shown as tables")


@pytest.mark.parametrize(
    ("symbol", "least", "purpose"),
    [
        ("MAX_EXPERIMENT_TAG_VAL_LENGTH", internals.LONGEST_VIEW, "room for a saved view in a tag"),
        ("MAX_METRICS_PER_BATCH", internals.METRICS_PER_CALL, "metrics in one call"),
        ("MAX_PARAMS_TAGS_PER_BATCH", 100, "parameters and tags in one call"),
    ],
)
def test_limits(symbol: str, least: int, purpose: str) -> None:
    assert getattr(validation, symbol, 0) >= least, told(f"mlflow.utils.validation.{symbol}", purpose)


SETTINGS = ["MLFLOW_HTTP_REQUEST_MAX_RETRIES", *internals.SERVER_ENVIRONMENT]


@pytest.mark.parametrize("variable", [name for name in SETTINGS if name.startswith("MLFLOW_")])
def test_environment_variables(variable: str) -> None:
    known = getattr(environment_variables, variable, None)
    assert known is not None, told(variable, "a setting of the client or the server")
    assert known.name == variable


def test_a_database_that_refuses_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constant exists, the function reads it at each call, and the database's own error passes through."""
    symbol = "mlflow.store.db.utils.MAX_RETRY_COUNT"
    assert hasattr(database_utils, "MAX_RETRY_COUNT"), told(symbol, "how often a database is asked")
    monkeypatch.setattr(database_utils, "MAX_RETRY_COUNT", 10)
    internals.prepare_client("sqlite:///any.db")
    asked: list[str] = []
    real = database_utils.create_sqlalchemy_engine
    monkeypatch.setattr(database_utils, "create_sqlalchemy_engine", lambda uri: asked.append(uri) or real(uri))
    with pytest.raises(internals.store_errors()):
        database_utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{tmp_path}")
    assert len(asked) == 1, told(symbol, "how often a database is asked")


def test_a_database_makes_no_folder_but_its_own(tmp_path: Path) -> None:
    symbol = "mlflow.store.db.utils._make_parent_dirs_if_sqlite"
    assert hasattr(database_utils, symbol.rpartition(".")[2]), told(symbol, "the folder of a database")
    internals.prepare_client("sqlite:///any.db")
    database_utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{tmp_path}/a%2520b/x.db").dispose()
    assert [path.name for path in tmp_path.iterdir()] == ["a%20b"], told(symbol, "the folder of a database")


def test_a_database_is_filled_with_rows(tmp_path: Path) -> None:
    """When this fails: see that `test_inserted_runs_are_those_that_calls_make` passes, then raise `TABLES_REVISION`.

    Until then all is written by calls, which takes ten times as long.
    """
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert internals.can_insert_runs(client), told("the tables' revision", "rows of whole runs")
    experiment = client.create_experiment("any")
    given = internals.WholeRun(
        *("run", "KILLED", 1000, 2000, {"p": "1"}, {"t": "2"}),
        [("m", 1.0, 5, 1), ("m", float("nan"), 6, 2), ("m", 1.0, 5, 1), ("m", 9.0, 7, 0)],
    )
    [run_id] = internals.insert_runs(client, experiment, [given])
    run = client.get_run(run_id)
    info = (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time, run.info.lifecycle_stage)
    assert info == ("run", "KILLED", 1000, 2000, "active"), told("SqlRun", "rows of whole runs")
    assert run.data.params == {"p": "1"}, told("SqlParam", "rows of whole runs")
    assert run.data.tags == {"t": "2", "mlflow.runName": "run"}, told("SqlTag", "rows of whole runs")
    assert str(run.data.metrics) == "{'m': nan}", told("SqlLatestMetric", "rows of whole runs")
    history = [(each.value, each.step) for each in client.get_metric_history(run_id, "m")]
    assert str(history) == "[(1.0, 1), (nan, 2), (9.0, 0)]", told("SqlMetric", "rows of whole runs")
    with pytest.raises(internals.store_errors()):
        internals.insert_runs(client, experiment, [given, given._replace(tags={"t": "x" * 9000, "bad;": "x"})])
    assert len(client.search_runs([experiment])) == 1, told("ManagedSessionMaker", "all runs or none")


def test_the_logger_that_writes_tracebacks() -> None:
    symbol = "mlflow.store.db.utils._logger"
    assert database_utils._logger.name == "mlflow.store.db.utils", told(symbol, "silenced: its errors are raised too")


def test_the_error_of_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(internals.store_errors()) as caught:
        mlflow.MlflowClient(tracking_uri="http://127.0.0.1:9").search_experiments(max_results=1)
    said = internals.explain_error(caught.value)
    assert said == "nothing listens there, or it took too long", told(f"Max retries exceeded: {said!r}", "an error")


def test_asking_a_server_for_its_version() -> None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    inspect.signature(http_request).bind(get_default_host_creds("http://127.0.0.1:9"), "/version", "GET")
    assert internals.page_version("sqlite:///any.db") == mlflow.__version__


@pytest.mark.parametrize(
    ("route", "purpose"),
    [
        ("/version", "the server's version"),
        ("/health", "whether a server is up"),
        ("/get-artifact", "the front's picture in a run's description"),
    ],
)
def test_routes_of_the_server(route: str, purpose: str) -> None:
    assert f'"{route}"' in source_of("mlflow.server"), told(route, purpose)


def test_files_that_a_server_keeps() -> None:
    scheme = internals.SERVED_FILES.removesuffix(":")
    source = source_of("mlflow.store.artifact.artifact_repository_registry")
    assert f'"{scheme}"' in source, told(internals.SERVED_FILES, "experiments whose server keeps the files")


def test_a_metric_is_built_from_a_row() -> None:
    from mlflow.entities import Metric

    metric = Metric(*MetricRow("key", 0.5, 1000, 3))
    row = (metric.key, metric.value, metric.timestamp, metric.step)
    assert row == ("key", 0.5, 1000, 3), told("mlflow.entities.Metric", "order of its fields")


@pytest.mark.parametrize(
    ("module", "text", "purpose"),
    [
        *(
            ("mlflow.server.constants", f"\n{name} = ", "a setting of the page's server")
            for name in (
                "BACKEND_STORE_URI_ENV_VAR",
                "REGISTRY_STORE_URI_ENV_VAR",
                "ARTIFACT_ROOT_ENV_VAR",
                "ARTIFACTS_DESTINATION_ENV_VAR",
                "SERVE_ARTIFACTS_ENV_VAR",
            )
        ),
        ("mlflow.server.handlers", "\ndef initialize_backend_stores(", "makes or checks the page's database"),
        ("mlflow.server.fastapi_app", "\napp = create_fastapi_app()", "the page's application"),
        ("mlflow.server.job_api", 'prefix="/ajax-api/3.0/jobs"', "not served"),
        ("mlflow.server.gateway_api", 'prefix="/gateway"', "not served"),
        ("mlflow.server.assistant.api", 'prefix="/ajax-api/3.0/mlflow/assistant"', "not served"),
        (
            "mlflow.store.artifact.artifact_repository_registry",
            "return _artifact_repository_registry.get_artifact_repository(",
            "where locations are looked at",
        ),
    ],
)
def test_what_the_pages_server_is_made_of(module: str, text: str, purpose: str) -> None:
    assert text in source_of(module), told(text, purpose)


@pytest.mark.parametrize(
    ("location", "allowed"),
    [
        ("{inside}/1/artifacts", True),
        ("file://{inside}/1/artifacts", True),
        ("mlflow-artifacts:/1", True),
        ("file://{inside}/../other", False),
        ("{inside}/link/artifacts", False),
        ("/etc", False),
        ("file:///etc", False),
        ("http://127.0.0.1:1/x", False),
        ("sftp://127.0.0.1/etc", False),
        ("s3://bucket/x", False),
    ],
)
def test_no_location_outside_of_the_folders_of_artifacts_is_opened(
    location: str, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import ArtifactRepositoryRegistry, get_artifact_repository

    monkeypatch.setattr(
        ArtifactRepositoryRegistry, "get_artifact_repository", ArtifactRepositoryRegistry.get_artifact_repository
    )
    inside = tmp_path / "artifacts"
    inside.mkdir()
    (inside / "link").symlink_to("/etc")
    internals.keep_artifacts_inside([inside])
    uri = location.format(inside=inside)
    if allowed:
        get_artifact_repository(uri, tracking_uri="http://127.0.0.1:1")
    else:
        with pytest.raises(MlflowException, match="outside of the folders of artifacts"):
            get_artifact_repository(uri, tracking_uri="http://127.0.0.1:1")
