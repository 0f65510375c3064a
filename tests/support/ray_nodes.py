"""Nodes of Ray as processes of a test's own on the loopback address: started by id, ended by id, never by name."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Keeps all of a head on the loopback address. Ray then takes no further node, so only the token guards several."""

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_ports(count: int) -> list[int]:
    """Return ports that are free now; all are held at once, so that they differ."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def need_jobs() -> None:
    """Skip the test if Ray has no job API."""
    if find_spec("aiohttp_cors") is None:
        pytest.skip("jobs need ray[default] on the head, and it is not installed here")


def environment(**more: str) -> dict[str, str]:
    """Return an environment without this shell's own cluster, where `python` is the one that runs these tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**clean, "PATH": path, **more}


def start(words: list[str], folder: Path, name: str, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process with a log of its own, in `folder` and not in this worktree, so that it runs what it was sent."""
    with open(folder / f"{name}.log", "ab") as log:
        return subprocess.Popen(words, env=settings, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def wait_for(condition: Callable[[], bool], seconds: float = 400) -> None:
    """Wait for a condition; a node of Ray takes minutes to start on a machine that runs other tests too."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answers(url: str, token: str = "") -> bool:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5):
            return True
    except OSError:
        return False


def tree(pid: int) -> list[int]:
    """Return the ids of a process and all below it, from the kernel."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    below = children.read_text().split() if children.exists() else []
    return [pid, *(each for child in below for each in tree(int(child)))]


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and everything that it started, without warning."""
    for pid in tree(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process as its own machine would; Ray then ends what it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            kill(process)
