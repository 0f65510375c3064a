"""One trial between two of its epochs: its configuration, its state, and the checkpoints that hold it."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from trainer.answers import Answers
from trainer.config import OF_EARLIER_VERSIONS, EvaluationConfig, TrialConfig, with_weights
from trainer.data import Data, Split
from trainer.errors import InputError
from trainer.files import Store, load_checkpoint, save_checkpoint, to_bytes
from trainer.invariance import Prepared, TrainingPerturbation
from trainer.models import move_to_device
from trainer.objective import check_regularizer
from trainer.own_models import build_network
from trainer.plugins import is_plugin
from trainer.report import OF_EPOCH, STRENGTH, EpochReport
from trainer.training.batches import check_batch_size, training_perturbation
from trainer.training.choice import ALL, FIRST, SECOND, Candidate, Halves
from trainer.training.evaluation import (
    Evaluation,
    accuracies,
    attack_steps,
    final_attacks,
    judging_generator,
    on_ladder,
    surviving,
)
from trainer.training.execution import Execution
from trainer.training.model_file import MODEL_FILE, model_content
from trainer.training.own_attacks import check_attack
from trainer.training.step import make_optimizer


@dataclass
class TrialState:
    """Everything that a trial carries from one epoch to the next."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    execution: Execution
    epoch: int = 0
    """Epochs trained so far."""
    last: EpochReport | None = None
    """The newest epoch's report."""
    chosen: dict[str, Candidate] = field(default_factory=dict)
    """The epoch chosen so far by all images and by each half of them; empty in the first half of training."""


