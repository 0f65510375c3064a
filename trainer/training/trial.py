"""One trial as a generator: train an epoch, evaluate, save, report; the chosen epoch's numbers come last."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from trainer.config import EvaluationConfig, TrialConfig
from trainer.data import Split
from trainer.errors import InputError
from trainer.files import Store, from_bytes, load_checkpoint, save_checkpoint, to_bytes
from trainer.invariance import Prepared, TrainingPerturbation
from trainer.models import build_model
from trainer.objective import Knobs, LossTerms, total
from trainer.report import STRENGTH, EpochReport, check_finite
from trainer.training.evaluation import Evaluation, evaluate, judging_attacks, on_ladder, strength
from trainer.training.step import (
    batches,
    check_batch_size,
    detached,
    diagnose,
    forward,
    make_optimizer,
    placed,
    random_stream,
    summarise,
    update,
)

MODEL_FILE = "model.pt"

_Progress = Callable[[int, int, int], None]
"""Told the epoch, the steps done in it, and its steps in all."""


@dataclass
class TrialState:
    """All that a trial carries from one epoch to the next."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    last: EpochReport | None = None
    best: EpochReport | None = None
    best_weights: dict[str, Tensor] | None = None


@dataclass(eq=False)
class Trial:
    """One trial between two of its epochs: what it is, what it carries, and where that is kept."""

    config: TrialConfig
    evaluation: EvaluationConfig
    prepared: Prepared
    ladder: int
    """As of `run_trial`."""
    store: Store | None
    perturbation: TrainingPerturbation | None
    """X_v and y_v of all training images, on the device; None where the objective has no use for them."""
    state: TrialState

    @classmethod
    def begin(
        cls,
        config: TrialConfig,
        evaluation: EvaluationConfig,
        prepared: Prepared,
        *,
        ladder: int,
        store: Store | None,
        device: torch.device,
        warn: Callable[[str], None],
    ) -> Self:
        """At its start; or where the newest whole checkpoint of the store left it: then `state.last` is set.

        Raises:
            InputError: as `run_trial` does.
        """
        if evaluation != prepared.evaluation:
            raise ValueError("what a trial is judged by must be what the data was prepared for")
        check_batch_size(config.batch_size, len(prepared.data.train.labels))
        perturbation = invariance_images(config, prepared, device)
        state = initial_state(config, prepared, device)
        if store is not None:
            _resume(state, store, identity(config, evaluation, prepared, ladder), warn)
        return cls(config, evaluation, prepared, ladder, store, perturbation, state)

    @property
    def judge(self) -> EvaluationConfig:
        """What its next epoch is judged by."""
        return on_ladder(self.evaluation, epoch=self.state.epoch + 1, epochs=self.config.epochs, ladder=self.ladder)

    def close_epoch(
        self, judged: Evaluation, terms: dict[str, float], *, train_seconds: float, evaluation_seconds: float
    ) -> EpochReport:
        """Report the epoch that the model was just trained for, choose among epochs, and save.

        Raises:
            TrialFailed: if a number is not finite; nothing is saved then.
            StorageFailed: if the store can't be written.
        """
        report = EpochReport(
            epoch=self.state.epoch + 1,
            final=False,
            **judged._asdict(),
            learning_rate=self.config.learning_rate,
            train_seconds=train_seconds,
            evaluation_seconds=evaluation_seconds,
            terms=terms | ({STRENGTH: strength(self.judge)} if self.ladder else {}),
        )
        advance(self.state, report, self.config)
        if self.store is not None:
            whose = identity(self.config, self.evaluation, self.prepared, self.ladder)
            save_checkpoint(self.store, report.epoch, to_dict(self.state, whose))
        return report

    def finish(self) -> EpochReport:
        """The last report, that of the chosen epoch; its model is written beside the checkpoints.

        Raises:
            StorageFailed: if the store can't be written.
        """
        assert self.state.best is not None
        if self.store is not None:
            self.store.write(MODEL_FILE, to_bytes(model_file(self.state, self.config, self.prepared)))
        return dataclasses.replace(self.state.best, final=True)


