"""Software and settings of a cluster, asked for before anything of this project is sent there."""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
import time
from typing import Any, NamedTuple

from sweep.cluster.cluster import ENDED, Cluster, ClusterError
from sweep.plan import installed_version, masked
from trainer.errors import InputError

_ASK_SECONDS = 60.0

_QUESTION = """
import importlib.util, json, os, platform
needed = ("mlflow", "optuna", "pyarrow", "ray", "rich", "scipy", "sklearn", "torch", "torchvision", "yaml")
print(json.dumps({
    "python": platform.python_version(),
    "missing": [name for name in needed if importlib.util.find_spec(name) is None],
    "storage": os.environ.get("OTSWEEP_STORAGE", ""),
    "mlflow_uri": os.environ.get("MLFLOW_TRACKING_URI", ""),
}))
"""
"""A program that the cluster's own Python runs; it prints one line."""


class ClusterInfo(NamedTuple):
    """A cluster's software and settings."""

    python: str
    ray: str
    missing: tuple[str, ...]
    """Libraries that a sweep needs and the cluster's head lacks."""
    storage: str
    """The head's OTSWEEP_STORAGE, empty if it is not set."""
    mlflow_uri: str
    """The head's MLFLOW_TRACKING_URI, empty if it is not set."""


def ask_cluster(cluster: Cluster) -> ClusterInfo:
    """Ask the cluster what it runs and where it keeps things; nothing of this project is sent for that.

    Raises:
        ClusterError: if its Python does not answer.
    """
    client = cluster.client
    with cluster.explaining_errors():
        job_id = client.submit_job(entrypoint=f"python -c {shlex.quote(_QUESTION)}")
        deadline = time.monotonic() + _ASK_SECONDS
        while (state := client.get_job_status(job_id)) not in ENDED:
            if time.monotonic() > deadline:
                client.stop_job(job_id)
                raise ClusterError(f"{cluster.address}: its head has started nothing within {_ASK_SECONDS:.0f} s")
            time.sleep(0.2)
    log = cluster.log(job_id).strip()
    while state == "SUCCEEDED" and not find_answer(log) and time.monotonic() < deadline:
        time.sleep(0.2)  # a job can have ended before all that it printed is in its log
        log = cluster.log(job_id).strip()
    with cluster.explaining_errors():
        client.delete_job(job_id)
    if state != "SUCCEEDED":
        raise ClusterError(f"{cluster.address}: its head has no command `python` that runs: {log[-300:]}")
    answer = find_answer(log)
    if not answer:
        raise ClusterError(f"{cluster.address}: its head did not tell what it runs, but printed: {log[-300:]}")
    return ClusterInfo(
        answer["python"], cluster.ray_version, tuple(answer["missing"]), answer["storage"], masked(answer["mlflow_uri"])
    )


def find_answer(log: str) -> dict[str, Any]:
    """Find the answer to the question among lines that Ray may write around it; empty if it is not there."""
    for line in reversed(log.splitlines()):
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict) and "python" in answer:
                return answer
    return {}


def differences(info: ClusterInfo, *, python: str | None = None, ray: str | None = None) -> list[str]:
    """List how the cluster differs from this machine, as clauses; a patch release of Python is no difference.

    Args:
        python: this machine's version, found out by default; `ray` likewise.
    """
    python, ray = python or platform.python_version(), ray or installed_version("ray")
    found = []
    if info.python.split(".")[:2] != python.split(".")[:2]:
        found.append(f"Python {info.python} there, {python} here")
    if info.ray != ray:
        found.append(f"Ray {info.ray} there, {ray} here")
    return found


def check_cluster(info: ClusterInfo, address: str) -> None:
    """Check that sweeps can run there at all.

    Raises:
        InputError: if they can't.
    """
    if tuple(map(int, info.python.split(".")[:2])) < (3, 11):
        raise InputError(f"{address}: runs Python {info.python}; otsweep needs 3.11 or newer")
    if info.missing:
        raise InputError(
            f"{address}: its head lacks {', '.join(info.missing)}; use the image in docker/, or install what otsweep "
            "depends on there"
        )
