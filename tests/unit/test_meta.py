"""The training step on the `meta` device, which has no numbers: a step that runs there never looks at its data.

So no step waits for a GPU to finish before the next is queued, as CUDA graphs need, and no tensor is left on the CPU.
Any `.item()`, `int(tensor)` or index by a mask fails there.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.config import ARCHITECTURES, REGULARIZERS, TrialConfig, check_packable
from trainer.invariance import TrainingPerturbation
from trainer.models import build_model
from trainer.objective.terms import Knobs, total_loss
from trainer.training import stacked_training, step
from trainer.training.augmentation import augment
from trainer.training.batches import Batch, random_stream, shuffled_rows
from trainer.training.stacked_models import StackedModel, stack_optimizers

META = torch.device("meta")
SIZE, CLASSES, TRIALS = 8, 10, 3

OBJECTIVES: dict[str, dict[str, Any]] = {
    "clean": {},
    "PGD": {"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0},
    "FGSM": {"sensitivity_ce_weight": 1.0, "sensitivity_steps": 1},
    "L2": {"sensitivity_ce_weight": 1.0, "sensitivity_norm": "l2"},
    "changed images": {"invariance_ce_weight": 1.0, "norm_weight": 0.1},
    "all views": {"sensitivity_ce_weight": 0.5, "invariance_ce_weight": 0.5},
    "TRADES": {"trades_weight": 6.0, "sensitivity_objective": "kl"},
    "certified": {"certified_ce_weight": 0.5},
    "certified by CROWN": {"certified_ce_weight": 0.5, "certified_method": "crown-ibp"},
    "feature scattering": {"sensitivity_ce_weight": 1.0, "sensitivity_objective": "transport"},
    "smooth labels": {"sensitivity_ce_weight": 1.0, "invariance_ce_weight": 0.5, "label_smoothing": 0.1},
    "crop and flip, SGD": {"sensitivity_ce_weight": 1.0, "augmentation": "crop_flip", "optimizer": "sgd"},
}


def combinations(*architectures: str) -> list[Any]:
    """Return every case of the tests below; the passes of a large network through Python take long."""
    return [
        pytest.param(*case, marks=[pytest.mark.slow] * (case[0] == "resnet18"))
        for case in itertools.product(architectures, REGULARIZERS, OBJECTIVES)
        if not (case[0] == "resnet18" and "certified" in case[2])  # refused by the configuration
    ]


def config_of(architecture: str, regularizer: str, objective: str) -> TrialConfig:
    return TrialConfig(
        architecture=architecture,
        regularizer=regularizer,
        sensitivity_weight=0.5,
        invariance_weight=0.5,
        **{"sensitivity_steps": 2, **OBJECTIVES[objective]},
    )


class DrawsNoticed(TorchDispatchMode):
    """While it lasts, the types of the devices on which random numbers are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.devices.add(out.device.type)
        return out


def noise(purpose: str = "attack") -> torch.Generator:
    return random_stream(0, purpose, 1)


def optimizer_of(model: torch.nn.Module, config: TrialConfig) -> torch.optim.Optimizer:
    """Return an optimiser that is not fused: the fused kernels don't know the device."""
    return {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[config.optimizer](model.parameters())


def batch_of(architecture: str, trials: int = 1) -> Batch:
    count = trials * SIZE
    images = torch.empty(count, 3 if architecture == "resnet18" else 1, 8, 8, device=META)
    labels = torch.empty(count, dtype=torch.int64, device=META)
    keep = torch.empty(count, dtype=torch.bool, device=META)
    return Batch(images, labels, TrainingPerturbation(images, labels, keep), trials=trials)


def model_of(config: TrialConfig, batch: Batch) -> torch.nn.Module:
    _, *shape = batch.images.shape
    statistics = torch.zeros(shape[0]), torch.ones(shape[0])
    model = build_model(
        config.architecture,
        shape=tuple(shape),
        classes=CLASSES,
        embedding_size=config.embedding_size,
        mean=statistics[0],
        std=statistics[1],
        seed=0,
    )
    return model.to(META).train()


@pytest.mark.parametrize(("architecture", "regularizer", "objective"), combinations(*ARCHITECTURES))
def test_a_step_never_looks_at_its_data(architecture: str, regularizer: str, objective: str) -> None:
    config, batch = config_of(architecture, regularizer, objective), batch_of(architecture)
    model, knobs = model_of(config, batch), Knobs.of(config, META).at(torch.empty((), device=META))
    optimizer = optimizer_of(model, config)
    taken = step.forward(model, augment(batch, config, noise()), config, knobs, noise(), largest_class=SIZE)
    step.diagnose(taken, model, knobs)
    step.update(optimizer, total_loss(taken.terms, knobs))


@pytest.mark.parametrize(("architecture", "regularizer", "objective"), combinations("cnn", "mlp"))
def test_a_stacked_step_never_looks_at_its_data(architecture: str, regularizer: str, objective: str) -> None:
    config, batch = config_of(architecture, regularizer, objective), batch_of(architecture, trials=TRIALS)
    check_packable(config)
    models = [model_of(config, batch) for _ in range(TRIALS)]
    model = StackedModel(models)
    optimizer = stack_optimizers(model, [optimizer_of(each, config) for each in models])
    shared, whole = stacked_training.stack_knobs([config] * TRIALS, META)
    knobs = whole.at(torch.empty(TRIALS, device=META))
    changed = augment(batch, shared, [noise()] * TRIALS)
    taken = stacked_training.forward(model, changed, shared, knobs, [noise()] * TRIALS, largest_class=SIZE)
    step.diagnose(taken, model, knobs)
    optimizer.step(torch.autograd.grad(total_loss(taken.terms, knobs).sum(), optimizer.parameters))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_random_number_of_a_step_is_drawn_on_the_cpu(norm: str) -> None:
    """Check that a trial draws the same numbers on every device: those of the CPU are copied there."""
    config = TrialConfig(architecture="mlp", augmentation="crop_flip", sensitivity_ce_weight=1.0, sensitivity_norm=norm)
    batch = batch_of("mlp")
    model, knobs = model_of(config, batch), Knobs.of(config, META)
    with DrawsNoticed() as noticed:
        assert shuffled_rows(9, batch_size=3, generator=noise("order")).device.type == "cpu"
        step.forward(model, augment(batch, config, noise("augment")), config, knobs, noise(), largest_class=SIZE)
        augment(batch._replace(trials=2), config, [noise("augment")] * 2)
    assert noticed.devices == {"cpu"}
    with DrawsNoticed() as noticed:
        torch.rand(2, device=META)
    assert noticed.devices == {"meta"}


def test_a_look_at_the_data_is_noticed() -> None:
    """Check that the device does what the tests above rely on."""
    config, batch = config_of("mlp", "ot_triplet", "clean"), batch_of("mlp")
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Mm]eta"):
        step.forward(model_of(config, batch), batch, config, Knobs.of(config, META), noise())
