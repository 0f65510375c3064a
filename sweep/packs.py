"""Packs: several trials of a sweep that train in one process, those of one structure in one vectorised step.

To Ray Tune each of them stays a trial with a worker of its own. That worker takes up next to nothing: it finds a place
in a pack, asks there for one result after the other, and is stopped and brought back like any other. A trial trains an
epoch only while its worker waits for the result, so whatever is decided about it holds before its next epoch. Its place
is free once the driver, who is the first to know that a trial has ended or lost its worker, says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from sweep.nodes import NODE_DIED, last_failure
from sweep.plan import SweepPlan
from sweep.trainable import Footprint, Task, evaluation_of, explain, measure, result_of, shared, trial_store
from trainer.config import OtsweepError, TrialConfig

if TYPE_CHECKING:
    from trainer.pack import Lane
    from trainer.report import EpochReport

LIGHT: dict[str, float] = {"cpu": 0, "memory": 1}
"""What Ray keeps for the worker of a packed trial. Ray Tune wants it to be something; a byte of memory is to be had, a
share of a core is not where packs hold all cores."""

PATIENCE = 0.25
"""Of an epoch's seconds: how long those that are there wait for others who trained with them before."""

ANSWER_SECONDS = 0.2
"""How long a worker that looks for a place waits for other packs to answer, once one has."""

PAUSE_SECONDS = 0.2
"""Between two looks for a free place, or for a pack that went away."""

LAST_WORDS_SECONDS = 1.0
"""Between what a pack says when it can't go on, and its end."""


class PackLost(OtsweepError):
    """The process in which trials train together has ended, and their workers count as lost."""


class PackFailed(PackLost):
    """It ended by itself, for a reason that is no trial's own: out of memory, a device that is broken."""


@dataclass(eq=False)
class Place:
    """A place in a pack, with the trial that has it."""

    number: int
    config: TrialConfig
    structure: Hashable
    warnings: list[str] = field(default_factory=list)

    lane: Lane | None = None
    """None until its worker first asked."""

    answer: Future[dict[str, Any]] | None = None
    """What its worker waits for; None while that is busy elsewhere."""

    since: float = math.inf
    """When the worker asked."""


class Together(NamedTuple):
    """The last epoch of a structure."""

    trials: int = 0
    seconds: float = 0.0


