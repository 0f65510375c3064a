"""Packs: trials that train side by side on one device, as many as it has room for; each joins, ends and fails alone.

A packed trial gives the same reports and checkpoints as any other, so that it may begin alone and resume in a pack, or
the other way round. Trials of one structure are stacked for each epoch (see `stacked_training`).
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from trainer.config import OWN_KNOBS, EvaluationConfig, TrialConfig, check_packable
from trainer.data import Data
from trainer.errors import InputError, OtsweepError
from trainer.files import Store
from trainer.invariance import Prepared
from trainer.objective import Knobs, why_regularizer_alone
from trainer.own_models import why_alone
from trainer.plugins import is_plugin
from trainer.report import EpochReport
from trainer.training.batches import to_device
from trainer.training.evaluation import Evaluation, judging_generator
from trainer.training.loop import next_epoch
from trainer.training.own_attacks import why_attack_alone
from trainer.training.stacked_evaluation import evaluate_stack
from trainer.training.stacked_models import StackedModel, stack_optimizers
from trainer.training.stacked_training import train_stack
from trainer.training.trial import Trial

_FREE = (
    "sensitivity_epsilon",
    "sensitivity_step_size",
    "certified_epsilon",
    "certified_ramp",
    "invariance_norm",
    "invariance_epsilon",
    "margin",
    "entropy",
    "label_cost",
    "negative_share",
    *OWN_KNOBS,
    "learning_rate",
    "learning_rate_schedule",
    "momentum",
    "weight_decay",
    "epochs",
    "seed",
)
"""Knobs that may differ between the trials of one vectorised step, whatever else is set."""

_SWITCHES = (
    *("clean_ce_weight", "sensitivity_ce_weight", "invariance_ce_weight"),
    *("sensitivity_weight", "invariance_weight", "norm_weight", "trades_weight"),
    "label_smoothing",
    "certified_ce_weight",
)
"""Knobs of which only this matters: above 0 the objective has one more term, or smooth labels."""


def structure(config: TrialConfig) -> TrialConfig:
    """Return the configuration with everything reset that may differ in a vectorised step: equal if two can share one.

    The settings of a term without weight, or of an unused attack, are reset too.
    """
    default = TrialConfig()
    alike = {name: getattr(default, name) for name in _FREE}
    alike |= {name: float(getattr(config, name) > 0) for name in _SWITCHES}
    if not config.uses_regularizer:
        names = ("regularizer", "regularizer_on", "ground_metric", "mining", "transport")
        alike |= {name: getattr(default, name) for name in (*names, "sensitivity_weight", "invariance_weight")}
    if not (config.is_fgsm or is_plugin(config.sensitivity_attack)):
        alike["sensitivity_steps"] = default.sensitivity_steps  # the trial with most sets how many, the others wait
    if not config.uses_sensitivity:
        names = ("sensitivity_attack", "sensitivity_norm", "sensitivity_objective", "sensitivity_steps")
        alike |= {name: getattr(default, name) for name in names}
    if config.certified_ce_weight == 0:
        alike["certified_method"] = default.certified_method
    return config.replace(**alike)


@dataclass(eq=False)
class PackedTrial(Trial):
    """One trial of a pack."""

    repeats_report: bool = False
    """True just after a resume: the next report repeats the checkpoint's, which may have been lost."""
    warn: Callable[[str], None] = lambda message: None
    """The parameter of `Pack.join`."""
    alone: bool = False
    """True for a network, regulariser or attack of one's own that can't share a vectorised step."""

    @cached_property
    def structure(self) -> TrialConfig:
        """The result of `structure` for its configuration."""
        return structure(self.config)

    @property
    def trains(self) -> bool:
        """True if its next report takes an epoch of training."""
        return not self.repeats_report and self.state.epoch < self.config.epochs


