"""TODO one line."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from trainer.models import CnnEncoder, Prediction

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
        self._one = (_unfilled(models[0]),)  # in a tuple, so that its parameters are not taken for ours

    def forward(self, images: Tensor) -> Prediction:
        """Every lane's images by its own model."""
        weights = dict(zip(self.names, self.stacked, strict=True))
        predictions = torch.vmap(self._of_one)(weights, self._fixed, by_lane(images, self.lanes))
        return Prediction(*(_folded(part) for part in predictions))

    def _of_one(self, weights: dict[str, Tensor], fixed: dict[str, Tensor], images: Tensor) -> Prediction:
        return functional_call(self._one[0], (weights, fixed), (images,))

    @torch.no_grad()
    def unstack(self, models: Sequence[nn.Module]) -> None:
        """Give every model the parameters of its lane."""
        for name, values in zip(self.names, self.stacked, strict=True):
            for model, value in zip(models, values, strict=True):
                model.get_parameter(name).copy_(value)


def _unfilled(model: nn.Module) -> nn.Module:
    """A copy without numbers, in operations that `torch.vmap` can turn into those of many lanes."""
    empty = copy.deepcopy(model).to("meta")
    for module in empty.modules():
        if isinstance(module, CnnEncoder):
            module.lean = False
    return empty


def by_lane(images: Tensor, lanes: int) -> Tensor:
    """(L B, ...) as (L, B, ...)."""
    return images.unflatten(0, (lanes, -1))


def _folded(images: Tensor) -> Tensor:
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


def present(fields: Any) -> dict[str, Tensor]:
    """What a NamedTuple holds; `torch.vmap` takes and gives tensors alone."""
    return {name: value for name, value in fields._asdict().items() if value is not None}


def of_lane(numbers: Mapping[str, Sequence[float]], lane: int) -> dict[str, float]:
    return {name: values[lane] for name, values in numbers.items()}
