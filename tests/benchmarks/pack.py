"""Trials per hour of one device: packs of several sizes, one trial at a time, and processes that share the device.

PGD-7, the MNIST CNN, ot_triplet over both perturbations; training steps are timed. On a GPU: batch 256, packs of 8, 32
and 128, each eager, as a CUDA graph and compiled, and 8 and 16 processes that share the device. On a CPU a small size
shows that the code works and what it costs there, and nothing about a GPU: batch 16, packs of 1 to 8, 2 processes. A
trial is 10 epochs of MNIST's 55,000 images; its hours are computed from the steps, without evaluation.

The roofline: arithmetic (matrix products and convolutions) and bytes (what every operation reads and writes, each on
its own) of a single trial's step, against the device's own matrix product and copy, measured here. Where a step takes
much longer than either allows, the device waits for work, and packing can pay.

The result is the trials per hour of a pack of 32 (8 on a CPU) over those of one trial at a time.

    python -m tests.benchmarks.pack
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.benchmarks.common import (
    Counted,
    digits_of_mnist_shape,
    fresh_model,
    interleaved,
    print_machine,
    print_result,
    print_table,
    ratios,
    seconds,
)
from trainer.attacks import Draws
from trainer.config import TrialConfig
from trainer.data.datasets import Split
from trainer.invariance.perturbations import TrainingPerturbation
from trainer.models import move_to_device
from trainer.objective.terms import Knobs, LossTerms, total_loss
from trainer.training import stacked_training
from trainer.training.batches import Batch, batch_at, find_largest_class, shuffled_rows
from trainer.training.execution import Execution
from trainer.training.profiling import stand_in
from trainer.training.stacked_models import StackedAdamW, StackedModel
from trainer.training.stacked_training import fold_batch, stack_knobs
from trainer.training.step import detach, forward, make_optimizer, update

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
TRAINING_IMAGES, EPOCHS = 55_000, 10
ROUNDS = 3


class Size(NamedTuple):
    """The work that a device is given."""

    batch: int
    packs: tuple[int, ...]
    figure: int
    """Size of the pack that the result is about."""
    processes: tuple[int, ...]
    steps: int


SIZE = Size(256, (8, 32, 128), 32, (8, 16), 10) if ON_GPU else Size(16, (1, 2, 4, 8), 8, (2,), 1)


def configuration(seed: int) -> TrialConfig:
    return TrialConfig(
        regularizer="ot_triplet",
        sensitivity_weight=0.5,
        invariance_weight=0.5,
        sensitivity_steps=7,
        sensitivity_epsilon=0.3,
        margin=0.05 * (1 + seed % 4),
        batch_size=SIZE.batch,
        seed=seed,
    )


def data() -> tuple[Split, TrainingPerturbation]:
    train = digits_of_mnist_shape(SIZE.batch * 4)
    perturbed = stand_in(train, epsilon=0.3)
    return Split(*(each.to(DEVICE) for each in train)), TrainingPerturbation(*(each.to(DEVICE) for each in perturbed))


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def single() -> Callable[[], None]:
    """Return a step of a trial alone."""
    train, perturbed = data()
    config = configuration(0)
    model = move_to_device(fresh_model(config, train.images.cpu()), DEVICE)
    optimizer, knobs = make_optimizer(model, config), Knobs.of(config, DEVICE)
    (generator,) = generators(1)

    def endless() -> Iterator[Batch]:
        while True:
            yield from (
                batch_at(train, perturbed, rows)
                for rows in shuffled_rows(len(train.labels), batch_size=SIZE.batch, generator=generator).to(DEVICE)
            )

    source = endless()

    def step() -> None:
        terms = forward(model, next(source), config, knobs, generator).terms
        update(optimizer, total_loss(terms, knobs))

    return step


def packed(count: int, execution: str = "eager") -> Callable[[], None]:
    """Return a step of stacked trials."""
    train, perturbed = data()
    configs = [configuration(seed).replace(execution=execution) for seed in range(count)]
    models = [move_to_device(fresh_model(config, train.images.cpu()), DEVICE) for config in configs]
    model = StackedModel(models)
    optimizer = StackedAdamW(model, [make_optimizer(m, c) for m, c in zip(models, configs, strict=True)])
    shared, knobs = stack_knobs(configs, DEVICE)
    noise = generators(count)
    shuffle = [shuffled_rows(len(train.labels), batch_size=SIZE.batch, generator=each).to(DEVICE) for each in noise]
    bound = find_largest_class(train.labels, shuffle, [perturbed] * count)

    def endless() -> Iterator[Tensor]:
        while True:
            yield from torch.stack(shuffle, 1)

    source = endless()

    def train_on(rows: Tensor, noise: Draws) -> LossTerms:
        batch = fold_batch(train, [perturbed] * count, rows)
        terms = stacked_training.forward(model, batch, shared, knobs, noise, largest_class=bound).terms
        optimizer.step(torch.autograd.grad(total_loss(terms, knobs).sum(), optimizer.parameters))
        return detach(terms)

    how, open_passes = Execution(shared, DEVICE, print), contextlib.ExitStack()
    open_passes.enter_context(how.passes(model, train.images[: SIZE.batch].repeat(count, 1, 1, 1)))
    train_step = how.steps(train_on, [noise])

    def step() -> None:
        assert open_passes is not None  # kept open as long as the step is
        train_step(next(source))

    return step


def repeated(step: Callable[[], None]) -> Callable[[], None]:
    def steps() -> None:
        for _ in range(SIZE.steps):
            step()

    return steps


def worker(start: Barrier, done: Any, threads: int) -> None:
    """Run the steps in one process of several, once all are warm."""
    torch.set_num_threads(threads)
    steps = repeated(single())
    steps()
    start.wait()
    done.put(seconds(steps))
    start.wait()  # none leaves the device to the others before all have finished


def side_by_side(count: int) -> float:
    """Return the seconds that the slowest of some processes took for its steps on the shared device."""
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(count), context.Queue()
    threads = max(1, torch.get_num_threads() // count)
    processes = [context.Process(target=worker, args=(start, done, threads)) for _ in range(count)]
    for process in processes:
        process.start()
    spent = [done.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return max(spent)


def print_roofline(step_seconds: float) -> None:
    """Print how far a single trial's step is from the limits of the device."""
    step = single()
    step()
    with Counted() as counted:
        step()
    flops, traffic = counted.flops, counted.bytes
    side = 8192 if ON_GPU else 1024
    a, b = torch.rand(2, side, side, device=DEVICE)
    memory = torch.rand(2**28 if ON_GPU else 2**24, device=DEVICE)
    target = torch.empty_like(memory)
    product = min(interleaved({"product": lambda: a @ b}, rounds=ROUNDS)["product"])
    copy = min(interleaved({"copy": lambda: target.copy_(memory)}, rounds=ROUNDS)["copy"])
    peak, bandwidth = 2 * side**3 / product, 2 * memory.numel() * 4 / copy
    print(
        f"\nroofline of a single trial's step: {flops / 1e9:.2f} GFLOP and {traffic / 1e9:.2f} GB, "
        f"{flops / traffic:.1f} FLOP per byte\n"
        f"  this device: {peak / 1e12:.2f} TFLOP/s (float32, side {side}), {bandwidth / 1e9:.0f} GB/s (copy), "
        f"in balance at {peak / bandwidth:.1f} FLOP per byte\n"
        f"  at least {1000 * flops / peak:.2f} ms by arithmetic, {1000 * traffic / bandwidth:.2f} ms by bytes without "
        f"any reuse; it takes {1000 * step_seconds:.2f} ms: {flops / peak / step_seconds:.0%} of the arithmetic's peak"
    )