def run_trial(
    config: TrialConfig,
    evaluation: EvaluationConfig,
    prepared: Prepared,
    *,
    ladder: int = 0,
    store: Store | None = None,
    device: str = "cpu",
    warn: Callable[[str], None] = lambda message: None,
    progress: _Progress = lambda epoch, done, total: None,
) -> Iterator[EpochReport]:
    """Train and yield a finite `EpochReport` after each epoch, then once more that of the chosen epoch.

    With the same config, data, code and number of threads the numbers are the same bit for bit on a CPU, also when the
    trial is stopped after any epoch and resumed from `store`. Delivery is at least once: a resumed trial first yields
    the report of the epoch it resumes from, since nobody may have heard it.

    Args:
        config: what it trains with.
        evaluation: what it is judged by; the one that `prepared` was made for.
        prepared: data, training perturbations and judging set, shared by all trials.
        ladder: steps of the judge's attack in the first epochs, from which it grows to the evaluation's own; 0 for the
            whole attack in all. See `on_ladder`.
        store: where checkpoints and the chosen model (`model.pt`) are kept; None keeps nothing.
        device: a torch device such as `cpu` or `cuda:0`.
        warn: told about a damaged checkpoint that was passed over.
        progress: told after every step.

    Raises:
        TrialFailed: if a term of the loss or a number of a report is not finite.
        InputError: if a batch is larger than the training split, or if the store holds a checkpoint of another
            configuration or can't be written.
    """
    where = torch.device(device)
    trial = Trial.begin(config, evaluation, prepared, ladder=ladder, store=store, device=where, warn=warn)
    state = trial.state
    train = to_device(prepared.data.train, where)
    validation = to_device(prepared.data.validation, where)
    judging = prepared.judging.to(where)
    knobs = Knobs.of(config, where)

    if state.last is not None:
        yield state.last
    while state.epoch < config.epochs:
        start = time.perf_counter()
        terms = train_epoch(state, train, trial.perturbation, config, knobs, progress)
        trained = time.perf_counter()
        attacks = judging_attacks(trial.judge)
        judged = evaluate(state.model, validation, judging, attacks, generator=judging_generator(evaluation, where))
        yield trial.close_epoch(
            judged, terms, train_seconds=trained - start, evaluation_seconds=time.perf_counter() - trained
        )
    yield trial.finish()


def invariance_images(config: TrialConfig, prepared: Prepared, device: torch.device) -> TrainingPerturbation | None:
    """X_v and y_v of all training images at the trial's budget, where the objective uses them."""
    if not config.uses_invariance:
        return None
    found = prepared.perturbations(config.invariance_norm).at(config.invariance_epsilon)
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
    )
    model = placed(model, device)
    return TrialState(model, make_optimizer(model, config))


def train_epoch(
    state: TrialState,
    train: Split,
    perturbation: TrainingPerturbation | None,
    config: TrialConfig,
    knobs: Knobs,
    progress: _Progress,
) -> dict[str, float]:
    """One pass over the training images; what its loss was made of, and a diagnosis of its last step.

    Raises:
        TrialFailed: if a term of the loss is not finite.
    """
    epoch, device = state.epoch + 1, train.images.device
    order, noise = (random_stream(config.seed, purpose, epoch, device) for purpose in ("order", "attack"))
    steps = len(train.labels) // config.batch_size
    history: list[LossTerms] = []
    numbers: dict[str, float] = {}
    state.model.train()
    for batch in batches(train, perturbation, batch_size=config.batch_size, generator=order):
        step = forward(state.model, batch, config, knobs, noise)
        history.append(detached(step.terms))
        if len(history) == steps:
            numbers = summarise(history)
            check_finite(epoch, numbers)
            numbers |= {name: value.item() for name, value in diagnose(step, state.model, knobs).items()}
        update(state.optimizer, total(step.terms, knobs))
        progress(epoch, len(history), steps)
    return numbers


