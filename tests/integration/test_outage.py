"""MLflow's real server, gone, slow, failing or guarded while a recorded sweep is replayed: the end is the undisturbed
one, in every kind of store."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache as artifact_addresses

from sweep.plan.plan import SweepPlan
from sweep.state.sweep_state import SweepState
from sweep.tracking import tracker as tracker_module
from sweep.tracking.store import connect
from sweep.tracking.tracker import Tracker
from sweep.tracking.writer import sync
from tests.support.mlflow_stores import Proxy, Server, Trouble, contents
from tests.support.postgres import Postgres, need_postgres
from tests.support.ray_nodes import free_ports
from tests.support.recorded_sweeps import recorded, replay, results_of
from trainer.errors import InputError

pytestmark = pytest.mark.slow

TRIALS = 6


def no_word(message: str) -> None:
    pytest.fail(f"said: {message}")


@pytest.fixture(autouse=True)
def _quick_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "PASS_SECONDS", 0.3)
    monkeypatch.setattr(tracker_module, "TIME_SHARE", 1.0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the store of a sweep that nothing disturbed holds; and a database without runs, to be copied."""
    folder = tmp_path_factory.mktemp("undisturbed")
    plan = recorded("digits24", folder, trials=TRIALS)
    empty = folder / "empty.db"
    connect(f"sqlite:///{empty}")
    shutil.copy(empty, folder / "mlflow.db")
    sync(plan, plan.mlflow_uri, log=no_word)
    return contents(folder / "mlflow.db", plan.name), empty


