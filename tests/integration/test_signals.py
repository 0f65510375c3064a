"""Signals to a sweep and all of its processes, as terminals, batch systems and supervisors send them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import command, start, wait_for
from tests.support.mlflow_stores import contents

pytestmark = pytest.mark.slow

SPACE = """
trials: 1
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 1}
space: {architecture: mlp, epochs: 10000, batch_size: 10}
points:
  - {preset: pgd-at, sensitivity_epsilon: 0.1}
"""
SECONDS = 30
"""Time that Slurm, systemd and Kubernetes give before they kill."""


@pytest.mark.parametrize(
    "signals", [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT", "SIGINT"), ("SIGHUP",)], ids=lambda names: "-".join(names)
)
def test_signals_to_the_whole_group_end_a_sweep_in_time(
    signals: tuple[str, ...], new_storage: Callable[[str], Path]
) -> None:
    storage = new_storage("signals")
    (storage / "long.yaml").write_text(SPACE)
    words = command(storage, "run", str(storage / "long.yaml"), "--name", "long", "--max-concurrent", "1")
    log = storage / "long" / "ledger" / "log.jsonl"
    driver = start(words, own=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with driver:
        wait_for(lambda: log.exists() and b'"reported"' in log.read_bytes(), driver)
        asked = time.monotonic()
        for name in signals:
            os.killpg(driver.pid, signal.Signals[name])
            time.sleep(0.2)
        said, _ = driver.communicate(timeout=2 * SECONDS)
    took = time.monotonic() - asked
    assert driver.returncode == 130, said
    assert f"resume long --storage {storage}" in said
    assert "Traceback" not in said
    # A machine with more to do than it has cores is slower accordingly.
    assert took < SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    states = {kind: rest[0] for kind, (_, rest, *_) in contents(storage / "mlflow.db", "long").items()}
    assert set(states.values()) == {"KILLED"}, states
    deadline = time.monotonic() + SECONDS
    while left := processes_of(driver.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def processes_of(session: int) -> list[str]:
    """Return the processes of a session, and those of Ray that were started by its leader."""
    rows = subprocess.run(["ps", "-eo", "sid,args"], capture_output=True, text=True).stdout.splitlines()
    return [row for row in rows if row.split()[0] == str(session) or f"_{session}/" in row]
