"""Entropic optimal transport between weighted point clouds: log domain, batched, float32-safe down to entropy 0.01.

P problems, n and m points on the two sides, D embedding size. For a cost C (P, n, m), weights a (P, n) and b (P, m),
each side summing to one, and the entropy e in units of the cost, a problem's value is

    OT(a, b) = min_T <T, C> + e KL(T | a b')   over plans T >= 0 with row sums a and column sums b          (1)

With one potential f (P, n) for the rows, the columns' potential g and a plan whose column sums are right follow:

    g_j = -e log sum_i a_i exp((f_i - C_ij) / e)                                                            (2)
    T_ij = a_i b_j exp((f_i + g_j - C_ij) / e) = b_j softmax_i(log a_i + (f_i - C_ij) / e)                  (3)

The potential sought is the maximum of the concave semi-dual

    F(f) = <a, f> + <b, g(f)>,   gradient a - p,   Hessian -(diag(p) - T diag(1/b) T') / e,   p = T1        (4)

(Peyre and Cuturi, Computational Optimal Transport, 2019, sections 4.1, 4.4 and 5.3.) Sinkhorn's iteration is
f += e log(a / p), and needs thousands of updates where the entropy is small. Newton's method on (4) (Brauer et al.
2017, A Sinkhorn-Newton method for entropic optimal transport), followed down a falling entropy, needs ten to twenty
steps for batches of embeddings, so that their number can be fixed and a GPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

NO_DIRECTION = 1e-6
"""A vector shorter than this has no direction: its cosine with anything is 0, and so is that cosine's gradient."""

_LONGEST_STEP = 2.0
"""No entry of a potential moves further than so many entropies in a step. Over a step of length d the Hessian of (4)
may change by the factor exp(2 d), so that Newton's model says nothing of a longer one; at 5 it went in circles."""

_SINKHORN_STEPS = 2
"""The first steps are Sinkhorn's: while the entropy is near the cost's size they do as much as Newton's for less."""

_SLOWEST_FALL = 0.5
"""The entropy falls by this factor per step, or faster where it has further to go."""

_SHARE_FALLING = 0.7
"""Share of the steps in which it may fall; the rest are kept for the entropy asked for."""

_CLOSED = 1e20
"""Cost of a pair that no plan uses: no exponent survives it, and unlike infinity it can be subtracted from itself."""

_LEAST_MASS = 1e-30
"""A row sum below this is taken for this; an early, wrong potential may leave a row with so little."""

_DAMPING = 1e-6
"""Added to the Hessian's eigenvalues, which lie in [0, 1] once scaled by p: so little float32 can still factorise."""


class _Transport(NamedTuple):
    """Solved problems (P,). Only `value` carries a gradient."""

    value: Tensor
    """(P,) eq. (1), in units of the cost; 0 where there is no plan."""

    marginal_error: Tensor
    """(P,) how far the plan's row sums are from a, sum |T1 - a|, in [0, 2]; its column sums are exact."""

    iterations: int
    """Updates of the potential that were made."""

    plan: Tensor
    """(P, n, m) eq. (3); 0 where there is no plan."""

    solvable: Tensor
    """(P,) bool, whether there is a plan: both sides have weight, and room for what is kept apart."""


class Solver(Protocol):
    """What solves problems (P,): `exact_transport`, or `entropic_transport` with its entropy."""

    def __call__(self, cost: Tensor, a: Tensor, b: Tensor, *, apart: Tensor | None = None) -> _Transport: ...


class Divergence(NamedTuple):
    """Debiased transport (P,). Only `value` carries a gradient."""

    value: Tensor
    """(P,) OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2, at least 0, and 0 between equal clouds; 0 where one is empty."""

    marginal_error: Tensor
    """(P,) the largest of the three problems'."""

    iterations: int
    """Updates of the potential that were made."""


def _directions(points: Tensor) -> Tensor:
    """Points (..., D) scaled to unit length; zero, with zero gradient, where shorter than `NO_DIRECTION`."""
    squared = points.square().sum(-1, keepdim=True)
    long_enough = squared > NO_DIRECTION**2
    return points * torch.where(long_enough, squared, 1).rsqrt() * long_enough


def cosine_cost(x: Tensor, y: Tensor) -> Tensor:
    """1 - cosine between points (..., n, D) and (..., m, D): (..., n, m) in [0, 2]."""
    return 1 - _directions(x) @ _directions(y).mT


