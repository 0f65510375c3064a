"""One trial as a generator: train an epoch, evaluate, save, report; the chosen epoch's numbers come last."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoint import Store, load_checkpoint, save_checkpoint, to_bytes
from trainer.config import EvaluationConfig, InputError, TrialConfig
from trainer.data import Split
from trainer.evaluation import evaluate, judging_attacks
from trainer.losses import Knobs, LossTerms, total
from trainer.models import build_model
from trainer.preparation import Prepared, TrainingPerturbation
from trainer.report import EpochReport
from trainer.training import Randomness, batches, diagnose, forward, make_optimizer, update

MODEL_FILE = "model.pt"

Progress = Callable[[int, int, int], None]


@dataclass
class TrialState:
    """All that a trial carries from one epoch to the next."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    last: EpochReport | None = None
    best: EpochReport | None = None
    best_weights: dict[str, Tensor] | None = None


def run_trial(
    config: TrialConfig,
    evaluation: EvaluationConfig,
    prepared: Prepared,
    *,
    store: Store | None = None,
    device: str = "cpu",
    warn: Callable[[str], None] = lambda message: None,
    progress: Progress = lambda epoch, done, total: None,
) -> Iterator[EpochReport]:
    """Train and yield a finite `EpochReport` after each epoch, then once more that of the chosen epoch.

    With the same config, data, code and number of threads the numbers are the same bit for bit on a CPU, also when the
    trial is stopped after any epoch and resumed from `store`. Delivery is at least once: a resumed trial first yields
    the report of the epoch it resumes from, since nobody may have heard it.

    Args:
        prepared: data, training perturbations and judging set, shared by all trials.
        store: where checkpoints and the chosen model (`model.pt`) are kept; None keeps nothing.
        device: a torch device such as `cpu` or `cuda:0`.
        warn: told about a damaged checkpoint that was passed over.
        progress: told after every step: the epoch, steps done in it, steps in all.

    Raises:
        TrialFailed: if a number of a report is not finite.
        InputError: if the store holds a checkpoint of another configuration.
    """
    where = torch.device(device)
    train = to_device(prepared.data.train, where)
    validation = to_device(prepared.data.validation, where)
    judging = prepared.judging.to(where)
    perturbation = invariance_images(config, prepared, where)
    attacks = judging_attacks(evaluation)
    knobs, randomness = Knobs.of(config, where), Randomness(config.seed)

    state = initial_state(config, prepared, where)
    if store is not None and resume(state, store, config, evaluation, warn):
        assert state.last is not None
        yield state.last

    while state.epoch < config.epochs:
        epoch = state.epoch + 1
        start = time.perf_counter()
        terms = train_epoch(state, train, perturbation, config, knobs, randomness, progress)
        trained = time.perf_counter()
        judged = evaluate(state.model, validation, judging, attacks, generator=judging_generator(evaluation, where))
        report = EpochReport(
            epoch=epoch,
            final=False,
            **judged._asdict(),
            learning_rate=config.learning_rate,
            train_seconds=trained - start,
            evaluation_seconds=time.perf_counter() - trained,
            terms=terms,
        )
        advance(state, report, config)
        if store is not None:
            save_checkpoint(store, epoch, to_dict(state, config, evaluation))
        yield report

    assert state.best is not None
    if store is not None:
        store.write(MODEL_FILE, to_bytes(model_file(state, config, prepared)))
    yield dataclasses.replace(state.best, final=True)


def invariance_images(config: TrialConfig, prepared: Prepared, device: torch.device) -> TrainingPerturbation | None:
    """X_v and y_v of all training images at the trial's budget, where the objective uses them."""
    if not config.uses_invariance:
        return None
    found = prepared.bank(config.invariance_norm).at(config.invariance_epsilon)
    return TrainingPerturbation(*(field.to(device) for field in found))


def initial_state(config: TrialConfig, prepared: Prepared, device: torch.device) -> TrialState:
    """A fresh model, normalised by the training images' own mean and spread, and its optimiser."""
    images = prepared.data.train.images
    model = build_model(
        config.architecture,
        shape=prepared.data.shape,
        classes=prepared.data.classes,
        embedding_size=config.embedding_size,
        mean=images.mean(dim=(0, 2, 3)),
        std=images.std(dim=(0, 2, 3)).clamp_min(1e-3),
        seed=config.seed,
    ).to(device)
    return TrialState(model, make_optimizer(model, config))


