"""Models that somebody gives us to judge: a trial's, TorchScript, or weights with the factory of their network.

Weights are read as data (`weights_only`, safetensors). A pickle may run any code when it is read, and so is not read; a
`torch.export` file neither, as torch reads it so that it may be a pickle, and looks up and evaluates names from it.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.config import TrialConfig
from trainer.errors import InputError
from trainer.files import from_bytes
from trainer.own_models import build_network, examined
from trainer.plugins import is_plugin
from trainer.training.model_file import rebuild
from trainer.training.torchscript import is_torchscript, read_torchscript

_WAY_ROUND = "save its weights, torch.save(model.state_dict(), FILE), and give --architecture python:MODULE:FACTORY"
_UNPACKED = 2**28
"""Bytes by which an archive may grow when it is unpacked: weights hardly compress."""
_WEIGHTS_UNDER = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys of a checkpoint under which its weights are looked for."""
_PREFIX = "module."
"""Begin of all names in the weights of a model that `torch.nn.DataParallel` held."""
_MOST_HEADER = 100_000_000
"""Bytes of a safetensors header at most, as in its own reader."""
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class GivenModel(NamedTuple):
    """A model that was given to be judged."""

    model: nn.Module
    """Images (B, C, H, W) in [0, 1] to a `Prediction`; in eval mode, on the CPU."""
    kind: str
    """The form of the file, in words."""


def read_given_model(
    path: Path, content: bytes, *, shape: tuple[int, int, int], classes: int, architecture: str = ""
) -> GivenModel:
    """Return the model in a file, whatever it is of what can be read safely.

    Args:
        path: of the file, for errors.
        content: of the file.
        shape: (C, H, W) of the images that it must take.
        classes: K of its logits.
        architecture: `python:MODULE:FACTORY` of the network that weights are of; it takes images in [0, 1].

    Raises:
        InputError: in one line, naming the file: for a pickle, a damaged file, a model of other images or classes, or
            one that can't be judged.
    """
    try:
        given = _read(content, shape=shape, classes=classes, architecture=architecture)
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from None
    given.model.eval()
    return given


def _read(content: bytes, *, shape: tuple[int, int, int], classes: int, architecture: str) -> GivenModel:
    sizes: dict[str, Any] = {"shape": shape, "classes": classes}
    entries = _entries(content)
    if is_torchscript(entries):
        return GivenModel(_look_at(read_torchscript(content), **sizes), "TorchScript")
    if any(entry.endswith(("/archive_format", "serialized_exported_program.json")) for entry in entries):
        raise InputError(
            "is a torch.export file, which torch can't read as data alone (it may hold a pickle, and names in it are "
            f"looked up and evaluated): give TorchScript, torch.jit.trace(model, images).save(FILE); or {_WAY_ROUND}"
        )
    if _is_safetensors(content):
        return GivenModel(_with_weights(_read_safetensors(content), architecture, **sizes), "safetensors")
    if not entries and not content.startswith(b"\x80"):
        raise InputError("is no model that can be read: a trial's model.pt, TorchScript, a state dict or safetensors")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of other protocols of pickle
            saved = from_bytes(content)
    except ValueError as error:
        raise InputError(_why_unread(str(error.__cause__))) from None
    if isinstance(saved, dict) and {"architecture", "shape", "classes", "weights"} <= saved.keys():
        return GivenModel(_of_trial(saved, architecture, **sizes), "model of a trial")
    return GivenModel(_with_weights(saved, architecture, **sizes), "state dict")


def _entries(content: bytes) -> list[str]:
    """Return the names in an archive; none if it is no archive.

    Raises:
        InputError: for an archive that is damaged, or unpacks to far more than it is.
    """
    if not content.startswith(b"PK"):
        return []
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"is damaged or cut off ({error})") from None
    if sum(entry.file_size for entry in found) > len(content) + _UNPACKED:
        raise InputError("unpacks to far more than it is, as no model does")
    return [entry.filename for entry in found]


def _why_unread(reason: str) -> str:
    """Return why weights were not read, and the way round it."""
    if "Weights only load failed" in reason:
        named = re.search(r"GLOBAL (\S+)", reason)
        holds = f" (it names {named[1]})" if named else ""
        return f"is a pickle of more than weights{holds}; reading it could run code, so it is not read: {_WAY_ROUND}"
    return f"is damaged or cut off ({reason.splitlines()[0]})"


def _of_trial(saved: dict[str, Any], architecture: str, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return the model that a trial chose."""
    theirs = (tuple(saved["shape"]), saved["classes"])
    if theirs != (shape, classes):
        raise InputError(
            f"takes images {theirs[0]} of {theirs[1]} classes; the data has {shape} of {classes}: name its own by "
            "--dataset"
        )
    try:
        return rebuild(saved, architecture)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"is damaged: {str(error).splitlines()[0]}") from None


def _look_at(network: nn.Module, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a network as a model, after a look at its answers."""
    channels = shape[0]
    try:
        return examined(network, shape=shape, classes=classes, mean=torch.zeros(channels), std=torch.ones(channels))
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise InputError(f"fails on images {shape}, those of the data: {reason}") from error


def _with_weights(saved: Any, architecture: str, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return the network of a factory with the weights of a checkpoint."""
    weights = _weights_in(saved)
    if not is_plugin(architecture):
        raise InputError(
            "holds weights alone: name the function that makes their network, --architecture python:MODULE:FACTORY"
        )
    channels = shape[0]
    return build_network(
        architecture,
        shape=shape,
        classes=classes,
        embedding_size=TrialConfig().embedding_size,
        mean=torch.zeros(channels),
        std=torch.ones(channels),
        seed=0,
        weights=weights,
    )


def _weights_in(saved: Any) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by name, as their network names them."""
    for key in _WEIGHTS_UNDER:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping) or not saved or not all(isinstance(each, Tensor) for each in saved.values()):
        raise InputError(
            "holds no state dict, tensors by name (looked for at the top and under "
            f"{', '.join(map(repr, _WEIGHTS_UNDER))})"
        )
    weights = {str(name): value for name, value in saved.items()}
    if all(name.startswith(_PREFIX) for name in weights):
        weights = {name.removeprefix(_PREFIX): value for name, value in weights.items()}
    return weights


def _is_safetensors(content: bytes) -> bool:
    return content[8:9] == b"{" and 2 <= int.from_bytes(content[:8], "little") <= _MOST_HEADER


def _read_safetensors(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file: a header in JSON, then their bytes."""
    begin = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:begin])
        header.pop("__metadata__", None)
        return {name: _tensor(content[begin:], **each) for name, each in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"is a damaged safetensors file ({str(error).splitlines()[0]})") from None


def _tensor(data: bytes, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    first, end = data_offsets
    if not 0 <= first <= end <= len(data):
        raise ValueError(f"its data ends at {len(data)}, a tensor's at {end}")
    flat = torch.frombuffer(bytearray(data[first:end]), dtype=_TYPES[dtype]) if end > first else torch.empty(0)
    return flat.to(_TYPES[dtype]).reshape(shape)
