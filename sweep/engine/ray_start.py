"""TODO one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import ray

from trainer.errors import InputError, OtsweepError

_STARTS = 4
"""How often Ray is started on a machine that is busy."""


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """The cluster this runs in (`RAY_ADDRESS`), else a Ray of this process's own, ended with it."""
    import logging

    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise InputError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from None
    else:
        _start_ray(**quiet)
    _trim_environments()
    _silence_raylets()
    # Ray Tune's errors are trials that failed, and those are told in our own words.
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(**options: Any) -> None:
    """A Ray of this process's own. It gives itself 30 s, which a busy machine may need: then it is started anew.

    Raises:
        OtsweepError: if that was to no avail.
    """
    _start_what_is_needed()
    for _ in range(_STARTS):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:
            # Ray has no class for it.
            if "timed out during startup" not in str(error):
                raise
    raise OtsweepError("Ray did not start: this machine is too busy; `otsweep resume` goes on once it is less so")


def _silence_raylets() -> None:
    """Ray prints pages of a lost node's logs into the sweep's own, and has no switch for that."""
    from ray._private import worker

    worker.print_to_stdstream = lambda data, ignore_prefix=False: None


def _start_what_is_needed() -> None:
    """A Ray of this process's own would start a dashboard's server, an autoscaler's monitor and a reader of logs too:
    nobody asks them here, and each takes seconds of a core and 100 MB. Ray has no switch for that."""
    from ray._private.node import Node

    for start in ("start_api_server", "start_monitor", "start_log_monitor"):
        setattr(Node, start, lambda *_, **__: None)


def _trim_environments() -> None:
    """Ray Tune would send this process's AWS keys along with every trial, and Ray's agents write what they are sent
    into their logs. Every node has keys of its own, in its own environment.

    With nothing to set, trials run in workers that are started already.
    """
    from ray.tune.execution import class_cache

    class_cache.DEFAULT_ENV_VARS = {}
    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }
