"""A profile of a plan: a few of its configurations timed on real workers before it is run.

As many are timed side by side as there are slots, by Ray's own workers, so that a trial is measured where, and in the
company in which, it would run: two on one machine compete for its caches.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from search_spaces import Space
from sweep.engine import (
    Footprint,
    Progress,
    Slots,
    Task,
    alive_nodes,
    cache_folder,
    concurrency,
    data_folder,
    device_of,
    evaluation_of,
    explain,
    make_task,
    measure,
    ray_session,
    slots_now,
    trial_store,
)
from sweep.forecast.measured import Candidate, ProfileResult, TimedConfiguration
from sweep.plan import SweepPlan, is_url
from sweep.search import ParetoSearch
from trainer.config import TrialConfig
from trainer.cost import Cost
from trainer.errors import InputError, OtsweepError
from trainer.plugins import is_plugin

_SECONDS = 30.0
"""Seconds of timing after which no further configuration is begun; the cheapest and the dearest are in any case."""

_MOST_DRAWN = 24
"""Configurations drawn to be timed."""

_WORK = {"mlp": 1.0, "cnn": 3.0, "resnet18": 100.0}
"""Relative cost of a pass through an architecture: only the order matters."""

_COST_KNOBS = (
    *("architecture", "regularizer", "sensitivity_weight", "invariance_weight", "trades_weight", "norm_weight"),
    *("clean_ce_weight", "sensitivity_ce_weight", "invariance_ce_weight"),
    *("certified_ce_weight", "certified_method", "entropy"),
    *("sensitivity_attack", "sensitivity_steps", "sensitivity_objective"),
)
"""Knobs that `work` depends on."""


def profile_plan(plan: SweepPlan, progress: Progress, *, seconds: float = _SECONDS) -> ProfileResult:
    """Time what the plan would run, on this machine or the cluster that this runs in.

    Args:
        progress: called with a stage, how much of it is done, and how much there is.
        seconds: time after which no further configuration is timed.

    Raises:
        InputError: if the cluster can't give what one trial needs, or the data can't be had.
        OtsweepError: if nothing could be timed.
    """
    begun = time.monotonic()
    progress("starting Ray", 0, 1)
    with ray_session():
        concurrent, task = concurrency(plan, progress), make_task(plan)
        slots = slots_now(plan, concurrent)
        ray_seconds, begun = time.monotonic() - begun, time.monotonic()
        progress("opening the data", 0, 1)
        actor: Any = ray.remote(num_cpus=plan.cpus_per_trial, num_gpus=plan.gpus_per_trial)(_ProfileWorker)
        workers = [actor.remote(task) for _ in range(max(1, slots // plan.pack))]
        try:
            ray.get([worker.open.remote() for worker in workers])
            worker_seconds = time.monotonic() - begun
            timed, failed, footprint = _time_all(workers, list(candidates(plan)), progress, seconds)
            gain: Any = 1.0
            if plan.pack > 1 and timed:
                progress("timing a pack", 0, 1)
                usual = sorted(timed, key=lambda each: each.cost.step)[len(timed) // 2]
                gain = ray.get(workers[0].pack_gain.remote(usual.candidate.config, plan.pack))
            preparation = ray.get(workers[0].missing.remote())
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise
        except RayActorError:
            raise OtsweepError("a worker was lost while a trial was timed: killed, or out of memory") from None
        if not timed:
            raise OtsweepError(f"no configuration could be timed: {failed[0]}")
        limiter = Slots(plan, slots, known=True)
        limiter.observe(footprint)
        return ProfileResult(
            timed, failed, limiter.limit, alive_nodes(), ray_seconds, worker_seconds, preparation, footprint, gain
        )


class _ProfileWorker:
    """A slot that times configurations; torch is imported here alone."""

    def __init__(self, task: Task) -> None:
        self.task, self.on_gpu = task, False

    def open(self) -> None:
        """Make ready; not in the constructor, since Ray does not say why an actor could not be made."""
        import torch

        from trainer.training import Timer

        task = self.task
        torch.set_num_threads(task.threads)
        device = device_of(task)
        self.on_gpu = device == "cuda"
        self.timer = Timer(
            evaluation_of(task),
            data_dir=data_folder(task),
            cache_dir=cache_folder(task),
            device=device,
        )

    def time(self, config: dict[str, Any]) -> tuple[Cost, Footprint] | str:
        """Return the cost of a configuration with the footprint so far, or why there is none."""
        folder = f"{self.task.cache_dir}/rehearsal-{uuid.uuid4().hex}"
        try:
            cost = self.timer.cost(TrialConfig.from_mapping(config), trial_store(folder, 0))
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - a trial of it would fail in the same way, and the sweep go on
            return explain(error)
        finally:
            if not is_url(folder):
                shutil.rmtree(folder, ignore_errors=True)
        return cost, measure(gpu=self.on_gpu)

    def pack_gain(self, config: dict[str, Any], trials: int) -> float:
        """Return how many times faster the steps of so many trials are in a pack."""
        return self.timer.pack_gain(TrialConfig.from_mapping(config), trials)

    def missing(self) -> list[str]:
        """Return which parts of the preparation the cache lacks."""
        return self.timer.missing(self.task.invariance_norms)


def _time_all(
    workers: list[Any], waiting: list[Candidate], progress: Progress, seconds: float
) -> tuple[list[TimedConfiguration], list[str], Footprint]:
    """Give every idle worker the next configuration, until the time is over; the first two are always timed."""
    timed, failed, footprint = [], [], Footprint(0, 0, 0)
    total, begun, idle = len(waiting), time.monotonic(), list(workers)
    running: dict[Any, tuple[Any, Candidate]] = {}
    while True:
        while idle and waiting and (total - len(waiting) < 2 or time.monotonic() - begun < seconds):
            worker, candidate = idle.pop(0), waiting.pop(0)
            running[worker.time.remote(candidate.config)] = (worker, candidate)
        if not running:
            return timed, failed, footprint
        progress("timing steps of configurations", len(timed) + len(failed), total)
        [done], _ = ray.wait(list(running))
        worker, candidate = running.pop(done)
        idle.append(worker)
        answer = ray.get(done)
        if isinstance(answer, str):
            failed.append(answer)
        else:
            timed.append(TimedConfiguration(candidate, answer[0]))
            footprint = Footprint(*map(max, footprint, answer[1]))


def candidates(plan: SweepPlan) -> Iterator[Candidate]:
    """Yield the cheapest and the dearest that may be drawn, the dearest of each regularizer, the points, some draws."""
    if plan.configurations > len(plan.space.points):
        yield from map(Candidate, extremes(plan.space, plan.epochs_per_trial))
    search = ParetoSearch(
        plan.space, plan.objectives, sampler="random", seed=plan.seed, configurations=plan.configurations
    )
    fixed = {} if plan.epochs is None else {"epochs": plan.epochs}
    points = min(len(plan.space.points), plan.configurations)
    for number in range(min(plan.configurations, points + _MOST_DRAWN)):
        config = search.propose().config | fixed
        yield Candidate(config, point=number) if number < points else Candidate(config, drawn=True)


def extremes(space: Space, epochs: int) -> Iterator[dict[str, Any]]:
    """Yield corners of the space: that of least work, then of every regularizer that of most, the most first."""
    corners = sorted(({**config, "epochs": epochs} for config in space.grid(_COST_KNOBS)), key=work)
    yield corners[0]
    # Of equal keys the last stays, which is the dearest.
    dearest = {config["regularizer"]: config for config in corners}
    yield from sorted(dearest.values(), key=work, reverse=True)


def work(values: dict[str, Any]) -> float:
    """Return what an epoch costs, roughly: enough to find the cheapest and the dearest, which are then timed."""
    config = TrialConfig.from_mapping(values)
    weights = (config.sensitivity_weight > 0) + (config.invariance_weight > 0)
    regularised = 0 if config.regularizer == "none" else weights
    # Forward and back, a pass through the network counts for three.
    longer = config.sensitivity_objective != "cross_entropy" or is_plugin(config.sensitivity_attack)
    attack_passes = 3.0 * config.sensitivity_steps + longer
    views = 1 + config.uses_sensitivity + config.uses_invariance
    # A box has two ends; CROWN carries a row back for every class.
    bounds = (config.certified_ce_weight > 0) * (6.0 if config.certified_method == "ibp" else 40.0)
    passes = config.uses_sensitivity * attack_passes + 3.0 * views + bounds + 0.1 * (config.norm_weight > 0)
    # The less entropy, the more steps of the solver.
    return _WORK.get(config.architecture, 10.0) * passes + regularised * (2.0 + 0.1 / config.entropy)
