"""Transport on a GPU, beside the CPU's; POT is not needed."""

from __future__ import annotations

import pytest
import torch

from trainer.objective.transport import entropic_transport


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_is_never_waited_for() -> None:
    torch.manual_seed(0)
    cost, a, b = torch.rand(26, 230, 230, device="cuda"), *torch.rand(2, 26, 230, device="cuda").softmax(2)
    entropic_transport(cost, a, b, entropy=0.05)  # the first call sets up the libraries
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        solved = entropic_transport(cost, a, b, entropy=0.05)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    on_cpu = entropic_transport(cost.cpu(), a.cpu(), b.cpu(), entropy=0.05)
    torch.testing.assert_close(solved.value.cpu(), on_cpu.value, rtol=1e-4, atol=1e-6)
