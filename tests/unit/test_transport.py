from __future__ import annotations

from functools import partial

import hypothesis.strategies as st
import numpy as np
import ot
import pytest
import torch
from hypothesis import example, given, settings
from scipy.optimize import linear_sum_assignment, linprog
from torch import Tensor

from trainer.objective import transport
from trainer.objective.transport import entropic_transport, sinkhorn_divergence

COSTS = {"cosine": transport.cosine_cost, "squared_euclidean": transport.squared_euclidean_cost}

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 12)
entropies = st.sampled_from([1.0, 0.1, 0.05, 0.01])
metrics = st.sampled_from(sorted(COSTS))


def cloud(seed: int, points: int, dimensions: int = 8) -> Tensor:
    """Return points (n, D) around four centres, about one forbidden: mixed near and far, as classes are. float64."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, dimensions, generator=generator, dtype=torch.float64) / dimensions**0.5
    noise = torch.randn(points, dimensions, generator=generator, dtype=torch.float64) / dimensions**0.5
    return centres[torch.randint(4, (points,), generator=generator)] + 0.3 * noise


def uneven(seed: int, points: int) -> Tensor:
    """Return weights (n,) that sum to one, the heaviest about fifty times the lightest. float64."""
    weights = torch.rand(points, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.02
    return weights / weights.sum()


def problem(seed: int, n: int, m: int, metric: str = "cosine") -> tuple[Tensor, Tensor, Tensor]:
    """Return cost (1, n, m) and uneven weights (1, n), (1, m). float64."""
    cost = COSTS[metric](cloud(seed, n), cloud(seed + 1, m))
    return cost[None], uneven(seed + 2, n)[None], uneven(seed + 3, m)[None]


def pot_plan(cost: Tensor, a: Tensor, b: Tensor, entropy: float) -> Tensor:
    """Return POT's plan (n, m) in float64; a warning that it did not converge fails the test."""
    return torch.as_tensor(ot.bregman.sinkhorn_log(a, b, cost, entropy, numItermax=20_000, stopThr=1e-9))


def value_of(plan: Tensor, cost: Tensor, a: Tensor, b: Tensor, entropy: float) -> Tensor:
    """Return <T, C> + e KL(T | a b')."""
    return (plan * cost).sum() + entropy * torch.special.xlogy(plan, plan / (a[:, None] * b)).sum()


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours.detach().double() - reference.detach()).norm() / reference.detach().norm())


# ---------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize("metric", COSTS)
@pytest.mark.parametrize("entropy", [1.0, 0.1, 0.05, 0.01])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 7), (26, 230), (100, 64), pytest.param(512, 512, id="512-512")])
def test_float32_agrees_with_pot_in_float64(n: int, m: int, entropy: float, metric: str) -> None:
    x, y, a, b = cloud(1, n), cloud(2, m), uneven(3, n), uneven(4, m)
    x.requires_grad_()
    cost = COSTS[metric](x, y)
    plan = pot_plan(cost.detach(), a, b, entropy)
    (gradient,) = torch.autograd.grad((plan * cost).sum(), x)

    x32 = x.detach().float().requires_grad_()
    solved = entropic_transport(COSTS[metric](x32, y.float())[None], a[None].float(), b[None].float(), entropy=entropy)
    (gradient32,) = torch.autograd.grad(solved.value.sum(), x32)

    assert relative(solved.value[0], value_of(plan, cost, a, b, entropy)) < 1e-4
    assert relative(gradient32, gradient) < 1e-3
    assert relative(solved.plan[0], plan) < 1e-3
    assert solved.marginal_error[0] < 1e-4


def gaussian(mean: float, deviation: float) -> tuple[Tensor, Tensor]:
    """Return a normal density on a grid so fine and wide that sums are integrals: points (n, 1), weights (n,)."""
    points = torch.arange(mean - 7 * deviation, mean + 7 * deviation, 0.02, dtype=torch.float64)
    return points[:, None], torch.exp(-(((points - mean) / deviation) ** 2) / 2)


