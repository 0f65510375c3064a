"""Independent pieces of work on the threads that torch has here, one each.

Many small operations gain little from threads of their own and wait for each other on a busy machine; and a sum that is
not divided among threads is the same whatever their number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_on_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """`work` of every item, in order, as many at once as torch has threads here."""

    def alone(item: _Item) -> _Result:
        with threads(1):
            return work(item)

    with ThreadPoolExecutor(torch.get_num_threads()) as workers:
        return list(workers.map(alone, items))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch with `count` threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
