"""MLflow for tests: its real server, a proxy that makes it bad, and all that a store holds of a sweep."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from sqlalchemy import create_engine, text

from sweep.tracking.server import free_port

READY_SECONDS = 400


def contents(store: Path | str, sweep: str) -> dict[str, Any]:
    """Everything of a sweep in a store, by run; identifiers of runs and of experiments are blanked.

    Args:
        store: an SQLite file, or the URI of another database.
    """
    engine = create_engine(store if isinstance(store, str) else f"sqlite:///file:{store}?mode=ro&uri=true")
    with contextlib.closing(engine.connect()) as connection:

        def rows(query: str, value: str) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in connection.execute(text(query), {"value": value})]

        runs = rows(
            "select run_uuid, name, status, start_time, end_time from runs join tags using (run_uuid)"
            " where lifecycle_stage = 'active' and key = 'otsweep.sweep' and value = :value",
            sweep,
        )
        found = {}
        for run, name, *rest in runs:
            tags = dict(rows("select key, value from tags where run_uuid = :value", run))
            params = dict(rows("select key, value from params where run_uuid = :value", run))
            columns = "key, step, timestamp, value, is_nan"
            metrics = rows(f"select {columns} from metrics where run_uuid = :value", run)
            latest = rows(f"select {columns} from latest_metrics where run_uuid = :value", run)
            kind = f"{tags['otsweep.kind']} {tags.get('otsweep.trial', '')}"
            assert kind not in found, f"{kind} is there twice"
            blank = {key: blanked(value) for key, value in tags.items() if key != "mlflow.user"}
            found[kind] = (name, rest, params, blank, sorted(metrics), sorted(latest))
    engine.dispose()
    return found


def blanked(value: str) -> str:
    return re.sub(r"[0-9a-f]{32}", "<run>", re.sub(r"experiments/\d+", "experiments/<id>", value))


class Server:
    """MLflow's own server on a database and a free port; may be started again after its end, on the same port."""

    def __init__(self, folder: Path, *words: str, backend: str = "", **environment: str) -> None:
        self.folder, self.words, self.environment = folder, words, environment
        self.database = folder / "mlflow.db"
        self.backend = backend or f"sqlite:///{self.database}"
        self.port = free_port(0)
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.backend, *self.words]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**environment, **self.environment}, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return self
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "MLflow's server did not come up"
            time.sleep(0.2)

    def stop(self) -> None:
        """At once, as a power cut does."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


Trouble = Callable[[str, int], tuple[float, float, int]]
"""From a call's path and number: seconds to wait before it is passed on, seconds to hold its answer back, and a status
to answer with instead of passing it on, or 0."""


class Proxy:
    """Stands before a server and troubles its calls; a context."""

    def __init__(self, server: str, trouble: Trouble) -> None:
        self.calls = 0
        self.demand: Callable[[Mapping[str, str]], bool] = lambda headers: True
        """Whether a call with these headers is let in; else it is answered with 401."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.calls += 1
                before, after, status = trouble(self.path, proxy.calls)
                status = status if proxy.demand(dict(self.headers)) else 401
                time.sleep(before)
                answer, headers = (b'{"error_code": "INTERNAL_ERROR", "message": "on purpose"}', {})
                if not status:
                    status, answer, headers = passed_on(server, self.command, self.path, self.headers, body)
                time.sleep(after)
                # Whoever asked may have gone.
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", headers.get("Content-Type", "application/json"))
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815 - the names that the class calls

            def log_message(self, format: str, *words: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def passed_on(
    server: str, method: str, path: str, headers: Mapping[str, str], body: bytes
) -> tuple[int, bytes, Mapping[str, str]]:
    """The server's own answer."""
    kept = {name: headers[name] for name in ("Content-Type", "Authorization") if name in headers}
    request = urllib.request.Request(server + path, data=body or None, method=method, headers=kept)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)
