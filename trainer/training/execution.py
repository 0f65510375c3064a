"""Ways to run the operations of a step: one after another, compiled, or recorded once as a CUDA graph and replayed.

A graph runs the same kernels on the same memory whatever Python does meanwhile. So all that changes from step to step
is copied into tensors that stay: a step's inputs, and the random numbers, which are drawn before it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch._functorch.config
from torch import Tensor, nn

from trainer.attacks import DrawnAhead, Draws, frozen
from trainer.config import TrialConfig
from trainer.models import CnnEncoder
from trainer.objective import LossTerms
from trainer.plugins import is_plugin

_AUTO = "eager"
"""The meaning of `auto`, on every device until `make gpu` has seen the others give equal numbers."""

_BACKEND = "inductor"
"""The back end of `torch.compile`."""

_WARM_UPS = 3
"""Steps before a graph is recorded, in which libraries choose their algorithms and optimisers make their state."""

_TrainingStep = Callable[..., LossTerms]
"""A step of training on inputs that differ from step to step, tensors or numbers; after these it takes its draws."""


class _Recorder(Protocol):
    """A device's calls that record operations."""

    def aside(self, work: Callable[[], LossTerms]) -> LossTerms:
        """Run work as a recording will run it, apart from the usual order of operations."""
        ...

    def record(self, work: Callable[[], LossTerms]) -> Callable[[], LossTerms]:
        """Record work without running it; return a function that runs the recording, always into the same tensors.

        Raises:
            RuntimeError: for work that can't be recorded, as when it waits for the device.
        """
        ...


class _CudaRecorder:
    """The recorder of a GPU."""

    def aside(self, work: Callable[[], LossTerms]) -> LossTerms:
        usual, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(usual)
        with torch.cuda.stream(side):
            terms = work()
        usual.wait_stream(side)
        return terms

    def record(self, work: Callable[[], LossTerms]) -> Callable[[], LossTerms]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            terms = work()

        def replay() -> LossTerms:
            graph.replay()
            return terms

        return replay


def _recorder(device: torch.device) -> _Recorder | None:
    return _CudaRecorder() if device.type == "cuda" else None


class Execution:
    """The way to run a trial's steps, until it turns out that they can't be run so: then one operation after another.

    Args:
        config: the trial's configuration.
        device: where it trains.
        warn: called with one line if the steps can't be run as the configuration says.
    """

    def __init__(self, config: TrialConfig, device: torch.device, warn: Callable[[str], None]) -> None:
        self.way = _AUTO if config.execution == "auto" else config.execution
        self._recorder, self._warn = _recorder(device), warn
        if self.way == "graph" and self._recorder is None:
            self.give_up("there are no CUDA graphs on this device")
        elif self.way == "graph" and config.uses_sensitivity and is_plugin(config.sensitivity_attack):
            self.give_up("an attack of one's own is looked at in every step")

    def give_up(self, reason: str) -> None:
        """Run all further steps one operation after another, and say why."""
        self._warn(f"execution = {self.way!r}: {reason}, so operations are run one after another")
        self.way = "eager"

    @contextlib.contextmanager
    def passes(self, model: nn.Module, images: Tensor) -> Iterator[None]:
        """Have a model's passes compiled for a while, if that is the trial's way and works on some images
        (B, C, H, W)."""
        if self.way != "eager" and getattr(model, "draws", False):
            self.give_up("the network draws random numbers of its own")
        if self.way == "compiled" and (fault := _fault_if_compiled(model, images)):
            self.give_up(f"torch.compile fails ({fault})")
        with _compiled(model) if self.way == "compiled" else contextlib.nullcontext():
            yield

    def steps(
        self, step: _TrainingStep, draws: Sequence[Draws], optimizer: torch.optim.Optimizer | None = None
    ) -> _TrainingStep:
        """Return a function of a step's inputs alone, for steps that follow each other.

        Args:
            step: the step.
            draws: given to it after its inputs.
            optimizer: that which it uses, if it is one of torch's.
        """
        if self.way == "graph" and self._recorder is not None:
            return _ReplayedStep(step, draws, self, self._recorder, optimizer)
        return lambda *inputs: step(*inputs, *draws)


class _ReplayedStep:
    """A step that is run a few times, then recorded, and from then on replayed.

    Args:
        step, draws, optimizer: those of `Execution.steps`.
        execution: gives up if the step can't be recorded; then it is run as it is.
        recorder: that of the device.
    """

    def __init__(
        self,
        step: _TrainingStep,
        draws: Sequence[Draws],
        execution: Execution,
        recorder: _Recorder,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self._execution, self._recorder, self._optimizer = execution, recorder, optimizer
        self._draws = [DrawnAhead(source) for source in draws]
        self._inputs: list[Tensor] = []
        self._work = lambda: step(*self._inputs, *self._draws)
        self._replay: Callable[[], LossTerms] | None = None
        self._run = 0

    def __call__(self, *inputs: Tensor | float) -> LossTerms:
        """Take a step, and return its terms in tensors of their own."""
        self._take_in(inputs)
        for drawn in self._draws:
            drawn.draw()
        self._run += 1
        if self._run <= _WARM_UPS:
            return self._recorder.aside(self._work)
        if self._replay is None and self._execution.way == "graph":
            self._record()
        if self._replay is None:
            return self._work()
        return LossTerms._make(None if term is None else term.clone() for term in self._replay())

    def _take_in(self, inputs: Sequence[Tensor | float]) -> None:
        """Copy the inputs into the tensors that the step reads."""
        if not self._inputs:
            [device] = {each.device for each in inputs if isinstance(each, Tensor)}
            self._inputs = [torch.as_tensor(each, device=device).clone() for each in inputs]
            return
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given) if isinstance(given, Tensor) else kept.fill_(given)  # neither waits for the device

    def _record(self) -> None:
        try:
            with _capturable(self._optimizer):
                self._replay = self._recorder.record(self._work)
        except RuntimeError as error:
            self._execution.give_up(f"a step can't be recorded as a CUDA graph ({_first_line(error)})")
        finally:
            for drawn in self._draws:
                drawn.rewind()


@contextlib.contextmanager
def _capturable(optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Have an optimiser say that its steps can be recorded. A fused one's always can; torch asks all the same."""
    groups = [] if optimizer is None else [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


@contextlib.contextmanager
def _compiled(model: nn.Module) -> Iterator[None]:
    """Have a model's passes compiled, in operations that can be."""
    lean = [module for module in model.modules() if isinstance(module, CnnEncoder) and module.lean]
    for module in lean:
        module.lean = False
    model.compile(backend=_BACKEND, dynamic=False)
    try:
        # FGSM and the diagnosis go back twice through one pass.
        with torch._functorch.config.patch(donated_buffer=False):
            yield
    finally:
        model._compiled_call_impl = None
        for module in lean:
            module.lean = True


def _fault_if_compiled(model: nn.Module, images: Tensor) -> str:
    """Return why a model's passes can't be compiled, those of an attack and those of an update; empty if they can."""
    tried = copy.deepcopy(model)
    try:
        with _compiled(tried):
            with frozen(tried):
                tried(images.detach().requires_grad_()).logits.sum().backward()
            tried(images).logits.sum().backward()
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways
        return _first_line(getattr(error, "inner_exception", error))  # torch's own says which back end failed
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
