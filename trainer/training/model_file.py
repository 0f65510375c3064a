"""The file of a trial's chosen model: its weights and what is needed to build it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import TrialConfig
from trainer.data import Data
from trainer.errors import InputError
from trainer.files import from_bytes
from trainer.models import move_to_device
from trainer.own_models import build_network
from trainer.plugins import is_plugin

MODEL_FILE = "model.pt"
"""Name of the file, beside a trial's checkpoints."""


def model_content(config: TrialConfig, data: Data, *, epoch: int, weights: dict[str, Tensor] | None) -> dict[str, Any]:
    """Return the content of the file; `load_model` reads it."""
    return {
        "architecture": config.architecture,
        "shape": list(data.shape),
        "classes": data.classes,
        "embedding_size": config.embedding_size,
        "epoch": epoch,
        "config": config.to_dict(),
        "weights": weights,
    }


def load_model(path: Path, *, architecture: str = "") -> nn.Module:
    """Return the model that a trial chose, in eval mode on the CPU; read only tensors and plain values, no pickles.

    Args:
        path: the file.
        architecture: what the caller expects it to be, if that is a network of one's own: what a file alone names is
            not imported.

    Raises:
        InputError: for a file that is missing, damaged or not a model of a trial, or of another network of one's own.
    """
    try:
        return rebuild(from_bytes(path.read_bytes()), architecture)
    except InputError as error:
        raise InputError(f"cannot read a model from {str(path)!r}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"cannot read a model from {str(path)!r}: {type(error).__name__}: {error}") from error


def rebuild(saved: dict[str, Any], architecture: str) -> nn.Module:
    """Return the model in a file's content, as `load_model` does."""
    if is_plugin(saved["architecture"]) and saved["architecture"] != architecture:
        raise InputError(f"its network is {saved['architecture']!r}, which is not imported because a file names it")
    channels = saved["shape"][0]
    model = build_network(
        saved["architecture"],
        shape=tuple(saved["shape"]),
        classes=saved["classes"],
        embedding_size=saved["embedding_size"],
        mean=torch.zeros(channels),  # the true ones are among the weights
        std=torch.ones(channels),
        seed=0,
    )
    model.load_state_dict(saved["weights"])
    return move_to_device(model, torch.device("cpu")).eval()
