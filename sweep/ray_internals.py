"""Everything that this project uses of Ray beyond its documented interface.

Ray promises none of this, so that a new version may change it. Each item has a test in
`tests/unit/test_canaries_ray.py` that says what broke. The variables of `sweep.RAY_ENVIRONMENT` are tested there too.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

TRIED_VERSIONS = ("2.60.0",)
"""Ray versions with which everything here was tried."""

# ---------------------------------------------------------------------------------------------------------- starting

LOGGERS = ("ray", "ray.tune", "ray.train")
"""Loggers of which this process keeps only what is worse than a failed trial."""

UNNEEDED_STARTS = ("start_api_server", "start_monitor", "start_log_monitor")
"""Methods of Ray's `Node` that start the dashboard's server, the autoscaler's monitor and the reader of logs."""

SLOW_START = "timed out during startup"
"""Part of the message of the plain exception that `ray.init` raises on a machine that is too busy."""

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
"""Options of `ray.init` by which nothing of Ray's own comes to the terminal."""

LOG_FILES = ("gcs_server.err", "gcs_server.out", "raylet.err", "raylet.out")
"""Files in the folder `logs` of a session in which Ray's processes say what they died of."""

_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
"""The versions of one side in the message about a cluster of another version, that of the cluster first."""


def start_only_what_is_needed() -> None:
    """Let a Ray of this process's own start no dashboard, no autoscaler's monitor and no reader of logs.

    Nothing here asks them, and each takes seconds of a core and 100 MB. Ray has no option for that.
    """
    from ray._private.node import Node

    for start in UNNEEDED_STARTS:
        setattr(Node, start, lambda *_, **__: None)


def is_slow_start(error: Exception) -> bool:
    """Return whether `ray.init` gave up because the machine is too busy; Ray has no exception class for it."""
    return SLOW_START in str(error)


def other_versions(message: str) -> tuple[str, str] | None:
    """Return the versions of a cluster and of this process from Ray's message about another version; else None."""
    found = [f"Ray {ray} and Python {python}" for ray, python in _VERSIONS.findall(message)]
    return (found[0], found[1]) if len(found) >= 2 else None


_ANSWER_SECONDS = 5.0
"""Time in which a process of Ray must take a connection."""


def use_token(token: str | None = None) -> bool:
    """Let this process show a token, and what it starts ask for it: the given one, else the one that Ray finds.

    Ray itself reads the mode when it is imported, and a token once; for a Ray of this process's own it writes one into
    the home folder.

    Returns:
        Whether there is one.
    """
    library: Any = importlib.import_module("ray._raylet")
    if token:
        os.environ["RAY_AUTH_TOKEN"] = token
    loader = library.AuthenticationTokenLoader.instance()
    loader.reset_cache()
    found = loader.has_token(ignore_auth_mode=True)
    if token or (found and "RAY_AUTH_MODE" not in os.environ):
        os.environ["RAY_AUTH_MODE"] = "token"
    library.Config.initialize("")
    return found


def processes() -> dict[str, Callable[[], bool]]:
    """Return, for the processes of Ray that a driver needs, by their names for people, how to ask whether they live."""
    node, names = _node(), {"gcs_server": "its head (GCS)", "raylet": "this machine's part of it (raylet)"}
    if node.is_head():
        own = {name: node.all_processes[name][0].process for name in names}
        return {names[name]: lambda process=process: process.poll() is None for name, process in own.items()}
    doors = {"gcs_server": node.gcs_address, "raylet": node.raylet_socket_name}
    return {names[name]: lambda door=door: answers(door) for name, door in doors.items()}


def answers(door: str) -> bool:
    """Return whether a process takes connections at HOST:PORT or the path of a socket; a slow one does as well, by the
    kernel."""
    host, _, port = door.rpartition(":")
    with contextlib.ExitStack() as knocking:
        try:
            if "/" in door:
                knocking.enter_context(socket.socket(socket.AF_UNIX)).connect(door)
            else:
                knocking.enter_context(socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS))
        except (OSError, OverflowError):
            return False
    return True


def _node() -> Any:
    """Return what Ray knows of this machine's part of a cluster; None without one."""
    from ray._private import worker

    return worker._global_node


