"""Ray as a sweep starts it, joins it and loses it: what works, and what is told in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweep.engine.cpus import usable_cpus
from sweep.engine.leftovers import end_stray_processes, remove_leftovers, write_owner
from sweep.ledger.reading import read_ledger
from sweep.ledger.writing import LedgerWriter
from tests.support.commands import PATIENCE, call, command, otsweep, shared_ray, start, wait_for
from tests.support.ray_nodes import LOOPBACK, tree

SPACE = """
trials: 2
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 1}
space: {architecture: mlp, batch_size: 50, epochs: EPOCHS}
points:
  - {preset: baseline}
  - {preset: baseline, learning_rate: 0.01}
"""


@pytest.fixture
def storage(new_storage: Callable[[str], Path]) -> Path:
    folder = new_storage("starts")
    (folder / "short.yaml").write_text(SPACE.replace("EPOCHS", "1"))
    (folder / "long.yaml").write_text(SPACE.replace("EPOCHS", "3000"))
    return folder


def words(storage: Path, space: str = "short", *options: str) -> list[str]:
    return command(storage, "run", str(storage / f"{space}.yaml"), "--name", "mine", *options)


def python(code: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python of its own. A variable that is empty is not set."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | variables
    env = {name: value for name, value in known.items() if value}
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


# ------------------------------------------------------------------------------------------------------------ our own

STRANGER = """
import os, sys
from ray._raylet import GcsClient
if os.getuid() == 0:
    os.setuid(65534)
    try:
        os.listdir(sys.argv[2])
    except PermissionError:
        print("no entry")
try:
    GcsClient(address=sys.argv[1])
except Exception as error:
    print("no token" if "InvalidAuthToken" in str(error) else error)
"""
"""What another user of this machine, who knows the address and no token, can do with somebody's Ray."""

OWN = """
import json, os, stat, subprocess, sys
from pathlib import Path
import sweep, ray
from ray._private import worker
from sweep.engine.ray_start import ray_session

with ray_session():
    node = worker._global_node
    folder = Path(node.get_session_dir_path()).parents[1]
    told = {"folder": str(folder), "mode": stat.S_IMODE(folder.stat().st_mode)}
    told["answer"] = ray.get(ray.remote(lambda: 6).remote())
    env = {**os.environ, "RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "disabled"}
    words = [sys.executable, "-c", sys.argv[1], node.gcs_address, str(folder)]
    told["stranger"] = subprocess.run(words, env=env, capture_output=True, text=True).stdout
told["left"] = folder.exists()
told["variables"] = [name for name in os.environ if name.startswith("RAY_AUTH")]
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["long", "missing"])
def test_a_ray_of_ones_own_is_for_oneself(place: str, tmp_path: Path) -> None:
    """Start it where the folder for temporary files has no short path, or isn't there, and no home can be written."""
    given = tmp_path / ("x" * 60)
    if place == "long":
        given.mkdir()
    done = python(OWN, STRANGER, HOME="/dev/null/home", TMPDIR=str(given))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    told = json.loads(done.stdout)
    assert told["answer"] == 6
    assert told["mode"] == stat.S_IRWXU
    assert len(told["folder"]) < 41
    assert told["stranger"] == ("no entry\nno token\n" if os.getuid() == 0 else "no token\n")
    assert not told["left"]
    assert told["variables"] == []


