"""The process in which several trials train together, as an actor of Ray."""

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

from sweep.engine.task import Task, device_of, evaluation_of, shared, trial_store
from sweep.engine.trainable import Footprint, explain, measure, result_of
from trainer.config import TrialConfig
from trainer.errors import OtsweepError

if TYPE_CHECKING:
    from trainer.report import EpochReport
    from trainer.training import PackedTrial

_PATIENCE = 0.25
"""Share of an epoch's time for which trials wait for others that trained with them before."""

_FAREWELL_SECONDS = 1.0
"""Time between the last answers of a pack that can't go on and the end of its process."""


class PackLost(OtsweepError):
    """The process in which trials train together has ended, and their workers count as lost."""


class PackFailed(PackLost):
    """It ended by itself, for a reason that is no trial's own: out of memory, a device that is broken."""


@dataclass(eq=False)
class _PackSlot:
    """A slot in a pack, with the trial that has it."""

    number: int
    config: TrialConfig
    structure: Hashable
    warnings: list[str] = field(default_factory=list)

    trial: PackedTrial | None = None
    """The trial in training; None until its worker first asked for a report."""

    answer: Future[dict[str, Any]] | None = None
    """The result that its worker waits for; None while the worker is busy elsewhere."""

    since: float = math.inf
    """Time at which the worker asked."""


class _LastEpoch(NamedTuple):
    """The last epoch that trials of one structure trained."""

    trials: int = 0
    seconds: float = 0.0


