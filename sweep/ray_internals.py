"""Everything that this project uses of Ray beyond its documented interface.

Ray promises none of this, so that a new version may change it. Each item has a test in
`tests/unit/test_canaries_ray.py` that says what broke. The variables of `sweep.RAY_ENVIRONMENT` are tested there too.
"""

from __future__ import annotations

import logging
import re
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
