"""A Ray cluster that someone else runs, as its job API shows it from outside."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from sweep.cluster.access import ADDRESS_VARIABLE, ask_version, check_address, read_token
from sweep.ray_internals import first_line, silence_job_client, strip_preamble
from trainer.errors import InputError, OtsweepError
from trainer.interrupts import raise_interrupt
from trainer.words import did_you_mean

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_POLL_SECONDS = 1.0

SWEEP, HASH, STORAGE, PLUGINS = "otsweep.sweep", "otsweep.plan_hash", "otsweep.storage", "otsweep.plugins"
"""Metadata of this project's jobs, by which they are told from others on the same cluster."""

RUNNING, ENDED = ("PENDING", "RUNNING"), ("SUCCEEDED", "FAILED", "STOPPED")
"""Ray's states of a job."""
REFUSED, _STOPPED = 2, 130
"""Exit status of a sweep that was refused before it began, and of one that was stopped."""


class ClusterError(OtsweepError):
    """The cluster did not do what it was asked for."""


class Job(NamedTuple):
    """One of this project's jobs, as its cluster describes it."""

    id: str
    sweep: str
    plan_hash: str
    storage: str
    """Storage folder as the cluster's nodes see it; empty for the cluster's own."""
    state: str
    started: float
    """Unix seconds."""
    ended: float | None
    exit_status: int | None
    plugins: str = ""
    """The functions of the user's own that its sweep names, with a blank between two."""

    @property
    def seconds(self) -> float:
        """Seconds from its start to its end, or until now."""
        return (self.ended or time.time()) - self.started


class Cluster:
    """The jobs of one cluster.

    Args:
        address: `http(s)://HOST:PORT` of its dashboard; default: `RAY_API_SERVER_ADDRESS`.

    Raises:
        InputError: for an invalid address, or if no cluster answers or it refuses the token.
    """

    def __init__(self, address: str | None) -> None:
        self.address = check_address(address)
        token = read_token()
        self.ray_version = ask_version(self.address, token)
        self.client = self._open(token)

    def _open(self, token: str) -> JobSubmissionClient:
        # Ray prefers this variable to an address that it is given as an argument.
        os.environ[ADDRESS_VARIABLE] = self.address
        from ray.job_submission import JobSubmissionClient

        silence_job_client()
        with self.explaining_errors():
            return JobSubmissionClient(self.address, headers={"Authorization": f"Bearer {token}"} if token else None)

    @contextlib.contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Turn what the client raises into one line.

        Raises:
            ClusterError: if the cluster went away, or can't do what it was asked for.
        """
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise ClusterError(f"{self.address}: {first_line(error)}") from None

    def jobs(self) -> list[Job]:
        """Return this project's jobs, the latest first."""
        with self.explaining_errors():
            details = self.client.list_jobs()
        ours = [each for each in details if SWEEP in (each.metadata or {})]
        return sorted(map(_read_job, ours), key=lambda job: job.started, reverse=True)

    def find(self, name: str) -> Job:
        """Return the job of this id, else the latest of the sweep of this name.

        Raises:
            InputError: if there is none.
        """
        jobs = self.jobs()
        found = [job for job in jobs if job.id == name] or [job for job in jobs if job.sweep == name]
        if not found:
            known = [word for job in jobs for word in (job.id, job.sweep)]
            hint = did_you_mean(name, list(dict.fromkeys(known))) if known else "it has run no sweep yet"
            raise InputError(f"no job {name!r} on {self.address}: {hint}")
        return found[0]

    def job(self, job_id: str) -> Job:
        """Return a job as it is now."""
        with self.explaining_errors():
            return _read_job(self.client.get_job_info(job_id))

    def log(self, job_id: str) -> str:
        """Return all that a job has printed."""
        with self.explaining_errors():
            return strip_preamble(self.client.get_job_logs(job_id))

    def stop(self, job: Job) -> bool:
        """Ask a job to end as by Ctrl-C; return False if it had ended already."""
        with self.explaining_errors():
            return self.client.stop_job(job.id)

    def follow(self, job_id: str, show: Callable[[str], None], warn: Callable[[str], None]) -> Job:
        """Show what a job prints until it has ended; wait for a cluster that is away for a while.

        Args:
            show: called with each new piece of the log.
            warn: called once when the cluster stops answering.
        """
        shown, away = 0, False
        while True:
            raise_interrupt()
            begun = time.monotonic()
            try:
                # In this order: whatever was printed before the end is shown before the end is taken for one.
                job = self.job(job_id)
                log = self.log(job_id)
            except ClusterError as error:
                if not away:
                    warn(f"{error}; the sweep goes on there, trying again")
                away = True
                time.sleep(_POLL_SECONDS)
                continue
            away = False
            if len(log) > shown:
                show(log[shown:])
                shown = len(log)
            if job.state in ENDED:
                return job
            # Each answer holds the whole log: a long one over a slow line is asked for less often.
            time.sleep(max(_POLL_SECONDS, 5 * (time.monotonic() - begun)))


def exit_status(job: Job) -> int:
    """Return the exit status of a command that waited for a job: the job's own."""
    if job.state == "STOPPED":
        return _STOPPED
    return 0 if job.state == "SUCCEEDED" else job.exit_status or 1


def _read_job(details: object) -> Job:
    """Read a job from Ray's own description of it."""
    plain = {name: getattr(details, name) for name in ("submission_id", "metadata", "status", "driver_exit_code")}
    started, ended = (getattr(details, name) for name in ("start_time", "end_time"))
    metadata, state = plain["metadata"] or {}, plain["status"]
    return Job(
        id=plain["submission_id"],
        sweep=metadata.get(SWEEP, ""),
        plan_hash=metadata.get(HASH, ""),
        storage=metadata.get(STORAGE, ""),
        plugins=metadata.get(PLUGINS, ""),
        state=str(getattr(state, "value", state)),
        started=(started or 0) / 1000,
        ended=ended / 1000 if ended else None,
        exit_status=plain["driver_exit_code"],
    )