class PackWorker:
    """A pack as an actor: its methods answer at once, on an event loop, while a thread trains.

    Args:
        task: settings that all trials of the sweep share.
        size: number of its slots.
    """

    def __init__(self, task: Task, size: int) -> None:
        from trainer.training import Pack

        self._task, self._size = task, size
        device = device_of(task)
        self._on_gpu = device == "cuda"
        self._pack = Pack(evaluation_of(task), shared(task), ladder=task.ladder, device=device)
        self._slots: dict[int, _PackSlot] = {}
        """The slots that are taken, by the numbers of their trials."""
        self._changed = threading.Condition()
        """Lock of the slots, notified when a worker begins to wait."""
        self._last: dict[Hashable, _LastEpoch] = {}
        self._idle_since = time.monotonic()
        threading.Thread(target=self._serve, daemon=True).start()

    async def node(self) -> str:
        """Return the id of the node that it runs on."""
        return ray.get_runtime_context().get_node_id()

    async def offer(self, config: dict[str, Any]) -> tuple[int, int]:
        """Return how many trials of a configuration's structure are here, and how many slots are free."""
        structure = _structure_of(TrialConfig.from_mapping(config))
        with self._changed:
            alike = sum(slot.structure == structure for slot in self._slots.values())
            return alike, self._size - len(self._slots)

    async def join(self, number: int, config: dict[str, Any]) -> str:
        """Give a trial a slot, in place of the one that it has here if its worker was lost.

        Returns:
            The id of this node; empty if no slot is free.
        """
        trial = TrialConfig.from_mapping(config)
        with self._changed:
            self._vacate(number)
            if len(self._slots) >= self._size:
                return ""
            self._slots[number] = _PackSlot(number, trial, _structure_of(trial))
        return await self.node()

    async def holds(self, number: int) -> bool:
        """Return whether a trial has a slot here."""
        with self._changed:
            return number in self._slots

    async def leave(self, number: int) -> None:
        """Free the slot of a trial that has ended or lost its worker."""
        with self._changed:
            self._vacate(number)

    async def report(self, number: int) -> dict[str, Any]:
        """Return the next result of a trial, as `TrialTrainable.step` does.

        Raises:
            PackLost: if the trial has no slot here, or the process can't go on.
        """
        with self._changed:
            if number not in self._slots:
                raise PackLost(f"trial {number} has no slot in this pack")
            slot = self._slots[number]
            slot.answer, slot.since = Future(), time.monotonic()
            self._changed.notify()
        return await asyncio.wrap_future(slot.answer)

    def _vacate(self, number: int) -> None:
        slot = self._slots.pop(number, None)
        if slot is not None:
            _answer(slot, PackLost(f"trial {number} has left its pack"))

    def _serve(self) -> None:
        """Train the trials that wait. An error that concerns all ends the process, and Ray starts another."""
        import torch

        torch.set_num_threads(self._task.threads)
        try:
            while True:
                self._take_turn()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no trial's own
            reason = explain(error)
            if isinstance(error, torch.OutOfMemoryError):
                reason = (
                    f"--pack {self._size}: so many trials don't fit into the memory of the GPU; give a smaller number"
                )
            with self._changed:
                for slot in self._waiting():
                    _answer(slot, PackFailed(reason))
            time.sleep(_FAREWELL_SECONDS)
            os._exit(1)

    def _take_turn(self) -> None:
        """Begin trials that have just come, else give reports that need no training, else train an epoch."""
        with self._changed:
            self._changed.wait_for(self._waiting)
            waiting = self._waiting()
        fresh = [slot for slot in waiting if slot.trial is None]
        ready = [slot for slot in waiting if slot.trial is not None and not slot.trial.trains]
        if fresh:
            for slot in fresh:
                self._begin(slot)
        elif ready:
            self.advance(ready)
        elif together := self._gather():
            begun = time.monotonic()
            self.advance(together)
            self._idle_since = time.monotonic()
            self._last[together[0].structure] = _LastEpoch(len(together), self._idle_since - begun)

    def _waiting(self) -> list[_PackSlot]:
        """Return the slots whose workers wait, the longest first."""
        return sorted((slot for slot in self._slots.values() if slot.answer is not None), key=lambda slot: slot.since)

    def _gather(self) -> list[_PackSlot]:
        """Return all slots that wait for an epoch and have the structure of the one that has waited longest.

        None are returned while it is worth waiting for others that trained with them before.
        """
        with self._changed:
            waiting = [slot for slot in self._waiting() if slot.trial is not None and slot.trial.trains]
            together = [slot for slot in waiting if slot.structure == waiting[0].structure]
            if not together:
                return []
            last = self._last.get(together[0].structure, _LastEpoch())
            until = max(together[0].since, self._idle_since) + _PATIENCE * last.seconds
            if len(together) >= last.trials or time.monotonic() >= until:
                return together
            self._changed.wait(until - time.monotonic())
            return []

    def _begin(self, slot: _PackSlot) -> None:
        """Build a trial's model, or load its last checkpoint."""
        import torch

        store = trial_store(self._task.sweep_folder, slot.number, warn=slot.warnings.append)
        try:
            slot.trial = self._pack.join(slot.config, store=store, warn=slot.warnings.append)
        except torch.OutOfMemoryError:
            raise  # no fault of the trial that happened to come last
        except Exception as error:  # noqa: BLE001 - a trial may fail in any way, and the others continue
            self._deliver(slot, error)

    def advance(self, slots: Sequence[_PackSlot]) -> None:
        """Compute and deliver the next report of each slot's trial."""
        trials = {slot: slot.trial for slot in slots if slot.trial is not None}
        outcomes = self._pack.advance(list(trials.values()))
        for slot, trial in trials.items():
            self._deliver(slot, outcomes[trial])

    def _deliver(self, slot: _PackSlot, outcome: EpochReport | Exception) -> None:
        """Answer a worker with its trial's report or error."""
        result = result_of(outcome, slot.warnings, self._footprint)
        with self._changed:
            _answer(slot, result)

    def _footprint(self) -> Footprint:
        """Return a trial's share of the memory that all of them take."""
        host, gpu, gpu_total = measure(gpu=self._on_gpu)
        return Footprint(host // self._size, gpu // self._size, gpu_total)


def _answer(slot: _PackSlot, result: dict[str, Any] | PackLost) -> None:
    """Give a worker what it waits for, if it still does."""
    answer, slot.answer = slot.answer, None
    if answer is None or answer.cancelled():
        return
    if isinstance(result, PackLost):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _structure_of(config: TrialConfig) -> Hashable:
    """Return what is equal for trials that can share a vectorised step."""
    from trainer.training import structure

    return structure(config)