def euclidean_distance(x: Tensor, y: Tensor) -> Tensor:
    """Distance between points (..., n, D) and (..., m, D): (..., n, m); its gradient is 0 where they coincide."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def squared_euclidean_cost(x: Tensor, y: Tensor) -> Tensor:
    """Squared distance between points (..., n, D) and (..., m, D): (..., n, m)."""
    return euclidean_distance(x, y).square()


def entropic_transport(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    entropy: Tensor | float,
    apart: Tensor | None = None,
    iterations: int = 24,
    tolerance: float | None = 1e-5,
) -> _Transport:
    """Solve all P problems at once, without a gradient through the iterations.

    Args:
        cost: (P, n, m), finite.
        a: (P, n) weights, at least 0, scaled here to sum to one; a point of weight 0 is not there.
        b: (P, m) likewise.
        entropy: e, in units of the cost, above 0.
        apart: (P, n, m) bool, pairs that no plan may match, at most one in each row and column; none where None.
        iterations: the most steps; `marginal_error` tells whether they were enough.
        tolerance: stop before where every marginal error is below this and the tensors are on the CPU; on a GPU a look
            would mean waiting for it. None never looks, which is what `torch.vmap` needs.
    """
    a, b = _shares(a), _shares(b)
    solvable = _solvable(a, b, apart)
    with torch.no_grad():
        problem = _problem(cost.detach(), a, b, apart, solvable)
        f = torch.zeros_like(problem.a)
        asked = entropy * torch.ones_like(f[:, :1])
        steps = 0
        for e in _falling_entropies(cost.detach(), entropy, iterations):
            plan = _plan(problem, f, e)
            if tolerance is not None and cost.is_cpu and _is_solved(problem, plan, e, asked, tolerance):
                break
            f = f + e * (_sinkhorn_step if steps < _SINKHORN_STEPS else _newton_step)(problem, plan)
            steps += 1
        else:
            plan = _plan(problem, f, asked)
        plan = plan * solvable[:, None, None]
        value = _semi_dual(problem, f, asked) * solvable
        marginal_error = _marginal_error(problem, plan) * solvable
    # Envelope theorem: at the optimum of (1) the plan's own change with the cost changes the value only to second
    # order, so dOT/dC is the plan, and nothing has to flow back through the iterations.
    linear = (plan * cost).sum((-2, -1))
    return _Transport(value + (linear - linear.detach()), marginal_error, steps, plan, solvable)


def sinkhorn_divergence(
    cost_ab: Tensor, cost_aa: Tensor, cost_bb: Tensor, a: Tensor, b: Tensor, *, solve: Solver
) -> Divergence:
    """Debiased transport (Feydy et al. 2019, eq. 3) from the costs between and within two clouds.

    Args:
        cost_ab, cost_aa, cost_bb: (P, n, n), finite; points of weight 0 fill up the smaller cloud.
        a, b: (P, n) weights, as in `entropic_transport`.
        solve: `exact_transport`, or `entropic_transport` with its entropy.
    """
    solved = solve(torch.cat([cost_ab, cost_aa, cost_bb]), torch.cat([a, a, b]), torch.cat([b, a, b]))
    ab, aa, bb = solved.value.chunk(3)
    value = torch.where(solved.solvable.chunk(3)[0], ab - (aa + bb) / 2, 0)
    return Divergence(value, torch.stack(solved.marginal_error.chunk(3)).amax(0), solved.iterations)


def exact_transport(cost: Tensor, a: Tensor, b: Tensor, *, apart: Tensor | None = None) -> _Transport:
    """Transport without entropy, by POT's network simplex (`ot.emd`): the reference, and an option for small batches.

    Problems are solved one after the other on the CPU, in O(n^3 log n), wherever the cost lies.

    Args:
        cost, a, b, apart: as in `entropic_transport`.
    """
    import ot

    a, b = _shares(a), _shares(b)
    solvable = _solvable(a, b, apart)
    plan = torch.zeros_like(cost)
    # More than any way around the closed pairs could cost, and near enough to the rest for the simplex to count with.
    closed = 2 * (cost.shape[1] + cost.shape[2]) * cost.detach().abs().amax() + 1
    open_cost = cost.detach() if apart is None else cost.detach().masked_fill(apart, closed)
    for p in solvable.nonzero().flatten().tolist():
        rows, columns, costs = (side[p].double().cpu().numpy() for side in (a, b, open_cost))
        solved = ot.emd(rows, columns, costs)
        plan[p] = torch.as_tensor(solved).to(plan)
    # The envelope theorem, as there: where the optimum is unique, the plan is the value's gradient.
    value = (plan * cost).sum((-2, -1))
    return _Transport(value, (plan.sum(-1) - a).abs().sum(-1) * solvable, 0, plan, solvable)


class _Problem(NamedTuple):
    """Transport problems made safe: nothing computed from them is infinite or undefined, whatever is absent."""

    cost: Tensor
    """(P, n, m), with `CLOSED` where a plan has nothing."""

    a: Tensor
    b: Tensor
    """(P, n), (P, m), each summing to one."""

    log_a: Tensor
    """(P, n), 0 where a is 0."""


def _shares(weights: Tensor) -> Tensor:
    """Weights (P, n) scaled to sum to one; all zero stays zero."""
    mass = weights.sum(-1, keepdim=True)
    return weights / torch.where(mass > 0, mass, 1)


def _solvable(a: Tensor, b: Tensor, apart: Tensor | None) -> Tensor:
    """(P,) bool, see `Transport.solvable`.

    Two rows together reach every column, so what can fail is a single row i kept apart from column j: there is a plan
    if and only if all such a_i <= 1 - b_j (Hall's condition).
    """
    present = (a > 0).any(-1) & (b > 0).any(-1)
    if apart is None:
        return present
    crowded = a[:, :, None] + b[:, None, :] > 1 + 1e-6
    return present & ~(apart & crowded).any((-2, -1))


def _problem(cost: Tensor, a: Tensor, b: Tensor, apart: Tensor | None, solvable: Tensor) -> _Problem:
    """A problem without a plan becomes one of even weights and no closed pairs."""
    a = torch.where(solvable[:, None], a, 1 / a.shape[1])
    b = torch.where(solvable[:, None], b, 1 / b.shape[1])
    closed = (a == 0)[:, :, None]
    if apart is not None:
        closed = closed | (apart & solvable[:, None, None])
    return _Problem(cost.masked_fill(closed, _CLOSED), a, b, torch.where(a > 0, a, 1).log())


def _falling_entropies(cost: Tensor, entropy: Tensor | float, steps: int) -> Iterator[Tensor]:
    """Entropies (P, 1), falling from half the largest cost to the one asked for, which the last steps keep."""
    start = (cost.amax((-2, -1)) / (2 * entropy)).clamp(min=1)[:, None]
    fall = torch.minimum(start ** (-1 / (steps * _SHARE_FALLING)), torch.full_like(start, _SLOWEST_FALL))
    for step in range(steps):
        yield entropy * (start * fall**step).clamp(min=1)


def _is_solved(problem: _Problem, plan: Tensor, e: Tensor, asked: Tensor, tolerance: float) -> bool:
    """Whether the entropy asked for is reached and every plan's row sums are right."""
    return bool((e <= asked).all() and (_marginal_error(problem, plan) <= tolerance).all())


def _marginal_error(problem: _Problem, plan: Tensor) -> Tensor:
    """sum |T1 - a|, (P,)."""
    return (plan.sum(-1) - problem.a).abs().sum(-1)


def _plan(problem: _Problem, f: Tensor, e: Tensor) -> Tensor:
    """Eq. (3), (P, n, m). Potential (P, n), entropies (P, 1)."""
    return problem.b[:, None, :] * _exponent(problem, f, e).softmax(1)


def _semi_dual(problem: _Problem, f: Tensor, e: Tensor) -> Tensor:
    """F in eq. (4), (P,)."""
    g = -e * _exponent(problem, f, e).logsumexp(1)
    return (problem.a * f).sum(-1) + (problem.b * g).sum(-1)


def _exponent(problem: _Problem, f: Tensor, e: Tensor) -> Tensor:
    """log a_i + (f_i - C_ij) / e, (P, n, m)."""
    return torch.addcmul((problem.log_a + f / e)[:, :, None], problem.cost, -1 / e[:, :, None])


def _sinkhorn_step(problem: _Problem, plan: Tensor) -> Tensor:
    """log(a / p), in entropies (P, n)."""
    p = plan.sum(-1).clamp(min=_LEAST_MASS)
    return torch.where(problem.a > 0, problem.a / p, 1).log()


def _newton_step(problem: _Problem, plan: Tensor) -> Tensor:
    """The d that solves (diag(p) - T diag(1/b) T') d = a - p, in entropies (P, n).

    With s = sqrt(p) and Q = diag(1/s) T diag(1/sqrt(b)) the matrix scaled by 1/s from both sides is 1 - Q Q', which is
    singular, as a constant added to f changes nothing, and damped for that.
    """
    p = plan.sum(-1).clamp(min=_LEAST_MASS)
    s = p.sqrt()
    q = plan / s[:, :, None] * problem.b.clamp(min=_LEAST_MASS).rsqrt()[:, None, :]
    # Entries too small to count would give products below float32's normal range, and those are slow.
    q = F.threshold(q, 1e-18, 0)
    eye = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    hessian = torch.baddbmm((1 + _DAMPING) * eye, q, q.mT, alpha=-1)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    step = torch.cholesky_solve(((problem.a - p) / s)[:, :, None], factor)[:, :, 0] / s
    step = torch.where(failed[:, None] == 0, step, _sinkhorn_step(problem, plan))
    return step.clamp(-_LONGEST_STEP, _LONGEST_STEP)
