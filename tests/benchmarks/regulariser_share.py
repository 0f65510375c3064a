"""The share of a training step that the regularisers' arithmetic takes: distances, transport, its gradient.

The step is a whole one of the trainer (PGD-7, sensitivity and invariance regularised, the MNIST CNN, batch 256). The
arithmetic is both regularisers' values and their gradients with respect to the embeddings, taken at the embeddings
of such a step; the network's passes over the perturbed images are not part of it. The result is the largest
share of any regulariser.

    python -m tests.benchmarks.regulariser_share
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch

from tests.benchmarks.common import (
    digits_of_mnist_shape,
    fresh_model,
    interleaved,
    print_machine,
    print_result,
    print_table,
    ratios,
)
from trainer.config import TrialConfig
from trainer.models import move_to_device
from trainer.objective import regularizers
from trainer.objective.regularizers import Embedded
from trainer.objective.terms import Knobs, total_loss
from trainer.training.batches import Batch, batch_at, shuffled_rows
from trainer.training.profiling import stand_in
from trainer.training.step import forward, make_optimizer, update
from trainer.training.views import batch_views

ROUNDS, WARM_STEPS, CPU = 7, 10, torch.device("cpu")


def configuration(regularizer: str) -> TrialConfig:
    return TrialConfig(
        regularizer=regularizer,
        sensitivity_weight=0.5,
        invariance_weight=0.5,
        sensitivity_steps=7,
        sensitivity_epsilon=0.3,
        batch_size=256,
    )


def stepper(config: TrialConfig) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return one whole step, and the regularisers' arithmetic alone, on a model that has learnt a little."""
    train = digits_of_mnist_shape(config.batch_size * 4)
    perturbed = stand_in(train, epsilon=config.invariance_epsilon)
    model = move_to_device(fresh_model(config, train.images), CPU)
    optimizer, knobs = make_optimizer(model, config), Knobs.of(config, CPU)
    generator = torch.Generator().manual_seed(0)

    def endless() -> Iterator[Batch]:
        while True:
            yield from (
                batch_at(train, perturbed, rows)
                for rows in shuffled_rows(len(train.labels), batch_size=config.batch_size, generator=generator)
            )

    source = endless()

    def step(config: TrialConfig = config) -> None:
        terms = forward(model, next(source), config, knobs, generator).terms
        update(optimizer, total_loss(terms, knobs))

    for _ in range(WARM_STEPS):
        step(config.replace(sensitivity_steps=1))
    return step, arithmetic(model, next(source), config, knobs, generator)


def arithmetic(
    model: torch.nn.Module,
    batch: Batch,
    config: TrialConfig,
    knobs: Knobs,
    generator: torch.Generator,
) -> Callable[[], object]:
    assert batch.invariance is not None
    with torch.no_grad():
        seen = {name: model(x).embedding for name, x in batch_views(model, batch, config, knobs, generator).items()}
    points = {name: embedding.requires_grad_() for name, embedding in seen.items()}
    clean = Embedded(points["clean"], batch.labels)
    anchors = (
        Embedded(points["sensitivity"], batch.labels),
        Embedded(points["invariance"], batch.invariance.labels, batch.invariance.keep),
    )

    def both() -> object:
        values = [
            regularizers.regularizer(
                config.regularizer,
                side,
                clean,
                classes=10,
                margin=knobs.margin,
                solve=regularizers.solver(config.transport, knobs.entropy),
                label_cost=knobs.label_cost,
            ).value
            for side in anchors
        ]
        return torch.autograd.grad(torch.stack(values).sum(), list(points.values()))

    return both


def main() -> None:
    print_machine()
    shares = {}
    for name in ("triplet", "sinkhorn", "ot_triplet"):
        step, both = stepper(configuration(name))
        times = interleaved({"whole step": step, "both regularisers": both}, rounds=ROUNDS)
        print_table(f"{name}: PGD-7, MNIST CNN, batch 256", times)
        share = [1 / times_longer for times_longer in ratios(times["whole step"], times["both regularisers"])]
        print(f"share, {ROUNDS} pairs: median {statistics.median(share):.3f}, {min(share):.3f} to {max(share):.3f}")
        shares[name] = statistics.median(share)
    print_result("regulariser_share", max(shares.values()))


if __name__ == "__main__":
    main()
