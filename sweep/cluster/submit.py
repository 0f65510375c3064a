"""Send a sweep to a cluster as a Ray job: this project as it is here, and the command that starts the sweep there.

The project goes as source alone: the three packages (about a megabyte), the search space and the user's own modules
that it names, be they a working tree or installed. No data, no environment, no secret: the cluster has its own.
"""

from __future__ import annotations

import itertools
import shlex
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sweep.cluster.cluster import HASH, PLUGINS, RUNNING, STORAGE, SWEEP, Cluster, Job
from sweep.cluster.package import Package, pack
from sweep.cluster.submission import Submission, check_path
from sweep.plan import CODE_VERSION, PLACES, check_name, check_options, code_version, option_words, plugins_of
from sweep.ray_internals import STOP_WAIT_VARIABLE
from trainer.errors import InputError
from trainer.interrupts import raise_interrupt
from trainer.plugins import send_plugins

_STOP_SECONDS = 600
"""Seconds for which Ray waits for a job that was asked to end, before it kills it. Its own 3 seconds are too few for
the epochs in flight; a sweep that is killed can be resumed too, but does not say how."""

_BEGIN_SECONDS, _LAST_WORDS_SECONDS = 60.0, 3.0


class Sent(NamedTuple):
    """A job that was sent."""

    job_id: str
    package: Package


def send(submission: Submission, cluster: Cluster, jobs: list[Job]) -> Sent:
    """Submit the sweep; return the job's id and what went with it."""
    plan = submission.plan
    metadata = {SWEEP: plan.name, HASH: plan.hash, STORAGE: submission.storage or ""}
    metadata[PLUGINS] = " ".join(plugins_of(plan))
    return _start(cluster, submission.command, metadata, jobs, space_file=submission.space_file)


def send_resume(
    name: str,
    storage: str | None,
    overrides: Mapping[str, str | None],
    cluster: Cluster,
    jobs: list[Job],
    *,
    flags: tuple[str, ...] = (),
) -> Sent:
    """Submit the resumption of a sweep that the cluster's storage holds; return the job's id and what went with it.

    Args:
        storage: None for the storage of the sweep's latest job.
        overrides: what a resume may change, as typed; None for what was not given.
        flags: further words of the command.

    Raises:
        InputError: if the sweep is running.
    """
    check_name(name)
    check_path("storage", storage)
    earlier = [job for job in jobs if job.sweep == name]
    if running := [job for job in earlier if job.state in RUNNING]:
        raise InputError(f"{name} runs already: follow it by `otsweep logs {running[0].id} --follow`")
    storage = storage or (earlier[0].storage if earlier else "")
    check_options({key: value for key, value in overrides.items() if key not in PLACES})
    command = ("resume", name, *option_words({**overrides, "storage": storage or None}), *flags)
    metadata = {SWEEP: name, HASH: earlier[0].plan_hash if earlier else "", STORAGE: storage}
    metadata[PLUGINS] = earlier[0].plugins if earlier else ""
    return _start(cluster, command, metadata, jobs)


def _start(
    cluster: Cluster,
    command: tuple[str, ...],
    metadata: dict[str, str],
    jobs: list[Job],
    *,
    space_file: tuple[str, str] | None = None,
) -> Sent:
    """Send the project, and run `otsweep` with a command's words in it; return the job's id and what went with it."""
    plugins = send_plugins(metadata[PLUGINS].split())
    environment = {STOP_WAIT_VARIABLE: str(_STOP_SECONDS), CODE_VERSION: code_version()}
    with tempfile.TemporaryDirectory(prefix="otsweep-submit-") as scratch, cluster.explaining_errors():
        package = pack(Path(scratch), space_file, plugins)
        job_id = cluster.client.submit_job(
            # The sweep replaces the shell, so that a request to stop reaches it.
            entrypoint=f"exec python -m sweep {shlex.join(command)}",
            submission_id=free_id(metadata[SWEEP], jobs),
            runtime_env={"working_dir": scratch, "env_vars": environment},
            metadata=metadata,
        )
    return Sent(job_id, package)


def free_id(sweep: str, jobs: list[Job]) -> str:
    """Return an unused job id: the sweep's name and a number, one more with each resumption."""
    taken = {job.id for job in jobs}
    return next(name for number in itertools.count(1) if (name := f"{sweep}.{number}") not in taken)


def wait_for_start(cluster: Cluster, job_id: str, *, seconds: float = _BEGIN_SECONDS) -> Job:
    """Wait until the job prints something or has ended, so that what is wrong there shows here; return the job.

    Args:
        seconds: maximum wait.
    """
    deadline, printed = time.monotonic() + seconds, False
    while (job := cluster.job(job_id)).state in RUNNING and time.monotonic() < deadline:
        raise_interrupt()
        if not printed and cluster.log(job_id).strip():
            # Its first words may be its last ones, whose end the cluster knows a moment later.
            deadline, printed = time.monotonic() + _LAST_WORDS_SECONDS, True
        time.sleep(0.3)
    return job
