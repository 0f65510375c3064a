"""A Slurm cluster of a test's own on this machine: two nodes, two partitions of which one preempts the other.

Its daemons are started and ended by their ids; its keys, sockets and logs lie in the test's folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.ray_nodes import end, environment, free_ports, start, wait_for

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")

CONFIGURATION = """
ClusterName=otsweep
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
MpiDefault=none
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
"""


def need_slurm() -> None:
    """Skip the test where a cluster can't be started."""
    if os.getuid() != 0:
        pytest.skip("not root: slurmd starts jobs as their users")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)} (apt-get install slurm-wlm)")


class Slurm:
    """A running cluster.

    Args:
        folder: where everything of it lies, with a short path.
        settings: variables of its jobs' environment.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []
        control, first, second = free_ports(3)
        text = CONFIGURATION.format(
            host=os.uname().nodename, folder=folder, control=control, first=first, second=second
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "state").mkdir()
        self.settings = environment(SLURM_CONF=str(folder / "slurm.conf"), **settings)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        subprocess.run(["mungekey", "--create", f"--keyfile={self.folder}/key"], check=True)
        files = [f"--{kind}-file={self.folder}/{kind}" for kind in ("key", "log", "pid", "seed")]
        self._daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge", *files)
        wait_for((self.folder / "munge").exists, 30)
        self._daemon("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        wait_for(lambda: self.call("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "low").strip() == "2", 60)

    def _daemon(self, *words: str) -> None:
        name = words[-1] if words[0] == "slurmd" else words[0]
        self.running.append(start([*words], self.folder, name, self.settings))

    def call(self, *words: str) -> str:
        """Return what one of Slurm's commands prints."""
        done = subprocess.run(words, env=self.settings, cwd=self.folder, capture_output=True, text=True, timeout=60)
        return done.stdout

    def submit(self, *words: str, script: Sequence[str]) -> str:
        """Send a batch job; return its id. Its output is `ID.log` in the folder, `ID_TASK.log` for an array's."""
        output = "%A_%a.log" if any(word.startswith("--array") for word in words) else "%j.log"
        return self.call("sbatch", "--parsable", f"--output={self.folder}/{output}", *words, *script).strip()

    def job(self, job: str) -> dict[str, str]:
        """Return what Slurm tells of a job, or of an array's task."""
        words = self.call("scontrol", "show", "job", job, "-o").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def is_over(self, job: str) -> bool:
        """Return whether a job has ended for good."""
        return self.job(job).get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def wait_for_end(self, job: str) -> str:
        """Wait until a job has ended; return its state."""
        wait_for(lambda: self.is_over(job), 900)
        return self.job(job)["JobState"]

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        if len(self.running) > 1:
            for job in self.call("squeue", "-h", "-o", "%A").split():
                self.call("scancel", "--full", job)
            wait_for(lambda: not self.call("squeue", "-h"), 100)
        for process in reversed(self.running):
            end(process)
