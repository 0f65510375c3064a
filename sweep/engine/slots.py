"""How many trials run at once: as many as the nodes can hold, by what is asked for and, where it is to be measured, by
the memory that a trial really takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import ray

from sweep.engine.trainable import Footprint
from sweep.plan import SweepPlan
from trainer.errors import InputError

_MEMORY_SHARE = 0.9
"""Of a GPU's memory that trials may take together: allocators leave gaps. Of a node's, Ray has taken its own share."""


class Node(NamedTuple):
    """What one machine of the cluster offers to all trials."""

    cpus: float
    gpus: float
    memory: int
    """Bytes of the host's."""

    def fitting(self, *, cpus: float, gpus: float) -> int:
        """How many trials that ask for so much it holds. A share of a GPU lies on one GPU; whole ones are whole."""
        limits = []
        if cpus > 0:
            limits.append(_whole(self.cpus / cpus))
        if gpus > 0:
            limits.append(int(self.gpus) * _whole(1 / gpus) if gpus < 1 else _whole(self.gpus / gpus))
        return min(limits)


def _whole(ratio: float) -> int:
    """How many times one goes into the other, where 1 / 0.1 is 10 whatever the last bit says."""
    return int(ratio + 1e-9)


def alive_nodes() -> list[Node]:
    """The machines of the cluster that are alive."""
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(offer.get("CPU", 0), offer.get("GPU", 0), int(offer.get("memory", 0))) for offer in offers]


def _fitting_now(plan: SweepPlan) -> int:
    """How many trials the nodes that are there now hold, by what is asked for."""
    return plan.pack * sum(node.fitting(cpus=plan.cpus_per_trial, gpus=plan.gpus_per_trial) for node in alive_nodes())


def slots_now(plan: SweepPlan, concurrent: int) -> int:
    """Of the trials that may run at once, how many the nodes that are there now let run; 1 where there is none yet."""
    return max(1, min(_fitting_now(plan), concurrent, plan.trials))


def concurrency(plan: SweepPlan, progress: Callable[[str, int, int], None]) -> int:
    """How many trials run at once, by what is asked for; on a cluster, where nodes come and go, at most so many. Where
    trials are packed, that is asked for each pack.

    Args:
        progress: told that a node is waited for.

    Raises:
        InputError: if no node holds even one trial or pack, since Ray itself would wait for ever. On a cluster that has
            none of what is asked for, nodes with it may come.
    """
    have, on_cluster = alive_nodes(), bool(os.environ.get("RAY_ADDRESS"))
    fits = _fitting_now(plan)
    lacking = {"CPU": plan.cpus_per_trial > sum(node.cpus for node in have) == 0}
    lacking |= {"GPU": plan.gpus_per_trial > sum(node.gpus for node in have) == 0}
    if fits == 0 and not (on_cluster and any(lacking.values())):
        raise InputError(_infeasible(plan, have))
    if fits == 0:
        progress(f"waiting for a node with a {' and a '.join(kind for kind, none in lacking.items() if none)}", 0, 1)
    most = max(fits, plan.trials) if on_cluster else fits
    return min(most, plan.max_concurrent or most)


def _infeasible(plan: SweepPlan, have: list[Node]) -> str:
    """What was asked for in vain, and what there is."""
    most = {"cpus": max(node.cpus for node in have), "gpus": max(node.gpus for node in have)}
    need = {"cpus": plan.cpus_per_trial, "gpus": plan.gpus_per_trial}
    wrong = [name for name, amount in need.items() if amount > most[name]] or list(need)
    asked = " ".join(f"--{name}-per-trial {need[name]:g}" for name in wrong)
    if len(have) == 1:
        return f"{asked}: this machine has {most['cpus']:g} CPU and {most['gpus']:g} GPU"
    listed = ", ".join(f"{node.cpus:g} CPU and {node.gpus:g} GPU" for node in have)
    return f"{asked}: no node of the cluster has that; its {len(have)} nodes have {listed}"


class Slots:
    """How many trials may run now. Only one until the first has said what it takes, where that is to be found out:
    its memory for `--max-concurrent auto`, its time for `--max-gpu-hours`.

    Args:
        known: whether the sweep knows already how long a trial takes.
        places: how many there are by now, where it is packs that run.
    """

    def __init__(
        self, plan: SweepPlan, concurrent: int, *, known: bool, places: Callable[[], int] | None = None
    ) -> None:
        self.plan, self.concurrent = plan, concurrent
        self.places = places or (lambda: concurrent)
        self.limit = 1 if plan.measure_memory or (plan.max_gpu_hours and not known) else concurrent
        self.most = Footprint(0, 0, 0)

    def heard(self, footprint: Footprint) -> bool:
        """A trial told what it has taken; whether it is the first, or changes the limit."""
        before = self.limit if self.most.host else None
        self.most = Footprint(*map(max, self.most, footprint))
        self.limit = self.holding() if self.plan.measure_memory else self.concurrent
        return self.limit != before

    def describe(self) -> str:
        """What was found, for people."""
        gpu = f" and {self.most.gpu / 1e9:.2f} GB of a GPU" if self.most.gpu else ""
        return f"a trial takes {self.most.host / 1e9:.2f} GB{gpu}: {self.limit} at once from now on"

    def holding(self) -> int:
        """How many trials like the largest so far the nodes hold; at least the one that runs."""
        gpus = self.plan.gpus_per_trial
        if self.most.gpu:
            # Trials on one GPU share its memory, however small a share of the GPU each asks for.
            gpus = max(gpus, min(1.0, self.most.gpu / (_MEMORY_SHARE * self.most.gpu_total)))
        fits = (
            min(node.fitting(cpus=self.plan.cpus_per_trial, gpus=gpus), _whole(node.memory / max(1, self.most.host)))
            for node in alive_nodes()
        )
        return max(1, min(self.concurrent, sum(fits)))