def advance(state: TrialState, report: EpochReport, config: TrialConfig) -> None:
    """Count the epoch, and choose it if it is the best of the second half of training so far (ties: the earlier one).

    Robust models overfit late (Rice et al. 2020), so the last epoch is not always the one to keep; and a model of the
    first half can hold a large area while it is still bad at everything a person would call its task.
    """
    state.epoch, state.last = report.epoch, report
    eligible = 2 * report.epoch > config.epochs
    if eligible and (state.best is None or _merit(report) > _merit(state.best)):
        state.best = report
        state.best_weights = {name: value.clone() for name, value in state.model.state_dict().items()}


def _merit(report: EpochReport) -> tuple[float, float, float]:
    """Hypervolume of the one point against (0, 0), what it alone would add to a front; where that is equal, as for all
    models that fall to every attack, the sum of the two, then clean accuracy."""
    sensitivity, invariance = report.sensitivity_accuracy, report.invariance_accuracy
    return sensitivity * invariance, sensitivity + invariance, report.clean_accuracy


def to_dict(state: TrialState, whose: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint."""
    assert state.last is not None
    return {
        "identity": whose,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "last": dataclasses.asdict(state.last),
        "best": None if state.best is None else dataclasses.asdict(state.best),
        "best_weights": state.best_weights,
    }


def _resume(state: TrialState, store: Store, whose: dict[str, Any], warn: Callable[[str], None]) -> None:
    """Bring `state` to the newest whole checkpoint of the store, if there is one.

    Raises:
        InputError: if it is of another trial than `whose`.
    """
    saved, warnings = load_checkpoint(store)
    for message in warnings:
        warn(message)
    if saved is None:
        return
    _check_identity(saved["identity"], whose)
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.last = EpochReport(**saved["last"])
    state.best = None if saved["best"] is None else EpochReport(**saved["best"])
    state.epoch, state.best_weights = state.last.epoch, saved["best_weights"]


def identity(config: TrialConfig, evaluation: EvaluationConfig, prepared: Prepared, ladder: int = 0) -> dict[str, Any]:
    """What must agree for a checkpoint to go on."""
    whose = {**config.to_dict(), **evaluation.to_dict(), "data": prepared.data.fingerprint}
    return whose | ({"ladder": ladder} if ladder else {})


def _check_identity(saved: dict[str, Any], whose: dict[str, Any]) -> None:
    different = [
        f"{name} = {saved.get(name)!r} (not {value!r})" for name, value in whose.items() if saved.get(name) != value
    ]
    if different:
        raise InputError(
            f"the folder holds a checkpoint of another configuration, with {', '.join(different)}: "
            "give this trial a folder of its own"
        )


def model_file(state: TrialState, config: TrialConfig, prepared: Prepared) -> dict[str, Any]:
    """The chosen weights with what is needed to build their model again; read it with `load_model`."""
    assert state.best is not None
    return {
        "architecture": config.architecture,
        "shape": list(prepared.data.shape),
        "classes": prepared.data.classes,
        "embedding_size": config.embedding_size,
        "epoch": state.best.epoch,
        "config": config.to_dict(),
        "weights": state.best_weights,
    }


def load_model(path: Path) -> nn.Module:
    """The model that a trial chose, in eval mode on the CPU. Reads tensors and plain values only.

    Raises:
        InputError: for a file that is missing, damaged or no model of ours.
    """
    try:
        return _rebuild(from_bytes(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"cannot read a model from {str(path)!r}: {type(error).__name__}: {error}") from error


def _rebuild(saved: dict[str, Any]) -> nn.Module:
    channels = saved["shape"][0]
    model = build_model(
        saved["architecture"],
        shape=tuple(saved["shape"]),
        classes=saved["classes"],
        embedding_size=saved["embedding_size"],
        mean=torch.zeros(channels),  # the true ones are among the weights
        std=torch.ones(channels),
        seed=0,
    )
    model.load_state_dict(saved["weights"])
    return placed(model, torch.device("cpu")).eval()


def judging_generator(evaluation: EvaluationConfig, device: torch.device) -> torch.Generator:
    """The judge's random starts are the same for every trial and epoch, so that they cancel in comparisons."""
    return torch.Generator(device).manual_seed(evaluation.split_seed)


def to_device(split: Split, device: torch.device) -> Split:
    return Split(split.images.to(device), split.labels.to(device))
