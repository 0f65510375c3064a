"""What benchmarks share: the machine in a line, runs in pairs, the table, the line that ends it, and for those of a
training step data and model of MNIST's shape without its download."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from trainer.config import TrialConfig
from trainer.data.datasets import Split
from trainer.models import Classifier, build_model


def print_machine(*packages: str) -> None:
    """Processor, cores, threads and versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", *packages))
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    print(f"machine: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{device}")
    print(f"versions: python {platform.python_version()}, {versions}")


def processor() -> str:
    """The processor's own name where the system tells it."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one run, with the device's work done."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(runs: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round, so that a slow moment of the machine meets all alike; one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: spent[1:] for name, spent in times.items()}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times faster, round by round."""
    return [s / f for s, f in zip(slow, fast, strict=True)]


def print_table(title: str, times: Mapping[str, Sequence[float]], notes: Mapping[str, str] | None = None) -> None:
    """Median, least and most milliseconds of each run, with what else there is to say of it."""
    print(f"\n{title}\n{'':34}{'median ms':>11}{'least':>10}{'most':>10}")
    for name, spent in times.items():
        figures = "".join(f"{1000 * s:>{width}.1f}" for s, width in _figures(spent))
        print(f"{name:34}{figures}  {(notes or {}).get(name, '')}".rstrip())


def _figures(spent: Sequence[float]) -> list[tuple[float, int]]:
    return [(statistics.median(spent), 11), (min(spent), 10), (max(spent), 10)]


class Counted(TorchDispatchMode):
    """A context that counts the arithmetic of products and convolutions, and the bytes that operations read and write.

    torch's own FlopCounterMode hooks modules too, and then can't follow a gradient that is taken at a leaf.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:  # views move nothing
            moved = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)]
            self.bytes += sum(each.numel() * each.element_size() for each in moved)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def curve(seed: int, number: int, epochs: int) -> Iterator[dict[str, Any]]:
    """The reports of a trial: two accuracies that grow towards ends drawn beside each other's way, with noise."""
    generator = np.random.default_rng((seed, number))
    share, quality = generator.random(), generator.beta(2, 2)
    ends = np.clip(quality * np.array([share, 1 - share]) ** 0.5, 0.01, 0.99)
    for epoch in [*range(1, epochs + 1), 0]:
        grown = ends * (1 - 0.7 ** (epoch or epochs)) + 0.05 * generator.normal(size=2) / (epoch or epochs)
        sensitivity, invariance = np.clip(grown, 0.0, 1.0).tolist()
        yield {
            "epoch": epoch or epochs,
            "final": epoch == 0,
            "clean_accuracy": float(np.clip(0.6 + 0.4 * quality, 0, 1)),
            "sensitivity_accuracy": sensitivity,
            "invariance_accuracy": invariance,
            "invariance_stuck": 1 - invariance,
            "invariance_unchanged": 0.9,
            "invariance_effective_size": 300,
            "invariance_original_label": 0.8,
            "learning_rate": 1e-3,
            "train_seconds": 1.0,
            "evaluation_seconds": 0.5,
            **{f"loss/{term}": float(generator.random()) for term in ("cross_entropy", "sensitivity", "invariance")},
        }


def print_result(name: str, figure: float) -> None:
    """The line that a benchmark ends in."""
    print(f"\nresult: {name} {figure:.3g}")


def digits_of_mnist_shape(count: int) -> Split:
    """scikit-learn's digits drawn at 28x28, repeated to `count`: images (N, 1, 28, 28) in [0, 1]."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 16).float().reshape(-1, 1, 8, 8)
    images = F.interpolate(images, size=20, mode="bilinear", align_corners=False)
    rows = torch.arange(count) % len(images)
    return Split(F.pad(images, (4, 4, 4, 4))[rows], torch.from_numpy(classes).long()[rows])


def fresh_model(config: TrialConfig, images: Tensor) -> Classifier:
    return build_model(
        config.architecture,
        shape=(1, 28, 28),
        classes=10,
        embedding_size=config.embedding_size,
        mean=images.mean().reshape(1),
        std=images.std().reshape(1),
        seed=0,
    )
