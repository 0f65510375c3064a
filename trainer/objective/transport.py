"""Entropic optimal transport between weighted point clouds: log domain, batched, float32-safe down to entropy 0.01.

Shape letters: P problems, n and m points on the two sides, D embedding size. For a cost C (P, n, m), weights a (P, n)
and b (P, m), each side summing to one, and the entropy e in units of the cost, a problem's value is

    OT(a, b) = min_T <T, C> + e KL(T | a b')   over plans T >= 0 with row sums a and column sums b          (1)

One potential f (P, n) for the rows gives the columns' potential g and a plan whose column sums are right:

    g_j = -e log sum_i a_i exp((f_i - C_ij) / e)                                                            (2)
    T_ij = a_i b_j exp((f_i + g_j - C_ij) / e) = b_j softmax_i(log a_i + (f_i - C_ij) / e)                  (3)

The potential sought maximises the concave semi-dual

    F(f) = <a, f> + <b, g(f)>,   gradient a - p,   Hessian -(diag(p) - T diag(1/b) T') / e,   p = T1        (4)

(Peyre and Cuturi, Computational Optimal Transport, 2019, sections 4.1, 4.4 and 5.3.) Sinkhorn's iteration is
f += e log(a / p), and needs thousands of updates if the entropy is small. Newton's method on (4) (Brauer et al.
2017, A Sinkhorn-Newton method for entropic optimal transport), while the entropy falls, needs ten to twenty steps for
batches of embeddings, so that their number can be fixed and nothing ever waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

NO_DIRECTION = 1e-6
"""Length below which a vector has no direction: its cosine with anything is 0, and so is that cosine's gradient."""

_LONGEST_STEP = 2.0
"""Limit of each entry of a step, in entropies. Over a step of length d the Hessian of (4) may change by the factor
exp(2 d), so Newton's model does not hold for a longer one; with 5 the iteration went in circles."""

_SINKHORN_STEPS = 2
"""Number of first steps that are Sinkhorn's: while the entropy is near the cost's size they gain as much as Newton's
and cost less."""

_SLOWEST_FALL = 0.5
"""Factor by which the entropy falls per step, or faster if it has further to go."""

_SHARE_FALLING = 0.7
"""Share of the steps in which it may fall; the rest are made at the entropy asked for."""

_CLOSED = 1e20
"""Cost of a pair that no plan uses: its exponential is 0, and unlike infinity it can be subtracted from itself."""

_LEAST_MASS = 1e-30
"""Lower bound of a row sum where it divides; a wrong potential of the first steps may leave a row with less."""

_DAMPING = 1e-6
"""Amount added to the Hessian's eigenvalues, which lie in [0, 1] once scaled by p; float32 can factorise no less."""


class _Transport(NamedTuple):
    """The outcome of P problems. Only `value` carries a gradient."""

    value: Tensor
    """(P,) eq. (1), in units of the cost; 0 if there is no plan."""

    marginal_error: Tensor
    """(P,) sum |T1 - a|, the distance of the plan's row sums from a, in [0, 2]; its column sums are exact."""

    iterations: int
    """Updates of the potential that were made."""

    plan: Tensor
    """(P, n, m) eq. (3); 0 if there is no plan."""

    solvable: Tensor
    """(P,) bool, whether a plan exists: both sides have weight, and the forbidden pairs leave room for it."""


class Solver(Protocol):
    """A solver of P problems: `exact_transport`, or `entropic_transport` with its entropy."""

    def __call__(self, cost: Tensor, a: Tensor, b: Tensor, *, forbidden: Tensor | None = None) -> _Transport: ...


class Divergence(NamedTuple):
    """The debiased transport of P problems. Only `value` carries a gradient."""

    value: Tensor
    """(P,) OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2, at least 0, and 0 between equal clouds; 0 if one is empty."""

    marginal_error: Tensor
    """(P,) the largest of the three problems'."""

    iterations: int
    """Updates of the potential that were made."""


def _directions(points: Tensor) -> Tensor:
    """Scale points (..., D) to unit length; to zero, with zero gradient, those shorter than `NO_DIRECTION`."""
    squared = points.square().sum(-1, keepdim=True)
    long_enough = squared > NO_DIRECTION**2
    return points * torch.where(long_enough, squared, 1).rsqrt() * long_enough


def cosine_cost(x: Tensor, y: Tensor) -> Tensor:
    """Return 1 - cosine between points (..., n, D) and (..., m, D): (..., n, m) in [0, 2]."""
    return 1 - _directions(x) @ _directions(y).mT


def euclidean_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return distances between points (..., n, D) and (..., m, D): (..., n, m); of gradient 0 where they coincide."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def squared_euclidean_cost(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances between points (..., n, D) and (..., m, D): (..., n, m)."""
    return euclidean_distance(x, y).square()


