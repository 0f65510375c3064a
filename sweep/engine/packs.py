"""Packs: several trials of a sweep that train in one process, those of one structure in one vectorised step.

To Ray Tune each of them stays a trial with a worker of its own. That worker takes up next to nothing: it finds a place
in a pack, asks there for one result after the other, and is stopped and brought back like any other. A trial trains an
epoch only while its worker waits for the result, so whatever is decided about it holds before its next epoch. Its place
is free once the driver, who is the first to know that a trial has ended or lost its worker, says so.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from sweep.engine.nodes import NODE_DIED, last_failure
from sweep.engine.trainable import Task
from sweep.plan import SweepPlan

if TYPE_CHECKING:
    pass
from sweep.engine.pack_worker import PAUSE_SECONDS, PackFailed, PackLost, PackWorker

LIGHT: dict[str, float] = {"cpu": 0, "memory": 1}
"""What Ray keeps for the worker of a packed trial. Ray Tune wants it to be something; a byte of memory is to be had, a
share of a core is not where packs hold all cores."""

_ANSWER_SECONDS = 0.2
"""How long a worker that looks for a place waits for other packs to answer, once one has."""


class PackedTrial(tune.Trainable):
    """A trial that trains in a pack. It has begun once it has its place there."""

    def setup(self, config: dict[str, Any], packs: Sequence[ActorHandle] = ()) -> None:
        self.packs = packs
        self.begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.begin(new_config)
        return True

    def begin(self, config: dict[str, Any]) -> None:
        self.number: int = config["number"]
        self.pack, self.node = _find_place(self.packs, self.number, config["config"])

    def step(self) -> dict[str, Any]:
        try:
            result: Any = ray.get(self.pack.report.remote(self.number))
            return result
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, PackLost) else PackLost(str(error.cause))) from None
        except RayActorError:
            raise PackLost(_await_fate(self.pack, self.node)) from None


def _find_place(packs: Sequence[ActorHandle], number: int, config: dict[str, Any]) -> tuple[ActorHandle, str]:
    """A pack with a place for a trial, which is the trial's from now on, and the id of the pack's node; waits for one.

    Of several packs it is the one with most trials of the same structure, and of these the one with most room.
    """
    while True:
        offers = _answers({pack.offer.remote(config): pack for pack in packs})
        for pack, (_, free) in sorted(offers.items(), key=lambda each: each[1], reverse=True):
            joined = _answers({pack.join.remote(number, config): pack}) if free else {}
            if node := joined.get(pack):
                return pack, node
        time.sleep(PAUSE_SECONDS)


def _answers(asked: Mapping[ray.ObjectRef, ActorHandle]) -> dict[ActorHandle, Any]:
    """What packs said, without those that are slow, or not there."""
    said, others = ray.wait(list(asked))
    said += ray.wait(others, num_returns=len(others), timeout=_ANSWER_SECONDS)[0] if others else []
    found = {}
    for reference in said:
        with contextlib.suppress(RayError):
            found[asked[reference]] = ray.get(reference)
    return found


def _await_fate(pack: ActorHandle, node: str) -> str:
    """What became of a pack that was lost, once that is known: its node has died, or its process alone."""
    while True:
        known = True
        try:
            ray.get(pack.node.remote())
        except ActorDiedError:
            pass  # for good: it could not even begin again
        except RayError:
            known = False
        # Ray begins a pack anew only when it knows how the node fares.
        if node not in {each["NodeID"] for each in ray.nodes() if each["Alive"]}:
            return NODE_DIED
        if known:
            return "the process of its pack was killed"
        time.sleep(PAUSE_SECONDS)


class Packs:
    """The packs of a sweep, which are there while it runs.

    Args:
        concurrent: most trials at once; there are as many packs as that takes.
    """

    def __init__(self, plan: SweepPlan, task: Task, concurrent: int) -> None:
        worker = ray.remote(PackWorker).options(
            num_cpus=plan.cpus_per_trial, num_gpus=plan.gpus_per_trial, max_restarts=-1, max_task_retries=0
        )
        self.size = plan.pack
        self.workers: list[Any] = [worker.remote(task, self.size) for _ in range(math.ceil(concurrent / self.size))]
        self.starting = {worker.node.remote(): worker for worker in self.workers}
        self.serving: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            ray.kill(worker)

    def places(self, *, wait: float = 0.0) -> int:
        """Of the packs that have started; others may be waiting for a node.

        Args:
            wait: for so many seconds at most, where one is yet to start.

        Raises:
            PackFailed: if none could start.
        """
        ready, _ = ray.wait(list(self.starting), timeout=wait) if self.starting else ([], [])
        for reference in ready:
            worker = self.starting.pop(reference)
            try:
                ray.get(reference)
                self.serving.append(worker)
            except ActorDiedError as error:
                if not self.serving and not self.starting:
                    raise PackFailed(f"no pack could start: {str(error).strip().splitlines()[-1]}") from None
            except RayError:  # killed while it started, and begun anew
                self.starting[worker.node.remote()] = worker
        return self.size * len(self.serving)

    def leave(self, number: int) -> None:
        """A trial has ended, or its worker was lost: its place is free."""
        self.places()  # knows of those too that have only just started
        for worker in self.serving:
            worker.leave.remote(number)


def why_failed(error_file: str | None) -> str:
    """What a pack said when it could not go on, if that is the last failure that Ray Tune wrote into a trial's file."""
    said = re.findall(rf"{PackFailed.__name__}: (.*)", last_failure(error_file))
    return said[-1] if said else ""


class PackCallback(tune.Callback):
    """Tells the packs when Ray Tune knows that a trial has ended, or that its worker was lost."""

    def __init__(self, packs: Packs) -> None:
        self.packs = packs

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its callbacks for a restore of its own, which is never asked for.
        return tune.Callback, ()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.packs.leave(trial.config["number"])

    on_trial_recover = on_trial_error = on_trial_complete
