"""MLflow's server for this machine alone, on the loopback address, and the link that opens its page at a front."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import webbrowser
from pathlib import Path

from sweep.plan import SweepPlan
from sweep.tracking.mlflow_internals import SERVER_ENVIRONMENT
from sweep.tracking.parent_run import ParentRun
from sweep.tracking.store import Log, Store, check_named
from trainer.errors import InputError
from trainer.interrupts import raise_interrupt

_LOOK_SECONDS = 0.5
"""Time between two looks at whether the server, or who started it, has ended it."""


def serve(plan: SweepPlan, *, port: int, browser: bool, log: Log) -> int:
    """Serve MLflow's page of the plan's store on 127.0.0.1 until Ctrl-C; return the exit status.

    Raises:
        InputError: if the port is taken, or the store is a database that `check_named` refuses.
    """
    if plan.mlflow_uri.startswith("http"):
        log(f"{plan.name} is tracked by a server already: {page(plan.mlflow_uri, plan)}")
        return 0
    check_named(plan.mlflow_uri)
    address = f"http://127.0.0.1:{free_port(port)}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", plan.mlflow_uri]
    command += ["--artifacts-destination", (Path(plan.storage) / "artifacts").as_uri()]
    # SIGTERM ends this process as Ctrl-C does: the server must not outlive it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(
            command, env={**os.environ, **SERVER_ENVIRONMENT}, stdout=output, stderr=output, start_new_session=True
        )
        try:
            log("Starting MLflow (10 to 30 seconds) ...")
            _wait_until_up(address, server)
            if server.poll() is not None:
                output.seek(0)
                log(output.read().decode(errors="replace")[-2000:])
                return 1
            link = page(address, plan)
            log(f"{plan.name}: {link}\nCtrl-C ends it.")
            if browser:
                webbrowser.open(link)
            while server.poll() is None:
                raise_interrupt()
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()
    return 0


def free_port(port: int) -> int:
    """Return the port, or any free one for 0, on the loopback address.

    Raises:
        InputError: if it can't be used.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: can't be used ({error}); --port 0 takes a free one") from None
        return probe.getsockname()[1]


def _wait_until_up(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers, or has ended."""
    while server.poll() is None:
        raise_interrupt()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        time.sleep(0.3)


def page(address: str, plan: SweepPlan) -> str:
    """Return the link to the sweep's front on MLflow's page at `address`."""
    parent = ParentRun(plan, Store(plan, plan.mlflow_uri), log=lambda message: None)
    return address + parent.link if parent.look_up() else address
