"""Trials of one structure side by side: stacked models, a step for all of them, and what each is judged to be.

Images are folded: those of all lanes in one batch, one lane's after the other's, equally many each. Lanes share no
number, so the gradient of a sum over lanes holds every lane's own, in its parameters and in its images alike; attacks
and the step of a single trial work on folded batches as they are. What a lane computes is what its trial computes alone
but for the order of sums; and where one lane's numbers are not finite, no other's are touched.

L lanes, B images of a lane in a batch, (C, H, W) channels, height, width, K classes, D embedding size, N images of a
set, M images of a judging set.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from trainer import losses, sensitivity, training
from trainer.config import EvaluationConfig, OtsweepError, TrialConfig, TrialFailed
from trainer.data import Split
from trainer.evaluation import Evaluation, figures
from trainer.losses import Knobs, LossTerms
from trainer.models import CnnEncoder, Prediction
from trainer.preparation import JudgingSet, TrainingPerturbation
from trainer.report import check_finite
from trainer.sensitivity import Victim
from trainer.training import Batch, Step

JUDGED = {"cpu": 256, "cuda": 16384}
"""Images of all lanes in a pass of the judge: what a CPU's caches hold, what fills a GPU."""


# --------------------------------------------------------------------------------------------- models and optimisers


class StackedModel(nn.Module):
    """Models of one architecture as one: folded images (L B, C, H, W) in [0, 1] to a `Prediction` of L B rows.

    Its parameters are copies, (L, ...) each. `torch.vmap` turns the layers into batched matrix products and grouped
    convolutions, so that there are as many kernels for L lanes as for one.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.lanes = len(models)
        parameters, self._fixed = stack_module_state(list(models))
        self.names = list(parameters)
        self.stacked = nn.ParameterList(parameters.values())
        self._one = (unfilled(models[0]),)  # in a tuple, so that its parameters are not taken for ours

    def forward(self, images: Tensor) -> Prediction:
        """Every lane's images by its own model."""
        weights = dict(zip(self.names, self.stacked, strict=True))
        predictions = torch.vmap(self._of_one)(weights, self._fixed, by_lane(images, self.lanes))
        return Prediction(*(folded(part) for part in predictions))

    def _of_one(self, weights: dict[str, Tensor], fixed: dict[str, Tensor], images: Tensor) -> Prediction:
        return functional_call(self._one[0], (weights, fixed), (images,))

    @torch.no_grad()
    def unstack(self, models: Sequence[nn.Module]) -> None:
        """Give every model the parameters of its lane."""
        for name, values in zip(self.names, self.stacked, strict=True):
            for model, value in zip(models, values, strict=True):
                model.get_parameter(name).copy_(value)


def unfilled(model: nn.Module) -> nn.Module:
    """A copy without numbers, in operations that `torch.vmap` can turn into those of many lanes."""
    empty = copy.deepcopy(model).to("meta")
    for module in empty.modules():
        if isinstance(module, CnnEncoder):
            module.lean = False
    return empty


def by_lane(images: Tensor, lanes: int) -> Tensor:
    """(L B, ...) as (L, B, ...)."""
    return images.unflatten(0, (lanes, -1))


def folded(images: Tensor) -> Tensor:
    """(L, B, ...) as (L B, ...)."""
    return images.flatten(0, 1)


class StackedAdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) on stacked parameters, learning rate, decay and state per lane.

    In the order of operations of `torch.optim.AdamW`'s fused kernel, from and to whose state it goes.
    """

    def __init__(self, model: StackedModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.parameters = list(model.stacked)
        groups = [optimizer.param_groups[0] for optimizer in optimizers]
        self.betas, self.eps = groups[0]["betas"], groups[0]["eps"]
        device = self.parameters[0].device
        self.learning_rate, self.decay = (
            torch.tensor([group[name] for group in groups], dtype=torch.float64, device=device)
            for name in ("lr", "weight_decay")
        )
        states = [[optimizer.state.get(p, {}) for p in optimizer.param_groups[0]["params"]] for optimizer in optimizers]
        self.steps = torch.tensor([float(lane[0].get("step", 0)) for lane in states], dtype=torch.float64).to(device)
        self.first, self.second = (
            [
                torch.stack([lane[i][name] if lane[i] else torch.zeros_like(p[0]) for lane in states])
                for i, p in enumerate(self.parameters)
            ]
            for name in ("exp_avg", "exp_avg_sq")
        )

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Down the gradients, (L, ...) each in the parameters' order."""
        self.steps += 1
        beta1, beta2 = self.betas
        shrink = 1 - self.learning_rate * self.decay
        length = self.learning_rate / (1 - beta1**self.steps)
        root = (1 - beta2**self.steps).sqrt()
        for p, gradient, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
            keep, advance, correction = (each.to(p).view(-1, *[1] * (p.ndim - 1)) for each in (shrink, length, root))
            p.mul_(keep)
            m.lerp_(gradient, 1 - beta1)
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            p.sub_(advance * m / (v.sqrt() / correction + self.eps))

    @torch.no_grad()
    def unstack(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Give every optimiser the state of its lane."""
        for lane, optimizer in enumerate(optimizers):
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                state = optimizer.state[p]
                state["step"] = self.steps[lane].float()
                for name, stacked in (("exp_avg", self.first), ("exp_avg_sq", self.second)):
                    state[name] = torch.empty_like(p).copy_(stacked[i][lane])  # in the parameter's layout


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
        optimizer.step(torch.autograd.grad(losses.total(step.terms, knobs).sum(), optimizer.parameters))
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
    predictions = training.predict(model, seen, clean, lanes=batch.lanes)
    unfolded = {
        name: Prediction(*(by_lane(part, batch.lanes) for part in prediction))
        for name, prediction in predictions.items()
    }
    terms = terms_by_lane(config, knobs, unfolded, batch, most=most)
    return Step(terms, unfolded[config.cross_entropy_on].embedding)


def terms_by_lane(
    config: TrialConfig, knobs: Knobs, predictions: Mapping[str, Prediction], batch: Batch, *, most: int
) -> LossTerms:
    """`losses.loss_terms` of every lane, (L,) each, of predictions (L, B, ...)."""
    labels = {"labels": batch.labels}
    if batch.invariance is not None:
        labels |= {"invariance_labels": batch.invariance.labels, "invariance_keep": batch.invariance.keep}

    def of_one(
        knobs: dict[str, Tensor], predictions: Mapping[str, Prediction], labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return present(losses.loss_terms(config, Knobs(**knobs), predictions, **labels, most=most))

    terms = torch.vmap(of_one)(
        present(knobs), dict(predictions), {name: by_lane(each, batch.lanes) for name, each in labels.items()}
    )
    return LossTerms(**terms)


def present(fields: Any) -> dict[str, Tensor]:
    """What a NamedTuple holds; `torch.vmap` takes and gives tensors alone."""
    return {name: value for name, value in fields._asdict().items() if value is not None}


def of_lane(numbers: Mapping[str, Sequence[float]], lane: int) -> dict[str, float]:
    return {name: values[lane] for name, values in numbers.items()}


def failure(epoch: int, numbers: Mapping[str, float]) -> TrialFailed | None:
    """What `check_finite` raises."""
    try:
        check_finite(epoch, numbers)
    except TrialFailed as error:
        return error
    return None


# ----------------------------------------------------------------------------------------------------------- judging


def judge_together(
    model: StackedModel,
    split: Split,
    judging: JudgingSet,
    evaluation: EvaluationConfig,
    *,
    generator: torch.Generator,
) -> list[Evaluation | OtsweepError]:
    """What `evaluate` says of each lane's model under `judging_attacks`; the model is left as it was found.

    Args:
        split: images (N, C, H, W) in [0, 1] for clean and sensitivity accuracy.
        judging: for invariance accuracy.
        generator: the attack's random starts, the same for all lanes as for one.
    """
    with sensitivity.frozen(model):
        logits = answers(model, split.images)
        failures = [unfit(each, split.labels) for each in logits]
        clean = logits.argmax(2) == split.labels
        sound = torch.tensor([each is None for each in failures], device=clean.device)
        survived = withstand_pgd(model, split, clean & sound[:, None], evaluation, generator=generator)
        given = answers(model, judging.images).argmax(2)
        right_when_clean = answers(model, judging.source_images).argmax(2) == judging.source_labels
    return [
        failures[lane] or figures(clean[lane], survived[lane], judging, given[lane], right_when_clean[lane])
        for lane in range(model.lanes)
    ]


@torch.no_grad()
def answers(model: StackedModel, images: Tensor) -> Tensor:
    """Every lane's logits (L, N, K) for the same images (N, C, H, W)."""
    parts = images.split(per_lane(model, images))
    return torch.cat([by_lane(model(part.repeat(model.lanes, 1, 1, 1)).logits, model.lanes) for part in parts], 1)


def per_lane(model: StackedModel, images: Tensor) -> int:
    """Images of a lane in a pass of the judge."""
    return max(1, JUDGED[images.device.type] // model.lanes)


def unfit(logits: Tensor, labels: Tensor) -> OtsweepError | None:
    """What `check_logits` raises for a model's logits (N, K)."""
    try:
        sensitivity.check_logits(logits, labels)
    except OtsweepError as error:
        return error
    return None


def withstand_pgd(
    model: StackedModel, split: Split, standing: Tensor, evaluation: EvaluationConfig, *, generator: torch.Generator
) -> Tensor:
    """Which of the images `standing` (L, N) bool every lane still has right after all rounds of the judge's PGD.

    The same points as `worst_case` tries with `pgd_attack`. There an image that was broken is left out; here lanes have
    to stay equally long, so that as many are kept of each as of the one with most left.
    """
    ball = sensitivity.NORMS[evaluation.eval_sensitivity_norm]
    noise = torch.Generator(generator.device)
    for _ in range(evaluation.eval_sensitivity_restarts):
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        delta = ball.random_start(split.images, evaluation.eval_sensitivity_epsilon, noise.manual_seed(seed))
        start = (split.images + delta).clamp(0, 1)
        for rows in those_first(standing).split(per_lane(model, split.images), dim=1):
            still = withstand_round(model, split, rows, start, standing.gather(1, rows), evaluation)
            standing = standing.scatter(1, rows, still)
    return standing


def withstand_round(
    model: StackedModel, split: Split, rows: Tensor, start: Tensor, standing: Tensor, evaluation: EvaluationConfig
) -> Tensor:
    """Which of some images every lane has right at all points of one ascent, (L, B) bool.

    Args:
        rows: (L, B) of the split.
        start: (N, C, H, W) of all images.
        standing: (L, B) bool, those that count.
    """
    ball, epsilon = sensitivity.NORMS[evaluation.eval_sensitivity_norm], evaluation.eval_sensitivity_epsilon
    step_size = 2.5 * epsilon / evaluation.eval_sensitivity_steps
    objective = sensitivity.cross_entropy_scores(Victim(lambda images: model(images).logits, *split))
    places = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    perturbed = start[rows.flatten()]
    for _ in range(evaluation.eval_sensitivity_steps):
        if not rows.shape[1]:
            return standing
        scores, gradient = sensitivity.score_with_gradient(objective, perturbed, rows.flatten())
        right = standing.gather(1, places) & ~by_lane(scores.wrong, len(rows))
        standing = standing.scatter(1, places, right)
        kept = those_first(right)
        rows, places = rows.gather(1, kept), places.gather(1, kept)
        perturbed, gradient = (pick(each, kept) for each in (perturbed, gradient))
        images = split.images[rows.flatten()]
        step = step_size * ball.steepest_step(gradient)
        perturbed = (images + ball.project(perturbed + step - images, epsilon)).clamp(0, 1)
    if not rows.shape[1]:
        return standing
    with torch.no_grad():
        wrong = objective(perturbed, rows.flatten()).wrong
    return standing.scatter(1, places, standing.gather(1, places) & ~by_lane(wrong, len(rows)))


def those_first(flags: Tensor) -> Tensor:
    """Of each row of flags (L, B) where they are true, then of the others, up to as many as are true in any: (L, S)."""
    return flags.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(flags.sum(1).max())]


def pick(images: Tensor, kept: Tensor) -> Tensor:
    """Of folded images (L B, ...) those that each lane keeps, (L, S) places in it."""
    firsts = torch.arange(len(kept), device=kept.device)[:, None] * (len(images) // len(kept))
    return images[(firsts + kept).flatten()]
