"""Trials of one structure side by side: stacked models, a step for all of them, and what each is judged to be.

Images are folded: those of all lanes in one batch, one lane's after the other's, equally many each. Lanes share no
number, so the gradient of a sum over lanes holds every lane's own, in its parameters and in its images alike; attacks
and the step of a single trial work on folded batches as they are. What a lane computes is what its trial computes alone
but for the order of sums; and where one lane's numbers are not finite, no other's are touched.

L lanes, B images of a lane in a batch, (C, H, W) channels, height, width, K classes, D embedding size, N images of a
set, M images of a judging set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.config import TrialConfig
from trainer.data import Split
from trainer.errors import OtsweepError
from trainer.invariance import TrainingPerturbation
from trainer.models import Prediction
from trainer.objective import Knobs, LossTerms, loss_terms, total
from trainer.training import step as training
from trainer.training.stacked_evaluation import failure
from trainer.training.stacking import StackedAdamW, StackedModel, by_lane, of_lane, present
from trainer.training.step import Batch, Step

# ---------------------------------------------------------------------------------------------------------- training


def train_together(
    model: StackedModel,
    optimizer: StackedAdamW,
    configs: Sequence[TrialConfig],
    epochs: Sequence[int],
    train: Split,
    perturbations: Sequence[TrainingPerturbation] | None,
) -> list[dict[str, float] | OtsweepError]:
    """One pass over the training images, each lane in its own order; of each what `train_epoch` says of a trial.

    Args:
        configs: one per lane, of one structure.
        epochs: the number of each lane's epoch.
        perturbations: one per lane, X_v and y_v of all training images, where the objective uses them.
    """
    device, size = train.images.device, configs[0].batch_size
    orders, noise = (
        [training.random_stream(c.seed, purpose, epoch, device) for c, epoch in zip(configs, epochs, strict=True)]
        for purpose in ("order", "attack")
    )
    chosen = [training.shuffled(len(train.labels), batch_size=size, generator=order) for order in orders]
    most = largest_class(train.labels, chosen, perturbations) if configs[0].regularizer == "ot_triplet" else size
    shared, knobs = stack_knobs(configs, device)
    history: list[LossTerms] = []
    numbers: list[dict[str, float] | OtsweepError] = []
    model.train()
    for rows in zip(*chosen, strict=True):
        step = forward(model, batch_of(train, perturbations, rows), shared, knobs, noise, most=most)
        history.append(training.detached(step.terms))
        if len(history) == len(chosen[0]):
            means = training.summarise(history)
            diagnosis = {name: value.tolist() for name, value in training.diagnose(step, model, knobs).items()}
            numbers = [
                failure(epoch, of_lane(means, lane)) or of_lane(means | diagnosis, lane)
                for lane, epoch in enumerate(epochs)
            ]
        optimizer.step(torch.autograd.grad(total(step.terms, knobs).sum(), optimizer.parameters))
    return numbers


def largest_class(
    labels: Tensor, chosen: Sequence[Tensor], perturbations: Sequence[TrainingPerturbation] | None
) -> int:
    """The most images that one class has on either side of any step of any lane; one look at the data for an epoch.

    Args:
        chosen: of each lane, (steps, B) rows of the images.
    """

    def most(labels: Tensor, keep: Tensor) -> Tensor:
        members = torch.zeros(len(labels), int(labels.max()) + 1, dtype=torch.int64, device=labels.device)
        return members.scatter_add_(1, labels, keep.long()).amax()

    counts = [most(labels[rows], torch.ones_like(rows)) for rows in chosen]
    if perturbations is not None:
        counts += [most(p.labels[rows], p.keep[rows]) for p, rows in zip(perturbations, chosen, strict=True)]
    return int(torch.stack(counts).amax())


def stack_knobs(configs: Sequence[TrialConfig], device: torch.device) -> tuple[TrialConfig, Knobs]:
    """A configuration that stands for all, with the most steps of attack of any; and their knobs, (L,) each."""
    steps = [config.sensitivity_steps for config in configs]
    columns = zip(*(Knobs.of(config, device)[:-1] for config in configs), strict=True)
    knobs = Knobs(*(torch.stack(column) for column in columns))
    if len(set(steps)) > 1:
        knobs = knobs._replace(sensitivity_steps=torch.tensor(steps, device=device))
    return configs[0].replace(sensitivity_steps=max(steps)), knobs


def batch_of(train: Split, perturbations: Sequence[TrainingPerturbation] | None, rows: Sequence[Tensor]) -> Batch:
    """A step's images, folded; `rows` are each lane's, (B,)."""
    every = torch.cat(list(rows))
    invariance = None
    if perturbations is not None:
        picked = [[field[row] for field in perturbed] for perturbed, row in zip(perturbations, rows, strict=True)]
        invariance = TrainingPerturbation(*(torch.cat(column) for column in zip(*picked, strict=True)))
    return Batch(train.images[every], train.labels[every], invariance, lanes=len(rows))


def forward(
    model: StackedModel,
    batch: Batch,
    config: TrialConfig,
    knobs: Knobs,
    noise: Sequence[torch.Generator],
    *,
    most: int,
) -> Step:
    """`training.forward` of a folded batch, the loss lane by lane.

    Args:
        knobs: (L,) each.
        noise: one generator per lane.
        most: at least as many images as one class has.
    """
    size = len(batch.labels) // batch.lanes
    epsilon, steps = knobs.sensitivity_epsilon, knobs.sensitivity_steps
    for_attack = knobs._replace(
        sensitivity_epsilon=epsilon.repeat_interleave(size),
        sensitivity_steps=None if steps is None else steps.repeat_interleave(size),
    )
    clean = training.clean_pass(model, batch, config)
    seen = training.views(model, batch, config, for_attack, noise, clean)
    predictions = training.predict_views(model, seen, clean, lanes=batch.lanes)
    unfolded = {
        name: Prediction(*(by_lane(part, batch.lanes) for part in prediction))
        for name, prediction in predictions.items()
    }
    terms = _terms_by_lane(config, knobs, unfolded, batch, most=most)
    return Step(terms, unfolded[config.cross_entropy_on].embedding)


def _terms_by_lane(
    config: TrialConfig, knobs: Knobs, predictions: Mapping[str, Prediction], batch: Batch, *, most: int
) -> LossTerms:
    """`losses.loss_terms` of every lane, (L,) each, of predictions (L, B, ...)."""
    labels = {"labels": batch.labels}
    if batch.invariance is not None:
        labels |= {"invariance_labels": batch.invariance.labels, "invariance_keep": batch.invariance.keep}

    def of_one(
        knobs: dict[str, Tensor], predictions: Mapping[str, Prediction], labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return present(loss_terms(config, Knobs(**knobs), predictions, **labels, most=most))

    terms = torch.vmap(of_one)(
        present(knobs), dict(predictions), {name: by_lane(each, batch.lanes) for name, each in labels.items()}
    )
    return LossTerms(**terms)