def entropic_transport(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    entropy: Tensor | float,
    forbidden: Tensor | None = None,
    iterations: int = 24,
    tolerance: float | None = 1e-5,
) -> _Transport:
    """Solve all P problems at once, without a gradient through the iterations.

    Args:
        cost: (P, n, m), finite.
        a: (P, n) weights, at least 0, scaled here to sum to one; a point of weight 0 takes no part.
        b: (P, m) likewise.
        entropy: e, in units of the cost, above 0.
        forbidden: (P, n, m) bool, pairs that no plan may match, at most one in each row and column.
        iterations: the most steps; `marginal_error` shows whether they were enough.
        tolerance: on a CPU, stop early once every marginal error is at most this; on a GPU the check would mean
            waiting for it. None never checks, as `torch.vmap` needs.
    """
    a, b = _normalised(a), _normalised(b)
    solvable = _solvable(a, b, forbidden)
    with torch.no_grad():
        problem = _problem(cost.detach(), a, b, forbidden, solvable)
        f = torch.zeros_like(problem.a)
        target = entropy * torch.ones_like(f[:, :1])
        steps = 0
        for e in _falling_entropies(cost.detach(), entropy, iterations):
            plan = _plan(problem, f, e)
            if tolerance is not None and cost.is_cpu and _is_solved(problem, plan, e, target, tolerance):
                break
            f = f + e * (_sinkhorn_step if steps < _SINKHORN_STEPS else _newton_step)(problem, plan)
            steps += 1
        else:
            plan = _plan(problem, f, target)
        plan = plan * solvable[:, None, None]
        value = _semi_dual(problem, f, target) * solvable
        marginal_error = _marginal_error(problem, plan) * solvable
    # Envelope theorem: at the optimum of (1) the plan's own change with the cost changes the value only to second
    # order, so dOT/dC is the plan, and no gradient has to pass through the iterations.
    linear = (plan * cost).sum((-2, -1))
    return _Transport(value + (linear - linear.detach()), marginal_error, steps, plan, solvable)


def sinkhorn_divergence(
    cost_ab: Tensor, cost_aa: Tensor, cost_bb: Tensor, a: Tensor, b: Tensor, *, solve: Solver
) -> Divergence:
    """Compute the debiased transport (Feydy et al. 2019, eq. 3) from the costs between and within two clouds.

    Args:
        cost_ab, cost_aa, cost_bb: (P, n, n), finite; points of weight 0 fill up the smaller cloud.
        a, b: (P, n) weights, as in `entropic_transport`.
        solve: `exact_transport`, or `entropic_transport` with its entropy.
    """
    solved = solve(torch.cat([cost_ab, cost_aa, cost_bb]), torch.cat([a, a, b]), torch.cat([b, a, b]))
    ab, aa, bb = solved.value.chunk(3)
    value = torch.where(solved.solvable.chunk(3)[0], ab - (aa + bb) / 2, 0)
    return Divergence(value, torch.stack(solved.marginal_error.chunk(3)).amax(0), solved.iterations)


def exact_transport(cost: Tensor, a: Tensor, b: Tensor, *, forbidden: Tensor | None = None) -> _Transport:
    """Solve transport without entropy, by POT's network simplex (`ot.emd`): a reference, and usable for small batches.

    Problems are solved one after the other on the CPU, in O(n^3 log n), wherever the cost lies.

    Args:
        cost, a, b, forbidden: as in `entropic_transport`.
    """
    import ot

    a, b = _normalised(a), _normalised(b)
    solvable = _solvable(a, b, forbidden)
    plan = torch.zeros_like(cost)
    # More than any plan without forbidden pairs costs, yet close enough to the rest for the simplex's precision.
    closed = 2 * (cost.shape[1] + cost.shape[2]) * cost.detach().abs().amax() + 1
    open_cost = cost.detach() if forbidden is None else cost.detach().masked_fill(forbidden, closed)
    for p in solvable.nonzero().flatten().tolist():
        rows, columns, costs = (side[p].double().cpu().numpy() for side in (a, b, open_cost))
        solved = ot.emd(rows, columns, costs)
        plan[p] = torch.as_tensor(solved).to(plan)
    # The envelope theorem, as above: if the optimum is unique, the plan is the value's gradient.
    value = (plan * cost).sum((-2, -1))
    return _Transport(value, (plan.sum(-1) - a).abs().sum(-1) * solvable, 0, plan, solvable)


class _Problem(NamedTuple):
    """P problems made safe: whatever is absent, nothing computed from them is infinite or undefined."""

    cost: Tensor
    """(P, n, m), `_CLOSED` in rows of weight 0 and in forbidden pairs."""

    a: Tensor
    """(P, n), summing to one."""

    b: Tensor
    """(P, m), summing to one."""

    log_a: Tensor
    """(P, n), 0 where a is 0."""