@pytest.fixture(scope="module")
def server(undisturbed: tuple[dict[str, Any], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests here, which stop and start it; it needs some ten seconds to start."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(undisturbed[1], folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.stop()


def planned(storage: Path, name: str, uri: str) -> SweepPlan:
    """The recorded sweep under a name of its own: all tests share one store."""
    plan = recorded("digits24", storage, trials=TRIALS)
    (storage / "digits24").rename(storage / name)
    return dataclasses.replace(plan, name=name, mlflow_uri=uri)


def named_as_recorded(found: dict[str, Any], name: str) -> dict[str, Any]:
    """A store's contents, were the sweep named as it was when it was recorded."""
    import ast

    return ast.literal_eval(re.sub(rf"\b{re.escape(name)}\b", "digits24", repr(found)))


def drive(
    plan: SweepPlan, said: list[str], *, disturb: Callable[[int, Tracker], None] = lambda count, tracker: None
) -> None:
    """A sweep as its driver writes it, some events a second; the caller sets how long it waits for an answer."""
    results = SweepState(plan.objectives, {}, total=plan.trials)
    results.data_summary = results_of(plan).data_summary
    tracker = Tracker(plan, results, said.append)
    tracker.start()
    for count, number in enumerate(replay(plan, results)):
        tracker.changed(number)
        disturb(count, tracker)
        time.sleep(0.02)
    tracker.close(complete=True)


def test_stopped_before_during_and_after(
    server: Server, undisturbed: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server that has just started is slow on a busy machine.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
    plan = planned(tmp_path, "stopped", server.uri)
    said: list[str] = []

    def disturb(count: int, tracker: Tracker) -> None:
        if count == 20:
            assert len(said) == 1, "it was not said that MLflow is away"
            server.start()
            # A pass that wrote something may still fail; an outage that was not over is not said again.
            wait_for(lambda: len(contents(server.database, plan.name)) > 1 and not tracker.away)
        if count == 50:
            server.stop()
        if count == 65:
            wait_for(lambda: len(said) > 1)

    begun = time.monotonic()
    drive(plan, said, disturb=disturb)
    took = time.monotonic() - begun
    assert len(contents(server.database, plan.name)) < 1 + TRIALS
    away = f"no MLflow store answers at {server.uri}: nothing listens there, or it took too long"
    assert said[0] == f"MLflow does not take results at the moment ({away}); going on without it"
    assert said[1].startswith("MLflow does not take results at the moment (")
    assert said[2:] == [f"MLflow lacks some of the results: `otsweep sync {plan.name}` writes them once it answers"]
    server.start()
    sync(plan, plan.mlflow_uri, log=no_word)
    assert named_as_recorded(contents(server.database, plan.name), plan.name) == undisturbed[0]
    assert took < 300


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


TROUBLES: dict[str, Trouble] = {
    # A call that is answered too late was done all the same: whoever repeats it makes a second run.
    "slow": lambda path, call: (0.02, 1.5 if "create" in path and call % 3 else 0.0, 0),
    "late": lambda path, call: (1.6 if call % 11 == 0 else 0.0, 0.0, 0),
    "failing": lambda path, call: (0.0, 0.0, 500 if call < 8 or call % 5 == 0 else 0),
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_troubled(
    kind: str,
    server: Server,
    undisturbed: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if server.process is None:
        server.start()
    with Proxy(server.uri, TROUBLES[kind]) as proxy, monkeypatch.context() as impatient:
        impatient.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        plan = planned(tmp_path, kind, proxy.uri)
        said: list[str] = []
        drive(plan, said)
        assert said, "nothing went wrong"
    # What came late may have come after the last look; whatever it was, it is put right from the ledger.
    time.sleep(2)
    # MLflow remembers in each process by which address a run's files are reached, and the proxy is gone.
    artifact_addresses.clear()
    sync(plan, server.uri, log=no_word)
    assert named_as_recorded(contents(server.database, plan.name), plan.name) == undisturbed[0]


def test_a_writer_killed_between_two_batches(undisturbed: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """Again and again, each time a little further; then once to the end."""
    shutil.copy(undisturbed[1], tmp_path / "mlflow.db")
    plan = recorded("digits24", tmp_path, trials=TRIALS)
    script = (
        "import sys, dataclasses; from pathlib import Path; from sweep.plan.plan_file import read_plan; "
        "from sweep.tracking import writer; writer._BATCH = 1; plan = read_plan('digits24', storage=sys.argv[1]); "
        f"plan = dataclasses.replace(plan, trials={TRIALS}); "
        "writer.sync(plan, sys.argv[2], log=print)"
    )
    for rows in (3, 200, 450, 700):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), plan.mlflow_uri])
        wait_for(
            lambda rows=rows, process=process: written(tmp_path / "mlflow.db") >= rows or process.poll() is not None
        )
        process.kill()
        process.wait()
    assert named_as_recorded(contents(tmp_path / "mlflow.db", plan.name), plan.name) != undisturbed[0]
    sync(plan, plan.mlflow_uri, log=no_word)
    assert contents(tmp_path / "mlflow.db", plan.name) == undisturbed[0]


def written(database: Path) -> int:
    """Parameters and metrics in a store."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        return sum(store.execute(f"select count(*) from {table}").fetchone()[0] for table in ("params", "metrics"))


def test_passwords_come_from_the_environment_and_go_nowhere_else(
    server: Server,
    undisturbed: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A proxy that asks for them stands before the server; the secret is then looked for in everything written."""
    if server.process is None:
        server.start()
    secret = "planted-secret-7f3a"
    seen: list[str] = []

    with Proxy(server.uri, lambda path, call: (0.0, 0.0, 0)) as proxy:
        proxy.demand = lambda headers: seen.append(headers.get("Authorization", "")) or seen[-1] != ""
        plan = planned(tmp_path, "secret", proxy.uri)
        said: list[str] = []
        tracker = Tracker(plan, results_of(plan), said.append)
        assert not tracker.attempt(tracker.write_pass), "it was let in without a password"
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
        asked = len(seen)
        with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD is sent to none that you did not name"):
            sync(plan, plan.mlflow_uri, log=said.append)
        assert len(seen) == asked, "an address that only the plan names was asked with the password at hand"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", plan.mlflow_uri)
        sync(plan, plan.mlflow_uri, log=said.append)
    assert any(word.startswith("Basic ") for word in seen)
    assert named_as_recorded(contents(server.database, plan.name), plan.name) == undisturbed[0]
    places = [*tmp_path.rglob("*"), *server.folder.rglob("*")]
    holders = [path for path in places if path.is_file() and secret.encode() in path.read_bytes()]
    out, err = capfd.readouterr()
    assert holders == []
    assert secret not in out + err + repr(said)


class Guarded(NamedTuple):
    """MLflow as an institution has it: on PostgreSQL, behind its own basic authentication."""

    server: Server
    database: str
    """URI of its database, without the password."""
    passwords: dict[str, str]
    """By the variable that gives each to whoever writes."""
    folder: Path


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    need_postgres()
    pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")
    passwords = {"PGPASSWORD": secrets.token_hex(16), "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(16)}
    with tempfile.TemporaryDirectory(prefix="otp-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        [port] = free_ports(1)
        postgres = Postgres(folder, port=port, user="otsweep", password=passwords["PGPASSWORD"], database="mlflow")
        database = postgres.uri("postgresql+psycopg", "mlflow")
        users = ["[mlflow]", f"database_uri = sqlite:///{folder}/users.db", "admin_username = admin"]
        # Else every call costs a third of a second, in which the password is hashed.
        users += ["default_permission = READ", "auth_cache_ttl_seconds = 300"]
        (folder / "users.ini").write_text("\n".join(users))
        server = Server(
            folder,
            "--app-name=basic-auth",
            backend=database,
            PGPASSWORD=passwords["PGPASSWORD"],
            MLFLOW_AUTH_CONFIG_PATH=str(folder / "users.ini"),
            MLFLOW_AUTH_ADMIN_PASSWORD=passwords["MLFLOW_TRACKING_PASSWORD"],
            MLFLOW_FLASK_SERVER_SECRET_KEY=secrets.token_hex(16),
        )
        try:
            yield Guarded(server.start(), database, passwords, folder)
        finally:
            server.stop()
            postgres.stop()


def test_a_guarded_server_and_its_database_hold_what_every_store_does(
    guarded: Guarded,
    undisturbed: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Through the server, and into PostgreSQL without one; who has no password, or a wrong one, is told so in a line.
    No password is found in anything that was written."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    said: list[str] = []
    for kind, uri, variable in (
        ("served", guarded.server.uri, "MLFLOW_TRACKING_PASSWORD"),
        ("direct", guarded.database, "PGPASSWORD"),
    ):
        (tmp_path / kind).mkdir()
        plan = planned(tmp_path / kind, kind, uri)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        for wrong in ("", "planted-wrong"):
            monkeypatch.setenv(variable, wrong)
            begun = time.monotonic()
            with pytest.raises(InputError, match=f"no MLflow store answers at {re.escape(uri)}: ") as refused:
                sync(plan, uri, log=no_word)
            assert time.monotonic() - begun < 30
            assert "\n" not in str(refused.value)
            said.append(str(refused.value))
        monkeypatch.setenv(variable, guarded.passwords[variable])
        if kind == "direct":
            with pytest.raises(InputError, match="made through an MLflow server.*; give that server's address"):
                sync(plan, uri, log=no_word)
            plan = dataclasses.replace(plan, space=dataclasses.replace(plan.space, name="direct"))
        sync(plan, uri, log=no_word)
        monkeypatch.setenv("PGPASSWORD", guarded.passwords["PGPASSWORD"])
        found = contents(guarded.database, kind)
        monkeypatch.delenv("PGPASSWORD")
        assert named_as_recorded(found, kind) == undisturbed[0]
    assert list((guarded.folder / "artifacts").rglob("front.png")), "artifacts pass through the server"
    files = [path for place in (tmp_path, guarded.folder) for path in place.rglob("*") if path.is_file()]
    assert {"server.log", "postgres.log", "users.db", "log.jsonl"} <= {path.name for path in files}
    written = {str(path): path.read_bytes() for path in files}
    written["the screen"] = repr([*capfd.readouterr(), *said]).encode()
    passwords = [word.encode() for word in (*guarded.passwords.values(), "planted-wrong")]
    assert [where for where, text in written.items() for password in passwords if password in text] == []


def test_threads_end(server: Server) -> None:
    assert not [thread for thread in threading.enumerate() if thread.name == "mlflow"]
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
