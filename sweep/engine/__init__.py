"""A plan run on Ray: driver, adapters, workers, packs, nodes. Ray's undocumented parts: `sweep.ray_internals`."""

from sweep.engine.driver import LOST_WORKER_RETRIES, run_plan
from sweep.engine.pack_worker import PackFailed
from sweep.engine.preparation import Progress, prepare, record_data_summary
from sweep.engine.ray_start import ray_session
from sweep.engine.signals import SignalHandler
from sweep.engine.slots import Node, Slots, alive_nodes, concurrency, slots_now
from sweep.engine.task import (
    Task,
    cache_folder,
    data_folder,
    evaluation_of,
    make_task,
    prepare_shared,
    shared,
    trial_store,
)
from sweep.engine.trainable import Footprint, explain, measure

__all__ = [
    "alive_nodes",
    "cache_folder",
    "concurrency",
    "data_folder",
    "evaluation_of",
    "explain",
    "Footprint",
    "LOST_WORKER_RETRIES",
    "make_task",
    "measure",
    "Node",
    "PackFailed",
    "prepare",
    "prepare_shared",
    "Progress",
    "ray_session",
    "record_data_summary",
    "run_plan",
    "shared",
    "SignalHandler",
    "Slots",
    "slots_now",
    "Task",
    "trial_store",
]
