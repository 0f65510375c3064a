"""Make what trials of the front show beside their numbers: models that need none of this code, and worst examples.

It runs in a process of its own, `python -m sweep.tracking.model_export STORAGE SWEEP KIND:NUMBER ...`, so that the
driver need not import torch. What it makes lies in the trial's folder, is made once, and is uploaded by `artifacts`.

    mlflow-model/     an MLflow model in torch's own export format (pt2): none of this code, and nothing is unpickled
    gallery.png       the worst sensitivity and invariance examples
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.environment import python_environment
from sweep.plan import SweepPlan, read_plan, trial_folder
from sweep.tracking.gallery import GALLERY, draw_gallery
from trainer.files import make_whole_folder
from trainer.interrupts import in_hurry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.invariance import Prepared

MODEL = "mlflow-model"
_LOOK_SECONDS = 0.5
"""Time between two looks at whether there is still time for it."""
_EXAMPLE_BATCH = 4
"""Images in a model's input example: from a single image, the exported model would take no more than one."""


def export_models(plan: SweepPlan, numbers: Iterable[int], *, models: Iterable[int]) -> str:
    """Make what is missing, in another process; return why that failed, or an empty text.

    Args:
        numbers: trials that get a gallery.
        models: trials that get a model.
    """
    wanted = [f"gallery:{n}" for n in numbers if not (trial_folder(plan.folder, n) / GALLERY).exists()]
    wanted += [f"model:{n}" for n in models if not (trial_folder(plan.folder, n) / MODEL / "MLmodel").exists()]
    wanted = [each for each in wanted if (trial_folder(plan.folder, int(each.partition(":")[2])) / "model.pt").exists()]
    if not wanted:
        return ""
    command = [sys.executable, "-m", "sweep.tracking.model_export", plan.storage, plan.name, *wanted]
    environment = {**os.environ, **python_environment()}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace", env=environment
    ) as child:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                said = child.communicate(timeout=_LOOK_SECONDS)[1]
                break
            if in_hurry():
                child.kill()
    return "" if child.returncode == 0 else (said.strip().splitlines() or ["it was killed"])[-1]


def _main(storage: str, name: str, *wanted: str) -> None:
    from sweep.engine import make_task, prepare_shared
    from trainer.training import MODEL_FILE, load_model

    plan = read_plan(name, storage=storage)
    # To show a sweep nothing of one's own is imported: its data is in the cache, its models are left out.
    task = dataclasses.replace(make_task(plan), named=())
    prepared = prepare_shared(task, lambda stage, done, total: None)
    for each in wanted:
        kind, _, number = each.partition(":")
        folder = trial_folder(plan.folder, int(number))
        model = load_model(folder / MODEL_FILE)
        if kind == "model":
            _export(model, prepared, folder / MODEL)
        else:
            draw_gallery(plan, int(number), model, prepared, folder / GALLERY)


def _export(model: nn.Module, prepared: Prepared, folder: Path) -> None:
    """Save an MLflow model, images (B, C, H, W) in [0, 1] to logits (B, K); the folder appears whole or not at all."""
    import numpy as np
    from mlflow import pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = prepared.data.validation.images[:_EXAMPLE_BATCH].numpy()
    shape, classes = prepared.data.shape, prepared.data.classes
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *shape))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]),
    )
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with make_whole_folder(folder, replace=True) as unfinished, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytorch.save_model(
            _logits_of(model),
            str(unfinished),
            signature=signature,
            input_example=images,
            serialization_format="pt2",
            # Given here: MLflow would need ten seconds a model to find them.
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in ("torch", "mlflow", "numpy")],
        )


def _logits_of(model: nn.Module) -> nn.Module:
    """Wrap the model without its embedding, in operations that torch can export."""
    from torch import nn

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images).logits

    for module in model.modules():
        if getattr(module, "lean", False):
            module.lean = False  # type: ignore[assignment]
    return Logits().eval()


if __name__ == "__main__":
    _main(*sys.argv[1:])