def _normalised(weights: Tensor) -> Tensor:
    """Scale weights (P, n) to sum to one; all zero stays zero."""
    mass = weights.sum(-1, keepdim=True)
    return weights / torch.where(mass > 0, mass, 1)


def _solvable(a: Tensor, b: Tensor, forbidden: Tensor | None) -> Tensor:
    """Return which problems have a plan, (P,) bool.

    Two rows together reach every column, so only a single row i whose pair with column j is forbidden can fail: a plan
    exists if and only if a_i <= 1 - b_j for all such pairs (Hall's condition).
    """
    present = (a > 0).any(-1) & (b > 0).any(-1)
    if forbidden is None:
        return present
    crowded = a[:, :, None] + b[:, None, :] > 1 + 1e-6
    return present & ~(forbidden & crowded).any((-2, -1))


def _problem(cost: Tensor, a: Tensor, b: Tensor, forbidden: Tensor | None, solvable: Tensor) -> _Problem:
    """Make problems safe; one without a plan is replaced by one of even weights and no forbidden pairs."""
    a = torch.where(solvable[:, None], a, 1 / a.shape[1])
    b = torch.where(solvable[:, None], b, 1 / b.shape[1])
    closed = (a == 0)[:, :, None]
    if forbidden is not None:
        closed = closed | (forbidden & solvable[:, None, None])
    return _Problem(cost.masked_fill(closed, _CLOSED), a, b, torch.where(a > 0, a, 1).log())


def _falling_entropies(cost: Tensor, entropy: Tensor | float, steps: int) -> Iterator[Tensor]:
    """Yield entropies (P, 1), falling from half the largest cost to the one asked for, which the last steps keep."""
    start = (cost.amax((-2, -1)) / (2 * entropy)).clamp(min=1)[:, None]
    fall = torch.minimum(start ** (-1 / (steps * _SHARE_FALLING)), torch.full_like(start, _SLOWEST_FALL))
    for step in range(steps):
        yield entropy * (start * fall**step).clamp(min=1)


def _is_solved(problem: _Problem, plan: Tensor, e: Tensor, target: Tensor, tolerance: float) -> bool:
    """Return whether the target entropy is reached and every plan's row sums are right."""
    return bool((e <= target).all() and (_marginal_error(problem, plan) <= tolerance).all())


def _marginal_error(problem: _Problem, plan: Tensor) -> Tensor:
    """Return sum |T1 - a|, (P,)."""
    return (plan.sum(-1) - problem.a).abs().sum(-1)


def _plan(problem: _Problem, f: Tensor, e: Tensor) -> Tensor:
    """Compute eq. (3), (P, n, m), from potentials f (P, n) and entropies e (P, 1)."""
    return problem.b[:, None, :] * _exponent(problem, f, e).softmax(1)


def _semi_dual(problem: _Problem, f: Tensor, e: Tensor) -> Tensor:
    """Compute F of eq. (4), (P,)."""
    g = -e * _exponent(problem, f, e).logsumexp(1)
    return (problem.a * f).sum(-1) + (problem.b * g).sum(-1)


def _exponent(problem: _Problem, f: Tensor, e: Tensor) -> Tensor:
    """Compute log a_i + (f_i - C_ij) / e, (P, n, m)."""
    return torch.addcmul((problem.log_a + f / e)[:, :, None], problem.cost, -1 / e[:, :, None])


def _sinkhorn_step(problem: _Problem, plan: Tensor) -> Tensor:
    """Return log(a / p), in entropies, (P, n)."""
    p = plan.sum(-1).clamp(min=_LEAST_MASS)
    return torch.where(problem.a > 0, problem.a / p, 1).log()


def _newton_step(problem: _Problem, plan: Tensor) -> Tensor:
    """Solve (diag(p) - T diag(1/b) T') d = a - p for d, in entropies, (P, n).

    With s = sqrt(p) and Q = diag(1/s) T diag(1/sqrt(b)) the matrix scaled by 1/s from both sides is 1 - Q Q'. It is
    singular, as a constant added to f changes nothing, and is therefore damped.
    """
    p = plan.sum(-1).clamp(min=_LEAST_MASS)
    s = p.sqrt()
    q = plan / s[:, :, None] * problem.b.clamp(min=_LEAST_MASS).rsqrt()[:, None, :]
    # Entries too small to matter would give products below float32's normal range, which are slow.
    q = F.threshold(q, 1e-18, 0)
    eye = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    hessian = torch.baddbmm((1 + _DAMPING) * eye, q, q.mT, alpha=-1)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    step = torch.cholesky_solve(((problem.a - p) / s)[:, :, None], factor)[:, :, 0] / s
    step = torch.where(failed[:, None] == 0, step, _sinkhorn_step(problem, plan))
    return step.clamp(-_LONGEST_STEP, _LONGEST_STEP)
