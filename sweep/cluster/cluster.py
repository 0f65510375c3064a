"""A Ray cluster that someone else runs, as seen from outside: its jobs API, with the token that it may ask for.

Ray's job API runs whatever it is sent, so a cluster asks for a token (`RAY_AUTH_MODE=token` on its nodes). It is read
here from the places where Ray itself looks, goes into a header of each request, and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from sweep.plan import masked
from trainer.errors import InputError, OtsweepError
from trainer.words import did_you_mean

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_TOKEN, _TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_DEFAULT_TOKEN_FILE = "~/.ray/auth_token"
_ANSWER_SECONDS = 10.0
_POLL_SECONDS = 1.0

SWEEP, HASH, STORAGE = "otsweep.sweep", "otsweep.plan_hash", "otsweep.storage"
"""Metadata of our jobs, by which they are told from others on the same cluster."""

RUNNING, ENDED = ("PENDING", "RUNNING"), ("SUCCEEDED", "FAILED", "STOPPED")
REFUSED, _STOPPED = 2, 130
"""Exit status of a sweep that was refused before it began, and of one that was stopped."""


class ClusterError(OtsweepError):
    """The cluster did not do what it was asked for."""


class Job(NamedTuple):
    """One of our jobs, as its cluster tells of it."""

    id: str
    sweep: str
    plan_hash: str
    storage: str
    """As the sweep's nodes see it; empty for the cluster's own."""
    state: str
    started: float
    """Unix seconds."""
    ended: float | None
    exit_status: int | None

    @property
    def seconds(self) -> float:
        return (self.ended or time.time()) - self.started


class Cluster:
    """The jobs of one cluster.

    Args:
        address: `http(s)://HOST:PORT` of its dashboard; default: `RAY_API_SERVER_ADDRESS`.

    Raises:
        InputError: for an address that is none, where no cluster answers, or whose cluster refuses the token.
    """

    def __init__(self, address: str | None) -> None:
        self.address = check_address(address)
        self.ray_version = _ask_version(self.address, read_token())
        self.client = self._open()

    def _open(self) -> JobSubmissionClient:
        # Ray lets both variables win over an address that is given in words.
        os.environ[_ADDRESS] = self.address
        if read_token():
            os.environ["RAY_AUTH_MODE"] = "token"
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.ERROR)
        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        with self.answering():
            return JobSubmissionClient(self.address)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Turns what the client raises into one line.

        Raises:
            ClusterError: if the cluster went away, or can't do it.
        """
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise ClusterError(f"{self.address}: {_first_line(error)}") from None

    def jobs(self) -> list[Job]:
        """Ours, the latest first."""
        with self.answering():
            details = self.client.list_jobs()
        ours = [each for each in details if SWEEP in (each.metadata or {})]
        return sorted(map(_read_job, ours), key=lambda job: job.started, reverse=True)

    def find(self, name: str) -> Job:
        """The job of this id, else the latest of the sweep of this name.

        Raises:
            InputError: if there is none.
        """
        jobs = self.jobs()
        found = [job for job in jobs if job.id == name] or [job for job in jobs if job.sweep == name]
        if not found:
            known = [word for job in jobs for word in (job.id, job.sweep)]
            hint = did_you_mean(name, list(dict.fromkeys(known))) if known else "it has none of ours"
            raise InputError(f"no job {name!r} on {self.address}: {hint}")
        return found[0]

    def job(self, job_id: str) -> Job:
        with self.answering():
            return _read_job(self.client.get_job_info(job_id))

    def log(self, job_id: str) -> str:
        """All that a job has said."""
        with self.answering():
            return strip_preamble(self.client.get_job_logs(job_id))

    def stop(self, job: Job) -> bool:
        """Ask a job to end as by Ctrl-C; False if it had ended already."""
        with self.answering():
            return self.client.stop_job(job.id)

    def follow(self, job_id: str, show: Callable[[str], None], warn: Callable[[str], None]) -> Job:
        """Show what a job says until it has ended; a cluster that is away for a while is waited for.

        Args:
            show: told each new piece of the log.
            warn: told once when the cluster stops answering.
        """
        shown, away = 0, False
        while True:
            begun = time.monotonic()
            try:
                # In this order: what is said between the two is shown before the end is believed.
                job = self.job(job_id)
                log = self.log(job_id)
            except ClusterError as error:
                if not away:
                    warn(f"{error}; the sweep goes on without us, trying again")
                away = True
                time.sleep(_POLL_SECONDS)
                continue
            away = False
            if len(log) > shown:
                show(log[shown:])
                shown = len(log)
            if job.state in ENDED:
                return job
            # A log comes whole each time: a long one over a slow line is asked for less often.
            time.sleep(max(_POLL_SECONDS, 5 * (time.monotonic() - begun)))


