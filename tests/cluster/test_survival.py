"""A sweep that is broken on purpose ends as the undisturbed one: same trials, same front, nothing lost, nothing twice.

Two sweeps are compared by what their ledgers hold, number by number, bit for bit; only times may differ. One slot, or
configurations that do not depend on results, so that the order of results can't matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from tests.integration.test_sweep import WORKER
from tests.support.commands import PATIENCE, call, command, front, start, wait_for, workers
from tests.support.fork_server import ForkedProcess
from trainer.errors import InputError

pytestmark = pytest.mark.slow

SPACE = """
trials: 14
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 3}
space:
  architecture: mlp
  batch_size: 50
  epochs: 4
  sensitivity_steps: 2
  cross_entropy_on: {choices: [clean, sensitivity]}
  regularizer: {choices: [none, triplet]}
  sensitivity_epsilon: {low: 0.05, high: 0.3}
  sensitivity_weight: {low: 0.1, high: 2.0, when: {regularizer: [triplet]}}
points:
  - preset: baseline
"""
"""More trials than the sampler draws at random before it learns."""

TRIALS, EPOCHS, KILLS = 14, 4, 10
UNDISTURBED = "undisturbed"
TIMES = ("train_seconds", "evaluation_seconds", "time")
STARTUP_SECONDS = 1.5
"""At least so long a driver takes to its first trial."""


class Sweep(NamedTuple):
    """A storage folder with the command on it.

    An environment of its own gives it processes of its own too: Python, and Ray where it names none.
    """

    storage: Path
    environment: dict[str, str] = {}  # noqa: RUF012

    def run_words(self, name: str) -> tuple[str, ...]:
        return ("run", str(self.storage / "tiny.yaml"), "--name", name, "--max-concurrent", "1", "--seed", "3")

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return call(command(self.storage, *words), own=bool(self.environment), env=os.environ | self.environment)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return start(
            command(self.storage, *words),
            own=bool(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | self.environment,
        )

    def trials(self, name: str) -> dict[int, TrialRecord]:
        return read_ledger(self.storage / name).trials

    def numbers(self, name: str) -> dict[int, tuple[str, dict, list[dict]]]:
        """Return all that must agree between two sweeps: states, configurations and every number but times."""
        return {
            number: (
                record.state,
                record.config,
                [{key: value for key, value in report.items() if key not in TIMES} for report in record.reports],
            )
            for number, record in self.trials(name).items()
        }

    def front(self, name: str) -> list[dict]:
        return front(self.storage, name)["front"]

    def events(self, name: str) -> int:
        log = self.storage / name / "ledger" / "log.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.fixture(scope="module")
def sweep(new_storage: Callable[[str], Path]) -> Sweep:
    """Run the undisturbed sweep that all others are compared with."""
    storage = new_storage("survival")
    (storage / "tiny.yaml").write_text(SPACE)
    sweep = Sweep(storage)
    # By another Python than those that are disturbed, so with other hashes of strings.
    done = call(command(storage, *sweep.run_words(UNDISTURBED)), own=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return sweep


def assert_undisturbed(sweep: Sweep, name: str) -> None:
    assert sweep.numbers(name) == sweep.numbers(UNDISTURBED)
    assert sweep.front(name) == sweep.front(UNDISTURBED)
    assert_everything_once(sweep, name)


def assert_everything_once(sweep: Sweep, name: str) -> None:
    for record in sweep.trials(name).values():
        assert [report["epoch"] for report in record.reports if not report["final"]] == [1, 2, 3, 4]
        assert [report["final"] for report in record.reports] == [False] * EPOCHS + [True]


def workers_of(driver: subprocess.Popen[str], worker: re.Pattern[str] = WORKER) -> list[int]:
    """Return the processes in which this driver's trials run: its raylet's children, or those of the shared Ray."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=2) for line in found.splitlines()[1:]]
    parents = {int(pid): int(ppid) for pid, ppid, *_ in rows}
    forked = workers().parents() if isinstance(driver, ForkedProcess) else {}

    def below(pid: int) -> bool:
        if pid in forked:
            return True
        while pid in parents and pid != driver.pid:
            pid = parents[pid]
        return pid == driver.pid

    return [int(pid) for pid, _, args in rows if worker.match(args) and below(int(pid))]


