"""The command `otsweep` in tests: as a process of its own, mostly forked, its trials on the Ray that tests share.

What is started here behaves as `python -m sweep` does and takes five seconds of a core where that takes twenty: see
`fork_server`. `own=True` starts Python and a Ray of the sweep's own instead, as a user does; so do the tests of starts.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pkgutil
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sweep
import trainer
from sweep.cli import main
from tests.support.fork_server import ForkedProcess, ForkServer

PATIENCE = 600.0
"""Seconds that anything may take, however busy the machine is: then it hangs."""

CPUS = 2
"""Of the shared Ray: the machine's own number must not matter."""

MLFLOW = ["mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking", "mlflow.store.db.utils", "mlflow.genai"]
TORCH = ["torch._dynamo", "pydantic.v1", "starlette.datastructures", "pyarrow.json"]

_ending = contextlib.ExitStack()


def modules_of(package: Any) -> list[str]:
    """Return the names of all modules below a package but those that are commands."""
    found = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [name for name in found if not name.endswith("__main__")]


@functools.cache
def folder() -> Path:
    """Return a folder for sockets, whose paths must be short."""
    return Path(_ending.enter_context(tempfile.TemporaryDirectory(prefix="otf-")))


@functools.cache
def drivers() -> ForkServer:
    """Return the server that forks commands."""
    return _ending.enter_context(ForkServer(folder() / "drivers", [*modules_of(sweep), *MLFLOW]))


@functools.cache
def workers() -> ForkServer:
    """Return the server that forks the shared Ray's workers."""
    return _ending.enter_context(ForkServer(folder() / "workers", [*modules_of(trainer), "sweep.engine", *TORCH]))


@functools.cache
def shared_ray() -> Mapping[str, str]:
    """Start the shared Ray, once; return the variables by which a sweep joins it."""
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24)}
    words = [sys.executable, "-m", "tests.support.shared_ray", str(workers().address), str(CPUS)]
    with open(folder() / "ray.log", "wb") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | settings,
            start_new_session=True,
            text=True,
        )
    assert process.stdout is not None
    # Its end closes its input, and then waits for it.
    _ending.enter_context(process)
    address = process.stdout.readline().strip()
    assert address, (folder() / "ray.log").read_text()
    return settings | {"RAY_ADDRESS": address}


def end_processes() -> None:
    """End what was started for several tests; the next that needs it starts it anew."""
    _ending.close()
    for started in (folder, drivers, workers, shared_ray):
        started.cache_clear()


def command(storage: Path, *words: str) -> list[str]:
    """Return the words of a command on a storage folder."""
    return [sys.executable, "-m", "sweep", *words, "--storage", str(storage)]


def start(words: list[str], *, own: bool = False, joins: bool = True, **options: Any) -> subprocess.Popen[str]:
    """Start a command; its output is text.

    Args:
        words: as of `command`.
        own: whether Python is started for it, and Ray for its sweep.
        joins: whether a fork joins the shared Ray.
        options: those of `subprocess.Popen`.
    """
    if own:
        return subprocess.Popen(words, text=True, **options)
    if joins:
        options["env"] = {**(options.get("env") or os.environ), **shared_ray()}
    return ForkedProcess(drivers(), words, **options)


def call(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and capture what it says. The options are those of `start`."""
    with start(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)


def otsweep(storage: Path, *words: str, own: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `otsweep` on a storage folder, and capture what it says."""
    return call(command(storage, *words), own=own)


def front(storage: Path, name: str) -> dict[str, Any]:
    """Return a front as the command tells it, in this process, which has imported everything already."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["front", name, "--format", "json", "--storage", str(storage)]) == 0
    return json.loads(said.getvalue())


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], *, pause: float = 0.01) -> None:
    """Wait until a condition holds of a process that runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"the sweep ended before it was disturbed: {process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(pause)
