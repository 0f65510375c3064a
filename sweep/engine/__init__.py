"""A plan run on Ray: driver, adapters, workers, packs, nodes. Ray's undocumented parts: `sweep.ray_internals`."""

from sweep.engine.driver import LOST_WORKER_RETRIES, run_plan
from sweep.engine.pack_worker import PackFailed
from sweep.engine.preparation import Progress, prepare, record_preparation
from sweep.engine.ray_start import RayFailed, ray_session
from sweep.engine.ray_watch import RayLost
from sweep.engine.slots import Node, Slots, alive_nodes, concurrency, slots_now
from sweep.engine.task import (
    Task,
    cache_folder,
    data_folder,
    device_of,
    evaluation_of,
    make_task,
    prepare_shared,
    shared,
    trial_store,
)
from sweep.engine.trainable import Footprint, explain, measure