class PackWorker:
    """A pack as an actor: its methods answer at once, on an event loop, while a thread trains.

    Args:
        task: what all trials of the sweep share.
        size: how many places it has.
    """

    def __init__(self, task: Task, size: int) -> None:
        import torch

        from trainer.pack import Pack

        self.task, self.size = task, size
        self.on_gpu = task.use_gpu and torch.cuda.is_available()
        self.pack = Pack(evaluation_of(task), shared(task), ladder=task.ladder, device="cuda" if self.on_gpu else "cpu")
        self.places: dict[int, Place] = {}
        self.changed = threading.Condition()
        """Guards the places; told when a worker begins to wait."""
        self.last: dict[Hashable, Together] = {}
        self.idle_since = time.monotonic()
        threading.Thread(target=self.serve, daemon=True).start()

    async def node(self) -> str:
        """The id of the node that it runs on."""
        return ray.get_runtime_context().get_node_id()

    async def offer(self, config: dict[str, Any]) -> tuple[int, int]:
        """How many trials of a configuration's structure are here, and how many places are free."""
        structure = structure_of(TrialConfig.from_mapping(config))
        with self.changed:
            alike = sum(place.structure == structure for place in self.places.values())
            return alike, self.size - len(self.places)

    async def join(self, number: int, config: dict[str, Any]) -> str:
        """Give a trial a place, instead of the one that it has here if its worker was lost; the id of this node, or
        nothing where no place is free."""
        trial = TrialConfig.from_mapping(config)
        with self.changed:
            self.vacate(number)
            if len(self.places) >= self.size:
                return ""
            self.places[number] = Place(number, trial, structure_of(trial))
        return await self.node()

    async def leave(self, number: int) -> None:
        """A trial has ended, or its worker was lost."""
        with self.changed:
            self.vacate(number)

    def vacate(self, number: int) -> None:
        place = self.places.pop(number, None)
        if place is not None:
            self.answer(place, PackLost(f"trial {number} was told to leave its pack"))

    async def report(self, number: int) -> dict[str, Any]:
        """The next result of a trial, as `TrialTrainable.step` gives it.

        Raises:
            PackLost: if the trial has no place here, or the process can't go on.
        """
        with self.changed:
            if number not in self.places:
                raise PackLost(f"trial {number} has no place in this pack")
            place = self.places[number]
            place.answer, place.since = Future(), time.monotonic()
            self.changed.notify()
        return await asyncio.wrap_future(place.answer)

    def serve(self) -> None:
        """Train whoever waits. What fails for all ends the process, and Ray begins another."""
        import torch

        torch.set_num_threads(self.task.threads)
        try:
            while True:
                self.turn()
        except Exception as error:  # noqa: BLE001 - whatever it is, no trial's own fault
            reason = explain(error)
            if isinstance(error, torch.OutOfMemoryError):
                reason = (
                    f"--pack {self.size}: so many trials don't fit into the memory of the GPU; give a smaller number"
                )
            with self.changed:
                for place in self.waiting():
                    self.answer(place, PackFailed(reason))
            time.sleep(LAST_WORDS_SECONDS)
            os._exit(1)

    def turn(self) -> None:
        """Begin those who have just come, or tell what is known without training, or train an epoch."""
        with self.changed:
            self.changed.wait_for(self.waiting)
            waiting = self.waiting()
        fresh = [place for place in waiting if place.lane is None]
        ready = [place for place in waiting if place.lane is not None and not place.lane.trains]
        if fresh:
            for place in fresh:
                self.begin(place)
        elif ready:
            self.advance(ready)
        elif together := self.gather():
            begun = time.monotonic()
            self.advance(together)
            self.idle_since = time.monotonic()
            self.last[together[0].structure] = Together(len(together), self.idle_since - begun)

    def waiting(self) -> list[Place]:
        """Those whose workers wait, the longest first."""
        return sorted((each for each in self.places.values() if each.answer is not None), key=lambda each: each.since)

    def gather(self) -> list[Place]:
        """All who wait for an epoch and are of the structure that has waited longest; nobody yet, while others who
        trained with them before are still worth waiting for."""
        with self.changed:
            waiting = [place for place in self.waiting() if place.lane is not None and place.lane.trains]
            together = [each for each in waiting if each.structure == waiting[0].structure]
            if not together:
                return []
            last = self.last.get(together[0].structure, Together())
            until = max(together[0].since, self.idle_since) + PATIENCE * last.seconds
            if len(together) >= last.trials or time.monotonic() >= until:
                return together
            self.changed.wait(until - time.monotonic())
            return []

    def begin(self, place: Place) -> None:
        """Build a trial's model, or take up its last checkpoint."""
        import torch

        store = trial_store(self.task.sweep_folder, place.number, told=place.warnings.append)
        try:
            place.lane = self.pack.join(place.config, store=store, warn=place.warnings.append)
        except torch.OutOfMemoryError:
            raise  # no fault of the one that happened to come last
        except Exception as error:  # noqa: BLE001 - a trial may fail in any way, and the others go on
            self.tell(place, error)

    def advance(self, places: Sequence[Place]) -> None:
        """The next report of each."""
        lanes = {place: place.lane for place in places if place.lane is not None}
        said = self.pack.advance(list(lanes.values()))
        for place, lane in lanes.items():
            self.tell(place, said[lane])

    def tell(self, place: Place, said: EpochReport | Exception) -> None:
        """Answer a worker."""
        result = result_of(said, place.warnings, self.footprint)
        with self.changed:
            self.answer(place, result)

    def footprint(self) -> Footprint:
        """A trial's share of the memory that all of them take."""
        host, gpu, gpu_total = measure(gpu=self.on_gpu)
        return Footprint(host // self.size, gpu // self.size, gpu_total)

    def answer(self, place: Place, said: dict[str, Any] | PackLost) -> None:
        """Hand out what a worker waits for, if it does."""
        answer, place.answer = place.answer, None
        if answer is None or answer.cancelled():
            return
        if isinstance(said, PackLost):
            answer.set_exception(said)
        else:
            answer.set_result(said)


def structure_of(config: TrialConfig) -> Hashable:
    """Equal for trials that can share a vectorised step."""
    from trainer.pack import structure

    return structure(config)


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
        self.pack, self.node = find_place(self.packs, self.number, config["config"])

    def step(self) -> dict[str, Any]:
        try:
            result: Any = ray.get(self.pack.report.remote(self.number))
            return result
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, PackLost) else PackLost(str(error.cause))) from None
        except RayActorError:
            raise PackLost(await_fate(self.pack, self.node)) from None


def find_place(packs: Sequence[ActorHandle], number: int, config: dict[str, Any]) -> tuple[ActorHandle, str]:
    """A pack with a place for a trial, which is the trial's from now on, and the id of the pack's node; waits for one.

    Of several packs it is the one with most trials of the same structure, and of these the one with most room.
    """
    while True:
        offers = answers({pack.offer.remote(config): pack for pack in packs})
        for pack, (_, free) in sorted(offers.items(), key=lambda each: each[1], reverse=True):
            joined = answers({pack.join.remote(number, config): pack}) if free else {}
            if node := joined.get(pack):
                return pack, node
        time.sleep(PAUSE_SECONDS)


def answers(asked: Mapping[ray.ObjectRef, ActorHandle]) -> dict[ActorHandle, Any]:
    """What packs said, without those that are slow, or not there."""
    said, others = ray.wait(list(asked))
    said += ray.wait(others, num_returns=len(others), timeout=ANSWER_SECONDS)[0] if others else []
    found = {}
    for reference in said:
        with contextlib.suppress(RayError):
            found[asked[reference]] = ray.get(reference)
    return found


def await_fate(pack: ActorHandle, node: str) -> str:
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


class Vacating(tune.Callback):
    """Tells the packs when Ray Tune knows that a trial has ended, or that its worker was lost."""

    def __init__(self, packs: Packs) -> None:
        self.packs = packs

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its callbacks for a restore of its own, which is never asked for.
        return tune.Callback, ()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.packs.leave(trial.config["number"])

    on_trial_recover = on_trial_error = on_trial_complete
