"""MLflow's page on this machine: its server on the loopback address, and the link that opens at a front."""

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
from collections.abc import Callable
from pathlib import Path

from sweep.plan import SweepPlan
from sweep.report import FRONT, view_key, view_link
from sweep.tracking.tracking import ENVIRONMENT, connect
from trainer.errors import InputError


def serve(plan: SweepPlan, *, port: int, browser: bool, say: Callable[[str], None]) -> int:
    """MLflow's page on the plan's store, on 127.0.0.1, until Ctrl-C; the exit status.

    Raises:
        InputError: if the port is taken, or the store is a server already.
    """
    if plan.mlflow_uri.startswith("http"):
        say(f"{plan.name} is tracked by a server already: {page(plan.mlflow_uri, plan)}")
        return 0
    address = f"http://127.0.0.1:{free_port(port)}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", plan.mlflow_uri]
    command += ["--artifacts-destination", str(Path(plan.storage) / "artifacts")]
    environment = {**os.environ, **ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Ended by SIGTERM as by Ctrl-C: the server must not outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            say("Starting MLflow (10 to 30 seconds) ...")
            _wait_until_up(address, server)
            if server.poll() is not None:
                log.seek(0)
                say(log.read().decode(errors="replace")[-2000:])
                return 1
            link = page(address, plan)
            say(f"{plan.name}: {link}\nCtrl-C ends it.")
            if browser:
                webbrowser.open(link)
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()
    return 0


def free_port(port: int) -> int:
    """The port, or for 0 any free one, on the loopback address.

    Raises:
        InputError: if it can't be had.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: can't be used ({error}); --port 0 takes a free one") from None
        return probe.getsockname()[1]


def _wait_until_up(address: str, server: subprocess.Popen[bytes]) -> None:
    """Until the server answers, or has ended."""
    while server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        time.sleep(0.3)


def page(address: str, plan: SweepPlan) -> str:
    """The link that opens the sweep's view of its front on MLflow's page at `address`."""
    experiment = connect(plan.mlflow_uri).get_experiment_by_name(plan.space.name)
    if experiment is None:
        return address
    return address + view_link(experiment.experiment_id, view_key(FRONT, plan.name))
