"""What a trial of the front shows of itself: its model in a form that needs none of our code, and its worst examples.

It runs in a process of its own, `python -m sweep.exhibits STORAGE SWEEP NUMBER ...`: the driver is spared torch. What
it makes lies in the trial's folder, is made once, and is uploaded by `tracking`.

    mlflow-model/     an MLflow model in torch's own export format (pt2): no code of ours, nothing is unpickled
    gallery.png       its worst sensitivity and invariance examples
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sweep.figures import INK, KNEE_COLOUR, MUTED, house_style, save_figure
from sweep.plan import SweepPlan, read_plan
from sweep.results import Results
from sweep.trainable import trial_folder

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from torch import Tensor, nn

    from trainer.preparation import Prepared

MODEL = "mlflow-model"
GALLERY = "gallery.png"
EXAMPLES = 5
"""Worst examples of each attack in a gallery."""
ATTACKED = 512
"""Validation images, the first, that are attacked for the gallery."""
EXAMPLE_BATCH = 4
"""Images in a model's input example; of one image the exported model would take no more."""


class Example(NamedTuple):
    """A perturbed image that a model is wrong about."""

    source: np.ndarray
    """(C, H, W) in [0, 1], as the next."""
    perturbed: np.ndarray
    label: int
    """The source's."""
    said: int
    """The model's answer to the perturbed image."""
    sure: float
    """Its probability."""
    oracle: int
    """The oracle's answer; -1 where it abstains."""


def make_exhibits(plan: SweepPlan, numbers: Iterable[int], *, models: Iterable[int]) -> str:
    """Make what is missing, in another process; why that failed, or nothing.

    Args:
        numbers: trials that get a gallery.
        models: trials that get a model.
    """
    wanted = [f"gallery:{n}" for n in numbers if not (trial_folder(plan.folder, n) / GALLERY).exists()]
    wanted += [f"model:{n}" for n in models if not (trial_folder(plan.folder, n) / MODEL / "MLmodel").exists()]
    wanted = [each for each in wanted if (trial_folder(plan.folder, int(each.partition(":")[2])) / "model.pt").exists()]
    if not wanted:
        return ""
    command = [sys.executable, "-m", "sweep.exhibits", plan.storage, plan.name, *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it was killed"])[-1]


def write_curves(plan: SweepPlan, results: Results, number: int, folder: Path) -> str:
    """A trial's accuracy over epsilon as its audit measured it, as picture and table; a digest of what is shown, or
    nothing for one that was not audited."""
    from sweep.audit import FOLDER, Audit
    from sweep.audit_figures import curves_figure
    from sweep.finalists import Finalist
    from sweep.judging import AuditOptions, read_audited

    found = [read_audited(path) for path in sorted((plan.folder / FOLDER).glob(f"{number:04d}-*.json"))]
    known = [audited for audited in found if audited is not None]
    runs = [audited for audited in known if audited.judged_by == known[0].judged_by]
    if not runs:
        return ""
    given = {name: value for name, value in runs[0].judged_by.items() if name != "format"}
    audit = Audit(plan, results, AuditOptions(seeds=len(runs), **given), None)
    folder.mkdir()
    figure = curves_figure(audit, [Finalist(results.trials[number], tuple(runs))])
    save_figure(figure, folder / "curve.png", dpi=100)
    rows = [
        (run.seed, epsilon, accuracy)
        for run in runs
        for epsilon, accuracy in zip(run.curve["epsilons"], run.curve["accuracies"], strict=True)
    ]
    text = "".join(f"{seed},{epsilon},{accuracy}\n" for seed, epsilon, accuracy in rows)
    (folder / "curve.csv").write_text("seed,epsilon,accuracy\n" + text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(storage: str, name: str, *wanted: str) -> None:
    from sweep.driver import make_task
    from sweep.trainable import prepare_shared
    from trainer.trial import MODEL_FILE, load_model

    plan = read_plan(name, storage=storage)
    prepared = prepare_shared(make_task(plan), lambda stage, done, total: None)
    for each in wanted:
        kind, _, number = each.partition(":")
        folder = trial_folder(plan.folder, int(number))
        model = load_model(folder / MODEL_FILE)
        if kind == "model":
            export(model, prepared, folder / MODEL)
        else:
            draw_gallery(plan, int(number), model, prepared, folder / GALLERY)


def export(model: nn.Module, prepared: Prepared, folder: Path) -> None:
    """An MLflow model, images (B, C, H, W) in [0, 1] to logits (B, K); the folder appears whole or not at all."""
    import numpy as np
    from mlflow import pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = prepared.data.validation.images[:EXAMPLE_BATCH].numpy()
    shape, classes = prepared.data.shape, prepared.data.classes
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *shape))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]),
    )
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytorch.save_model(
            logits_of(model),
            str(unfinished),
            signature=signature,
            input_example=images,
            serialization_format="pt2",
            # Given: found out by MLflow itself they would take ten seconds a model.
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in ("torch", "mlflow", "numpy")],
        )
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def logits_of(model: nn.Module) -> nn.Module:
    """The model without its embedding, in operations that torch can export."""
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