def test_the_driver_is_killed_ten_times(sweep: Sweep) -> None:
    moments, name = random.Random(5), "killed"
    words, kills = sweep.run_words(name), 0
    for kill in range(KILLS):
        driver, before = sweep.start(*words), sweep.events(name)
        if kill % 3 == 1:
            time.sleep(moments.uniform(0.1, STARTUP_SECONDS))
        else:
            wanted = before + moments.randint(1, 12)
            wait_for(lambda wanted=wanted: sweep.events(name) >= wanted, driver)
            time.sleep(moments.uniform(0.0, 0.1))
        assert driver.poll() is None, "it had nothing left to be killed in"
        driver.kill()
        driver.communicate()
        kills += 1
        begun = (sweep.storage / name / "plan.yaml").exists()
        words = ("resume", name) if begun else words
    ended = {number: record.attempts for number, record in sweep.trials(name).items() if record.state == "finished"}
    assert 0 < len(ended) < TRIALS
    done = sweep.call("resume", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert kills == KILLS
    assert_undisturbed(sweep, name)
    for number, attempts in ended.items():
        assert sweep.trials(name)[number].attempts == attempts, "a finished trial was run again"


def test_a_worker_is_killed_in_mid_trial_and_a_second_driver_is_refused(sweep: Sweep) -> None:
    driver = sweep.start(*sweep.run_words("worker"))
    wait_for(lambda: sweep.events("worker") >= 9, driver)
    [worker] = workers_of(driver)
    os.kill(worker, signal.SIGKILL)
    second = sweep.call("resume", "worker")
    said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, said
    assert_undisturbed(sweep, "worker")
    [lost] = [number for number, record in sweep.trials("worker").items() if record.attempts == 2]
    assert f"trial {lost:03d}: its worker was lost; it continues from its last epoch" in said
    assert second.returncode == 2
    who = f"pid {driver.pid} on host {socket.gethostname()}"
    assert second.stderr == f"otsweep: sweep 'worker' is already being run by {who}\n"
    assert second.stdout == ""


def test_a_worker_that_says_nothing_is_told_ended_and_its_trial_retried(sweep: Sweep) -> None:
    """Stop a worker as a file system or a driver that hangs does: its process is there, and never answers."""
    own = Sweep(sweep.storage, {"PYTHONHASHSEED": "0"})
    driver = own.start(*sweep.run_words("silent"), "--epoch-timeout", "90")
    wait_for(lambda: sweep.events("silent") >= 9, driver)
    [worker] = workers_of(driver)
    os.kill(worker, signal.SIGSTOP)
    said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, said
    assert not Path(f"/proc/{worker}").exists(), "it hangs still"
    assert_undisturbed(sweep, "silent")
    [lost] = [number for number, record in sweep.trials("silent").items() if record.attempts == 2]
    silence = f"trial {lost:03d}: its worker has reported nothing for"
    told, ended = [line for line in said.splitlines() if line.startswith(silence)]
    assert told.endswith("; it will be ended after 90 s")
    assert ended.endswith(": ended (--epoch-timeout)")
    assert f"trial {lost:03d}: its worker was lost; it continues from its last epoch" in said
    [part] = (sweep.storage / "silent" / "ledger").glob("part-*.parquet")
    events = map(json.loads, pq.ParquetFile(part).read()["event"].to_pylist())
    kept = [(event["trial"], event["ended"]) for event in events if event["event"] == "silent"]
    assert kept == [(lost, False), (lost, True)]


@pytest.fixture(scope="module")
def half(sweep: Sweep, new_storage: Callable[[str], Path]) -> Sweep:
    """Return a storage with a sweep that was killed in the middle of a trial, two checkpoints into it."""
    half = Sweep(new_storage("half"))
    shutil.copy(sweep.storage / "tiny.yaml", half.storage)
    driver = half.start(*half.run_words(UNDISTURBED))
    wait_for(lambda: half.events(UNDISTURBED) >= 17, driver)
    for process in (driver.pid, *workers_of(driver)):
        os.kill(process, signal.SIGKILL)
    driver.communicate()
    return half


def copied(half: Sweep, folder: Path, **environment: str) -> Sweep:
    shutil.copytree(half.storage, folder, symlinks=True)
    return Sweep(folder, environment)


def interrupted(sweep: Sweep) -> int:
    [number] = [number for number, record in sweep.trials(UNDISTURBED).items() if record.state == "running"]
    return number


def test_another_machine_goes_on_with_the_same_storage(sweep: Sweep, half: Sweep, tmp_path: Path) -> None:
    """Move the storage to another path, home and MLflow store; the lock names a driver that died elsewhere."""
    home = tmp_path / "home"
    home.mkdir()
    moved = copied(half, tmp_path / "mounted elsewhere", HOME=str(home), OTSWEEP_STORAGE=str(home))
    (moved.storage / UNDISTURBED / "ledger" / "lock").write_text("pid 4242 on host another")
    kept, gone = half.storage.with_name("unreachable"), half.storage
    gone.rename(kept)
    try:
        done = moved.call("resume", UNDISTURBED, "--mlflow-uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
        assert not gone.exists(), "it wrote where the first machine had its storage"
    finally:
        kept.rename(gone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_everything_once(moved, UNDISTURBED)
    assert moved.numbers(UNDISTURBED) == sweep.numbers(UNDISTURBED)
    assert moved.front(UNDISTURBED) == sweep.front(UNDISTURBED)
    assert "MLflow does not" not in done.stdout
    assert (tmp_path / "mlflow.db").exists()


def test_other_data_on_the_other_machine_is_refused(tmp_path: Path) -> None:
    from sweep.engine.preparation import record_data_summary
    from sweep.state.data_summary import REQUIRED_KEYS, read_data_summary

    facts = dict.fromkeys(REQUIRED_KEYS, 1) | {"data_fingerprint": "d1g1t5"}
    record_data_summary(tmp_path, facts)
    record_data_summary(tmp_path, facts | {"judge_accuracy": 2})
    with pytest.raises(InputError, match="began with fingerprint d1g1t5, and finds 0th3r now; give it the same files"):
        record_data_summary(tmp_path, facts | {"data_fingerprint": "0th3r"})
    assert read_data_summary(tmp_path) == facts


def test_a_damaged_checkpoint_and_a_damaged_ledger_are_said_and_passed_over(
    sweep: Sweep, half: Sweep, tmp_path: Path
) -> None:
    broken = copied(half, tmp_path / "broken")
    number, log = interrupted(broken), broken.storage / UNDISTURBED / "ledger" / "log.jsonl"
    newest = max((broken.storage / UNDISTURBED / "trials" / f"{number:04d}").glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:1000])
    lines = log.read_bytes().splitlines(keepends=True)
    start = next(place for place, line in enumerate(lines) if b'"started","trial":1,' in line)
    final = next(place for place, line in enumerate(lines) if b'"trial":0' in line and b'"final":true' in line)
    for place in (start, final):
        lines[place] = lines[place].replace(b'"trial"', b'"tribl"')
    log.write_bytes(b"".join(lines)[:-20])
    done = broken.call("resume", UNDISTURBED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ledger: log.jsonl: line {start + 1} is damaged" in done.stdout
    assert f"ledger: log.jsonl: line {final + 1} is damaged" in done.stdout
    assert "the last line is torn" in done.stdout
    assert re.search(rf"trial {number:03d}: {newest.name} is damaged \(.*\) and passed over", done.stdout)
    assert broken.numbers(UNDISTURBED) == sweep.numbers(UNDISTURBED)
    assert broken.front(UNDISTURBED) == sweep.front(UNDISTURBED)


SHIFTED = """
import os, time
true = time.time
def shifted():
    try:
        with open(os.environ["SHIFT"]) as file:
            return true() + float(file.read())
    except (OSError, ValueError):
        return true()
time.time = shifted
"""


def test_the_clock_jumps(sweep: Sweep, tmp_path: Path) -> None:
    """Set the clock a year ahead, then a month back, in every process of the sweep."""
    (tmp_path / "sitecustomize.py").write_text(SHIFTED)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    jumping = Sweep(sweep.storage, {"PYTHONPATH": path, "SHIFT": str(tmp_path / "shift")})
    driver = jumping.start(*sweep.run_words("clock"), "--max-hours", "1")
    for events, shift in ((5, 365 * 86400), (30, -30 * 86400)):
        wait_for(lambda events=events: sweep.events("clock") >= events, driver)
        (tmp_path / "shift").write_text(str(shift))
    said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, said
    assert_undisturbed(sweep, "clock")
    trials = sweep.trials("clock")
    assert max(record.ended or 0 for record in trials.values()) > time.time() + 300 * 86400
    assert (trials[TRIALS - 1].ended or 0) < time.time() - 20 * 86400
    assert sorted(trials.values(), key=lambda record: record.ended_as) == list(trials.values())
    assert all(0 < record.slot_seconds < 300 for record in trials.values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Make a file system of 64 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("not root enough: this user may not mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room; the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_the_disk_is_full_for_a_while_and_then_for_good(sweep: Sweep, small_disk: Path) -> None:
    full = Sweep(small_disk)
    (small_disk / "cache").symlink_to(sweep.storage / "cache")
    shutil.copy(sweep.storage / "tiny.yaml", small_disk)
    driver = full.start(*full.run_words("full"))
    wait_for(lambda: full.events("full") >= 9, driver)
    ballast = fill(small_disk)
    time.sleep(4)
    ballast.unlink()
    wait_for(lambda: full.events("full") >= 25, driver)
    ballast = fill(small_disk)
    said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 1, said
    assert "No space left on device; waiting up to 30 s" in said
    assert re.search(r"otsweep: failed: cannot write .*: No space left on device, for 30 s. Nothing recorded is", said)
    assert f"resume full --storage {small_disk}" in said
    assert "Traceback" not in said, said
    assert full.trials("full").keys() < sweep.trials(UNDISTURBED).keys()
    for number, (state, config, reports) in full.numbers("full").items():
        whole = sweep.numbers(UNDISTURBED)[number]
        assert (config, reports) == (whole[1], whole[2][: len(reports)])
        assert state in ("finished", "running")
    ballast.unlink()
    done = full.call("resume", "full")
    assert done.returncode == 0, done.stdout + done.stderr
    assert full.numbers("full") == sweep.numbers(UNDISTURBED)
    assert_everything_once(full, "full")


@pytest.mark.cluster
def test_a_node_is_killed_in_mid_trial(sweep: Sweep) -> None:
    """Run in two slots on two nodes; no more trials than are drawn at random, so that their order can't matter."""
    from ray.cluster_utils import Cluster

    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": health})
    try:
        node = cluster.add_node(num_cpus=1)
        clustered = Sweep(sweep.storage, {"RAY_ADDRESS": str(cluster.address)})
        words = ("--max-concurrent", "2", "--trials", "8")
        driver = clustered.start(*sweep.run_words("nodes"), *words)
        wait_for(lambda: sweep.events("nodes") >= 12, driver)
        cluster.remove_node(node, allow_graceful=False)
        said = driver.communicate(timeout=PATIENCE)[0]
    finally:
        cluster.shutdown()
    assert driver.returncode == 0, said
    first = {number: whole for number, whole in sweep.numbers(UNDISTURBED).items() if number < 8}
    assert sweep.numbers("nodes") == first
    assert_everything_once(sweep, "nodes")
    assert "its worker was lost; it continues from its last epoch" in said
    assert max(record.attempts for record in sweep.trials("nodes").values()) == 2
