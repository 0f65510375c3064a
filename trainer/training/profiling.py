"""The cost of trials before they run: a little of each is done as a trial does it, and timed.

A step's cost depends on how the objective is made (attack steps, terms, images), not on what the images show or how far
the model has come: the solvers of transport make a fixed number of steps. So a few steps of a new model are enough.
Evaluation is different: an image leaves the attack once the model is wrong. It is timed at both ends, on a model that
is always wrong and on one that never is. Where the preparation is missing, stand-ins of the same shapes are used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.attacks import judged
from trainer.config import EvaluationConfig, TrialConfig, check_packable
from trainer.cost import Cost
from trainer.data import Split, load_data
from trainer.files import NotPrepared, ReadOnlyCache, Store
from trainer.invariance import JudgingSet, PreparationPipeline, Prepared, TrainingPerturbation
from trainer.objective import Knobs
from trainer.training.batches import check_batch_size, to_device, training_perturbation
from trainer.training.choice import Halves
from trainer.training.evaluation import (
    BATCH,
    Evaluation,
    evaluate,
    evaluation_attacks,
    final_effort,
    judging_generator,
    predict_labels,
)
from trainer.training.loop import train_epoch
from trainer.training.model_file import MODEL_FILE
from trainer.training.pack import why_trial_alone
from trainer.training.schedules import config_of_epoch
from trainer.training.stacked_models import StackedModel, stack_optimizers
from trainer.training.stacked_training import train_stack
from trainer.training.trial import Trial, TrialState, initial_state

_LEAST_STEPS, _MOST_STEPS = 3, 12
"""Limits of the number of steps that are timed, after a first one that warms up."""

_SECONDS = 1.0
"""Time for the steps of one configuration."""


class _EvaluationTime(NamedTuple):
    """The cost of evaluating one kind of model."""

    low: float
    """Seconds, if the model is wrong on every image."""
    high: float
    """Seconds, if it is right on every image under every attack."""
    measured: Evaluation
    """The numbers of the latter."""


class Timer:
    """A stopwatch for configurations, one after the other, each as a trial of its own would run in this process.

    Args:
        evaluation: that of the trials.
        data_dir: where published files are looked for.
        cache_dir: preparations found there are used; only decoded data is added.
        device: a torch device such as `cpu` or `cuda:0`.

    Raises:
        InputError: for data that can't be had.
    """

    def __init__(
        self, evaluation: EvaluationConfig, *, data_dir: Path | None, cache_dir: Path, device: str = "cpu"
    ) -> None:
        self.evaluation, self.device = evaluation, torch.device(device)
        data = load_data(evaluation, data_dir=data_dir, cache_dir=cache_dir)
        cache = ReadOnlyCache(cache_dir / "prepared")
        pipeline = PreparationPipeline(data, evaluation, cache, lambda stage, done, total: None)
        self.prepared = Prepared(data, evaluation, pipeline)
        self.train, self.validation = (to_device(split, self.device) for split in (data.train, data.validation))
        self.judging = self._judging_set().to(self.device)
        initial_state(TrialConfig(), self.prepared, self.device)  # torch imports much at its first optimiser
        self.perturbations: dict[str, tuple[TrainingPerturbation, float]] = {}
        """Training perturbations by norm, with the seconds that they took."""
        self._evaluations: dict[tuple[str, int], _EvaluationTime] = {}
        """Evaluation times by architecture and embedding size."""

    def cost(self, config: TrialConfig, store: Store) -> Cost:
        """Measure what a trial of a configuration costs.

        Args:
            config: the configuration.
            store: receives a checkpoint and a model, which are deleted again.

        Raises:
            InputError: for a batch larger than the training split.
            TrialFailed: for a loss that is not finite after a few steps.
        """
        check_batch_size(config.batch_size, len(self.train.labels))
        wall, begun = time.perf_counter(), self._now()
        state = initial_state(config, self.prepared, self.device)
        beginning = self._now() - begun
        perturbation, perturbing = self._perturbation(config) if config.uses_invariance else (None, 0.0)
        steps = len(self.train.labels) // config.batch_size
        [warm_up], _ = self._time_steps(state, config, perturbation, 1)
        count = min(max(_LEAST_STEPS, int(_SECONDS / warm_up)), _MOST_STEPS, steps)
        times, terms = self._time_steps(state, config, perturbation, count)
        first = fmean(times[:-1] or times)
        step = self._mean_step(state, config, perturbation, count, first)
        evaluation = self._time_evaluation(state, config)
        timed, wall = self._now() - begun, time.perf_counter() - wall

        state.epoch = config.epochs - 1  # so that the checkpoint holds the best weights too
        trial = Trial(config, self.evaluation, self.prepared, 0, store, None, state)
        # The judging set may be a stand-in.
        trial.halves = Halves(self.judging, images=len(self.validation.labels), seed=self.evaluation.split_seed)
        begun = time.perf_counter()
        report = trial.close_epoch(
            evaluation.measured, terms, train_seconds=steps * step, evaluation_seconds=evaluation.high
        )
        saving = time.perf_counter() - begun
        trial.write_model()
        sizes = {name: len(store.read(name)) for name in store.names()}
        for name in sizes:
            store.delete(name)
        return Cost(
            beginning=beginning + perturbing,
            steps=steps,
            step=step,
            diagnosis=max(0.0, times[-1] - first),
            judging_low=evaluation.low,
            judging_high=evaluation.high,
            saving=saving,
            model_bytes=sizes.pop(MODEL_FILE),
            checkpoint_bytes=sum(sizes.values()),
            timed=timed,
            wall=wall,
            report=report.to_dict(),
            finishing=evaluation.high * final_effort(self.evaluation, classes=self.prepared.data.classes),
        )

    def missing(self, norms: Iterable[str]) -> list[str]:
        """Return which parts of the preparation the cache lacks; `norms` are those of the training perturbations."""
        parts: dict[str, Callable[[], object]] = {"judging set": lambda: self.prepared.judging}
        parts |= {f"{norm} perturbations": partial(self.prepared.perturbations, norm) for norm in norms}
        return [name for name, part in parts.items() if _is_missing(part)]

    def pack_gain(self, config: TrialConfig, trials: int) -> float:
        """Return how many times faster the steps of some trials are in a pack than one after the other.

        Raises:
            InputError: for a configuration that can't be packed.
        """
        check_packable(config)
        configs = [config.replace(seed=seed) for seed in range(trials)]
        states = [initial_state(each, self.prepared, self.device) for each in configs]
        if why_trial_alone(config, states[0].model, self.prepared.data):
            return 1.0
        perturbation = self._perturbation(config)[0] if config.uses_invariance else None
        model = StackedModel([state.model for state in states])
        optimizer, how = stack_optimizers(model, [state.optimizer for state in states]), states[0].execution

        def time_stack(steps: int) -> float:
            part, perturbed = self._first(steps * config.batch_size, perturbation)
            begun = self._now()
            train_stack(model, optimizer, configs, [1] * trials, part, perturbed and [perturbed] * trials, how)
            return self._now() - begun

        steps = min(_LEAST_STEPS, len(self.train.labels) // config.batch_size)
        for count in (1, steps):  # the first warms up
            packed = time_stack(count)
            alone, _ = self._time_steps(states[0], config, perturbation, count)
        return trials * sum(alone) / packed

    def _time_steps(
        self, state: TrialState, config: TrialConfig, perturbation: TrainingPerturbation | None, count: int
    ) -> tuple[list[float], dict[str, float]]:
        """Train some steps; return the seconds of each and the loss terms. The last step includes the diagnosis."""
        part, perturbed = self._first(count * config.batch_size, perturbation)
        ticks = [self._now()]
        knobs = Knobs.of(config, self.device)
        terms = train_epoch(state, part, perturbed, config, knobs, lambda *step: ticks.append(self._now()))
        return [after - before for before, after in zip(ticks, ticks[1:], strict=False)], terms

    def _mean_step(
        self,
        state: TrialState,
        config: TrialConfig,
        perturbation: TrainingPerturbation | None,
        count: int,
        first: float,
    ) -> float:
        """Return the seconds of a step over all epochs, from those of the first: later ones may leave CROWN out."""
        last = config_of_epoch(config, config.epochs)
        if config.certified_ce_weight == 0 or last == config:
            return first
        times, _ = self._time_steps(state, last, perturbation, count)
        share = fmean(config_of_epoch(config, epoch) == config for epoch in range(1, config.epochs + 1))
        return share * first + (1 - share) * fmean(times[:-1] or times)

    def _first(self, rows: int, perturbation: TrainingPerturbation | None) -> tuple[Split, TrainingPerturbation | None]:
        """Return the first training images and their perturbations."""
        part = Split(*(field[:rows] for field in self.train))
        return part, None if perturbation is None else TrainingPerturbation(*(field[:rows] for field in perturbation))

    def _time_evaluation(self, state: TrialState, config: TrialConfig) -> _EvaluationTime:
        """Time the evaluation on one batch of the images and as large a share of the judging set.

        The attack is the sweep's with a budget of 0, so that the model's answer to an image never changes: the image
        survives every step if its label is that answer, and none if it is another.
        """
        kind = (config.architecture, config.embedding_size)
        if kind in self._evaluations:
            return self._evaluations[kind]
        count = min(len(self.validation.labels), BATCH[self.device.type])
        share = count / len(self.validation.labels)
        images = self.validation.images[:count]
        judging = self.judging.first(math.ceil(share * len(self.judging.images)))
        attacks = evaluation_attacks(self.evaluation.replace(eval_sensitivity_epsilon=0.0))
        with judged(state.model):
            answers = predict_labels(state.model, images, batch_size=count)

        def time_with(labels: Tensor) -> tuple[float, Evaluation]:
            begun, generator = self._now(), judging_generator(self.evaluation)
            measured = evaluate(state.model, Split(images, labels), judging, attacks, generator=generator)
            return (self._now() - begun) / share, measured

        wrong = (answers + 1) % self.prepared.data.classes
        time_with(wrong)  # the first pass of a size is slower
        low, _ = time_with(wrong)
        high, measured = time_with(answers)
        self._evaluations[kind] = _EvaluationTime(low, max(low, high), measured)
        return self._evaluations[kind]

    def _perturbation(self, config: TrialConfig) -> tuple[TrainingPerturbation, float]:
        """Return X_v of the training images, with the seconds that it took, which are alike at all budgets."""
        norm = config.invariance_norm
        if norm not in self.perturbations:
            begun = self._now()
            try:
                perturbation = training_perturbation(config, self.prepared, self.device)
                assert perturbation is not None
            except NotPrepared:
                perturbation = stand_in(self.train, epsilon=config.invariance_epsilon)
            self.perturbations[norm] = perturbation, self._now() - begun
        return self.perturbations[norm]

    def _judging_set(self) -> JudgingSet:
        """Return the judging set, or as many validation images if it is not prepared."""
        try:
            return self.prepared.judging
        except NotPrepared:
            count = self.evaluation.eval_invariance_size or len(self.prepared.data.validation.labels)
            images, labels = (field[:count] for field in self.prepared.data.validation)
            crowd = F.one_hot(labels, self.prepared.data.classes).float()
            return JudgingSet(images, images, labels, torch.arange(len(labels)), {"nobody": crowd})

    def _now(self) -> float:
        """Return seconds, after the device's work is done; on one core its own clock, free of other processes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()


def _is_missing(part: Callable[[], object]) -> bool:
    try:
        part()
    except NotPrepared:
        return True
    return False


def stand_in(train: Split, *, epsilon: float) -> TrainingPerturbation:
    """Move each image towards another by at most epsilon; label half of them as the other, leave out a tenth."""
    generator = torch.Generator().manual_seed(0)
    other = torch.randperm(len(train.labels), generator=generator).to(train.labels.device)
    chance = torch.rand(len(other), generator=generator).to(train.labels.device)
    images = train.images + (train.images[other] - train.images).clamp(-epsilon, epsilon)
    return TrainingPerturbation(images, torch.where(chance < 0.5, train.labels[other], train.labels), chance < 0.9)