def draw_gallery(plan: SweepPlan, number: int, model: nn.Module, prepared: Prepared, path: Path) -> None:
    """Both attacks' worst examples as one picture."""
    changed = "Sensitivity: too little changed for a person, the model changed its answer"
    kept = "Invariance: the oracle, a proxy for people, sees another class; the model kept its answer"
    groups = {changed: sensitivity_examples(model, prepared), kept: invariance_examples(model, prepared)}
    draw(f"{plan.name}, trial {number:03d}", groups, path)


def sensitivity_examples(model: nn.Module, prepared: Prepared) -> list[Example]:
    """Images that were right and that the judging attack broke, those first where the model is surest of the wrong
    answer."""
    from trainer.evaluation import judging_attacks
    from trainer.sensitivity import frozen, worst_case
    from trainer.trial import judging_generator

    evaluation, validation = prepared.evaluation, prepared.data.validation
    images, labels = validation.images[:ATTACKED], validation.labels[:ATTACKED]
    with frozen(model):
        found = worst_case(
            lambda batch: model(batch).logits,
            images,
            labels,
            judging_attacks(evaluation),
            generator=judging_generator(evaluation, images.device),
        )
    broken = found.clean & ~found.survived
    return worst(model, prepared, images[broken], found.images[broken], labels[broken])


def invariance_examples(model: nn.Module, prepared: Prepared) -> list[Example]:
    """Images whose class changed for the oracle, and for which the model still says the old one; the surest first."""
    from trainer.evaluation import predict

    judging = prepared.judging
    said = predict(model, judging.images, batch_size=ATTACKED)
    stuck = judging.changed & (said == judging.source_labels)
    sources = judging.source_images[stuck]
    return worst(model, prepared, sources, judging.images[stuck], judging.source_labels[stuck])


def worst(model: nn.Module, prepared: Prepared, sources: Tensor, perturbed: Tensor, labels: Tensor) -> list[Example]:
    """The examples of which the model is surest; ties in their given order."""
    import torch

    if len(perturbed) == 0:
        return []
    with torch.no_grad():
        sure, said = model(perturbed).logits.softmax(1).max(1)
    chosen = sure.sort(descending=True, stable=True).indices[:EXAMPLES]
    oracle = prepared.judge.label(perturbed[chosen])
    columns = (labels[chosen].tolist(), said[chosen].tolist(), sure[chosen].tolist(), oracle.tolist())
    return [
        Example(sources[place].numpy(), perturbed[place].numpy(), *row)
        for place, *row in zip(chosen.tolist(), *columns, strict=True)
    ]


def draw(title: str, groups: Mapping[str, Sequence[Example]], path: Path) -> None:
    """One column per example: source, perturbed, difference, and who said what."""
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=(1.5 * EXAMPLES + 0.9, 5.6 * len(groups) + 0.5), dpi=100, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12, color=INK)
        for part, (heading, examples) in zip(
            figure.subfigures(len(groups), squeeze=False)[:, 0], groups.items(), strict=True
        ):
            part.suptitle(heading, x=0.01, ha="left", fontsize=9.5, color=INK)
            if not examples:
                part.text(0.5, 0.5, "no such example", ha="center", color=MUTED)
                continue
            draw_examples(part.subplots(3, EXAMPLES, squeeze=False), examples)
        save_figure(figure, path, dpi=100)


def draw_examples(axes: np.ndarray, examples: Sequence[Example]) -> None:
    for place in axes.flat:
        place.set_axis_off()
    for column, example in zip(axes.T, examples, strict=False):
        difference = example.perturbed - example.source
        show(column[0], example.source, f"shows {example.label}", INK)
        oracle = f"oracle {example.oracle}" if example.oracle >= 0 else "oracle in doubt"
        show(column[1], example.perturbed, f"model {example.said} ({example.sure:.0%})\n{oracle}", KNEE_COLOUR)
        show(column[2], difference, f"largest change {abs(difference).max():.2f}", MUTED, signed=True)


def show(axes: Axes, image: np.ndarray, caption: str, colour: str, *, signed: bool = False) -> None:
    """An image (C, H, W) in [0, 1], or, `signed`, a difference in [-1, 1] about grey."""
    pixels = image.transpose(1, 2, 0)
    if signed and pixels.shape[2] == 3:
        pixels = (pixels + 1) / 2
    look = {"vmin": -1, "vmax": 1, "cmap": "RdBu"} if signed else {"vmin": 0, "vmax": 1, "cmap": "gray_r"}
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], interpolation="nearest", **look)
    axes.set_title(caption, fontsize=8, color=colour, pad=3)


if __name__ == "__main__":
    main(*sys.argv[1:])