class Pack:
    """Trials on one device that share data and evaluation.

    Args:
        evaluation: the evaluation of all trials; the one that `prepared` was made for.
        prepared: data, training perturbations and judging set.
        ladder: the parameter of `run_trial`.
        device: a torch device such as `cpu` or `cuda:0`.
    """

    def __init__(
        self, evaluation: EvaluationConfig, prepared: Prepared, *, ladder: int = 0, device: str = "cpu"
    ) -> None:
        self.evaluation, self.prepared, self.ladder = evaluation, prepared, ladder
        self.device = torch.device(device)
        self.train = to_device(prepared.data.train, self.device)
        self.validation = to_device(prepared.data.validation, self.device)
        self.judging = prepared.judging.to(self.device)
        self._most = sys.maxsize
        """Trials that the device has memory for, side by side."""

    def join(
        self,
        config: TrialConfig,
        *,
        store: Store | None = None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> PackedTrial:
        """Add a trial, at its start or where its store left it.

        Args:
            config, store, warn: those of `run_trial`.

        Raises:
            InputError: as `run_trial` does, and if the configuration can't be packed.
        """
        check_packable(config)
        trial = PackedTrial.begin(
            config, self.evaluation, self.prepared, ladder=self.ladder, store=store, device=self.device, warn=warn
        )
        trial.repeats_report, trial.warn = trial.state.last is not None, warn
        if reason := why_trial_alone(config, trial.state.model, self.prepared.data):
            trial.alone = True
            warn(f"trains alone, not in the pack's vectorised step: {reason}")
        return trial

    def advance(self, trials: Sequence[PackedTrial]) -> dict[PackedTrial, EpochReport | Exception]:
        """Return for each trial the next report that `run_trial` would yield, or the exception that it would raise.

        That is after a resume the last report again, then one for each epoch, at the end that of the chosen epoch.
        Trials with an epoch to train do so side by side, those of one structure and evaluation in one vectorised step.
        A trial that failed affects no other; it must not be advanced again, nor one that gave its last report.
        """
        outcome: dict[PackedTrial, EpochReport | Exception] = {}
        stacks: dict[tuple[TrialConfig, EvaluationConfig], list[PackedTrial]] = {}
        for trial in trials:
            if trial.repeats_report:
                assert trial.state.last is not None
                outcome[trial], trial.repeats_report = trial.state.last, False
            elif trial.state.epoch == trial.config.epochs:
                outcome[trial] = _attempt(functools.partial(trial.finish, self.validation))
            elif trial.alone:
                outcome[trial] = _attempt(functools.partial(self._next_epoch, trial))
            else:
                stacks.setdefault((trial.structure, trial.epoch_evaluation), []).append(trial)
        for stack in stacks.values():
            outcome |= self._next_epoch_of(stack)
        return {trial: outcome[trial] for trial in trials}

    def _next_epoch_of(self, stack: list[PackedTrial]) -> dict[PackedTrial, EpochReport | Exception]:
        """Train and evaluate trials of one structure, side by side as far as the device has memory for them."""
        if len(stack) > self._most:
            return self._next_epoch_of(stack[: self._most]) | self._next_epoch_of(stack[self._most :])
        try:
            return self._train_and_evaluate(stack)
        except InputError as error:  # of one's own regulariser or attack, which all of the stack have
            return dict.fromkeys(stack, error)
        except torch.OutOfMemoryError as error:
            if len(stack) == 1:
                return {stack[0]: error.with_traceback(None)}
        # Out of the handler, so that nothing holds the tensors of what failed.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._most = len(stack) // 2
        stack[0].warn(
            f"{len(stack)} trials don't fit into the GPU's memory side by side: at most {self._most} from now on"
        )
        return self._next_epoch_of(stack)

    def _next_epoch(self, trial: PackedTrial) -> EpochReport:
        return next_epoch(trial, self.train, self.validation, self.judging, Knobs.of(trial.config, self.device))

    def _train_and_evaluate(self, stack: list[PackedTrial]) -> dict[PackedTrial, EpochReport | Exception]:
        """Train one epoch of trials of one structure and evaluation; each is charged an equal share of the time.

        Raises:
            OutOfMemoryError: if they don't fit into the device's memory; all of them are then as they were.
        """
        models, optimizers = ([getattr(trial.state, part) for trial in stack] for part in ("model", "optimizer"))
        perturbations = [trial.perturbation for trial in stack if trial.perturbation is not None]
        start = time.perf_counter()
        model = StackedModel(models)
        optimizer = stack_optimizers(model, optimizers)
        trained = train_stack(
            model,
            optimizer,
            [trial.config for trial in stack],
            [trial.state.epoch + 1 for trial in stack],
            self.train,
            perturbations or None,
            stack[0].state.execution,
        )
        middle = time.perf_counter()
        measured = evaluate_stack(
            model,
            self.validation,
            self.judging,
            stack[0].epoch_evaluation,
            generator=judging_generator(self.evaluation),
        )
        model.unstack(models)
        optimizer.unstack(optimizers)
        train_seconds, evaluation_seconds = (
            spent / len(stack) for spent in (middle - start, time.perf_counter() - middle)
        )

        def close(
            trial: PackedTrial, terms: dict[str, float] | OtsweepError, evaluation: Evaluation | OtsweepError
        ) -> EpochReport | Exception:
            if isinstance(terms, OtsweepError):
                return terms
            if isinstance(evaluation, OtsweepError):
                return evaluation
            return _attempt(
                lambda: trial.close_epoch(
                    evaluation, terms, train_seconds=train_seconds, evaluation_seconds=evaluation_seconds
                )
            )

        outcomes = zip(stack, trained, measured, strict=True)
        return {trial: close(trial, terms, evaluation) for trial, terms, evaluation in outcomes}


def why_trial_alone(config: TrialConfig, model: nn.Module, data: Data) -> str:
    """Return why what a trial has of one's own can't share a vectorised step; an empty text if it can."""
    reason = why_alone(model) or why_regularizer_alone(config)
    return reason or why_attack_alone(config, shape=data.shape, classes=data.classes)


def _attempt(work: Callable[[], EpochReport]) -> EpochReport | Exception:
    """Return what `work` returns or raises."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - whatever fails in one trial, the others go on
        return error
