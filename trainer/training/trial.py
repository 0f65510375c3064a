"""One trial between two of its epochs: its configuration, its state, and the checkpoints that hold it."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from trainer.answers import Answers
from trainer.config import EvaluationConfig, TrialConfig, with_weights
from trainer.data import Split
from trainer.errors import InputError
from trainer.files import Store, load_checkpoint, save_checkpoint, to_bytes
from trainer.invariance import Prepared, TrainingPerturbation
from trainer.models import build_model, move_to_device
from trainer.report import OF_EPOCH, STRENGTH, EpochReport
from trainer.training.batches import check_batch_size, training_perturbation
from trainer.training.evaluation import (
    Evaluation,
    attack_steps,
    final_attacks,
    judging_generator,
    on_ladder,
    right_and_robust,
)
from trainer.training.model_file import MODEL_FILE, model_content
from trainer.training.step import make_optimizer


@dataclass
class TrialState:
    """Everything that a trial carries from one epoch to the next."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """Epochs trained so far."""
    last: EpochReport | None = None
    """The newest epoch's report."""
    best: EpochReport | None = None
    """The report of the epoch chosen so far; None in the first half of training."""
    best_weights: dict[str, Tensor] | None = None
    """The model's weights after that epoch."""
    best_answers: Answers | None = None
    """Its answers then; None if a checkpoint of an earlier version chose it."""


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
            InputError: if a batch is larger than the training split, or for a checkpoint of another configuration.
        """
        if evaluation != prepared.evaluation:
            raise ValueError("the evaluation of a trial must be what the data was prepared for")
        check_batch_size(config.batch_size, len(prepared.data.train.labels))
        perturbation = training_perturbation(config, prepared, device)
        trial = cls(config, evaluation, prepared, ladder, store, perturbation, initial_state(config, prepared, device))
        if store is not None:
            trial._resume(store, warn)
        return trial

    @property
    def epoch_evaluation(self) -> EvaluationConfig:
        """The evaluation of the next epoch, weaker than the trial's own where the attack grows on a ladder."""
        return on_ladder(self.evaluation, epoch=self.state.epoch + 1, epochs=self.config.epochs, ladder=self.ladder)

    def close_epoch(
        self, measured: Evaluation, terms: dict[str, float], *, train_seconds: float, evaluation_seconds: float
    ) -> EpochReport:
        """Report the epoch that the model was just trained for, choose among epochs, and save a checkpoint.

        Raises:
            TrialFailed: if a number is not finite; nothing is saved then.
            StorageFailed: if the store can't be written.
        """
        own = {name: value for name, value in measured._asdict().items() if name not in ("others", "answers")}
        report = EpochReport(
            epoch=self.state.epoch + 1,
            final=False,
            **own,
            learning_rate=self.state.optimizer.param_groups[0]["lr"],
            train_seconds=train_seconds,
            evaluation_seconds=evaluation_seconds,
            terms=terms
            | dict(measured.others)
            | ({STRENGTH: attack_steps(self.epoch_evaluation)} if self.ladder else {}),
        )
        advance(self.state, report, self.config, measured.answers)
        if self.store is not None:
            save_checkpoint(self.store, report.epoch, self._checkpoint())
        return report

    def finish(self, validation: Split) -> EpochReport:
        """Write the chosen epoch's model beside the checkpoints; return the last report, that of this epoch.

        Its sensitivity accuracy is measured once more, under `final_attacks`.

        Args:
            validation: the validation images, on the device.

        Raises:
            StorageFailed: if the store can't be written.
        """
        best, answers = self.state.best, self.state.best_answers
        assert best is not None
        assert self.state.best_weights is not None
        self.write_model()
        if not self.evaluation.eval_final_steps:
            return dataclasses.replace(best, final=True, answers=answers.encode() if answers else "")
        begun = time.perf_counter()
        model = copy.deepcopy(self.state.model)
        model.load_state_dict(self.state.best_weights)
        attacks = final_attacks(self.evaluation, classes=self.prepared.data.classes)
        generator = judging_generator(self.evaluation, validation.images.device)
        right, robust = right_and_robust(model, validation, attacks, generator=generator)
        if answers:
            answers = dataclasses.replace(answers, right=right.cpu().numpy(), robust=robust.cpu().numpy())
        return dataclasses.replace(
            best,
            final=True,
            sensitivity_accuracy=robust.double().mean().item(),
            evaluation_seconds=time.perf_counter() - begun,
            answers=answers.encode() if answers else "",
            terms=best.terms | {OF_EPOCH: best.sensitivity_accuracy},
        )

    def write_model(self) -> None:
        """Write the chosen epoch's model beside the checkpoints.

        Raises:
            StorageFailed: if the store can't be written.
        """
        if self.store is not None:
            assert self.state.best is not None
            assert self.state.best_weights is not None
            epoch, weights = self.state.best.epoch, self.state.best_weights
            content = model_content(self.config, self.prepared.data, epoch=epoch, weights=weights)
            self.store.write(MODEL_FILE, to_bytes(content))

    @property
    def _identity(self) -> dict[str, Any]:
        """The settings in which a checkpoint must agree with the trial that resumes from it."""
        settings = {**self.config.to_dict(), **self.evaluation.to_dict(), "data": self.prepared.data.fingerprint}
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
            "best": None if state.best is None else dataclasses.asdict(state.best),
            "best_weights": state.best_weights,
            "best_answers": state.best_answers.encode() if state.best_answers else "",
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
        theirs = TrialConfig().to_dict() | with_weights(saved["identity"])
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
        state = self.state
        state.model.load_state_dict(saved["model"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.last = EpochReport(**saved["last"])
        state.best = None if saved["best"] is None else EpochReport(**saved["best"])
        state.epoch, state.best_weights = state.last.epoch, saved["best_weights"]
        known = saved.get("best_answers")
        state.best_answers = Answers.decode(known) if known else None


def _was_redefined(config: TrialConfig) -> bool:
    """Return whether the objective has another definition since `negative_share` exists."""
    over_invariance = config.regularizer == "sinkhorn" and config.invariance_weight > 0
    return config.uses_regularizer and (config.regularizer == "ot_triplet" or over_invariance)


def initial_state(config: TrialConfig, prepared: Prepared, device: torch.device) -> TrialState:
    """Build a new model, normalised by the training images' own mean and deviation, and its optimiser."""
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
    model = move_to_device(model, device)
    return TrialState(model, make_optimizer(model, config))


def advance(state: TrialState, report: EpochReport, config: TrialConfig, answers: Answers) -> None:
    """Count the epoch, and choose it if it is the best so far of the second half of training (ties: the earlier one).

    Robust models overfit late (Rice et al. 2020), so the last epoch is not always the best. In the first half a model
    can hold a large area by its two accuracies although it has hardly learnt the task yet.
    """
    state.epoch, state.last = report.epoch, report
    eligible = 2 * report.epoch > config.epochs
    if eligible and (state.best is None or _merit(report) > _merit(state.best)):
        state.best, state.best_answers = report, answers
        state.best_weights = {name: value.clone() for name, value in state.model.state_dict().items()}


def _merit(report: EpochReport) -> tuple[float, float, float]:
    """Return what epochs are compared by, in order: hypervolume, sum of the two accuracies, clean accuracy.

    The hypervolume is that of the one point against (0, 0). It is 0 for all models that fall to every attack.
    """
    sensitivity, invariance = report.sensitivity_accuracy, report.invariance_accuracy
    return sensitivity * invariance, sensitivity + invariance, report.clean_accuracy