def train_epoch(
    state: TrialState,
    train: Split,
    perturbation: TrainingPerturbation | None,
    config: TrialConfig,
    knobs: Knobs,
    randomness: Randomness,
    progress: Progress,
) -> dict[str, float]:
    """One pass over the training images; the mean of each term of the loss, and a diagnosis of its last step."""
    epoch, device = state.epoch + 1, train.images.device
    order, noise = (randomness.generator(purpose, epoch, device) for purpose in ("order", "attack"))
    steps = len(train.labels) // config.batch_size
    history: list[list[Tensor | None]] = []
    diagnosis: dict[str, Tensor] = {}
    state.model.train()
    for batch in batches(train, perturbation, batch_size=config.batch_size, generator=order):
        step = forward(state.model, batch, config, knobs, noise)
        if len(history) == steps - 1:
            diagnosis = diagnose(step, state.model, knobs)
        update(state.optimizer, total(step.terms, knobs))
        history.append([None if term is None else term.detach() for term in step.terms])
        progress(epoch, len(history), steps)
    return mean_terms(history) | {name: value.item() for name, value in diagnosis.items()}


def mean_terms(history: list[list[Tensor | None]]) -> dict[str, float]:
    """The mean over the epoch of every term that the objective has; one host synchronisation for all of them."""
    columns = zip(LossTerms._fields, zip(*history, strict=True), strict=True)
    present = {f"loss/{name}": [term for term in terms if term is not None] for name, terms in columns}
    means = {name: torch.stack(terms).mean() for name, terms in present.items() if terms}
    return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))


def advance(state: TrialState, report: EpochReport, config: TrialConfig) -> None:
    """Count the epoch, and choose it if it is the best of the second half of training so far (ties: the earlier one).

    Robust models overfit late (Rice et al. 2020), so the last epoch is not always the one to keep; and a model of the
    first half can hold a large area while it is still bad at everything a person would call its task.
    """
    state.epoch, state.last = report.epoch, report
    eligible = 2 * report.epoch > config.epochs
    if eligible and (state.best is None or area(report) > area(state.best)):
        state.best = report
        state.best_weights = {name: value.clone() for name, value in state.model.state_dict().items()}


def area(report: EpochReport) -> float:
    """Hypervolume of one point against (0, 0): what it alone would add to a front."""
    return report.sensitivity_accuracy * report.invariance_accuracy


def to_dict(state: TrialState, config: TrialConfig, evaluation: EvaluationConfig) -> dict[str, Any]:
    assert state.last is not None
    return {
        "identity": identity(config, evaluation),
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "last": dataclasses.asdict(state.last),
        "best": None if state.best is None else dataclasses.asdict(state.best),
        "best_weights": state.best_weights,
    }


def resume(
    state: TrialState, store: Store, config: TrialConfig, evaluation: EvaluationConfig, warn: Callable[[str], None]
) -> bool:
    """Bring `state` to the newest whole checkpoint of the store; False if there is none."""
    saved, warnings = load_checkpoint(store)
    for message in warnings:
        warn(message)
    if saved is None:
        return False
    if saved["identity"] != identity(config, evaluation):
        raise InputError("the folder holds a checkpoint of another configuration: give the trial a folder of its own")
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.last = EpochReport(**saved["last"])
    state.best = None if saved["best"] is None else EpochReport(**saved["best"])
    state.epoch, state.best_weights = state.last.epoch, saved["best_weights"]
    return True


def identity(config: TrialConfig, evaluation: EvaluationConfig) -> dict[str, Any]:
    """What must agree for a checkpoint to go on."""
    return {**config.to_dict(), **evaluation.to_dict()}


def model_file(state: TrialState, config: TrialConfig, prepared: Prepared) -> dict[str, Any]:
    """The chosen weights with what is needed to build their model again; read it with `load_model`."""
    assert state.best is not None
    return {
        "architecture": config.architecture,
        "shape": list(prepared.data.train.images.shape[1:]),
        "classes": prepared.data.classes,
        "embedding_size": config.embedding_size,
        "epoch": state.best.epoch,
        "config": config.to_dict(),
        "weights": state.best_weights,
    }


def load_model(path: Path) -> nn.Module:
    """The model that a trial chose, in eval mode on the CPU. Reads tensors and plain values only."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    channels = saved["shape"][0]
    model = build_model(
        saved["architecture"],
        shape=tuple(saved["shape"]),
        classes=saved["classes"],
        embedding_size=saved["embedding_size"],
        mean=torch.zeros(channels),
        std=torch.ones(channels),
        seed=0,
    )
    model.load_state_dict(saved["weights"])
    return model.eval()


def judging_generator(evaluation: EvaluationConfig, device: torch.device) -> torch.Generator:
    """The judge's random starts are the same for every trial and epoch, so that they cancel in comparisons."""
    return torch.Generator(device).manual_seed(evaluation.split_seed)


def to_device(split: Split, device: torch.device) -> Split:
    return Split(split.images.to(device), split.labels.to(device))
