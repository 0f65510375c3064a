"""Independent pieces of work, each on one of torch's threads.

Small operations gain little from several threads and on a busy machine wait for each other. And a sum that is not
divided among threads is the same for any number of them.
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
    """Return `work` of every item, in order; as many run at once as torch has threads."""

    def alone(item: _Item) -> _Result:
        with threads(1):
            return work(item)

    with ThreadPoolExecutor(torch.get_num_threads()) as workers:
        return list(workers.map(alone, items))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the block with `count` torch threads, then set the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
