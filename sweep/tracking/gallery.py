"""TODO one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sweep.plan import SweepPlan
from sweep.report import INK, KNEE_COLOUR, MUTED, house_style, save_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from torch import Tensor, nn

    from trainer.invariance import Prepared

GALLERY = "gallery.png"
EXAMPLES = 5
"""Worst examples of each attack in a gallery."""
_ATTACKED = 512
"""Validation images, the first, that are attacked for the gallery."""
EXAMPLE_BATCH = 4
"""Images in a model's input example; of one image the exported model would take no more."""


class _Example(NamedTuple):
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


def draw_gallery(plan: SweepPlan, number: int, model: nn.Module, prepared: Prepared, path: Path) -> None:
    """Both attacks' worst examples as one picture."""
    changed = "Sensitivity: too little changed for a person, the model changed its answer"
    kept = "Invariance: the oracle, a proxy for people, sees another class; the model kept its answer"
    groups = {changed: sensitivity_examples(model, prepared), kept: invariance_examples(model, prepared)}
    draw(f"{plan.name}, trial {number:03d}", groups, path)


def sensitivity_examples(model: nn.Module, prepared: Prepared) -> list[_Example]:
    """Images that were right and that the judging attack broke, those first where the model is surest of the wrong
    answer."""
    from trainer.attacks import frozen, worst_case
    from trainer.training import judging_attacks, judging_generator

    evaluation, validation = prepared.evaluation, prepared.data.validation
    images, labels = validation.images[:_ATTACKED], validation.labels[:_ATTACKED]
    with frozen(model):
        found = worst_case(
            lambda batch: model(batch).logits,
            images,
            labels,
            judging_attacks(evaluation),
            generator=judging_generator(evaluation, images.device),
        )
    broken = found.clean & ~found.survived
    return _worst(model, prepared, images[broken], found.images[broken], labels[broken])


def invariance_examples(model: nn.Module, prepared: Prepared) -> list[_Example]:
    """Images whose class changed for the oracle, and for which the model still says the old one; the surest first."""
    from trainer.training import predict_labels

    judging = prepared.judging
    said = predict_labels(model, judging.images, batch_size=_ATTACKED)
    stuck = judging.changed & (said == judging.source_labels)
    sources = judging.source_images[stuck]
    return _worst(model, prepared, sources, judging.images[stuck], judging.source_labels[stuck])


def _worst(model: nn.Module, prepared: Prepared, sources: Tensor, perturbed: Tensor, labels: Tensor) -> list[_Example]:
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
        _Example(sources[place].numpy(), perturbed[place].numpy(), *row)
        for place, *row in zip(chosen.tolist(), *columns, strict=True)
    ]


def draw(title: str, groups: Mapping[str, Sequence[_Example]], path: Path) -> None:
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
            _draw_examples(part.subplots(3, EXAMPLES, squeeze=False), examples)
        save_figure(figure, path, dpi=100)


def _draw_examples(axes: np.ndarray, examples: Sequence[_Example]) -> None:
    for place in axes.flat:
        place.set_axis_off()
    for column, example in zip(axes.T, examples, strict=False):
        difference = example.perturbed - example.source
        _show(column[0], example.source, f"shows {example.label}", INK)
        oracle = f"oracle {example.oracle}" if example.oracle >= 0 else "oracle in doubt"
        _show(column[1], example.perturbed, f"model {example.said} ({example.sure:.0%})\n{oracle}", KNEE_COLOUR)
        _show(column[2], difference, f"largest change {abs(difference).max():.2f}", MUTED, signed=True)


def _show(axes: Axes, image: np.ndarray, caption: str, colour: str, *, signed: bool = False) -> None:
    """An image (C, H, W) in [0, 1], or, `signed`, a difference in [-1, 1] about grey."""
    pixels = image.transpose(1, 2, 0)
    if signed and pixels.shape[2] == 3:
        pixels = (pixels + 1) / 2
    look = {"vmin": -1, "vmax": 1, "cmap": "RdBu"} if signed else {"vmin": 0, "vmax": 1, "cmap": "gray_r"}
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], interpolation="nearest", **look)
    axes.set_title(caption, fontsize=8, color=colour, pad=3)
