"""Auto-PGD: its losses in closed form, its checkpoints, and where its attacks of the embedding go."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.test_sensitivity import CLASSES, Linear, answers, run, seeded, some_images, with_embedding
from trainer.attacks import apgd
from trainer.attacks.apgd import embedding_attack, targeted_apgd_attack, targeted_dlr, targeted_pgd_attack
from trainer.attacks.attack import Attack, Victim
from trainer.attacks.gradient import pgd_attack
from trainer.attacks.worst_cases import worst_case
from trainer.errors import InputError


@given(seed=st.integers(0, 1000), shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_dlr_is_blind_to_shift_and_scale_and_positive_where_the_target_is_ahead(seed: int, shift: float, scale: float):
    logits = torch.randn((20, CLASSES), generator=seeded(seed), dtype=torch.float64)
    labels = torch.randint(CLASSES, (20,), generator=seeded(seed))
    targets = (labels + 1 + torch.randint(CLASSES - 1, (20,), generator=seeded(seed + 1))) % CLASSES
    ahead = logits.gather(1, targets[:, None]) > logits.gather(1, labels[:, None])
    assert ((targeted_dlr(logits, labels, targets) > 0) == ahead.squeeze(1)).all()
    torch.testing.assert_close(
        targeted_dlr(scale * logits + shift, labels, targets), targeted_dlr(logits, labels, targets)
    )


def test_dlr_of_known_logits():
    logits = torch.tensor([[1.0, 5.0, 3.0, 2.0]])
    targeted = targeted_dlr(logits, torch.tensor([1]), torch.tensor([3]))
    torch.testing.assert_close(targeted, torch.tensor([-(5 - 2) / (5 - (2 + 1) / 2)]))


def test_checkpoints_of_a_hundred_steps_are_those_of_the_paper():
    assert apgd.step_checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99, 100]


@given(steps=st.integers(1, 300))
def test_checkpoints_rise_from_0_to_the_last_step(steps: int):
    points = apgd.step_checkpoints(steps)
    assert points[0] == 0
    assert points[-1] == steps
    assert points == sorted(set(points))


def test_saturated_logits_blind_the_cross_entropy_but_neither_dlr_nor_the_embedding():
    images = some_images(40)
    model, saturated = Linear(), Linear(scale=1e4)
    labels = answers(images)
    budget = {"norm": "linf", "epsilon": 0.2, "steps": 20}

    def pair(batch: Tensor) -> tuple[Tensor, Tensor]:
        return saturated(batch), model(batch)

    def survivors(attack: Attack) -> int:
        return int(worst_case(saturated, images, labels, [attack], generator=seeded()).survived.sum())

    blind = survivors(pgd_attack(**budget))
    assert survivors(targeted_apgd_attack(**budget)) == 0
    assert survivors(targeted_pgd_attack(**budget)) == 0
    assert survivors(embedding_attack(pair, **budget, towards_other=True)) == 0
    assert survivors(embedding_attack(pair, **budget)) < blind / 2


def test_targeted_pgd_is_the_plain_loop():
    """Follow one image by PyTorch's own gradients, from the same start, towards each class but the label."""
    images, model, steps, epsilon = some_images(1), Linear(), 4, 0.05
    label = answers(images)
    others = model(images)[0].detach().argsort(descending=True).tolist()
    others.remove(label.item())
    victim, length = Victim(model, images, label), 2.5 * epsilon / steps
    attack = targeted_pgd_attack(norm="linf", epsilon=epsilon, steps=steps, targets=3)
    for number, target in enumerate(others[:3]):
        found = attack.run(victim, torch.tensor([0]), number, seeded(number))
        point = (images + (2 * torch.rand(images.shape, generator=seeded(number)) - 1) * epsilon).clamp(0, 1)
        for _ in range(steps):
            point = point.detach().requires_grad_()
            ordered = model(point)[0].sort(descending=True).values
            rise = model(point)[0, target] - model(point)[0, label.item()]
            if model(point).argmax() != label:
                break
            (rise / (ordered[0] - (ordered[2] + ordered[3]) / 2)).backward()
            assert point.grad is not None
            moved = point + length * point.grad.sign() - images
            point = (images + moved.clamp(-epsilon, epsilon)).clamp(0, 1)
        torch.testing.assert_close(found, point.detach())


def test_the_embedding_attacks_go_where_they_say():
    images, model = some_images(30), Linear()
    labels = answers(images)
    clean = model(images).detach()
    goal = torch.cdist(clean, clean).masked_fill(labels[:, None] == labels, math.inf).argmin(1)
    away, other = (
        run(
            [embedding_attack(with_embedding(model), norm="l2", epsilon=0.1, steps=20, towards_other=towards_other)],
            images,
            labels,
        )
        for towards_other in (False, True)
    )
    unbroken = away.survived & other.survived
    assert unbroken.sum() > 10
    moved = (model(other.images) - clean[goal]).norm(dim=1)
    assert (moved < (clean - clean[goal]).norm(dim=1))[unbroken].all()
    assert ((model(away.images) - clean).norm(dim=1) > (model(other.images) - clean).norm(dim=1) - 1e-4)[unbroken].all()


def test_dlr_needs_four_classes():
    label, target = torch.tensor([0]), torch.tensor([1])
    with pytest.raises(InputError, match="DLR loss needs at least 4 classes: the model has 3"):
        targeted_dlr(torch.zeros(1, 3), label, target)
