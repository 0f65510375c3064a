"""Models and optimisers of one structure, stacked: one vectorised operation does the work of all.

Shape letters: T stacked trials, B images of each in a batch, C channels, H rows, W columns. Images are folded: those of
all trials in one batch (T B, C, H, W), trial after trial.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

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

    def each(self, function: Callable[..., Tensor], *columns: Tensor) -> Tensor:
        """Return `function(model, *arguments)` of every trial, (T, ...), from arguments (T, ...) each."""
        applied = _Applied(self._skeleton[0], function)
        weights = {f"model.{name}": value for name, value in zip(self.names, self.stacked, strict=True)}
        buffers = {f"model.{name}": value for name, value in self._buffers_of_all.items()}

        def of_one(weights: dict[str, Tensor], buffers: dict[str, Tensor], *arguments: Tensor) -> Tensor:
            return functional_call(applied, (weights, buffers), arguments)

        return torch.vmap(of_one)(weights, buffers, *columns)

    def _forward_one(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Prediction:
        return functional_call(self._skeleton[0], (weights, buffers), (images,))

    @torch.no_grad()
    def unstack(self, models: Sequence[nn.Module]) -> None:
        """Copy each trial's parameters into its model."""
        for name, values in zip(self.names, self.stacked, strict=True):
            for model, value in zip(models, values, strict=True):
                model.get_parameter(name).copy_(value)


class _Applied(nn.Module):
    """A function of a model, as a module: so `functional_call` reaches the model's weights."""

    def __init__(self, model: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(self.model, *arguments)


def _without_numbers(model: nn.Module) -> nn.Module:
    """Return a copy without numbers, in operations that `torch.vmap` can vectorise."""
    empty = copy.deepcopy(model).to("meta")
    for module in empty.modules():
        if isinstance(module, CnnEncoder):
            module.lean = False
    return empty


class StackedOptimizer(ABC):
    """An optimiser of stacked parameters, each trial with its own rates and state.

    It starts from the state of single trials' optimisers, and `unstack` writes its own back.
    """

    state_names: ClassVar[tuple[str, ...]]
    """The names under which torch's optimiser keeps its state, a tensor of each parameter's shape."""

    def __init__(self, model: StackedModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.parameters = list(model.stacked)
        self.learning_rate, self.decay = (self._rates(optimizers, name) for name in ("lr", "weight_decay"))
        states = [[optimizer.state.get(p, {}) for p in optimizer.param_groups[0]["params"]] for optimizer in optimizers]
        self.state = [
            [
                torch.stack([own[i][name] if own[i] else torch.zeros_like(p[0]) for own in states])
                for name in self.state_names
            ]
            for i, p in enumerate(self.parameters)
        ]
        """The state of each parameter, in the order of `state_names`, (T, ...) each."""

    def _rates(self, optimizers: Sequence[torch.optim.Optimizer], name: str) -> Tensor:
        """Return a setting of all trials' optimisers, (T,)."""
        values = [optimizer.param_groups[0][name] for optimizer in optimizers]
        return torch.tensor(values, dtype=torch.float64, device=self.parameters[0].device)

    @abstractmethod
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take one step down the gradients, (T, ...) each in the parameters' order."""

    @torch.no_grad()
    def unstack(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Copy each trial's rate and state into its optimiser."""
        for index, (optimizer, rate) in enumerate(zip(optimizers, self.learning_rate.tolist(), strict=True)):
            optimizer.param_groups[0]["lr"] = rate
            for p, stacked in zip(optimizer.param_groups[0]["params"], self.state, strict=True):
                for name, values in zip(self.state_names, stacked, strict=True):
                    optimizer.state[p][name] = torch.empty_like(p).copy_(values[index])  # in the parameter's layout


class StackedAdamW(StackedOptimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2).

    It performs the operations of `torch.optim.AdamW`'s fused kernel in the same order.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(self, model: StackedModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__(model, optimizers)
        group, device = optimizers[0].param_groups[0], self.parameters[0].device
        self.betas, self.eps = group["betas"], group["eps"]
        states = [optimizer.state.get(optimizer.param_groups[0]["params"][0], {}) for optimizer in optimizers]
        self.steps = torch.tensor([float(own.get("step", 0)) for own in states], dtype=torch.float64).to(device)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        shrink = 1 - self.learning_rate * self.decay
        length = self.learning_rate / (1 - beta1**self.steps)
        root = (1 - beta2**self.steps).sqrt()
        for p, gradient, (m, v) in zip(self.parameters, gradients, self.state, strict=True):
            keep, advance, correction = (_per_trial(each, p) for each in (shrink, length, root))
            p.mul_(keep)
            m.lerp_(gradient, 1 - beta1)
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            p.sub_(advance * m / (v.sqrt() / correction + self.eps))

    @torch.no_grad()
    def unstack(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        super().unstack(optimizers)
        for optimizer, steps in zip(optimizers, self.steps, strict=True):
            for p in optimizer.param_groups[0]["params"]:
                optimizer.state[p]["step"] = steps.float()


class _StackedSGD(StackedOptimizer):
    """SGD with momentum as in `torch.optim.SGD`: weight decay is added to the gradient, and nothing is damped."""

    state_names = ("momentum_buffer",)

    def __init__(self, model: StackedModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__(model, optimizers)
        self.momentum = self._rates(optimizers, "momentum")

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        for p, gradient, (velocity,) in zip(self.parameters, gradients, self.state, strict=True):
            rate, decay, momentum = (_per_trial(each, p) for each in (self.learning_rate, self.decay, self.momentum))
            velocity.mul_(momentum).add_(gradient + decay * p)
            p.sub_(rate * velocity)

    def unstack(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        super().unstack(optimizers)
        for optimizer in optimizers:
            if optimizer.param_groups[0]["momentum"] == 0:
                optimizer.state.clear()  # torch keeps no state without momentum


def stack_optimizers(model: StackedModel, optimizers: Sequence[torch.optim.Optimizer]) -> StackedOptimizer:
    """Return the optimiser of stacked models that does what each of these does for its own, all of one kind."""
    kind = _StackedSGD if isinstance(optimizers[0], torch.optim.SGD) else StackedAdamW
    return kind(model, optimizers)


def _per_trial(values: Tensor, parameter: Tensor) -> Tensor:
    """Return the values (T,), of a parameter's type, in a shape that broadcasts over it, (T, ...)."""
    return values.to(parameter).view(-1, *[1] * (parameter.ndim - 1))


def by_trial(folded: Tensor, trials: int) -> Tensor:
    """Reshape folded (T B, ...) to (T, B, ...)."""
    return folded.unflatten(0, (trials, -1))


def of_trial(numbers: Mapping[str, Sequence[float]], index: int) -> dict[str, float]:
    """Return one trial's numbers from those of all, by name."""
    return {name: values[index] for name, values in numbers.items()}


def tensor_fields(record: Any) -> dict[str, Tensor]:
    """Return the fields of a NamedTuple that are not None; `torch.vmap` takes and gives tensors only."""
    return {name: value for name, value in record._asdict().items() if value is not None}
