"""Learning-rate schedules against PyTorch's, and the share of training that they follow."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from trainer.config import TrialConfig
from trainer.training.schedules import learning_rate, set_learning_rate, share_done

EPOCHS, STEPS = 20, 100


def rates(schedule: str) -> list[float]:
    """Return the rate of every step of a training."""
    config = TrialConfig(learning_rate=0.2, learning_rate_schedule=schedule, epochs=EPOCHS)
    return [
        learning_rate(config, share_done(epoch, step, steps=STEPS, epochs=EPOCHS))
        for epoch in range(1, EPOCHS + 1)
        for step in range(STEPS)
    ]


def torchs(optimizer: Optimizer, scheduler: LRScheduler) -> list[float]:
    """Return the rate of every step that a scheduler of PyTorch gives an optimiser."""
    seen = []
    for _ in range(EPOCHS * STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def an_optimizer(rate: float = 0.2) -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=rate)


def test_the_share_of_training_rises_evenly_from_0() -> None:
    shares = [share_done(epoch, step, steps=5, epochs=4) for epoch in (1, 2, 3, 4) for step in range(5)]
    assert shares == pytest.approx([number / 20 for number in range(20)])


def test_a_constant_rate_is_the_knob_to_the_bit() -> None:
    assert set(rates("constant")) == {0.2}


def test_one_cycle_is_pytorchs() -> None:
    optimizer = an_optimizer()
    expected = torchs(optimizer, OneCycleLR(optimizer, 0.2, total_steps=EPOCHS * STEPS + 1))
    assert rates("one_cycle") == pytest.approx(expected, abs=0.2 * 3 / (EPOCHS * STEPS))  # it counts from the last step


def test_piecewise_is_pytorchs_at_half_and_three_quarters() -> None:
    optimizer = an_optimizer()
    milestones = [EPOCHS * STEPS // 2, EPOCHS * STEPS * 3 // 4]
    assert rates("piecewise") == pytest.approx(torchs(optimizer, MultiStepLR(optimizer, milestones)))


def test_a_rate_reaches_every_parameter() -> None:
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(2))]}], lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
