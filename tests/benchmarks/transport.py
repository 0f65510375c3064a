"""Per-class transport of one batch, forward and backward: ours over POT's log-domain Sinkhorn with autodiff.

The ten problems are those of `ot_triplet`: the anchors of a class (about 26 of 256) against the clean images of the
others (about 230), of whose mass a share is used: all of it, where the problem is balanced, or the default 1/16, where
one more row at cost 0 takes the rest. All run on one machine in turn, until the row sums are right to `ERROR`, each
with as few of its iterations as that takes; ours, whose last step squares the error, usually ends far below. POT's
batched solver with the envelope gradient is shown beside: it needs problems of one shape, so it is given them padded.

    python -m tests.benchmarks.transport
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import NamedTuple

import ot
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.common import interleaved, print_machine, print_result, print_table, ratios
from trainer.objective.regularizers import Embedded, group_by_class
from trainer.objective.transport import cosine_cost, entropic_transport

BATCH, CLASSES, DIMENSIONS, ROUNDS = 256, 10, 32, 15
ERROR = 1e-5
ENTROPIES = (1.0, 0.1, 0.05, 0.01)
DEFAULT_ENTROPY = 0.05
CASES = [*((entropy, 1.0) for entropy in ENTROPIES), (DEFAULT_ENTROPY, 1 / 16)]
"""Entropies and shares."""


class Problems(NamedTuple):
    anchors: Tensor
    clean: Tensor
    rows: Tensor
    """(K, N) anchors of each class, padded."""
    a: Tensor
    """(K, N + 1) weights, the last of the row for the mass that is not used."""
    b: Tensor

    def cost(self) -> Tensor:
        """Return (K, N + 1, B)."""
        return F.pad(cosine_cost(self.anchors, self.clean)[self.rows], (0, 0, 0, 1))


def make_problems(share: float) -> Problems:
    """Draw embeddings like those of a half-trained network: classes that overlap a little. float32."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    centres = torch.randn(CLASSES, DIMENSIONS, generator=generator)
    clean = centres[labels] + torch.randn(BATCH, DIMENSIONS, generator=generator)
    anchors = clean + 0.5 * torch.randn(BATCH, DIMENSIONS, generator=generator)
    rows, present = group_by_class(Embedded(anchors, labels), CLASSES)
    others = labels != torch.arange(CLASSES)[:, None]
    rest = present.sum(1, keepdim=True) * (1 / share - 1)
    a = torch.cat([present.float(), rest], 1)
    return Problems(anchors.requires_grad_(), clean.requires_grad_(), rows, a, others.float())


def ours(problems: Problems, entropy: float) -> tuple[Tensor, Tensor]:
    """Return the summed value and the largest marginal error."""
    solved = entropic_transport(problems.cost(), problems.a, problems.b, entropy=entropy, tolerance=ERROR)
    return solved.value.sum(), solved.marginal_error.max()


def pot_class_by_class(problems: Problems, entropy: float, iterations: int) -> tuple[Tensor, Tensor]:
    costs = problems.cost()
    values, errors = [], []
    for k in range(CLASSES):
        rows, columns = problems.a[k] > 0, problems.b[k] > 0
        cost, a = costs[k][rows][:, columns], problems.a[k][rows] / problems.a[k].sum()
        b = torch.full((int(columns.sum()),), 1 / float(columns.sum()))
        value, log = ot.sinkhorn2(
            a, b, cost, entropy, method="sinkhorn_log", numItermax=iterations, stopThr=0, log=True
        )
        values.append(value)
        log_u, log_v = torch.as_tensor(log["log_u"]), torch.as_tensor(log["log_v"])
        plan = (log_u[:, None] + log_v - cost / entropy).exp()
        errors.append(((plan.sum(1) - a).abs().sum() + (plan.sum(0) - b).abs().sum()).detach())
    return torch.stack(values).sum(), torch.stack(errors).max()


def pot_batched(problems: Problems, entropy: float, iterations: int) -> tuple[Tensor, Tensor]:
    a, b = (w / w.sum(1, keepdim=True) for w in (problems.a, problems.b))
    solved = ot.solve_batch(problems.cost(), entropy, a, b, max_iter=iterations, tol=0, grad="envelope")
    plan, value = torch.as_tensor(solved.plan), torch.as_tensor(solved.value)
    errors = (plan.sum(2) - a).abs().sum(1) + (plan.sum(1) - b).abs().sum(1)
    return value.sum(), errors.max()


def fewest_iterations(solve: Callable[[int], tuple[Tensor, Tensor]]) -> int:
    """Find, to within a quarter, how many bring the error below `ERROR`."""
    iterations = 2
    while solve(iterations)[1] > ERROR and iterations < 5000:
        iterations += max(1, iterations // 4)
    return iterations


def forward_and_backward(problems: Problems, solve: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(solve()[0], (problems.anchors, problems.clean))


def main() -> None:
    warnings.filterwarnings("ignore", message="Sinkhorn did not converge")  # the iterations are counted out on purpose
    print_machine("pot")
    gains = {}
    for entropy, share in CASES:
        problems = make_problems(share)
        few = fewest_iterations(lambda n, entropy=entropy, problems=problems: pot_class_by_class(problems, entropy, n))
        few_batched = fewest_iterations(lambda n, entropy=entropy, problems=problems: pot_batched(problems, entropy, n))
        solvers = {
            "POT sinkhorn_log, class by class": lambda entropy=entropy, problems=problems, n=few: pot_class_by_class(
                problems, entropy, n
            ),
            "POT solve_batch, envelope": lambda entropy=entropy, problems=problems, n=few_batched: pot_batched(
                problems, entropy, n
            ),
            "ours": lambda entropy=entropy, problems=problems: ours(problems, entropy),
        }
        times = interleaved(
            {name: forward_and_backward(problems, solve) for name, solve in solvers.items()}, rounds=ROUNDS
        )
        notes = {name: f"marginal error {solve()[1]:.0e}" for name, solve in solvers.items()}
        print_table(f"entropy {entropy:g}, share {share:g}: {CLASSES} problems of {BATCH} images, cosine", times, notes)
        gain = ratios(times["POT sinkhorn_log, class by class"], times["ours"])
        print(f"times faster, {ROUNDS} pairs: median {statistics.median(gain):.1f}, {min(gain):.1f} to {max(gain):.1f}")
        gains[entropy, share] = statistics.median(gain)
    print_result("transport", gains[DEFAULT_ENTROPY, 1.0])


if __name__ == "__main__":
    main()