def silence_ray() -> None:
    """Keep from the terminal what Ray tells about lost nodes and failed trials, which the sweep says in its own words.

    Ray prints pages of a lost node's logs into the driver's output, and has no option for that.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda data, ignore_prefix=False: None
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR if name == "ray" else logging.CRITICAL)


def keep_signals() -> None:
    """Leave SIGTERM to this process, and start Ray's own processes in sessions of their own.

    Batch systems and terminals send signals to whole process groups. Ray's processes would end by them before the
    sweep can, and take this one along.
    """
    from ray._private import services, utils

    utils.set_sigterm_handler = lambda sigterm_handler: None
    if not isinstance(services.ConsolePopen, partial):
        services.ConsolePopen = partial(services.ConsolePopen, start_new_session=True)


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep from the terminal what Ray's library writes there at each of its attempts to reach a cluster."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # standard error is closed
        yield
        return
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def keep_keys_at_home() -> None:
    """Let Ray Tune send no environment variables along with trials, above all not this process's AWS keys.

    Ray's agents write what they are sent into their logs, and every node has keys of its own in its own environment.
    With nothing to set, trials also run in workers that are started already.
    """
    from ray.tune.execution import class_cache

    class_cache.DEFAULT_ENV_VARS = {}
    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }


# ------------------------------------------------------------------------------------------------------------- ending


def release_nothing_more() -> None:
    """Let references to objects and actors of Ray that are dropped from now on be dropped without Ray.

    While `ray.shutdown` waits, Python's garbage collector may run in any other thread. If it finds one there, Ray's
    library ends the process at once, with exit status 1 and without a word.
    """
    from ray._private import worker

    connected: Any = worker.global_worker
    if hasattr(connected, "core_worker"):
        connected.core_worker = _ClosingWorker(connected.core_worker)


class _ClosingWorker:
    """Ray's core worker, but for the release of references."""

    def __init__(self, core: Any) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def remove_object_ref_reference(self, reference: object) -> None:
        pass

    def remove_actor_handle_reference(self, actor_id: object) -> None:
        pass


def end_processes() -> None:
    """End what is left of a Ray that has lost a process: those that this process started, and this one at its end.

    `ray.shutdown`, and what Ray does when Python ends, would wait for what is not there any more.
    """
    if _node() is not None and _node().is_head():
        _node().kill_all_processes(check_alive=False, allow_graceful=False)
    # Called before all that Ray has registered.
    atexit.register(_end_at_once)


def _end_at_once() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


# ------------------------------------------------------------------------------------------------------------- errors

NODE_DIED = "its node has died"
"""Part of Ray's message about an actor that was lost together with its node."""

_FAILURE = "Failure #"
"""Begin of each failure in the file that Ray Tune keeps for a trial."""


def _last_failure(error_file: str | None) -> str:
    """Return the last failure in the file that Ray Tune keeps for a trial; empty if there is none."""
    if not error_file or not Path(error_file).exists():
        return ""
    return Path(error_file).read_text(errors="replace").rpartition(_FAILURE)[2]


def lost_with_its_node(error_file: str | None) -> bool:
    """Return whether a trial's last failure was that of its node, killed or taken back."""
    return NODE_DIED in _last_failure(error_file)


def last_message(error_file: str | None, kind: type[Exception]) -> str:
    """Return the message of an exception of `kind` that was a trial's last failure; empty if it was another."""
    return (re.findall(rf"\b{kind.__name__}: (.*)", _last_failure(error_file)) or [""])[-1]


def forgive_failure(trial: Any) -> None:
    """Let the last failure of a Ray Tune trial not count towards `FailureConfig.max_failures`."""
    trial.run_metadata.num_failures = max(0, trial.run_metadata.num_failures - 1)


def end_worker(trial: Any) -> None:
    """End the worker of a Ray Tune trial at once, as one that was lost; a raylet kills a process that hangs."""
    if (actor := trial.temporary_state.ray_actor) is not None:
        importlib.import_module("ray").kill(actor)


def first_line(error: object) -> str:
    """Return the line of an error's message that says what happened; the name of its class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def last_line(error: Exception) -> str:
    """Return the line of an actor's obituary that says which exception its constructor raised."""
    return str(error).strip().splitlines()[-1]


# --------------------------------------------------------------------------------------------------------------- jobs

JOB_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers of the client of Ray's job API."""

STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Setting of a job: the seconds for which Ray waits for it to end once it was asked to, before it kills it."""

ENTRYPOINT_LINE = "Running entrypoint for job"
"""Begin of the last line that Ray itself writes into a job's log."""


def silence_job_client() -> None:
    """Keep from the terminal what the client logs about errors, which it raises too."""
    for name in ("ray", *JOB_LOGGERS):
        logging.getLogger(name).setLevel(logging.ERROR)


def strip_preamble(log: str) -> str:
    """Remove what Ray writes at the head of a job's log: setting up its environment, and its command line."""
    lines = log.splitlines(keepends=True)
    begun = [index for index, line in enumerate(lines) if ENTRYPOINT_LINE in line]
    return "".join(lines[begun[0] + 1 :] if begun else [])
