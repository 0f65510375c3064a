"""Ray for the length of a sweep: the cluster that this machine belongs to, or one of this process's own."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import ray

from sweep.environment import inherited_imports
from sweep.ray_internals import is_slow_start, keep_keys_at_home, keep_signals, silence_ray, start_only_what_is_needed
from trainer.errors import InputError, OtsweepError

_STARTS = 4
"""Attempts to start Ray on a busy machine."""


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the cluster of `RAY_ADDRESS`, or start a Ray of this process's own that ends with the context.

    Inside another session nothing is started or ended: that one goes on.

    Raises:
        InputError: if no cluster answers at `RAY_ADDRESS`.
        OtsweepError: if this machine is too busy for Ray to start.
    """
    if ray.is_initialized():
        yield
        return
    silence_ray()
    keep_signals()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with inherited_imports():
        if address := os.environ.get("RAY_ADDRESS"):
            try:
                ray.init(address=address, **quiet)
            except ConnectionError as error:
                raise InputError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from None
        else:
            _start_ray(**quiet)
    keep_keys_at_home()
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(**options: Any) -> None:
    """Start a Ray of this process's own. It gives itself 30 s; on a machine that needs more it is started again.

    Raises:
        OtsweepError: if no attempt succeeded.
    """
    start_only_what_is_needed()
    for _ in range(_STARTS):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:
            if not is_slow_start(error):
                raise
    raise OtsweepError("Ray did not start: this machine is too busy; try `otsweep resume` when it is less so")
