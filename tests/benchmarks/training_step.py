"""Images per second of one training step: ours over the published trainer's (arXiv 2211.02468).

Theirs is written here anew from its description: every image is loaded, converted and normalised on its own through
PIL, FGSM takes its gradient by a backward pass through all parameters, and clean, FGSM and invariance images pass
through the network one after the other. Both train the same network by the same objective (nll-ml-sens-invar: the
cross-entropy on clean images, triplet terms over both perturbations, norm penalty) with one FGSM step, Adam at 1e-4,
batch 256. Loading is part of both. Beside the times stands the arithmetic of both, and the rate at which this machine
multiplies matrices: what a step could gain at most without other arithmetic.

    python -m tests.benchmarks.training_step
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tests.benchmarks.common import (
    Counted,
    digits_of_mnist_shape,
    fresh_model,
    interleaved,
    print_machine,
    print_result,
    print_table,
    ratios,
)
from trainer.config import TrialConfig
from trainer.data.datasets import Split
from trainer.invariance.perturbations import TrainingPerturbation
from trainer.models import move_to_device
from trainer.objective.terms import Knobs, total_loss
from trainer.presets import preset
from trainer.training.batches import Batch, batch_at, shuffled_rows
from trainer.training.profiling import stand_in
from trainer.training.step import forward, make_optimizer, update

ROUNDS, BATCHES, CPU = 7, 3, torch.device("cpu")
_SIDE = 2048
"""Rows and columns of the matrices that show how fast this machine multiplies."""
CONFIG = TrialConfig(**preset("paper/nll-ml-sens-invar"))
MEAN, STD = 0.1307, 0.3081


class OneByOne(Dataset):
    """Triples (clean image, invariance image, label), through PIL."""

    def __init__(self, split: Split, perturbed: TrainingPerturbation) -> None:
        self.images, self.perturbed = (_bytes(images) for images in (split.images, perturbed.images))
        self.labels = split.labels
        self.load = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, int]:
        return self._one(self.images, row), self._one(self.perturbed, row), int(self.labels[row])

    def _one(self, images: np.ndarray, row: int) -> Tensor:
        tensor = self.load(Image.fromarray(images[row]))
        assert isinstance(tensor, Tensor)
        return tensor


def _bytes(images: Tensor) -> np.ndarray:
    return (images[:, 0] * 255).round().byte().numpy()


def published_network() -> tuple[nn.Module, nn.Module]:
    """Build encoder and head as described, for images that come normalised."""
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 32, 5), nn.PReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5), nn.PReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(1024, 256), nn.PReLU(), nn.Linear(256, 256), nn.PReLU()),
        nn.Linear(256, CONFIG.embedding_size),
    )
    return encoder, nn.Linear(CONFIG.embedding_size, 10)


def published_steps(split: Split, perturbed: TrainingPerturbation) -> Callable[[], object]:
    encoder, head = published_network()
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-4)
    loader = DataLoader(OneByOne(split, perturbed), batch_size=CONFIG.batch_size, shuffle=True, drop_last=True)

    def fgsm(images: Tensor, labels: Tensor) -> Tensor:
        images = images.clone().requires_grad_()
        F.cross_entropy(head(encoder(images)), labels).backward()
        assert images.grad is not None
        return (images + 0.01 * images.grad.sign()).clamp(0, 1).detach()

    def step(images: Tensor, invariance: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        sensitivity = fgsm(images, labels)
        clean, *others = (encoder(each) for each in (images, sensitivity, invariance))
        loss = F.cross_entropy(head(clean), labels)
        for other in others:
            loss = loss + 0.5 * published_triplet(clean, other, labels)
        loss = loss + 0.001 * torch.stack([side.norm(dim=1) for side in (clean, *others)]).sum(0).mean()
        loss.backward()
        optimizer.step()

    def epoch() -> None:
        for batch in loader:
            step(*batch)

    return epoch


def published_triplet(clean: Tensor, perturbed: Tensor, labels: Tensor) -> Tensor:
    distance = 1 - F.cosine_similarity(clean[:, None], perturbed[None], dim=2)
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool)
    farthest = distance.masked_fill(~same | itself, -1).amax(1)
    nearest = distance.masked_fill(same, 3).amin(1)
    return (farthest - nearest + 0.05).relu().mean()


def our_steps(split: Split, perturbed: TrainingPerturbation) -> Callable[[], object]:
    model = move_to_device(fresh_model(CONFIG, split.images), CPU)
    optimizer, knobs = make_optimizer(model, CONFIG), Knobs.of(CONFIG, CPU)
    generator = torch.Generator().manual_seed(0)

    def shuffled() -> Iterator[Batch]:
        return (
            batch_at(split, perturbed, rows)
            for rows in shuffled_rows(len(split.labels), batch_size=CONFIG.batch_size, generator=generator)
        )

    def epoch() -> None:
        for batch in shuffled():
            terms = forward(model, batch, CONFIG, knobs, generator).terms
            update(optimizer, total_loss(terms, knobs))

    return epoch


def operations(run: Callable[[], object]) -> int:
    """Return the floating-point operations of a run."""
    with Counted() as counted:
        run()
    return counted.flops


def multiply() -> None:
    square = torch.ones(_SIDE, _SIDE)
    _ = square @ square


def main() -> None:
    torch.manual_seed(0)  # the published trainer's loader draws from the global stream
    print_machine("torchvision", "pillow")
    split = digits_of_mnist_shape(CONFIG.batch_size * BATCHES)
    perturbed = stand_in(split, epsilon=CONFIG.invariance_epsilon)
    steps = {"published": published_steps(split, perturbed), "ours": our_steps(split, perturbed)}
    runs = {**steps, "a matrix product": multiply}
    times = interleaved(runs, rounds=ROUNDS)
    count = len(split.labels)
    rates = {name: operations(run) / statistics.median(times[name]) / 1e9 for name, run in runs.items()}
    notes = {name: f"{rates[name]:.0f} GFLOP/s" for name in runs}
    notes |= {name: f"{count / statistics.median(times[name]):.0f} images/s, {notes[name]}" for name in steps}
    print_table(f"{BATCHES} steps of {CONFIG.batch_size} images", times, notes)
    gain = ratios(times["published"], times["ours"])
    print(f"times faster, {ROUNDS} pairs: median {statistics.median(gain):.2f}, {min(gain):.2f} to {max(gain):.2f}")
    rest = rates["ours"] / rates["a matrix product"]  # of one multiplication of large matrices, which no step exceeds
    print(f"at most {statistics.median(gain) / rest:.2f} times, were all of our step as fast as a matrix product")
    print_result("training_step", statistics.median(gain))


if __name__ == "__main__":
    main()
