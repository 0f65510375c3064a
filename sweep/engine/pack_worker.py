"""TODO one line."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

from sweep.engine.trainable import Footprint, Task, evaluation_of, explain, measure, result_of, shared, trial_store
from trainer.config import TrialConfig
from trainer.errors import OtsweepError

if TYPE_CHECKING:
    from trainer.report import EpochReport
    from trainer.training import Lane


_PATIENCE = 0.25
"""Of an epoch's seconds: how long those that are there wait for others who trained with them before."""

PAUSE_SECONDS = 0.2
"""Between two looks for a free place, or for a pack that went away."""

_LAST_WORDS_SECONDS = 1.0
"""Between what a pack says when it can't go on, and its end."""


class PackLost(OtsweepError):
    """The process in which trials train together has ended, and their workers count as lost."""


class PackFailed(PackLost):
    """It ended by itself, for a reason that is no trial's own: out of memory, a device that is broken."""


@dataclass(eq=False)
class _PackSlot:
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


class _LastEpoch(NamedTuple):
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

        from trainer.training import Pack

        self.task, self.size = task, size
        self.on_gpu = task.use_gpu and torch.cuda.is_available()
        self.pack = Pack(evaluation_of(task), shared(task), ladder=task.ladder, device="cuda" if self.on_gpu else "cpu")
        self.places: dict[int, _PackSlot] = {}
        self.changed = threading.Condition()
        """Guards the places; told when a worker begins to wait."""
        self.last: dict[Hashable, _LastEpoch] = {}
        self.idle_since = time.monotonic()
        threading.Thread(target=self.serve, daemon=True).start()

    async def node(self) -> str:
        """The id of the node that it runs on."""
        return ray.get_runtime_context().get_node_id()

    async def offer(self, config: dict[str, Any]) -> tuple[int, int]:
        """How many trials of a configuration's structure are here, and how many places are free."""
        structure = _structure_of(TrialConfig.from_mapping(config))
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
            self.places[number] = _PackSlot(number, trial, _structure_of(trial))
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
            time.sleep(_LAST_WORDS_SECONDS)
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
            self.last[together[0].structure] = _LastEpoch(len(together), self.idle_since - begun)

    def waiting(self) -> list[_PackSlot]:
        """Those whose workers wait, the longest first."""
        return sorted((each for each in self.places.values() if each.answer is not None), key=lambda each: each.since)

    def gather(self) -> list[_PackSlot]:
        """All who wait for an epoch and are of the structure that has waited longest; nobody yet, while others who
        trained with them before are still worth waiting for."""
        with self.changed:
            waiting = [place for place in self.waiting() if place.lane is not None and place.lane.trains]
            together = [each for each in waiting if each.structure == waiting[0].structure]
            if not together:
                return []
            last = self.last.get(together[0].structure, _LastEpoch())
            until = max(together[0].since, self.idle_since) + _PATIENCE * last.seconds
            if len(together) >= last.trials or time.monotonic() >= until:
                return together
            self.changed.wait(until - time.monotonic())
            return []

    def begin(self, place: _PackSlot) -> None:
        """Build a trial's model, or take up its last checkpoint."""
        import torch

        store = trial_store(self.task.sweep_folder, place.number, log=place.warnings.append)
        try:
            place.lane = self.pack.join(place.config, store=store, warn=place.warnings.append)
        except torch.OutOfMemoryError:
            raise  # no fault of the one that happened to come last
        except Exception as error:  # noqa: BLE001 - a trial may fail in any way, and the others go on
            self.tell(place, error)

    def advance(self, places: Sequence[_PackSlot]) -> None:
        """The next report of each."""
        lanes = {place: place.lane for place in places if place.lane is not None}
        said = self.pack.advance(list(lanes.values()))
        for place, lane in lanes.items():
            self.tell(place, said[lane])

    def tell(self, place: _PackSlot, said: EpochReport | Exception) -> None:
        """Answer a worker."""
        result = result_of(said, place.warnings, self.footprint)
        with self.changed:
            self.answer(place, result)

    def footprint(self) -> Footprint:
        """A trial's share of the memory that all of them take."""
        host, gpu, gpu_total = measure(gpu=self.on_gpu)
        return Footprint(host // self.size, gpu // self.size, gpu_total)

    def answer(self, place: _PackSlot, said: dict[str, Any] | PackLost) -> None:
        """Hand out what a worker waits for, if it does."""
        answer, place.answer = place.answer, None
        if answer is None or answer.cancelled():
            return
        if isinstance(said, PackLost):
            answer.set_exception(said)
        else:
            answer.set_result(said)


def _structure_of(config: TrialConfig) -> Hashable:
    """Equal for trials that can share a vectorised step."""
    from trainer.training import structure

    return structure(config)
