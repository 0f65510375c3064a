"""MLflow's server for this machine alone, on the loopback address, and the link that opens its page at a front."""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from sweep.environment import python_environment
from sweep.plan import SweepPlan
from sweep.tracking.mlflow_internals import SERVER_ENVIRONMENT
from sweep.tracking.page_server import TOKEN, cookie_name
from sweep.tracking.parent_run import ParentRun
from sweep.tracking.store import Log, Store, check_named
from trainer.errors import InputError
from trainer.interrupts import raise_interrupt

_LOOK_SECONDS = 0.5
"""Time between two looks at whether the server, or who started it, has ended it."""
_START_SECONDS = 300.0
"""Longest time for the server to answer, on a machine however busy."""

_END_SECONDS = 10.0
"""Longest time for the server to end, before it is killed."""


def serve(uri: str, storage: Path, plan: SweepPlan | None, *, port: int, browser: bool, log: Log) -> int:
    """Serve MLflow's page of a store on 127.0.0.1 until Ctrl-C; return the exit status.

    Args:
        uri: the store.
        storage: folder of all sweeps, whose artifacts the page shows.
        plan: the sweep to open at; None opens the page at its beginning.
        port: on the loopback address; 0 takes a free one.
        browser: whether the page is opened in a browser.
        log: says how far it is.

    Raises:
        InputError: if the port is taken, or the store is a database that `check_named` refuses, or a file that is not
            there.
    """
    name = plan.name if plan else uri
    if uri.startswith("http"):
        log(f"{name} is tracked by a server already: {page(uri, uri, plan)}")
        return 0
    check_named(uri)
    path = Path(unquote(uri.partition(":///")[2].partition("?")[0]))
    if uri.startswith("sqlite") and not path.exists():  # MLflow would make an empty one
        raise InputError(f"--mlflow-uri {uri}: there is no file {str(path)!r}")
    secret = secrets.token_urlsafe(24)
    with _bound_socket(port) as listener, tempfile.TemporaryFile() as output:
        port = listener.getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        with _running_server(uri, storage, listener, secret, output) as server, contextlib.ExitStack() as opened:
            try:
                log("Starting MLflow (10 to 30 seconds) ...")
                if not _comes_up(server, port, secret):
                    output.seek(0)
                    log(output.read().decode(errors="replace")[-2000:])
                    log(f"MLflow's server {_how_it_failed(server)}; above is what it said.")
                    return 1
                link = _with_secret(address, page(address, uri, plan), secret)
                log(f"{name}: {link}\nCtrl-C ends it.")
                if browser:
                    webbrowser.open(opened.enter_context(_redirecting_file(storage, link)).as_uri())
                while server.poll() is None:
                    raise_interrupt()
                    time.sleep(_LOOK_SECONDS)
            except KeyboardInterrupt:
                pass
    return 0


@contextlib.contextmanager
def _running_server(
    uri: str, storage: Path, listener: socket.socket, secret: str, output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow's server on a socket; it takes no setting from the environment that was meant for another one."""
    settings = {
        "uri": uri,
        "artifacts": str(storage / "artifacts"),
        "listener": listener.fileno(),
        "secret": secret,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
    server = subprocess.Popen(
        [sys.executable, "-m", "sweep.tracking.page_server"],
        env={**inherited, **SERVER_ENVIRONMENT, **python_environment()},
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )
    assert server.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its output tells why
            server.stdin.write(json.dumps(settings).encode() + b"\n")
            server.stdin.flush()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(BrokenPipeError):
            server.stdin.close()
        try:
            server.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@contextlib.contextmanager
def _bound_socket(port: int) -> Iterator[socket.socket]:
    """Open a socket on a port of the loopback address, or on any free one for 0, so that nobody else can have it.

    Raises:
        InputError: if the port can't be used.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: can't be used ({error}); --port 0 takes a free one") from None
        yield listener


def free_port(port: int) -> int:
    """Return the port, or any free one for 0, on the loopback address.

    Raises:
        InputError: if it can't be used.
    """
    with _bound_socket(port) as listener:
        return listener.getsockname()[1]


def _comes_up(server: subprocess.Popen[bytes], port: int, secret: str) -> bool:
    """Wait until the server answers, and return True; False if it has ended, or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        raise_interrupt()
        # No proxy is asked, whatever the environment says.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/health", headers={"Cookie": f"{cookie_name(port)}={secret}"})
            if connection.getresponse().status == http.client.OK:
                return True
        time.sleep(0.3)
    return False


def _how_it_failed(server: subprocess.Popen[bytes]) -> str:
    return f"did not answer within {_START_SECONDS:.0f} s" if server.poll() is None else "has ended"


def _with_secret(address: str, link: str, secret: str) -> str:
    """Return a link of the page with the secret in it."""
    return f"{address}/?{TOKEN}={secret}{link.removeprefix(address).removeprefix('/')}"


@contextlib.contextmanager
def _redirecting_file(folder: Path, link: str) -> Iterator[Path]:
    """Make a file that only this user can read and that leads a browser on: others may see a browser's arguments."""
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix="ui-", suffix=".html") as file:
        file.write(f'<meta http-equiv="refresh" content="0; url={html.escape(link)}"><title>otsweep</title>\n')
        file.flush()
        yield Path(file.name)


def page(address: str, uri: str, plan: SweepPlan | None) -> str:
    """Return the link to a sweep's front in a store on MLflow's page at `address`; without a sweep the address."""
    if plan is None:
        return address
    parent = ParentRun(plan, Store(plan, uri), log=lambda message: None)
    return address + parent.link if parent.look_up() else address