@dataclass(eq=False)
class Trial:
    """One trial between two of its epochs."""

    config: TrialConfig
    evaluation: EvaluationConfig
    prepared: Prepared
    ladder: int
    """The parameter `ladder` of `run_trial`."""
    store: Store | None
    """The store of checkpoints and the chosen model; None keeps nothing."""
    perturbation: TrainingPerturbation | None
    """X_v and y_v of all training images, on the device; None if the objective does not use them."""
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
        """Begin a trial, or resume it from the newest whole checkpoint in the store; then `state.last` is set.

        Args:
            config, evaluation, prepared, ladder, store, device, warn: those of `run_trial`.

        Raises:
            InputError: if a batch is larger than the training split, for a checkpoint of another configuration, or for
                a regulariser or an attack of one's own that lacks a property (`check_regularizer`, `check_attack`).
        """
        if evaluation != prepared.evaluation:
            raise ValueError("the evaluation of a trial must be what the data was prepared for")
        check_batch_size(config.batch_size, len(prepared.data.train.labels))
        _check_functions(config, prepared.data)
        perturbation = training_perturbation(config, prepared, device)
        state = initial_state(config, prepared, device, warn)
        trial = cls(config, evaluation, prepared, ladder, store, perturbation, state)
        if store is not None:
            trial._resume(store, warn)
        return trial

    @property
    def epoch_evaluation(self) -> EvaluationConfig:
        """The evaluation of the next epoch, weaker than the trial's own where the attack grows on a ladder."""
        return on_ladder(self.evaluation, epoch=self.state.epoch + 1, epochs=self.config.epochs, ladder=self.ladder)

    @cached_property
    def halves(self) -> Halves:
        """The halves of the validation images, of which each chooses the epoch that is reported on the other."""
        data = self.prepared.data
        return Halves(self.prepared.judging, images=len(data.validation.labels), seed=self.evaluation.split_seed)

    def close_epoch(
        self, measured: Evaluation, terms: dict[str, float], *, train_seconds: float, evaluation_seconds: float
    ) -> EpochReport:
        """Report the epoch that the model was just trained for, choose among epochs, and save a checkpoint.

        Raises:
            TrialFailed: if a number is not finite; nothing is saved then.
            StorageFailed: if the store can't be written.
        """
        report = EpochReport(
            epoch=self.state.epoch + 1,
            final=False,
            **_fields(measured),
            learning_rate=self.state.optimizer.param_groups[0]["lr"],
            train_seconds=train_seconds,
            evaluation_seconds=evaluation_seconds,
            terms=terms
            | dict(measured.others)
            | ({STRENGTH: attack_steps(self.epoch_evaluation)} if self.ladder else {}),
        )
        advance(self.state, report, self.config, measured.answers, self.halves)
        if self.store is not None:
            save_checkpoint(self.store, report.epoch, self._checkpoint())
        return report

    def finish(self, validation: Split) -> EpochReport:
        """Write the chosen epoch's model beside the checkpoints; return the last report.

        Each half of the images is answered by the epoch that the other half chose, attacked once more, under
        `final_attacks`.

        Args:
            validation: the validation images, on the device.

        Raises:
            StorageFailed: if the store can't be written.
        """
        self.write_model()
        begun, chosen = time.perf_counter(), self.state.chosen
        answers = self.halves.join(chosen[SECOND].answers, chosen[FIRST].answers)
        best, of_epoch = chosen[ALL].report, {}
        if self.evaluation.eval_final_steps:
            of_epoch = {OF_EPOCH: float(answers.robust.mean())}
            answers = dataclasses.replace(answers, robust=answers.robust & self._survive_final_attacks(validation))
        measured = accuracies(answers, self.prepared.judging)
        return dataclasses.replace(
            best,
            final=True,
            **_fields(measured),
            evaluation_seconds=time.perf_counter() - begun,
            answers=answers.encode(),
            terms=best.terms | dict(measured.others) | of_epoch,
        )

    def _survive_final_attacks(self, validation: Split) -> np.ndarray:
        """Return which images (N,) are right under `final_attacks`, each by the epoch that the other half chose."""
        first, device = torch.from_numpy(self.halves.first), validation.images.device
        by_epoch: dict[int, tuple[Candidate, torch.Tensor]] = {}
        for by, rows in ((SECOND, first), (FIRST, ~first)):
            candidate = self.state.chosen[by]
            known = by_epoch.get(candidate.report.epoch)
            by_epoch[candidate.report.epoch] = candidate, rows if known is None else known[1] | rows
        attacks = final_attacks(self.evaluation, classes=self.prepared.data.classes)
        survived, model = np.zeros(len(first), dtype=bool), copy.deepcopy(self.state.model)
        for candidate, rows in by_epoch.values():
            model.load_state_dict(candidate.weights)
            part = Split(*(each[rows.to(device)] for each in validation))
            generator = judging_generator(self.evaluation)
            survived[rows.numpy()] = surviving(model, part, attacks, generator=generator).cpu().numpy()
        return survived

    def write_model(self) -> None:
        """Write the chosen epoch's model beside the checkpoints.

        Raises:
            StorageFailed: if the store can't be written.
        """
        if self.store is not None:
            chosen = self.state.chosen[ALL]
            content = model_content(self.config, self.prepared.data, epoch=chosen.report.epoch, weights=chosen.weights)
            self.store.write(MODEL_FILE, to_bytes(content))

    @property
    def _identity(self) -> dict[str, Any]:
        """The settings in which a checkpoint must agree with the trial that resumes from it."""
        settings = {**self.config.to_dict(), **self.evaluation.written(), "data": self.prepared.data.fingerprint}
        return settings | ({"ladder": self.ladder} if self.ladder else {})

    def _checkpoint(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        state = self.state
        assert state.last is not None
        return {
            "identity": self._identity,
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "last": dataclasses.asdict(state.last),
            "chosen": {by: candidate.report.epoch for by, candidate in state.chosen.items()},
            "candidates": {
                candidate.report.epoch: {
                    "report": dataclasses.asdict(candidate.report),
                    "weights": candidate.weights,
                    "answers": candidate.answers.encode(),
                }
                for candidate in state.chosen.values()
            },
        }

    def _resume(self, store: Store, warn: Callable[[str], None]) -> None:
        """Bring the state to the newest whole checkpoint in the store, if there is one.

        Raises:
            InputError: for a checkpoint of another configuration.
        """
        saved, warnings = load_checkpoint(store)
        for message in warnings:
            warn(message)
        if saved is None:
            return
        theirs = TrialConfig().to_dict() | OF_EARLIER_VERSIONS | with_weights(saved["identity"])
        different = [
            f"{name} = {theirs.get(name)!r} (not {value!r})"
            for name, value in self._identity.items()
            if theirs.get(name) != value
        ]
        if different:
            raise InputError(
                f"the folder holds a checkpoint of another configuration, with {', '.join(different)}: "
                "give this trial a folder of its own"
            )
        if "negative_share" not in saved["identity"] and _was_redefined(self.config):
            warn(f"the checkpoint was trained with an earlier {self.config.regularizer}, so training begins anew")
            return
        if "chosen" not in saved:
            warn("the checkpoint is of an earlier version, which chose epochs otherwise, so training begins anew")
            return
        state = self.state
        state.model.load_state_dict(saved["model"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.last = EpochReport(**saved["last"])
        state.epoch = state.last.epoch
        candidates = {
            epoch: Candidate(EpochReport(**each["report"]), each["weights"], Answers.decode(each["answers"]))
            for epoch, each in saved["candidates"].items()
        }
        state.chosen = {by: candidates[epoch] for by, epoch in saved["chosen"].items()}


def check_own(config: TrialConfig, data: Data) -> None:
    """Check what a configuration names of one's own, before anything dear is prepared for it.

    Raises:
        InputError: as `check_batch_size`, `build_network`, `check_regularizer` and `check_attack`.
    """
    check_batch_size(config.batch_size, len(data.train.labels))
    if is_plugin(config.architecture):
        _new_network(config, data, mean=torch.zeros(data.shape[0]), std=torch.ones(data.shape[0]))
    _check_functions(config, data)


def _check_functions(config: TrialConfig, data: Data) -> None:
    if is_plugin(config.regularizer) and config.uses_regularizer:
        check_regularizer(config)
    if is_plugin(config.sensitivity_attack) and config.uses_sensitivity:
        check_attack(config, shape=data.shape, classes=data.classes)


def _new_network(config: TrialConfig, data: Data, *, mean: torch.Tensor, std: torch.Tensor) -> nn.Module:
    return build_network(
        config.architecture,
        shape=data.shape,
        classes=data.classes,
        embedding_size=config.embedding_size,
        mean=mean,
        std=std,
        seed=config.seed,
    )


def _was_redefined(config: TrialConfig) -> bool:
    """Return whether the objective has another definition since `negative_share` exists."""
    over_invariance = config.regularizer == "sinkhorn" and config.invariance_weight > 0
    return config.uses_regularizer and (config.regularizer == "ot_triplet" or over_invariance)


def initial_state(
    config: TrialConfig, prepared: Prepared, device: torch.device, warn: Callable[[str], None] = lambda message: None
) -> TrialState:
    """Build a new model, normalised by the training images' own mean and deviation, and its optimiser.

    Args:
        config, prepared, device: those of the trial.
        warn: called with one line if its steps can't be run as the configuration says.
    """
    images = prepared.data.train.images
    std = images.std(dim=(0, 2, 3)).clamp_min(1e-3)
    model = move_to_device(_new_network(config, prepared.data, mean=images.mean(dim=(0, 2, 3)), std=std), device)
    return TrialState(model, make_optimizer(model, config), Execution(config, device, warn))


def advance(state: TrialState, report: EpochReport, config: TrialConfig, answers: Answers, halves: Halves) -> None:
    """Count the epoch; choose it, by all images or a half, if it is the best so far of the second half of training.

    Of equal ones the earlier is chosen. Robust models overfit late (Rice et al. 2020), so the last epoch is not always
    the best. In the first half a model can hold a large area by its two accuracies although it has hardly learnt the
    task yet.
    """
    state.epoch, state.last = report.epoch, report
    if 2 * report.epoch <= config.epochs:
        return
    weights = {name: value.clone() for name, value in state.model.state_dict().items()}
    candidate = Candidate(report, weights, answers)
    for by in (ALL, FIRST, SECOND):
        known = state.chosen.get(by)
        if known is None or halves.merit(candidate, by) > halves.merit(known, by):
            state.chosen[by] = candidate


def _fields(measured: Evaluation) -> dict[str, Any]:
    """Return an evaluation's numbers as far as they are fields of a report."""
    return {name: value for name, value in measured._asdict().items() if name not in ("others", "answers")}
