"""The watch over Ray's own processes while a sweep runs.

Where the head of a cluster or the raylet of this machine has ended, Ray's library waits, ends this process without a
word, or lets trials wait for ever: so this process looks by itself, and stops in time.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from trainer.errors import OtsweepError

_LOOK_SECONDS, _CLUSTERS_LOOK_SECONDS = 1.0, 10.0
"""Time between two looks. A raylet writes a line into its log for each connection."""

_SILENCE_SECONDS, _CLUSTERS_SILENCE_SECONDS = 2.0, 40.0
"""Time of silence after which a process has ended: nobody starts again what is this process's own, but a
cluster's head may come back. Ray's library itself gives up after 60 s."""

_AGAIN_SECONDS = 5.0
"""Time after which the main thread is interrupted again, where it waits for a Ray that has ended."""


class RayLost(OtsweepError):
    """Ray ended while a sweep ran; what is recorded can be resumed."""


class RayWatch:
    """A context in which the main thread is interrupted if one of Ray's processes has ended, and `lost` says so.

    It is a KeyboardInterrupt: Ray's library, while it waits, lets no other exception of a signal's handler through.
    Outside of the main thread, and where its signal (SIGUSR2) is taken by someone else, nothing is watched.

    Args:
        alive: tells whether a process is there, for each by what it is called.
        patient: whether they may come back, as those of a cluster.
    """

    def __init__(self, alive: Mapping[str, Callable[[], bool]], *, patient: bool) -> None:
        self.lost = ""
        """Message about what was lost; empty as long as nothing is."""
        self._alive = alive
        self._patience = _CLUSTERS_SILENCE_SECONDS if patient else _SILENCE_SECONDS
        self._pause = _CLUSTERS_LOOK_SECONDS if patient else _LOOK_SECONDS
        self._left = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RayWatch:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL:
            signal.signal(signal.SIGUSR2, self._interrupted)
            self._thread = threading.Thread(target=self._watch, name="ray-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._thread is not None:
            self._thread.join()
            signal.signal(signal.SIGUSR2, signal.SIG_DFL)

    def look_now(self) -> bool:
        """Return whether a process has ended that was not known to have; no time is given to it."""
        for name, alive in self._alive.items():
            if not self.lost and not alive():
                self._set_lost(name)
        return bool(self.lost)

    def _watch(self) -> None:
        silent_since: dict[str, float] = {}
        while not self.lost and not self._left.wait(self._pause):
            for name, alive in self._alive.items():
                if alive():
                    silent_since.pop(name, None)
                elif time.monotonic() - silent_since.setdefault(name, time.monotonic()) >= self._patience:
                    self._set_lost(name)
        while not self._left.is_set():
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGUSR2)
            self._left.wait(_AGAIN_SECONDS)

    def _set_lost(self, name: str) -> None:
        self.lost = f"Ray is lost: {name} was killed, or has crashed"

    def _interrupted(self, number: int, frame: Any) -> None:
        if self.lost and not self._left.is_set():
            raise KeyboardInterrupt
