"""The training loop of one trial, as a generator: train an epoch, evaluate, save, report.

The last report repeats that of the chosen epoch, whose model is kept and attacked once more, harder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.attacks import Draws
from trainer.config import EvaluationConfig, TrialConfig
from trainer.data import Split
from trainer.files import Store
from trainer.invariance import JudgingSet, Prepared, TrainingPerturbation
from trainer.objective import Knobs, LossTerms, total_loss
from trainer.own_models import own_noise
from trainer.precision import training_products
from trainer.report import EpochReport, check_finite
from trainer.training.augmentation import augment
from trainer.training.batches import PURPOSES, batch_at, find_largest_class, random_stream, shuffled_rows, to_device
from trainer.training.evaluation import evaluate, evaluation_attacks, judging_generator
from trainer.training.schedules import config_of_epoch, learning_rate, set_learning_rate, share_done
from trainer.training.step import Step, detach, diagnose, forward, summarise, update
from trainer.training.trial import Trial, TrialState

_Progress = Callable[[int, int, int], None]
"""Called with the epoch, the steps done in it, and its steps in all."""


def run_trial(
    config: TrialConfig,
    evaluation: EvaluationConfig,
    prepared: Prepared,
    *,
    ladder: int = 0,
    last: bool = True,
    store: Store | None = None,
    device: str = "cpu",
    warn: Callable[[str], None] = lambda message: None,
    progress: _Progress = lambda epoch, done, total: None,
) -> Iterator[EpochReport]:
    """Train, yielding a finite `EpochReport` after each epoch, then once more that of the chosen epoch.

    The same config, data, code and number of threads give the same numbers bit for bit on a CPU, also if the trial is
    stopped after any epoch and resumed from `store`. Each report is delivered at least once: a resumed trial first
    yields the report of the epoch it resumes from, since that may have been lost.

    Args:
        config: the trial's configuration.
        evaluation: its evaluation; the one that `prepared` was made for.
        prepared: data, training perturbations and judging set, shared by all trials.
        ladder: steps of the evaluation's attack in the first epochs, from which it grows to its full strength; 0 for
            full strength in every epoch. See `on_ladder`.
        last: False leaves out the last report and its attacks; the chosen model is kept all the same.
        store: where checkpoints and the chosen model (`model.pt`) are kept; None keeps nothing.
        device: a torch device such as `cpu` or `cuda:0`.
        warn: called with a message for each damaged checkpoint that was passed over, and if
            `execution` is not possible.
        progress: called after every step.

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
        yield next_epoch(trial, train, validation, judging, knobs, progress)
    if last:
        yield trial.finish(validation)
    else:
        trial.write_model()


def next_epoch(
    trial: Trial,
    train: Split,
    validation: Split,
    judging: JudgingSet,
    knobs: Knobs,
    progress: _Progress = lambda epoch, done, total: None,
) -> EpochReport:
    """Train a trial for an epoch, evaluate it, save and report.

    Args:
        trial: the trial, with an epoch to train.
        train, validation, judging: the images, on the device.
        knobs: those of its configuration.
        progress: called after every step.

    Raises:
        TrialFailed: as `run_trial`.
    """
    start, state = time.perf_counter(), trial.state
    terms = train_epoch(state, train, trial.perturbation, trial.config, knobs, progress)
    trained = time.perf_counter()
    attacks = evaluation_attacks(trial.epoch_evaluation)
    generator = judging_generator(trial.evaluation)
    measured = evaluate(state.model, validation, judging, attacks, generator=generator)
    spent = time.perf_counter() - trained
    return trial.close_epoch(measured, terms, train_seconds=trained - start, evaluation_seconds=spent)


def train_epoch(
    state: TrialState,
    train: Split,
    perturbation: TrainingPerturbation | None,
    config: TrialConfig,
    whole: Knobs,
    progress: _Progress,
) -> dict[str, float]:
    """Train on every image once; return the epoch's mean loss terms and a diagnosis of its last step, by name.

    Args:
        state: that of the trial; its model is trained in place.
        train, perturbation: the training images, and X_v and y_v of them if the objective uses them.
        config: the trial's configuration.
        whole: its knobs, without the ramp of the certified term.
        progress: called after every step.

    Raises:
        TrialFailed: if a term of the loss is not finite.
    """
    epoch, device = state.epoch + 1, train.images.device
    config = config_of_epoch(config, epoch)
    order, noise, changes = (random_stream(config.seed, purpose, epoch) for purpose in PURPOSES[:3])
    rows_of_steps = shuffled_rows(len(train.labels), batch_size=config.batch_size, generator=order).to(device)
    bound = None
    if config.regularizer == "ot_triplet":
        bound = find_largest_class(train.labels, [rows_of_steps], perturbation and [perturbation])
    state.model.train()
    steps = len(rows_of_steps)
    shares = [share_done(epoch, step, steps=steps, epochs=config.epochs) for step in range(steps)]
    done = torch.tensor(shares, device=device)  # so that no step has to copy its own to the device
    inputs = [(rows_of_steps[index], done[index], learning_rate(config, shares[index])) for index in range(steps)]

    def pass_forward(
        rows: Tensor, share: Tensor, rate: float | Tensor, noise: Draws, changes: Draws
    ) -> tuple[Step, Knobs]:
        set_learning_rate(state.optimizer, rate)
        knobs = whole.at(share) if config.certified_ce_weight > 0 else whole
        batch = augment(batch_at(train, perturbation, rows), config, changes)
        return forward(state.model, batch, config, knobs, noise, largest_class=bound), knobs

    def train_on(*inputs_and_draws: Any) -> LossTerms:
        step, knobs = pass_forward(*inputs_and_draws)
        update(state.optimizer, total_loss(step.terms, knobs))
        return detach(step.terms)

    history: list[LossTerms] = []
    own = random_stream(config.seed, "network", epoch).initial_seed()
    compiled = state.execution.passes(state.model, train.images[rows_of_steps[0]])
    with training_products(device, config.precision), compiled, own_noise(state.model, own):
        train_step = state.execution.steps(train_on, (noise, changes), state.optimizer)
        for each in inputs[:-1]:
            history.append(train_step(*each))
            progress(epoch, len(history), steps)
        step, knobs = pass_forward(*inputs[-1], noise, changes)  # run as it is, since it is looked at
        numbers = summarise([*history, detach(step.terms)])
        check_finite(epoch, numbers)
        numbers |= {name: value.item() for name, value in diagnose(step, state.model, knobs).items()}
        update(state.optimizer, total_loss(step.terms, knobs))
        progress(epoch, steps, steps)
    return numbers
