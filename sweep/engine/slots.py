"""The number of trials that run at once: what the nodes can hold, by resources or by measured memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import ray

from sweep.engine.ray_start import cluster_address
from sweep.engine.trainable import Footprint
from sweep.plan import SweepPlan
from trainer.errors import InputError

_MEMORY_SHARE = 0.9
"""Share of a GPU's memory that trials may take together: allocators leave gaps. A node's memory is offered by Ray after
its own share."""


class Node(NamedTuple):
    """Resources of one machine of the cluster."""

    cpus: float
    gpus: float
    memory: int
    """Bytes of the host's memory."""

    def fitting(self, *, cpus: float, gpus: float) -> int:
        """Return how many trials with such requests it holds. A share of a GPU lies on one GPU; whole ones are
        whole."""
        limits = []
        if cpus > 0:
            limits.append(_times(self.cpus / cpus))
        if gpus > 0:
            limits.append(int(self.gpus) * _times(1 / gpus) if gpus < 1 else _times(self.gpus / gpus))
        return min(limits)


def _times(ratio: float) -> int:
    """Round a ratio down, where 1 / 0.1 is 10 whatever its last bit."""
    return int(ratio + 1e-9)


def alive_nodes() -> list[Node]:
    """Return the machines of the cluster that are alive."""
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(offer.get("CPU", 0), offer.get("GPU", 0), int(offer.get("memory", 0))) for offer in offers]


def _fitting_now(plan: SweepPlan) -> int:
    """Return how many trials the nodes that are there hold, by what the plan requests."""
    return plan.pack * sum(node.fitting(cpus=plan.cpus_per_trial, gpus=plan.gpus_per_trial) for node in alive_nodes())


def slots_now(plan: SweepPlan, concurrent: int) -> int:
    """Return how many of at most `concurrent` trials fit on the nodes that are there; 1 if there is no node yet."""
    return max(1, min(_fitting_now(plan), concurrent, plan.trials))


def concurrency(plan: SweepPlan, progress: Callable[[str, int, int], None]) -> int:
    """Return how many trials may run at once by what each of them, or each pack, requests.

    On a cluster, where nodes come and go, it is an upper bound.

    Args:
        progress: called if a node must be waited for.

    Raises:
        InputError: if no node holds even one trial or pack, since Ray itself would wait for ever. If a cluster has no
            CPU or GPU at all, nodes with one may still come.
    """
    nodes, on_cluster = alive_nodes(), bool(cluster_address())
    fits = _fitting_now(plan)
    lacking = {"CPU": plan.cpus_per_trial > sum(node.cpus for node in nodes) == 0}
    lacking |= {"GPU": plan.gpus_per_trial > sum(node.gpus for node in nodes) == 0}
    if fits == 0 and not (on_cluster and any(lacking.values())):
        raise InputError(_infeasible(plan, nodes))
    if fits == 0:
        progress(f"waiting for a node with a {' and a '.join(kind for kind, none in lacking.items() if none)}", 0, 1)
    most = max(fits, plan.trials) if on_cluster else fits
    return min(most, plan.max_concurrent or most)


def _infeasible(plan: SweepPlan, nodes: list[Node]) -> str:
    """Return the message about a request that no node can fulfil."""
    most = {"cpus": max(node.cpus for node in nodes), "gpus": max(node.gpus for node in nodes)}
    need = {"cpus": plan.cpus_per_trial, "gpus": plan.gpus_per_trial}
    wrong = [name for name, amount in need.items() if amount > most[name]] or list(need)
    options = " ".join(f"--{name}-per-trial {need[name]:g}" for name in wrong)
    if len(nodes) == 1:
        return f"{options}: this machine has {most['cpus']:g} CPU and {most['gpus']:g} GPU"
    listed = ", ".join(f"{node.cpus:g} CPU and {node.gpus:g} GPU" for node in nodes)
    return f"{options}: no node of the cluster has that; its {len(nodes)} nodes have {listed}"


class Slots:
    """The number of trials that may run now.

    It is 1 until the first trial has reported, if something is to be measured first: memory for
    `--max-concurrent auto`, time for `--max-gpu-hours`.

    Args:
        known: whether the sweep knows already how long a trial takes.
        open_slots: returns the slots of the packs that have started; without packs all are open.
    """

    def __init__(
        self, plan: SweepPlan, concurrent: int, *, known: bool, open_slots: Callable[[], int] | None = None
    ) -> None:
        self.plan, self.concurrent = plan, concurrent
        self.open_slots = open_slots or (lambda: concurrent)
        self.limit = 1 if plan.measure_memory or (plan.max_gpu_hours and not known) else concurrent
        self._largest = Footprint(0, 0, 0)

    def observe(self, footprint: Footprint) -> bool:
        """Take in what a trial's worker has taken, and return whether it is the first or changes the limit."""
        before = self.limit if self._largest.host else None
        self._largest = Footprint(*map(max, self._largest, footprint))
        self.limit = self._fitting() if self.plan.measure_memory else self.concurrent
        return self.limit != before

    def describe(self) -> str:
        """Return the measured memory and the limit as a line for people."""
        gpu = f" and {self._largest.gpu / 1e9:.2f} GB of a GPU" if self._largest.gpu else ""
        return f"a trial takes {self._largest.host / 1e9:.2f} GB{gpu}: {self.limit} at once from now on"

    def _fitting(self) -> int:
        """Return how many trials like the largest so far the nodes hold; at least the one that runs."""
        gpus = self.plan.gpus_per_trial
        if self._largest.gpu:
            # Trials on one GPU share its memory, however small a share of the GPU each requests.
            gpus = max(gpus, min(1.0, self._largest.gpu / (_MEMORY_SHARE * self._largest.gpu_total)))
        fits = (
            min(
                node.fitting(cpus=self.plan.cpus_per_trial, gpus=gpus), _times(node.memory / max(1, self._largest.host))
            )
            for node in alive_nodes()
        )
        return max(1, min(self.concurrent, sum(fits)))
