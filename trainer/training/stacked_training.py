"""The training of stacked trials: an epoch of all in one vectorised step after another.

Stacked trials share no number. So the gradient of a sum over trials holds every trial's own gradient, in its parameters
and its images alike, and a single trial's attacks and step work on folded batches as they are. A stacked trial computes
what it would compute alone, but for the order of sums; if its numbers are not finite, no other trial's are touched.

Shape letters: T stacked trials, B images of each in a batch, N training images, D embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer.attacks import Draws
from trainer.config import TrialConfig
from trainer.data import Split
from trainer.errors import OtsweepError
from trainer.invariance import TrainingPerturbation
from trainer.models import Prediction
from trainer.objective import Knobs, LossTerms, certified_cross_entropy, loss_terms, total_loss
from trainer.precision import training_products
from trainer.report import check_finite
from trainer.training.augmentation import augment
from trainer.training.batches import PURPOSES, Batch, find_largest_class, random_stream, shuffled_rows
from trainer.training.execution import Execution
from trainer.training.schedules import config_of_epoch, learning_rate, share_done
from trainer.training.stacked_evaluation import error_of
from trainer.training.stacked_models import StackedModel, StackedOptimizer, by_trial, of_trial, tensor_fields
from trainer.training.step import Step, detach, diagnose, summarise
from trainer.training.views import batch_views, clean_pass, knobs_of_images, predict_views


def train_stack(
    model: StackedModel,
    optimizer: StackedOptimizer,
    configs: Sequence[TrialConfig],
    epochs: Sequence[int],
    train: Split,
    perturbations: Sequence[TrainingPerturbation] | None,
    execution: Execution,
) -> list[dict[str, float] | OtsweepError]:
    """Train each trial on every image once, in its own order; return what `train_epoch` returns or raises for each.

    Args:
        model, optimizer: those of all trials, stacked; trained in place.
        configs: one per trial, of one structure.
        epochs: the number of each trial's epoch, from 1.
        train: images (N, C, H, W) in [0, 1] and labels (N,), on the device.
        perturbations: one per trial, X_v and y_v of all training images, if the objective uses them.
        execution: how the steps are run.
    """
    device, size = train.images.device, configs[0].batch_size
    orders, noise, changes = (
        [random_stream(c.seed, purpose, epoch) for c, epoch in zip(configs, epochs, strict=True)]
        for purpose in PURPOSES[:3]  # a network that draws numbers of its own is never stacked
    )
    rows_of_trials = [shuffled_rows(len(train.labels), batch_size=size, generator=order).to(device) for order in orders]
    bound = (
        find_largest_class(train.labels, rows_of_trials, perturbations)
        if configs[0].regularizer == "ot_triplet"
        else size
    )
    shared, whole = stack_knobs([config_of_epoch(c, epoch) for epoch, c in zip(epochs, configs, strict=True)], device)
    model.train()
    rows_of_steps = torch.stack(rows_of_trials, 1)
    inputs = list(
        zip(rows_of_steps, *_schedules(configs, epochs, steps=len(rows_of_steps), device=device), strict=True)
    )

    def pass_forward(rows: Tensor, share: Tensor, rate: Tensor, noise: Draws, changes: Draws) -> tuple[Step, Knobs]:
        optimizer.learning_rate = rate
        knobs = whole.at(share) if shared.certified_ce_weight > 0 else whole
        batch = augment(fold_batch(train, perturbations, rows), shared, changes)
        return forward(model, batch, shared, knobs, noise, largest_class=bound), knobs

    def update(step: Step, knobs: Knobs) -> LossTerms:
        optimizer.step(torch.autograd.grad(total_loss(step.terms, knobs).sum(), optimizer.parameters))
        return detach(step.terms)

    def train_on(*inputs_and_draws: Any) -> LossTerms:
        return update(*pass_forward(*inputs_and_draws))

    compiled = execution.passes(model, train.images[rows_of_steps[0].flatten()])
    with training_products(device, shared.precision), compiled:
        train_step = execution.steps(train_on, (noise, changes))
        history = [train_step(*each) for each in inputs[:-1]]
        step, knobs = pass_forward(*inputs[-1], noise, changes)  # run as it is, since it is looked at
        means = summarise([*history, detach(step.terms)])
        diagnosis = {name: value.tolist() for name, value in diagnose(step, model, knobs).items()}
        update(step, knobs)
    return [
        error_of(check_finite, epoch, of_trial(means, index)) or of_trial(means | diagnosis, index)
        for index, epoch in enumerate(epochs)
    ]


def _schedules(
    configs: Sequence[TrialConfig], epochs: Sequence[int], *, steps: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the share of training done before each step of an epoch, and its learning rate, (steps, T) each.

    They lie on the device, so that no step has to copy its own there.
    """
    shares = [
        [share_done(epoch, step, steps=steps, epochs=c.epochs) for step in range(steps)]
        for c, epoch in zip(configs, epochs, strict=True)
    ]
    rates = [[learning_rate(c, share) for share in own] for c, own in zip(configs, shares, strict=True)]
    return torch.tensor(shares, device=device).T, torch.tensor(rates, dtype=torch.float64, device=device).T