def exit_status(job: Job) -> int:
    """Of the command that waited for a job: what the job itself ended with."""
    if job.state == "STOPPED":
        return _STOPPED
    return 0 if job.state == "SUCCEEDED" else job.exit_status or 1


def check_address(address: str | None) -> str:
    """An address as given, else from the environment.

    Raises:
        InputError: quoting it, with any secret masked.
    """
    said, text = ("--address", address) if address is not None else (_ADDRESS, os.environ.get(_ADDRESS, ""))
    if not text:
        raise InputError(f"which cluster? give --address http://HOST:8265, or set {_ADDRESS}")
    wanted = "must be http(s)://HOST:PORT of a cluster's dashboard, as in http://127.0.0.1:8265"
    try:
        parts = urlsplit(text)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise InputError(f"{said} {masked(text)!r}: {wanted}")
    if masked(text) != text:
        raise InputError(f"{said} {masked(text)!r}: holds a secret; set {_TOKEN} or {_TOKEN_FILE} instead")
    return text.rstrip("/")


def read_token() -> str:
    """The token for clusters, from the environment or a file; empty where there is none.

    Raises:
        InputError: if the file that is named can't be read, or holds nothing.
    """
    if token := os.environ.get(_TOKEN, "").strip():
        return token
    named = os.environ.get(_TOKEN_FILE)
    path = Path(named or _DEFAULT_TOKEN_FILE).expanduser()
    try:
        token = path.read_text().strip()
    except OSError as error:
        if named:
            raise InputError(f"{_TOKEN_FILE}={named}: can't be read: {error.strerror}") from None
        return ""
    if not token and named:
        raise InputError(f"{_TOKEN_FILE}={named}: the file is empty")
    return token


def _ask_version(address: str, token: str) -> str:
    """The version of Ray that answers at `address`.

    Raises:
        InputError: if none does, or it refuses the token.
    """
    request = urllib.request.Request(f"{address}/api/version")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            return str(json.load(answer)["ray_version"])
    except urllib.error.HTTPError as error:
        raise InputError(f"{address}: {_explain_status(error.code, token)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{address}: no Ray cluster answers there ({_first_line(reason)})") from None
    except (KeyError, TypeError):
        raise InputError(f"{address}: something answers there that is no Ray dashboard") from None


def _explain_status(code: int, token: str) -> str:
    if code == 401 and not token:
        return f"the cluster asks for a token; set {_TOKEN}, or {_TOKEN_FILE} to a file that holds it"
    if code in (401, 403):
        where = _TOKEN if os.environ.get(_TOKEN) else os.environ.get(_TOKEN_FILE) or _DEFAULT_TOKEN_FILE
        return f"the cluster refuses the token in {where}"
    return f"answers with HTTP status {code}; is this the address of a Ray dashboard?"


def _read_job(details: object) -> Job:
    """A job from Ray's own description of it."""
    plain = {name: getattr(details, name) for name in ("submission_id", "metadata", "status", "driver_exit_code")}
    started, ended = (getattr(details, name) for name in ("start_time", "end_time"))
    metadata, state = plain["metadata"] or {}, plain["status"]
    return Job(
        id=plain["submission_id"],
        sweep=metadata.get(SWEEP, ""),
        plan_hash=metadata.get(HASH, ""),
        storage=metadata.get(STORAGE, ""),
        state=str(getattr(state, "value", state)),
        started=(started or 0) / 1000,
        ended=ended / 1000 if ended else None,
        exit_status=plain["driver_exit_code"],
    )


def strip_preamble(log: str) -> str:
    """A job's log without what Ray writes at its head: the setting up of its environment, and its command line."""
    lines = log.splitlines(keepends=True)
    begun = [place for place, line in enumerate(lines) if "Running entrypoint for job" in line]
    return "".join(lines[begun[0] + 1 :] if begun else [])


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
