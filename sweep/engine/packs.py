"""Packs: several trials of a sweep that train in one process, those of one structure in one vectorised step.

To Ray Tune each of them stays a trial with a worker of its own. That worker takes up next to nothing: it finds a slot
in a pack, asks there for one result after the other, and is stopped and brought back like any other. A trial trains an
epoch only while its worker waits for the result, so every decision about it takes effect before its next epoch. Its
slot is free once the driver, which first knows that a trial has ended or lost its worker, says so.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from sweep.engine.pack_worker import PackFailed, PackLost, PackWorker
from sweep.engine.task import Task
from sweep.plan import SweepPlan
from sweep.ray_internals import NODE_DIED, last_line

LIGHT: dict[str, float] = {"cpu": 0, "memory": 1}
"""Resources of a packed trial's own worker. Ray Tune wants something; a byte of memory can always be had, a share of a
core not where packs hold all cores."""

_PAUSE_SECONDS = 0.2
"""Time between two looks for a free slot, or for a pack that was lost."""

_ANSWER_SECONDS = 0.2
"""Time for which a worker that looks for a slot waits for other packs to answer, once one has."""

_SILENT_SECONDS = 10.0
"""Time after which a pack that does not say which trials it holds hangs itself; each answers between two lines."""


class PackedTrainable(tune.Trainable):
    """A trial that trains in a pack. It has begun once it has its slot there."""

    def setup(self, config: dict[str, Any], packs: Sequence[ActorHandle] = ()) -> None:
        self.packs = packs
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.number: int = config["number"]
        self.pack, self.node = _take_slot(self.packs, self.number, config["config"])

    def step(self) -> dict[str, Any]:
        try:
            result: Any = ray.get(self.pack.report.remote(self.number))
            return result
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, PackLost) else PackLost(str(error.cause))) from None
        except RayActorError:
            raise PackLost(_await_fate(self.pack, self.node)) from None


def _take_slot(packs: Sequence[ActorHandle], number: int, config: dict[str, Any]) -> tuple[ActorHandle, str]:
    """Wait for a free slot and give it to a trial; return the pack, and the id of the pack's node.

    Of several packs it is the one with most trials of the same structure, and of these the one with most free slots.
    """
    while True:
        offers = _answers({pack.offer.remote(config): pack for pack in packs})
        for pack, (_, free) in sorted(offers.items(), key=lambda each: each[1], reverse=True):
            joined = _answers({pack.join.remote(number, config): pack}) if free else {}
            if node := joined.get(pack):
                return pack, node
        time.sleep(_PAUSE_SECONDS)


def _answers(calls: Mapping[ray.ObjectRef, ActorHandle]) -> dict[ActorHandle, Any]:
    """Return what the called packs answer, without those that are slow or lost."""
    ready, others = ray.wait(list(calls))
    ready += ray.wait(others, num_returns=len(others), timeout=_ANSWER_SECONDS)[0] if others else []
    found = {}
    for reference in ready:
        with contextlib.suppress(RayError):
            found[calls[reference]] = ray.get(reference)
    return found


def _await_fate(pack: ActorHandle, node: str) -> str:
    """Wait until it is known how a pack was lost, and return it: its node has died, or its process alone."""
    while True:
        known = True
        try:
            ray.get(pack.node.remote())
        except ActorDiedError:
            pass  # for good: it could not even start again
        except RayError:
            known = False
        # Ray starts a pack again only when it knows how the node fares.
        if node not in {each["NodeID"] for each in ray.nodes() if each["Alive"]}:
            return NODE_DIED
        if known:
            return "the process of its pack was killed"
        time.sleep(_PAUSE_SECONDS)


class Packs:
    """The packs of a sweep, as a context at whose end their processes end.

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

    def open_slots(self, *, wait: float = 0.0) -> int:
        """Return the number of slots, free or not, of the packs that have started; others may be waiting for a node.

        Args:
            wait: longest time in seconds to wait for a pack that is yet to start.

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
                    raise PackFailed(f"no pack could start: {last_line(error)}") from None
            except RayError:  # killed while it started, and started again
                self.starting[worker.node.remote()] = worker
        return self.size * len(self.serving)

    def end_silent(self, number: int) -> None:
        """End the pack in which a trial trains, as one that hangs; Ray starts another in its place."""
        asked = {worker.holds.remote(number): worker for worker in self.serving}
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=_SILENT_SECONDS)[0] if asked else []
        for call, worker in asked.items():
            with contextlib.suppress(RayError):  # it was lost just now
                if call not in answered or ray.get(call):
                    ray.kill(worker, no_restart=False)
                    self.serving.remove(worker)
                    self.starting[worker.node.remote()] = worker

    def leave(self, number: int) -> None:
        """Free the slot of a trial that has ended or lost its worker."""
        self.open_slots()  # so that packs that have just started are known too
        for worker in self.serving:
            worker.leave.remote(number)


class PackCallback(tune.Callback):
    """A callback that frees a trial's slot in its pack once Ray Tune knows that it has ended or lost its worker."""

    def __init__(self, packs: Packs) -> None:
        self.packs = packs

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its callbacks for a restore of its own, which is never asked for.
        return tune.Callback, ()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.packs.leave(trial.config["number"])

    on_trial_recover = on_trial_error = on_trial_complete
