"""The watch over Ray's processes, with an answer in the place of a process."""

from __future__ import annotations

import signal
import time

import pytest

from sweep.engine.ray_watch import RayWatch


def wait_and_clean_up(watch: RayWatch) -> None:
    with watch:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            time.sleep(600)


def test_the_main_thread_is_interrupted_wherever_it_waits_and_again_while_it_cleans_up() -> None:
    begun, watch = time.monotonic(), RayWatch({"its head": lambda: False}, patient=False)
    with pytest.raises(KeyboardInterrupt):
        wait_and_clean_up(watch)
    assert watch.lost == "Ray is lost: its head was killed, or has crashed"
    assert time.monotonic() - begun < 60, "also on a busy machine"
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_nobody_is_interrupted_as_long_as_a_process_comes_back() -> None:
    silent = iter([True, False, True, True])
    watch = RayWatch({"its head": lambda: next(silent, True)}, patient=False)
    with watch:
        time.sleep(5)
    assert watch.lost == ""


def test_an_error_is_told_from_a_loss_at_once() -> None:
    known, lost = (RayWatch({"its head": lambda alive=alive: alive}, patient=True) for alive in (True, False))
    assert not known.look_now()
    assert lost.look_now()
    assert lost.lost.startswith("Ray is lost")
