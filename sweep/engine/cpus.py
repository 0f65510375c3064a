"""The number of CPUs that this process may use, which on a shared machine is less than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple


class _UsableCpus(NamedTuple):
    """CPUs that this process may use."""

    usable: int

    limit: str
    """The setting that leaves it fewer than the machine has; empty if there is none."""

    machine: int
    """CPUs of the machine."""

    def describe(self) -> str:
        """Return a line for people about the limit; empty without one."""
        if not self.limit:
            return ""
        return f"uses {self.usable} of this machine's {self.machine} CPUs, by {self.limit}"


def usable_cpus(root: Path = Path("/")) -> _UsableCpus:
    """Return how many CPUs this process may use, by its affinity, its cgroup's quota and Slurm; at least one.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    machine = os.cpu_count() or 1
    limits = {"": float(machine), "its cgroup's quota": _cgroup_quota(root)}
    if hasattr(os, "sched_getaffinity"):  # Linux alone has it
        limits["its CPU affinity (taskset or cpuset)"] = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if given.isdecimal() and int(given):
        limits["SLURM_CPUS_PER_TASK"] = int(given)
    limit = min(limits, key=lambda name: limits[name])
    return _UsableCpus(max(1, int(limits[limit])), limit, machine)


def _cgroup_quota(root: Path) -> float:
    """Return the CPUs that the cgroup of this process (version 1 or 2) and all above it grant; infinity if all."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folder = mount / path.lstrip("/")
        # In a container the path may be the host's, of which only the mount itself is to be seen.
        above = [folder, *folder.parents]
        quotas += [_quota_of(each) for each in above[: above.index(mount) + 1]]
    return min(quotas)


def _quota_of(cgroup: Path) -> float:
    """Return the CPUs that one cgroup's own files grant."""
    words = [_read_words(cgroup / name) for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    quota, period = words[0] if len(words[0]) == 2 else [*words[1], *words[2]] or ["max", "1"]
    # No limit is "max" in version 2, and -1 in version 1.
    return int(quota) / int(period) if quota.isdecimal() else math.inf


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