def per_hour(trials: int, spent: float) -> float:
    """Return the trials per hour of some trials side by side whose `SIZE.steps` take `spent` seconds."""
    steps = EPOCHS * (TRAINING_IMAGES // SIZE.batch)
    return trials * 3600 / (spent / SIZE.steps * steps)


def memory_per_trial(count: int) -> str:
    """Describe the peak memory of a step per trial; empty for a device that does not count allocations."""
    if not ON_GPU:
        return ""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    packed(count)()
    return f", {(torch.cuda.max_memory_allocated() - before) / count / 2**20:.0f} MiB a trial"


def main() -> None:
    print_machine()
    alone = "one trial at a time"
    runs = {alone: (1, repeated(single()))}
    runs |= {f"pack of {count}": (count, repeated(packed(count))) for count in SIZE.packs}
    if ON_GPU:
        for way in ("graph", "compiled"):
            runs |= {f"pack of {count}, {way}": (count, repeated(packed(count, way))) for count in SIZE.packs}
    times = interleaved({name: run for name, (_, run) in runs.items()}, rounds=ROUNDS)
    trials = {name: count for name, (count, _) in runs.items()}
    for count in SIZE.processes:
        times[f"{count} processes"], trials[f"{count} processes"] = [side_by_side(count)], count
    notes = {
        name: f"{per_hour(trials[name], statistics.median(spent)):.2f} trials/h"
        + (memory_per_trial(trials[name]) if name.startswith("pack") else "")
        for name, spent in times.items()
    }
    print_table(f"{SIZE.steps} steps of all trials, PGD-7, MNIST CNN, batch {SIZE.batch}", times, notes)
    print_roofline(statistics.median(times[alone]) / SIZE.steps)
    if not ON_GPU:
        print("\nnot run: packs of 32 and 128, graphs, compiled packs, 8 and 16 processes, memory (no CUDA device)")
    gain = [SIZE.figure * ratio for ratio in ratios(times[alone], times[f"pack of {SIZE.figure}"])]
    print(f"times the trials per hour, pack of {SIZE.figure}, {ROUNDS} pairs: {min(gain):.2f} to {max(gain):.2f}")
    print_result("pack", statistics.median(gain))


if __name__ == "__main__":
    main()
