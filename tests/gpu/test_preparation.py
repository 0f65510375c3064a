"""Preparation on a GPU, beside the CPU's: the neighbours are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.config import EvaluationConfig
from trainer.invariance import prepare


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_neighbours_are_those_of_a_cpu(tmp_path: Path) -> None:
    evaluation = EvaluationConfig(train_size=300, validation_size=60)
    pairs = [
        prepare(evaluation, cache_dir=tmp_path / device, device=device).perturbations("linf").pairs
        for device in ("cpu", "cuda")
    ]
    for one, other in zip(*(each.neighbours for each in pairs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
