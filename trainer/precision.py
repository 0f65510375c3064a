"""Rounding of a GPU's products: as a trial says while it trains, and none while its model is judged.

PyTorch has a GPU's convolutions round to TF32 unless it is told otherwise, and a model that is judged there would not
give the answers that it gives on a CPU. A CPU does not know TF32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def training_products(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """Return a context in which a model trains on a device: products are rounded to TF32 as its precision says.

    Args:
        precision: the trial's knob, of which `auto` rounds on a GPU alone.
    """
    return _products(tf32=precision in ("tf32", "bfloat16") or (precision == "auto" and device.type == "cuda"))


def exact_products() -> contextlib.AbstractContextManager[None]:
    """Return a context in which nothing is rounded to TF32."""
    return _products(tf32=False)


def rounded_passes(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return a context for the objective's passes through a model, in bfloat16 where that is the precision."""
    if precision != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextlib.contextmanager
def _products(*, tf32: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