def stack_knobs(configs: Sequence[TrialConfig], device: torch.device) -> tuple[TrialConfig, Knobs]:
    """Return a configuration that stands for all, with the most attack steps and dearest bounds of any, and all knobs,
    (T,) each."""
    steps = max(config.sensitivity_steps for config in configs)
    method = "crown-ibp" if any(config.certified_method == "crown-ibp" for config in configs) else "ibp"
    shared = configs[0].replace(sensitivity_steps=steps, certified_method=method)
    return shared, Knobs.stacked(configs, device)


def fold_batch(train: Split, perturbations: Sequence[TrainingPerturbation] | None, rows: Tensor) -> Batch:
    """Return a step's images, folded; `rows` (T, B) holds each trial's."""
    every = rows.flatten()
    invariance = None
    if perturbations is not None:
        picked = [[field[row] for field in perturbed] for perturbed, row in zip(perturbations, rows, strict=True)]
        invariance = TrainingPerturbation(*(torch.cat(column) for column in zip(*picked, strict=True)))
    return Batch(train.images[every], train.labels[every], invariance, trials=len(rows))


def forward(
    model: StackedModel,
    batch: Batch,
    config: TrialConfig,
    knobs: Knobs,
    noise: Draws,
    *,
    largest_class: int,
) -> Step:
    """Run `step.forward` on a folded batch; the loss terms are (T,) each.

    Args:
        model: the trials' models, stacked.
        batch: T B images, trial after trial.
        config: the configuration that stands for all.
        knobs: (T,) each.
        noise: draws for each trial, in order.
        largest_class: at least as many images as one class has on either side.
    """
    for_attack = knobs_of_images(knobs, len(batch.labels) // batch.trials)
    clean = clean_pass(model, batch, config)
    views = batch_views(model, batch, config, for_attack, noise, clean)
    predictions = predict_views(model, views, clean, precision=config.precision, trials=batch.trials)
    unfolded = {
        name: Prediction(*(by_trial(part, batch.trials) for part in prediction))
        for name, prediction in predictions.items()
    }
    terms = _terms_by_trial(config, knobs, unfolded, batch, largest_class=largest_class)
    if config.certified_ce_weight > 0:
        worst = partial(certified_cross_entropy, method=config.certified_method)
        clean_batch = by_trial(batch.images, batch.trials), by_trial(batch.labels, batch.trials)
        budget = knobs.certified_epsilon, knobs.certified_share
        terms = terms._replace(certified_ce=model.each(worst, *clean_batch, *budget))
    return Step(terms, unfolded[config.cross_entropy_views[0]].embedding)


def _terms_by_trial(
    config: TrialConfig, knobs: Knobs, predictions: Mapping[str, Prediction], batch: Batch, *, largest_class: int
) -> LossTerms:
    """Compute `loss_terms` of every trial, (T,) each, from predictions (T, B, ...)."""
    labels = {"labels": batch.labels}
    if batch.invariance is not None:
        labels |= {"invariance_labels": batch.invariance.labels, "invariance_keep": batch.invariance.keep}

    def of_one(
        knobs: dict[str, Tensor], predictions: Mapping[str, Prediction], labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return tensor_fields(
            loss_terms(config, Knobs(**knobs), predictions, **labels, largest_class=largest_class, early_stop=False)
        )

    terms = torch.vmap(of_one)(
        tensor_fields(knobs), dict(predictions), {name: by_trial(each, batch.trials) for name, each in labels.items()}
    )
    return LossTerms(**terms)
