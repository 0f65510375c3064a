"""Models and optimisers of one structure, stacked: one vectorised operation does the work of all.

Shape letters: T stacked trials, B images of each in a batch, C channels, H rows, W columns. Images are folded: those of
all trials in one batch (T B, C, H, W), trial after trial.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from trainer.models import CnnEncoder, Prediction


class StackedModel(nn.Module):
    """Models of one architecture as one: folded images (T B, C, H, W) in [0, 1] to a `Prediction` of T B rows.

    Its parameters are copies, (T, ...) each. `torch.vmap` turns the layers into batched matrix products and grouped
    convolutions, so that T trials need as many kernels as one.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.trials = len(models)
        parameters, self._buffers_of_all = stack_module_state(list(models))
        self.names = list(parameters)
        self.stacked = nn.ParameterList(parameters.values())
        self._skeleton = (_without_numbers(models[0]),)  # in a tuple, so that its parameters are not registered

    def forward(self, images: Tensor) -> Prediction:
        """Pass every trial's images through its own model."""
        weights = dict(zip(self.names, self.stacked, strict=True))
        predictions = torch.vmap(self._forward_one)(weights, self._buffers_of_all, by_trial(images, self.trials))
        return Prediction(*(part.flatten(0, 1) for part in predictions))

    def _forward_one(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Prediction:
        return functional_call(self._skeleton[0], (weights, buffers), (images,))

    @torch.no_grad()
    def unstack(self, models: Sequence[nn.Module]) -> None:
        """Copy each trial's parameters into its model."""
        for name, values in zip(self.names, self.stacked, strict=True):
            for model, value in zip(models, values, strict=True):
                model.get_parameter(name).copy_(value)


def _without_numbers(model: nn.Module) -> nn.Module:
    """Return a copy without numbers, in operations that `torch.vmap` can vectorise."""
    empty = copy.deepcopy(model).to("meta")
    for module in empty.modules():
        if isinstance(module, CnnEncoder):
            module.lean = False
    return empty


class StackedAdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) on stacked parameters, each trial with its own rates and state.

    It performs the operations of `torch.optim.AdamW`'s fused kernel in the same order. It starts from the state of such
    optimisers, and `unstack` writes its own back.
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
        self.steps = torch.tensor([float(own[0].get("step", 0)) for own in states], dtype=torch.float64).to(device)
        self.first, self.second = (
            [
                torch.stack([own[i][name] if own[i] else torch.zeros_like(p[0]) for own in states])
                for i, p in enumerate(self.parameters)
            ]
            for name in ("exp_avg", "exp_avg_sq")
        )

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take one step down the gradients, (T, ...) each in the parameters' order."""
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
        """Copy each trial's state into its optimiser."""
        for index, optimizer in enumerate(optimizers):
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                state = optimizer.state[p]
                state["step"] = self.steps[index].float()
                for name, stacked in (("exp_avg", self.first), ("exp_avg_sq", self.second)):
                    state[name] = torch.empty_like(p).copy_(stacked[i][index])  # in the parameter's layout


def by_trial(folded: Tensor, trials: int) -> Tensor:
    """Reshape folded (T B, ...) to (T, B, ...)."""
    return folded.unflatten(0, (trials, -1))


def of_trial(numbers: Mapping[str, Sequence[float]], index: int) -> dict[str, float]:
    """Return one trial's numbers from those of all, by name."""
    return {name: values[index] for name, values in numbers.items()}


def tensor_fields(record: Any) -> dict[str, Tensor]:
    """Return the fields of a NamedTuple that are not None; `torch.vmap` takes and gives tensors only."""
    return {name: value for name, value in record._asdict().items() if value is not None}