@pytest.mark.parametrize("entropy", [1.0, 0.1, 0.01])
def test_gaussians_have_their_closed_form(entropy: float) -> None:
    (x, a), (y, b) = gaussian(-0.3, 0.5), gaussian(0.4, 0.2)
    cost = transport.squared_euclidean_cost(x, y)
    # A line of points, each beside the last, is the hardest case: every potential moves with all the others.
    solved = entropic_transport(cost[None], a[None], b[None], entropy=entropy, iterations=120)

    # Janati et al. 2020, theorem 1, with variances A and B in one dimension and entropy = 2 s^2.
    variance_a, variance_b, s2 = 0.25, 0.04, entropy / 2
    d = (4 * variance_a * variance_b + s2**2) ** 0.5
    bures = variance_a + variance_b - d + s2 * (1 - np.log(2 * s2)) + s2 * np.log(d + s2)
    assert float(solved.value[0]) == pytest.approx(0.7**2 + bures, rel=1e-5)


@given(seed=seeds, n=st.integers(1, 20), metric=metrics)
def test_exact_transport_of_even_clouds_is_the_best_assignment(seed: int, n: int, metric: str) -> None:
    cost = COSTS[metric](cloud(seed, n), cloud(seed + 1, n)).requires_grad_()
    even = torch.ones(1, n, dtype=torch.float64)
    solved = transport.exact_transport(cost[None], even, even)
    rows, columns = linear_sum_assignment(cost.detach().numpy())
    assert solved.value.item() == pytest.approx(cost.detach()[rows, columns].mean().item(), rel=1e-9, abs=1e-12)
    (gradient,) = torch.autograd.grad(solved.value.sum(), cost)
    assert torch.equal(gradient, solved.plan[0])
    assert solved.marginal_error.item() < 1e-12


@given(seed=seeds, n=sizes, m=sizes, metric=metrics)
@settings(max_examples=40)
def test_exact_transport_is_pots_value_problem_by_problem(seed: int, n: int, m: int, metric: str) -> None:
    """Compare with `ot.emd2`; a batch is solved as each problem alone, and an empty side gives 0."""
    cost, a, b = problem(seed, n, m, metric)
    cost = torch.cat([cost, 2 * cost, cost]).requires_grad_()
    a, b = a.repeat(3, 1), torch.cat([b, b.flip(1), torch.zeros_like(b)])
    solved = transport.exact_transport(cost, a, b)
    expected = [ot.emd2(a[p], b[p] / b[p].sum(), cost[p]) for p in range(2)]
    torch.testing.assert_close(solved.value[:2], torch.stack(expected), rtol=1e-9, atol=1e-12)
    assert solved.value[2] == 0
    assert solved.solvable.tolist() == [True, True, False]


@given(seed=seeds, n=st.integers(2, 12))
@settings(max_examples=40)
def test_exact_transport_avoids_forbidden_pairs(seed: int, n: int) -> None:
    cost = cosine_cost_of(seed, n)
    even, forbidden = torch.ones(1, n, dtype=torch.float64), torch.eye(n, dtype=torch.bool)[None]
    solved = transport.exact_transport(cost[None], even, even, forbidden=forbidden)
    rows, columns = linear_sum_assignment(cost.masked_fill(forbidden[0], 1e6).numpy())
    assert solved.value.item() == pytest.approx(cost[rows, columns].mean().item(), rel=1e-9)
    assert (solved.plan[forbidden] == 0).all()


def cosine_cost_of(seed: int, n: int) -> Tensor:
    return COSTS["cosine"](cloud(seed, n), cloud(seed + 1, n))


