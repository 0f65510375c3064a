"""Square: where it proposes squares, what they cost, and that it needs no gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.unit.test_sensitivity import Linear, norms, seeded, sizes, some_images
from trainer.attacks import square
from trainer.attacks.apgd import APGD_SLACK, apgd_attack, targeted_apgd_attack
from trainer.attacks.attack import Attack
from trainer.attacks.gradient import fgsm_attack
from trainer.attacks.square import SQUARE_SLACK, SQUARES, square_attack
from trainer.attacks.worst_cases import worst_case


@norms
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 9), (1, 28, 28), (2, 1, 4)], ids=str)
@pytest.mark.parametrize("share", [0.8, 0.1, 0.001])
def test_square_proposes_a_changed_square_inside_the_ball(norm: str, shape: tuple[int, int, int], share: float):
    images = torch.rand((50, *shape), generator=seeded())
    random = torch.rand((50, 1000 + 4 * math.prod(shape)), generator=seeded(1))
    squares = SQUARES[norm]
    side = squares.side(share, images)
    assert 1 <= side <= min(shape[1:])
    start = squares.start(images, 0.3, random[:, : (shape[0] + 1) * shape[1] * shape[2]])
    moved = squares.propose(images, start, side, 0.3, random[:, : 5 + shape[0]])
    for points in (start, moved):
        assert points.min() >= 0
        assert points.max() <= 1
        assert (sizes(norm, points - images) <= 0.3 * (1 + 1e-5)).all()
    changed = ((moved - start).abs() > 1e-6).any(1)
    most = {"linf": side**2, "l2": 2 * side**2}[norm]
    assert (changed.flatten(1).sum(1) <= most).all()
    assert changed.any()


def test_square_in_l2_spends_the_whole_budget_where_nothing_is_clipped():
    images = torch.full((30, 2, 9, 9), 0.5)
    random = torch.rand((30, 300), generator=seeded())
    squares = SQUARES["l2"]
    points = squares.start(images, 0.3, random)
    for query in range(5):
        torch.testing.assert_close(sizes("l2", points - images), torch.full((30,), 0.3))
        points = squares.propose(images, points, 3, 0.3, random[:, 10 * query : 10 * query + 7])


def test_square_s_places_cover_the_image():
    random = torch.rand((2000, 2), generator=seeded())
    inside = square.window_at(random, 3, torch.zeros(2000, 1, 7, 9)).inside
    assert (inside.sum((1, 2, 3)) == 9).all()
    assert inside.any(0).all()


@pytest.mark.parametrize("side", [1, 3, 5, 9])
def test_bumps_have_norm_1_opposite_halves_and_a_transpose(side: int):
    bumps = square.two_bumps(side, torch.zeros(1))
    torch.testing.assert_close(bumps.flatten(1).norm(dim=1), torch.ones(2))
    assert torch.equal(bumps[0], bumps[1].T)
    assert (bumps[0][: side // 2] > 0).all()
    assert (bumps[0][side // 2 :] < 0).all()


def test_square_s_share_of_the_image_halves_on_schedule():
    shares = [square.square_share(query / 10_000) for query in (0, 10, 11, 50, 51, 200, 201, 8001)]
    assert shares == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.8 / 512]


def test_square_breaks_a_model_without_gradients():
    images = some_images(40)
    model = Linear()

    def coarse(batch: Tensor) -> Tensor:
        return model((batch * 8).round() / 8)

    with torch.no_grad():
        labels = coarse(images).argmax(1)

    def survivors(attack: Attack) -> int:
        return int(worst_case(coarse, images, labels, [attack], generator=seeded()).survived.sum())

    assert survivors(square_attack(norm="linf", epsilon=0.1, queries=300)) < 5
    assert survivors(fgsm_attack(norm="linf", epsilon=0.1)) == 40


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "square"])
def test_what_is_out_of_reach_is_given_up_and_nothing_else(name: str):
    model, looked_at = Linear(), []

    def counted(images: Tensor) -> Tensor:
        looked_at.append(len(images))
        return model(images)

    images = some_images(200)
    labels = model(images).argmax(1)
    budget = {"norm": "linf", "epsilon": 0.03}
    builders = {
        "apgd-ce": lambda slack: apgd_attack(**budget, steps=100, slack=slack),
        "apgd-t": lambda slack: targeted_apgd_attack(**budget, steps=100, targets=4, slack=slack),
        "square": lambda slack: square_attack(**budget, queries=2000, slack=slack),
    }
    outcomes, costs = [], []
    for slack in (math.inf, SQUARE_SLACK if name == "square" else APGD_SLACK):
        looked_at.clear()
        outcomes.append(worst_case(counted, images, labels, [builders[name](slack)], generator=seeded()).survived)
        costs.append(sum(looked_at))
    assert 20 < outcomes[0].sum() < 180
    assert torch.equal(*outcomes)
    assert costs[1] < 0.7 * costs[0]