KILLED = """
import os, signal
from pathlib import Path
import sweep
from ray._private import worker
from sweep.engine.ray_start import ray_session

with ray_session():
    print(Path(worker._global_node.get_session_dir_path()).parents[1], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_folder_of_a_ray_whose_owner_was_killed_is_removed_by_the_next_start(short_folder: Path) -> None:
    left = Path(python(KILLED, TMPDIR=str(short_folder)).stdout.strip())
    assert left.is_dir()
    assert left.parent == short_folder
    assert python(OWN, STRANGER, TMPDIR=str(short_folder)).returncode == 0
    assert list(short_folder.iterdir()) == []


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Return a folder whose path leaves room for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="otl-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def owner(folder: Path, change: dict[str, Any]) -> None:
    write_owner(folder)
    path = folder / "owner.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        pytest.param({}, True, id="its owner runs"),
        pytest.param({"started": "1"}, False, id="another process has its owner's number"),
        pytest.param({"pid": 2**22 + 1}, False, id="its owner has ended"),
        pytest.param({"pid": 2**22 + 1, "boot": "another"}, True, id="its owner ran on another machine"),
        pytest.param({"pid": 2**22 + 1, "namespace": "pid:[1]"}, True, id="its owner ran in another container"),
        pytest.param({"pid": None}, True, id="its owner is not known"),
    ],
)
def test_only_folders_whose_owner_is_gone_are_removed(change: dict[str, Any], stays: bool, tmp_path: Path) -> None:
    (folder := tmp_path / "ots-left").mkdir()
    owner(folder, change)
    (tmp_path / "ots-link").symlink_to(folder)
    (tmp_path / "ots-empty").mkdir()
    remove_leftovers(tmp_path)
    assert folder.exists() == stays
    assert (tmp_path / "ots-empty").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="not root: can't give a folder to another user")
def test_folders_of_others_stay(tmp_path: Path) -> None:
    (folder := tmp_path / "ots-others").mkdir()
    owner(folder, {"pid": 2**22 + 1})
    os.chown(folder, 65534, 65534)
    remove_leftovers(tmp_path)
    assert folder.exists()


def test_processes_that_a_failed_start_left_are_ended_and_no_others(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    ours = subprocess.Popen([*sleep, f"--session-dir={tmp_path / 'ots-a' / 'session'}"])
    others = [
        subprocess.Popen([*sleep, f"--session-dir={tmp_path / 'ots-ab' / 'session'}"]),
        subprocess.Popen([*sleep, str(tmp_path / "ots-a" / "session" / "raylet.out")]),
    ]
    try:
        end_stray_processes(tmp_path / "ots-a")
        assert ours.wait(PATIENCE) == -signal.SIGKILL
        assert [other.poll() for other in others] == [None, None]
    finally:
        for process in (ours, *others):
            process.kill()
            process.wait()


DROPPED = """
import threading, time
import sweep, ray
from sweep.engine.ray_start import ray_session

def drop():
    while references:
        references.pop()
        time.sleep(0.0002)

with ray_session():
    references = [ray.put(number) for number in range(3000)]
    threading.Thread(target=drop, daemon=True).start()
