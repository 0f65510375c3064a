"""TorchScript files of others, read without running any code but that of their tensors.

A TorchScript file is a program. It runs in TorchScript's interpreter alone, which has no Python; but that can read and
write files (`aten::save`, `aten::from_file`, operators that libraries add), and runs `__setstate__` while a file is
read. So code that could run then is refused before anything is read, and afterwards every operator of every method is
looked at before one runs.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import InputError

_READ = re.compile(r"[^/]+/(data/.*|constants/.*|data\.pkl|constants\.pkl|code/.*\.py|version|byteorder)")
"""The entries that a model consists of; the others are for debuggers, or whatever was put beside them."""
_RUNS_WHEN_READ = re.compile(rb"__setstate__|torch\s*[.\n]\s*classes")
"""A method that is called while a file is read, and classes of libraries, whose own such methods are no TorchScript."""
_REFUSED = {
    *("aten::save", "aten::from_file", "prim::Print"),
    *("prim::PythonOp", "prim::CallMethod", "prim::CallFunction", "prim::rpc_async", "prim::rpc_sync"),
    "prim::rpc_remote",
}
"""Operators that reach beyond a model's tensors, and calls that can't be followed."""


class _ScriptedNetwork(nn.Module):
    """A TorchScript module as a network that returns logits and embedding: where it has none, the logits stand in."""

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.script = script

    def forward(self, images: Tensor) -> Any:
        answer = self.script(images)
        return (answer, answer) if isinstance(answer, Tensor) else answer


def is_torchscript(entries: list[str]) -> bool:
    """Return whether an archive with these entries is a TorchScript file: weights alone come without code."""
    return any("/code/" in entry for entry in entries)


def read_torchscript(content: bytes) -> _ScriptedNetwork:
    """Return the network in a TorchScript file, on the CPU.

    Raises:
        InputError: naming what it would do beyond computing its answers, or for a damaged file.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist() if _READ.fullmatch(entry)}
    for entry, text in entries.items():
        if entry.split("/")[1] != "data" and (found := _RUNS_WHEN_READ.search(text)):
            name = found[0].decode().replace("\n", ".")
            raise InputError(f"its TorchScript has {name}, which runs while the file is read; export it without")
    # Read from a copy of what was looked at, so that no other reader of archives finds something else in the file.
    copied = io.BytesIO()
    with zipfile.ZipFile(copied, "w") as archive:
        for entry, text in entries.items():
            archive.writestr(entry, text)
    copied.seek(0)
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch asks for torch.export instead
            script = torch.jit.load(copied, map_location="cpu")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"its TorchScript can't be read: {reason}") from error
    for operator in sorted(set(_operators(script))):
        if operator in _REFUSED or not operator.startswith(("aten::", "prim::")):
            raise InputError(
                f"its TorchScript calls {operator}, which may reach beyond its tensors (files, other processes): "
                "export it without, or give a state dict with --architecture python:MODULE:FACTORY"
            )
    return _ScriptedNetwork(script)


def _operators(script: Any) -> Iterator[str]:
    """Yield the name of every operator of every method, those of functions and objects that it calls among them."""
    for module in script.modules():
        for name in module._c._method_names():
            graph = module._c._get_method(name).graph.copy()
            torch._C._jit_pass_inline(graph)
            yield from _operators_in(graph)


def _operators_in(graph: Any) -> Iterator[str]:
    """Yield the operators of a graph, or block, and of all below it."""
    for node in graph.nodes():
        yield node.kind()
        for block in node.blocks():
            yield from _operators_in(block)
        if node.hasAttribute("Subgraph"):
            yield from _operators_in(node.g("Subgraph"))
