"""docker/slurm.sh on a real Slurm cluster of this machine: two nodes, preemption with requeue, a job array."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.ledger.reading import read_ledger
from sweep.plan.plan_file import read_plan
from tests.support.ray_nodes import wait_for
from tests.support.slurm import Slurm, need_slurm

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "docker" / "slurm.sh")
SPACE = """
trials: 4
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 2}
space:
  architecture: mlp
  batch_size: 50
  epochs: 100
  cross_entropy_on: clean
  regularizer: none
  learning_rate: {low: 0.0001, high: 0.01}
"""

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture(scope="module")
def slurm(cache_dir: Path) -> Iterator[Slurm]:
    need_slurm()
    with tempfile.TemporaryDirectory(prefix="otl-") as name:
        folder = Path(name)
        (folder / "storage").mkdir()
        (folder / "storage" / "cache").symlink_to(cache_dir)
        (folder / "tiny.yaml").write_text(SPACE)
        cluster = Slurm(folder, PYTHONPATH=str(ROOT), RAY_TMPDIR=name)
        try:
            yield cluster
        finally:
            cluster.stop()


def send(slurm: Slurm, name: str, *words: str, nodes: int = 1, options: tuple[str, ...] = ()) -> str:
    """Send a sweep by the script; return the job's id."""
    given = [f"-N{nodes}", "--ntasks-per-node=1", "--cpus-per-task=1", *words]
    script = [SCRIPT, str(slurm.folder / "tiny.yaml"), name, str(slurm.folder / "storage"), *options]
    return slurm.submit(*given, script=script)


def test_a_preempted_sweep_on_two_nodes_is_requeued_and_goes_on(slurm: Slurm) -> None:
    job = send(slurm, "preempted", nodes=2)
    sweep, output = slurm.folder / "storage" / "preempted", slurm.folder / f"{job}.log"

    def reports() -> int:
        log = sweep / "ledger" / "log.jsonl"
        return log.read_bytes().count(b'"event":"reported"') if log.exists() else 0

    try:
        wait_for(lambda: reports() > 10 or slurm.is_over(job), 900)
        assert not slurm.is_over(job), "it ended before it was disturbed"
        assert slurm.job(job)["NumNodes"] == "2"
        urgent = slurm.submit("-N2", "--exclusive", "--partition=high", script=["--wrap", "true"])
        assert slurm.wait_for_end(urgent) == "COMPLETED"
        # Slurm itself waits two minutes before it starts a requeued job.
        slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")
        assert slurm.wait_for_end(job) == "COMPLETED"
    except BaseException:
        print(output.read_text() if output.exists() else "no output")
        raise
    assert slurm.job(job)["Restarts"] == "1"
    said = output.read_text()
    assert "Resuming preempted" in said
    assert "4/4 done" in said
    assert "Ray runtime started" not in said, "Ray's own words are in files of their own"
    trials = read_ledger(sweep).trials
    first = [trials[0], trials[1]]
    begun, ended = max(each.started or 0 for each in first), min(each.ended or 0 for each in first)
    assert begun < ended, "they did not run at once, one on each node"
    assert [record.state for record in trials.values()] == ["finished"] * 4
    epochs = [[report["epoch"] for report in record.reports if not report["final"]] for record in trials.values()]
    assert epochs == [list(range(1, 101))] * 4, "no epoch is missing or trained twice"
    wait_for(lambda: not of_ray(slurm.folder), 60)
    assert not list(slurm.folder.glob("ray-*")), "nor a folder, without cgroups too"


def of_ray(folder: Path) -> list[str]:
    """Return the processes of Ray whose folders lie in a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = place.read_bytes().decode(errors="replace")
            if f"{folder}/ray-" in words:
                found.append(words.replace("\0", " "))
    return found


def test_an_arrays_tasks_are_sweeps_of_their_own(slurm: Slurm) -> None:
    job = send(slurm, "seed", "--array=1-2", options=("--trials", "2", "--epochs", "3"))
    states = [slurm.wait_for_end(f"{job}_{task}") for task in (1, 2)]
    said = "\n".join(path.read_text() for path in sorted(slurm.folder.glob(f"{job}_*.log")))
    assert states == ["COMPLETED"] * 2, said
    storage = slurm.folder / "storage"
    assert [read_plan(f"seed-{seed}", storage=str(storage)).seed for seed in (1, 2)] == [1, 2]
    for seed in (1, 2):
        assert [record.state for record in read_ledger(storage / f"seed-{seed}").trials.values()] == ["finished"] * 2
    again = send(slurm, "seed", "--array=1", options=("--trials", "2"))
    assert slurm.wait_for_end(f"{again}_1") == "COMPLETED", "sent again it resumes, which has nothing left to do"
