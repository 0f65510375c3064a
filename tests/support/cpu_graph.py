"""What a CUDA graph does, on a CPU: operations that were recorded run again on the same memory, without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.objective import LossTerms

Work = Callable[[], LossTerms]


class _Operation(NamedTuple):
    """A recorded operation, with its tensors."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outcome: Any
    known: set[int]
    """Storages of its arguments: what it returns there needs no copy."""


class _Recording(TorchDispatchMode):
    """Keeps every operation, and what the memory held before one wrote to it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[_Operation] = []
        self.before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        assert torch.Tag.nondeterministic_seeded not in func.tags, f"{func} draws numbers in a recording"
        for argument, given in zip(func._schema.arguments, args, strict=False):
            self._keep(argument, given)
        for argument in func._schema.arguments:
            self._keep(argument, kwargs.get(argument.name))
        known = {each.untyped_storage()._cdata for each in _tensors((args, kwargs))}
        outcome = func(*args, **kwargs)
        self.operations.append(_Operation(func, args, kwargs, outcome, known))
        return outcome

    def _keep(self, argument: Any, given: Any) -> None:
        if argument.alias_info is not None and argument.alias_info.is_write:
            for each in _tensors(given):
                storage = each.untyped_storage()
                self.before.setdefault(storage._cdata, (storage, storage.clone()))

    def undo(self) -> None:
        """Leave the memory as if nothing had run, as recording on a GPU does."""
        for storage, before in self.before.values():
            storage.copy_(before)


class CpuRecorder:
    """The recorder of a CPU, which does to a step whatever `torch.cuda.graph` does to it."""

    def __init__(self) -> None:
        self.ran = self.recorded = self.replayed = 0

    def aside(self, work: Work) -> LossTerms:
        self.ran += 1
        return work()

    def record(self, work: Work) -> Work:
        recording = _Recording()
        try:
            with recording:
                terms = work()
        finally:
            recording.undo()
        self.recorded += 1

        def replay() -> LossTerms:
            self.replayed += 1
            with torch.no_grad():
                for operation in recording.operations:
                    _run_again(operation)
            return terms

        return replay


def _run_again(operation: _Operation) -> None:
    anew = operation.function(*operation.args, **operation.kwargs)
    for kept, new in zip(_tensors(operation.outcome), _tensors(anew), strict=True):
        if kept.untyped_storage()._cdata not in operation.known:
            kept.copy_(new)


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in pytree.tree_leaves(values) if isinstance(each, Tensor)]