@given(seed=seeds, n=sizes, m=sizes, metric=metrics)
@settings(max_examples=40)
def test_entropic_transport_tends_to_the_exact(seed: int, n: int, m: int, metric: str) -> None:
    cost, a, b = problem(seed, n, m, metric)
    exact = transport.exact_transport(cost, a, b).value.item()
    for entropy in (0.1, 0.01):
        gap = entropic_transport(cost, a, b, entropy=entropy).value.item() - exact
        # KL(T | a b') lies between 0 and log n of the smaller cloud's.
        assert -1e-7 <= gap <= entropy * np.log(max(n, m)) * 2 + 1e-7


# ---------------------------------------------------------------------------------------------------- invariances


@given(seed=seeds, n=sizes, m=sizes, entropy=entropies, metric=metrics)
@example(seed=18847, n=8, m=4, entropy=0.01, metric="squared_euclidean")
@example(seed=1_547_659_627, n=5, m=5, entropy=0.01, metric="squared_euclidean")
@settings(max_examples=40)
def test_swapping_the_sides_changes_nothing(seed: int, n: int, m: int, entropy: float, metric: str) -> None:
    """Nothing of the solution: the way to it is another, and in the last example 8 steps longer than usually made."""
    cost, a, b = problem(seed, n, m, metric)
    there = entropic_transport(cost, a, b, entropy=entropy, iterations=100)
    back = entropic_transport(cost.mT, b, a, entropy=entropy, iterations=100)
    torch.testing.assert_close(there.value, back.value, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(there.plan, back.plan.mT, rtol=0, atol=1e-3)


@given(seed=seeds, n=sizes, m=sizes, entropy=entropies, scale=st.floats(0.1, 100), shift=st.floats(0, 3))
@settings(max_examples=40)
def test_value_follows_the_units_of_the_cost(
    seed: int, n: int, m: int, entropy: float, scale: float, shift: float
) -> None:
    cost, a, b = problem(seed, n, m)
    value = entropic_transport(cost, a, b, entropy=entropy).value
    scaled = entropic_transport(scale * cost + shift, a, b, entropy=scale * entropy).value
    torch.testing.assert_close(scaled, scale * value + shift, rtol=1e-6, atol=1e-7)


@given(seed=seeds, n=sizes, m=sizes, entropy=entropies)
@settings(max_examples=40)
def test_order_of_the_points_changes_nothing(seed: int, n: int, m: int, entropy: float) -> None:
    cost, a, b = problem(seed, n, m)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(m, generator=generator)
    solved = entropic_transport(cost, a, b, entropy=entropy)
    shuffled = entropic_transport(cost[:, rows][:, :, columns], a[:, rows], b[:, columns], entropy=entropy)
    torch.testing.assert_close(shuffled.value, solved.value, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(shuffled.plan, solved.plan[:, rows][:, :, columns], rtol=0, atol=1e-7)


@given(seed=seeds, n=sizes, m=sizes, entropy=entropies)
@settings(max_examples=40)
def test_plan_has_the_marginals_and_only_positive_mass(seed: int, n: int, m: int, entropy: float) -> None:
    cost, a, b = problem(seed, n, m)
    solved = entropic_transport(cost, a, b, entropy=entropy)
    assert (solved.plan >= 0).all()
    torch.testing.assert_close(solved.plan.sum(1), b, rtol=1e-9, atol=0)
    assert float((solved.plan.sum(2) - a).abs().sum()) == pytest.approx(float(solved.marginal_error), abs=1e-12)
    assert solved.marginal_error < 2e-5


@given(seed=seeds, n=sizes, m=sizes, extra=st.integers(1, 5))
@settings(max_examples=40)
def test_points_without_weight_take_no_part(seed: int, n: int, m: int, extra: int) -> None:
    cost, a, b = problem(seed, n + extra, m + extra)
    a[:, n:], b[:, m:] = 0, 0
    padded = entropic_transport(cost, a, b, entropy=0.05, tolerance=1e-9)
    alone = entropic_transport(cost[:, :n, :m], a[:, :n], b[:, :m], entropy=0.05, tolerance=1e-9)
    torch.testing.assert_close(padded.value, alone.value, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(padded.plan[:, :n, :m], alone.plan, rtol=0, atol=1e-4)
    assert padded.plan[:, n:].sum() == 0
    assert padded.plan[:, :, m:].sum() == 0


def test_problems_of_a_batch_do_not_touch_each_other() -> None:
    costs, a, b = (torch.cat(parts) for parts in zip(*(problem(seed, 6, 9) for seed in range(5)), strict=True))
    costs[3] *= 40  # the slowest problem sets the number of iterations, and must affect nothing else
    a[1] = 0
    together = entropic_transport(costs, a, b, entropy=0.05)
    for k in range(5):
        alone = entropic_transport(costs[k : k + 1], a[k : k + 1], b[k : k + 1], entropy=0.05)
        torch.testing.assert_close(together.value[k : k + 1], alone.value, rtol=1e-7, atol=1e-9)
    assert together.solvable.tolist() == [True, False, True, True, True]


def test_absent_problem_does_not_keep_the_others_iterating() -> None:
    costs, a, b = (torch.cat(parts) for parts in zip(*(problem(seed, 6, 9) for seed in range(2)), strict=True))
    alone = entropic_transport(costs[:1], a[:1], b[:1], entropy=0.05)
    a[1] = 0
    assert entropic_transport(costs, a, b, entropy=0.05).iterations <= alone.iterations


def test_entropy_may_be_a_tensor_and_problems_may_be_stacked_by_vmap() -> None:
    costs, a, b = (torch.cat(parts) for parts in zip(*(problem(seed, 6, 9) for seed in range(3)), strict=True))
    several = torch.tensor([0.5, 0.05, 0.02], dtype=torch.float64)

    def value(cost: Tensor, a: Tensor, b: Tensor, entropy: Tensor) -> Tensor:
        return entropic_transport(cost[None], a[None], b[None], entropy=entropy, tolerance=None).value[0]

    stacked = torch.vmap(value)(costs, a, b, several)
    single = [entropic_transport(costs[k][None], a[k][None], b[k][None], entropy=several[k].item()) for k in range(3)]
    torch.testing.assert_close(stacked, torch.cat([s.value for s in single]), rtol=1e-6, atol=1e-8)


def test_same_call_gives_the_same_bits() -> None:
    cost, a, b = (part.float() for part in problem(5, 60, 40))
    first, second = (entropic_transport(cost, a, b, entropy=0.02) for _ in range(2))
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.plan, second.plan)


# ------------------------------------------------------------------------------------------------------ gradients


@given(seed=seeds, n=st.integers(1, 5), m=st.integers(1, 5), entropy=st.sampled_from([1.0, 0.1, 0.05]), metric=metrics)
@settings(max_examples=25)
def test_gradient_is_that_of_finite_differences(seed: int, n: int, m: int, entropy: float, metric: str) -> None:
    x, y, a, b = cloud(seed, n, 3), cloud(seed + 1, m, 3), uneven(seed, n)[None], uneven(seed + 1, m)[None]

    def value(x: Tensor, y: Tensor) -> Tensor:
        cost = COSTS[metric](x, y)[None]
        return entropic_transport(cost, a, b, entropy=entropy, iterations=60, tolerance=1e-12).value

    torch.autograd.gradcheck(value, (x.requires_grad_(), y.requires_grad_()), eps=1e-5, atol=1e-5, rtol=1e-3)


@given(seed=seeds, entropy=entropies)
@settings(max_examples=40)
def test_gradient_is_the_plan(seed: int, entropy: float) -> None:
    cost, a, b = problem(seed, 4, 6)
    solved = entropic_transport(cost.requires_grad_(), a, b, entropy=entropy)
    (gradient,) = torch.autograd.grad(solved.value.sum(), cost)
    assert torch.equal(gradient, solved.plan)


def test_iterations_keep_no_graph() -> None:
    cost, a, b = problem(0, 8, 8)
    solved = entropic_transport(cost.requires_grad_(), a, b, entropy=0.05)
    assert solved.value.requires_grad
    assert not solved.plan.requires_grad
    assert not solved.marginal_error.requires_grad


# ---------------------------------------------------------------------------------------------------- convergence


@given(
    seed=seeds,
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    entropy=st.floats(0.01, 1),
    metric=metrics,
    forbidden=st.booleans(),
)
@example(seed=144, n=20, m=16, entropy=0.016, metric="squared_euclidean", forbidden=True)
@example(seed=921, n=16, m=9, entropy=0.017, metric="squared_euclidean", forbidden=True)
def test_float32_converges_however_the_mass_lies(
    seed: int, n: int, m: int, entropy: float, metric: str, forbidden: bool
) -> None:
    """Include clusters of unequal mass, for which Sinkhorn's iteration crawls and too long a Newton step circles."""
    x, y = cloud(seed, n).float(), cloud(seed + 1, m).float()
    cost = COSTS[metric](x, y)
    if forbidden:
        labels = torch.randint(3, (n + m,), generator=torch.Generator().manual_seed(seed))
        cost = cost + (labels[:n, None] != labels[n:])
    a, b = uneven(seed, n).float() ** 2, uneven(seed + 1, m).float()
    solved = entropic_transport(cost[None], a[None], b[None], entropy=entropy)
    assert solved.marginal_error[0] < 1e-4
    assert solved.iterations < 24


def test_error_falls_as_iterations_are_added() -> None:
    cost, a, b = (part.float() for part in problem(9, 60, 80))
    errors = [
        float(entropic_transport(cost, a, b, entropy=0.01, iterations=k, tolerance=None).marginal_error)
        for k in (2, 6, 10, 24)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-5


def test_plan_has_its_form_even_where_iterations_run_out() -> None:
    cost, a, b = problem(9, 6, 8)
    plan = entropic_transport(cost, a, b, entropy=0.05, iterations=2).plan
    # Of T_ij = a_i b_j exp((f_i + g_j - C_ij) / e) only C is left in T_ij T_00 / (T_i0 T_0j).
    left = plan * plan[:, :1, :1] / (plan[:, :, :1] * plan[:, :1])
    torch.testing.assert_close(left.log() * -0.05, cost + cost[:, :1, :1] - cost[:, :, :1] - cost[:, :1])


def test_matrix_that_cannot_be_factorised_leaves_sinkhorns_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    cost, a, b = problem(9, 20, 30)
    newton = entropic_transport(cost, a, b, entropy=0.5)
    factor = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda m: (m * torch.nan, torch.ones_like(factor(m).info)))
    sinkhorn = entropic_transport(cost, a, b, entropy=0.5)
    assert newton.iterations < sinkhorn.iterations
    torch.testing.assert_close(sinkhorn.value, newton.value, rtol=1e-6, atol=0)


def test_stopping_early_is_no_less_exact() -> None:
    cost, a, b = (part.float() for part in problem(9, 60, 80))
    early = entropic_transport(cost, a, b, entropy=0.05)
    full = entropic_transport(cost, a, b, entropy=0.05, tolerance=None)
    assert early.iterations < full.iterations == 24
    torch.testing.assert_close(early.value, full.value, rtol=1e-5, atol=0)


def test_cost_ten_thousand_entropies_wide_is_solved_in_float32() -> None:
    cost, a, b = (part.float() for part in problem(4, 26, 230, "squared_euclidean"))
    solved = entropic_transport(cost * 100 / cost.max(), a, b, entropy=0.01)
    exact = transport.exact_transport(cost.double() * 100 / cost.max(), a.double(), b.double()).value
    assert 0 < float(solved.value) - float(exact) < 0.01 * np.log(230)


# ----------------------------------------------------------------------------------------------- degenerate input


def even(*sizes: int) -> list[Tensor]:
    return [torch.ones(1, n) for n in sizes]


@pytest.mark.parametrize("entropy", [1.0, 0.01])
@pytest.mark.parametrize("metric", COSTS)
@pytest.mark.parametrize(
    ("x", "y"),
    [
        pytest.param(torch.ones(5, 3), torch.ones(4, 3), id="all the same point"),
        pytest.param(torch.zeros(5, 3), torch.zeros(4, 3), id="all of norm zero"),
        pytest.param(torch.zeros(5, 3), torch.eye(3), id="one side of norm zero"),
        pytest.param(torch.ones(1, 3), torch.eye(3), id="one point against three"),
        pytest.param(torch.ones(1, 3), torch.ones(1, 3), id="one point against itself"),
        pytest.param(torch.eye(3).repeat(4, 1), torch.eye(3).repeat(2, 1), id="duplicates"),
        pytest.param(1e-30 * torch.eye(3), torch.eye(3), id="norms that underflow"),
        pytest.param(1e15 * torch.eye(3), -torch.eye(3), id="huge"),
    ],
)
def test_degenerate_clouds_give_finite_values_and_gradients(x: Tensor, y: Tensor, metric: str, entropy: float) -> None:
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    a, b = even(len(x), len(y))
    solved = entropic_transport(COSTS[metric](x, y)[None], a, b, entropy=entropy)
    gradients = torch.autograd.grad(solved.value.sum(), (x, y))
    assert all(torch.isfinite(part).all() for part in (solved.value, solved.plan, *gradients))


@pytest.mark.parametrize("absent", ["rows", "columns", "both"])
def test_an_empty_side_has_value_and_gradient_zero(absent: str) -> None:
    cost, a, b = problem(0, 3, 4)
    a, b = (a if absent == "columns" else 0 * a), (b if absent == "rows" else 0 * b)
    solved = entropic_transport(cost.requires_grad_(), a, b, entropy=0.05)
    (gradient,) = torch.autograd.grad(solved.value.sum(), cost)
    assert not solved.solvable.item()
    assert solved.value.item() == solved.marginal_error.item() == 0
    assert gradient.abs().sum() == 0


@given(seed=seeds, n=st.integers(3, 12), entropy=entropies)
@settings(max_examples=40)
def test_forbidden_pairs_get_nothing(seed: int, n: int, entropy: float) -> None:
    cost = COSTS["cosine"](cloud(seed, n), cloud(seed + 1, n))[None]
    forbidden = torch.eye(n, dtype=torch.bool)[None]
    even = torch.ones(1, n, dtype=torch.float64)
    solved = entropic_transport(cost, even, even, entropy=entropy, forbidden=forbidden)
    dear = entropic_transport(cost + 50.0 * forbidden, even, even, entropy=entropy, iterations=100)
    assert solved.plan.diagonal(dim1=1, dim2=2).abs().max() == 0
    torch.testing.assert_close(solved.value, dear.value, rtol=1e-6, atol=1e-8)


@given(seed=seeds, n=st.integers(1, 4), m=st.integers(1, 4), pairs=st.integers(0, 4))
def test_solvable_says_whether_there_is_a_plan(seed: int, n: int, m: int, pairs: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randint(4, (1, count), generator=generator).double() for count in (n, m)]
    forbidden = torch.zeros(1, n, m, dtype=torch.bool)
    shared = min(n, m, pairs)
    rows, columns = (torch.randperm(count, generator=generator)[:shared] for count in (n, m))
    forbidden[0, rows, columns] = True
    solved = entropic_transport(torch.zeros(1, n, m, dtype=torch.float64), *weights, entropy=1.0, forbidden=forbidden)
    assert solved.solvable.item() == has_plan(weights[0][0], weights[1][0], forbidden[0])
    assert solved.marginal_error.item() < 1e-3


def has_plan(a: Tensor, b: Tensor, forbidden: Tensor) -> bool:
    """Decide by linear programming."""
    if not a.sum() or not b.sum():
        return False
    n, m = forbidden.shape
    sums = np.concatenate([np.repeat(np.eye(n), m, axis=1), np.tile(np.eye(m), n)])
    masses = torch.cat([a / a.sum(), b / b.sum()]).numpy()
    bounds = [(0, 0) if closed else (0, 1) for closed in forbidden.flatten().tolist()]
    return linprog(np.zeros(n * m), A_eq=sums, b_eq=masses, bounds=bounds).status == 0


def test_short_vectors_have_no_direction() -> None:
    x = torch.tensor([[0.0, 0.0], [1e-7, 0.0], [2.0, 0.0]], requires_grad=True)
    cost = transport.cosine_cost(x, torch.tensor([[1.0, 1.0]]))
    assert cost[:2].tolist() == [[1.0], [1.0]]
    cost.sum().backward()
    assert x.grad is not None
    assert x.grad[:2].abs().sum() == 0
    assert x.grad[2].abs().sum() > 0


# ------------------------------------------------------------------------------------------------------ divergence


def divergence_of(x: Tensor, y: Tensor, a: Tensor, b: Tensor, entropy: float) -> transport.Divergence:
    cost = transport.squared_euclidean_cost
    solve = partial(entropic_transport, entropy=entropy)
    return sinkhorn_divergence(cost(x, y)[None], cost(x, x)[None], cost(y, y)[None], a[None], b[None], solve=solve)


@given(seed=seeds, n=sizes, entropy=entropies)
@settings(max_examples=40)
def test_divergence_of_a_cloud_from_itself_is_zero(seed: int, n: int, entropy: float) -> None:
    x, a = cloud(seed, n).float().requires_grad_(), uneven(seed, n).float()
    divergence = divergence_of(x, x, a, a, entropy)
    # The three sums are of equal terms, which some processors add in another order: a rounding forbidden.
    rounding = torch.finfo(x.dtype).eps * transport.squared_euclidean_cost(x, x).max().item()
    assert abs(divergence.value.item()) <= rounding
    (gradient,) = torch.autograd.grad(divergence.value.sum(), x)
    assert gradient.abs().max() < 1e-4


@given(seed=seeds, n=sizes, entropy=entropies)
@settings(max_examples=40)
def test_divergence_is_positive_and_symmetric(seed: int, n: int, entropy: float) -> None:
    x, y, a, b = cloud(seed, n), cloud(seed + 1, n), uneven(seed, n), uneven(seed + 1, n)
    there, back = divergence_of(x, y, a, b, entropy).value, divergence_of(y, x, b, a, entropy).value
    assert there.item() > -1e-7
    torch.testing.assert_close(there, back, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("entropy", [1.0, 0.05])
def test_divergence_of_a_shifted_cloud_is_the_squared_shift(entropy: float) -> None:
    # Feydy et al. 2019: the cross terms of a translation cancel, so the debiased divergence is exact here.
    x, a = cloud(0, 30), uneven(0, 30)
    shift = torch.full((8,), 0.25, dtype=torch.float64)
    value = divergence_of(x, x + shift, a, a, entropy).value
    assert value.item() == pytest.approx(shift.square().sum().item(), rel=1e-5)


def test_divergence_needs_no_equal_sizes_where_weights_fill_up() -> None:
    x, y = cloud(0, 10), cloud(1, 10)
    a, b = uneven(0, 10), uneven(1, 10)
    b[7:] = 0
    cost = transport.squared_euclidean_cost
    reference = (
        entropic_transport(cost(x, y[:7])[None], a[None], b[None, :7], entropy=0.1).value
        - entropic_transport(cost(x, x)[None], a[None], a[None], entropy=0.1).value / 2
        - entropic_transport(cost(y[:7], y[:7])[None], b[None, :7], b[None, :7], entropy=0.1).value / 2
    )
    torch.testing.assert_close(divergence_of(x, y, a, b, 0.1).value, reference, rtol=1e-6, atol=1e-8)