print(len(references))
"""


@pytest.mark.slow
def test_what_another_thread_drops_while_ray_ends_does_not_end_the_process() -> None:
    done = python(DROPPED)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 0, "some were dropped after Ray had ended"


@pytest.mark.slow
def test_a_limit_of_memory_is_named_and_nothing_is_left(storage: Path) -> None:
    limited = ["/bin/sh", "-c", 'ulimit -v 6000000; exec "$@"', "sh", *words(storage)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "`ulimit -v` is 6000000 kB" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (storage / "mine").exists()


# --------------------------------------------------------------------------------------------------- another's cluster

COMMAND = """
import sys
import sweep, ray
ray.__version__ = sys.argv.pop(1) or ray.__version__
from sweep.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "submit SPACE --address http://127.0.0.1:8265"),
        ("ray://127.0.0.1:10001", "RAY_ADDRESS=HOST:6379 of its head, or RAY_ADDRESS=auto"),
        ("somewhere", "must be RAY_ADDRESS=HOST:6379 of its head"),
        ("127.0.0.1:9", "no Ray cluster answers there"),
    ],
)
def test_an_address_of_no_head_is_refused_in_one_line(address: str, message: str, storage: Path) -> None:
    done = call(words(storage), joins=False, env={**os.environ, "RAY_ADDRESS": address})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"otsweep: RAY_ADDRESS={address}: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (storage / "mine").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "token", "message"),
    [
        ("2.1.0", None, r"the cluster runs Ray \d.* and Python 3.*, and here is Ray 2.1.0 and Python 3"),
        (
            "",
            "",
            "the cluster asks for a token, .*looked in RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, ~/",
        ),
        ("", "f" * 32, "the cluster asks for a token, and refuses what was found"),
    ],
    ids=["other-version", "no-token", "wrong-token"],
)
def test_a_head_that_does_not_fit_is_told_in_one_line(
    version: str, token: str | None, message: str, storage: Path, tmp_path: Path
) -> None:
    settings = {**shared_ray(), **LOOPBACK, "HOME": str(tmp_path)}
    if token is not None:
        settings |= {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": ""}
    done = python(COMMAND, version, *words(storage)[3:], **settings)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not (storage / "mine").exists()


# --------------------------------------------------------------------------------------------------------------- loss


WAITING = """
import os, signal, sys, time
import sweep, ray
from ray._private import worker
from sweep.engine.ray_start import ray_session
from sweep.engine.ray_watch import RayLost

begun = []
try:
    with ray_session():
        task = ray.remote(lambda: time.sleep(1000)).remote()
        os.kill(worker._global_node.all_processes[sys.argv[1]][0].process.pid, signal.SIGKILL)
        begun.append(time.monotonic())
        ray.get(task)
except RayLost as error:
    print(error)
    print(time.monotonic() - begun[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "name"), [("raylet", "this machine's part of it (raylet)"), ("gcs_server", "its head (GCS)")]
)
def test_who_waits_for_a_ray_that_is_lost_is_told_at_once(process: str, name: str) -> None:
    """Ray's library would wait for ever, or end this process without a word."""
    done = python(WAITING, process)
    # Ray's core may log, in its own form, that a task fails which was on its way when the raylet died.
    assert [line for line in done.stderr.splitlines() if not re.match(r"\[.* E \d+ \d+\] task_manager\.cc", line)] == []
    assert done.returncode == 1, "Ray's own ways out would wait for what is not there"
    said, seconds = done.stdout.splitlines()
    assert said == f"Ray is lost: {name} was killed, or has crashed"
    assert float(seconds) < 60, "also on a busy machine"


@pytest.mark.slow
def test_a_sweep_whose_ray_is_lost_tells_the_command_that_resumes(storage: Path) -> None:
    # What makes errors of warnings ends nothing.
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    driver = start(words(storage, "long"), own=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    log = storage / "mine/ledger/log.jsonl"
    wait_for(lambda: log.exists() and b'"reported"' in log.read_bytes(), driver)
    os.kill(next(pid for pid in tree(driver.pid) if name_of(pid) == "raylet"), signal.SIGKILL)
    out, err = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 1, out + err
    said = (
        "otsweep: failed: Ray is lost: this machine's part of it (raylet) was killed, or has crashed. Nothing recorded"
    )
    assert err.startswith(f"{said} is lost; to resume:\n  "), err
    assert re.search(r" resume mine .*\n$", err)
    trials = read_ledger(storage / "mine").trials
    assert {record.state for record in trials.values()} == {"running"}
    assert any(record.reports for record in trials.values())


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


CUT = """
import os, sys
from sweep.cli.last_word import last_word
with last_word("cut off"):
    if sys.argv[1] == "cut":
        os._exit(1)
"""


@pytest.mark.parametrize(("how", "message"), [("cut", "cut off\n"), ("end", "")])
def test_a_process_that_is_cut_off_has_a_last_word(how: str, message: str) -> None:
    assert python(CUT, how).stderr == message


# ---------------------------------------------------------------------------------------------------------- retrying


@pytest.mark.slow
def test_trials_that_lacked_something_are_run_again_when_asked_for(storage: Path) -> None:
    assert otsweep(storage, *words(storage)[3:-2]).returncode == 0
    done = read_ledger(storage / "mine").trials
    with LedgerWriter(storage / "mine") as ledger:
        ends: dict[str, Any] = {"state": "failed", "time": 1.0}
        ledger.ended(0, **ends, reason="no module named 'x'", environment=True)
        ledger.ended(1, **ends, reason="not finite in epoch 1: loss", environment=False)
    plain = otsweep(storage, "resume", "mine")
    assert "1 of them for want of their environment" in plain.stdout
    again = otsweep(storage, "resume", "mine", "--retry-failed")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 of 2 trials to go" in again.stdout
    trials = read_ledger(storage / "mine").trials
    assert {number: record.state for number, record in trials.items()} == {0: "finished", 1: "failed"}
    result, before = trials[0].result, done[0].result
    assert result is not None
    assert before is not None
    assert result["clean_accuracy"] == before["clean_accuracy"]


# -------------------------------------------------------------------------------------------------------------- CPUs


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {"proc/self/cgroup": "0::/mine/deep\n", "sys/fs/cgroup/mine/cpu.max": "300000 100000\n"}
V1 = {
    "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/docker/far\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}
V1_QUOTA = "sys/fs/cgroup/cpu/cpu.cfs_quota_us"


@pytest.mark.parametrize(
    ("files", "affinity", "slurm", "count", "limit"),
    [
        ({}, 8, "", 8, ""),
        ({}, 5, "", 5, "its CPU affinity (taskset or cpuset)"),
        ({}, 8, "4", 4, "SLURM_CPUS_PER_TASK"),
        ({}, 8, "64", 8, ""),
        (V2, 8, "", 3, "its cgroup's quota"),
        (V2 | {"sys/fs/cgroup/mine/deep/cpu.max": "max 100000\n"}, 8, "", 3, "its cgroup's quota"),
        (V2 | {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 8, "", 1, "its cgroup's quota"),
        (V2, 2, "", 2, "its CPU affinity (taskset or cpuset)"),
        (V1 | {V1_QUOTA: "250000\n"}, 8, "", 2, "its cgroup's quota"),
        (V1 | {V1_QUOTA: "-1\n"}, 8, "", 8, ""),
    ],
)
def test_usable_cpus(
    files: dict[str, str],
    affinity: int,
    slurm: str,
    count: int,
    limit: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    found = usable_cpus(plant(tmp_path, files))
    assert (found.usable, found.limit) == (count, limit)
    assert found.describe() == (f"uses {count} of this machine's 8 CPUs, by {limit}" if limit else "")
