"""FAB: projections against a solver, distances of linear models in closed form, and torchattacks' FAB beside ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from tests.unit.test_sensitivity import seeded
from trainer.attacks.attack import Victim
from trainer.attacks.fab import fab_attack, nearest_wrong, onto_hyperplane
from trainer.attacks.norms import NORMS
from trainer.attacks.worst_cases import worst_case


def hyperplanes(count: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    points = torch.rand((count, pixels), generator=seeded(1), dtype=torch.float64)
    normal = torch.randn((count, pixels), generator=seeded(2), dtype=torch.float64)
    through = torch.rand((count, pixels), generator=seeded(3), dtype=torch.float64)
    return points, normal, -(normal * through).sum(1)


def test_a_projection_lies_on_the_hyperplane_and_in_the_box() -> None:
    points, normal, offset = hyperplanes(200, 6)
    for norm in NORMS.values():
        found = onto_hyperplane(points, normal, offset, norm)
        assert 0 <= found.min() <= found.max() <= 1
        torch.testing.assert_close((normal * found).sum(1), -offset)


def test_a_projection_in_linf_is_as_near_as_a_linear_program_says() -> None:
    for x, w, b in zip(*hyperplanes(30, 6), strict=True):
        size = len(x)
        found = onto_hyperplane(x[None], w[None], b[None], NORMS["linf"])[0]
        # min t with |z - x| <= t, <w, z> = -b, 0 <= z <= 1
        inside = np.block([[np.eye(size), -np.ones((size, 1))], [-np.eye(size), -np.ones((size, 1))]])
        solved = linprog(
            [0.0] * size + [1.0],
            A_ub=inside,
            b_ub=np.concatenate([x.numpy(), -x.numpy()]),
            A_eq=[[*w.tolist(), 0.0]],
            b_eq=[-b.item()],
            bounds=[(0, 1)] * size + [(0, None)],
        )
        assert (found - x).abs().max().item() == pytest.approx(solved.fun, abs=1e-9)


def test_a_projection_in_l2_meets_the_conditions_of_the_optimum() -> None:
    points, normal, offset = hyperplanes(200, 6)
    found = onto_hyperplane(points, normal, offset, NORMS["l2"])
    # KKT: a pixel inside the box moved by mu w; one at its edge would have to move further.
    ratio = (points - found) / normal
    free = (found > 1e-9) & (found < 1 - 1e-9)
    mu = torch.where(free, ratio, torch.nan).nanmedian(1, keepdim=True).values
    known = mu.isfinite().expand_as(ratio)
    assert torch.allclose(ratio[free & known], mu.expand_as(ratio)[free & known], atol=1e-9)
    wanted = points - mu * normal
    held = ~free & known
    assert (((found <= 1e-9) & (wanted <= 1e-9)) | ((found >= 1 - 1e-9) & (wanted >= 1 - 1e-9)))[held].all()


def test_a_hyperplane_beyond_the_box_is_approached_as_far_as_can_be() -> None:
    points, normal = torch.full((1, 3), 0.5), torch.tensor([[1.0, -2.0, 0.0]])
    found = onto_hyperplane(points, normal, torch.tensor([-9.0]), NORMS["linf"])
    assert found.tolist() == [[1.0, 0.0, 0.5]]


class Planes(nn.Module):
    """Logits that are linear in the image."""

    def __init__(self, classes: int, pixels: int) -> None:
        super().__init__()
        weight = torch.randn((classes, pixels), generator=seeded(5), dtype=torch.float64) / pixels
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(-0.5 * weight.sum(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_distances_of_a_linear_model_are_exact(norm: str, dual: int) -> None:
    model = Planes(4, 64).requires_grad_(False)
    # Near the middle of the box no pixel reaches its edge: the distance is |f_t - f_y| over the normal's dual norm.
    images = 0.5 + 0.05 * torch.randn((40, 1, 8, 8), generator=seeded(6), dtype=torch.float64)
    logits = model(images)
    labels = logits.argmax(1)
    exact = torch.full((4, 40), torch.inf, dtype=torch.float64)
    found = exact.clone()
    for target in range(4):
        others = (labels != target).nonzero().flatten()
        gap = logits[others].gather(1, labels[others, None]).squeeze(1) - logits[others, target]
        normal = model.weight[labels[others]] - model.weight[target]
        exact[target, others] = gap / torch.linalg.vector_norm(normal, ord=dual, dim=1)
        part = Victim(model, images[others], labels[others])
        goals = torch.full_like(others, target)
        wrong = nearest_wrong(part, torch.arange(len(others)), goals, norm=NORMS[norm], steps=10)
        assert (model(wrong).argmax(1) != labels[others]).all()
        found[target, others] = NORMS[norm].size(wrong - images[others]).flatten()
    torch.testing.assert_close(found.amin(0), exact.amin(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_breaks_as_many_as_the_fab_of_torchattacks(norm: str) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 5)).eval().requires_grad_(False)
    for weight in network.parameters():
        weight *= 2
    images = torch.rand((200, 1, 8, 8), generator=seeded(7))
    labels = network(images).argmax(1)
    epsilon = {"linf": 0.02, "l2": 0.12}[norm]
    ours = worst_case(
        network, images, labels, [fab_attack(norm=norm, epsilon=epsilon, steps=20, targets=4)], generator=seeded()
    )
    theirs = torchattacks.FAB(
        network,
        norm={"linf": "Linf", "l2": "L2"}[norm],
        eps=epsilon,
        steps=20,
        n_restarts=1,
        multi_targeted=True,
        n_classes=5,
    )(images, labels)
    left = int((network(theirs).argmax(1) == labels).sum())
    assert 20 < left < 180
    assert abs(int(ours.survived.sum()) - left) <= 2
    assert NORMS[norm].size(ours.images - images).max() <= epsilon * (1 + 1e-5)
