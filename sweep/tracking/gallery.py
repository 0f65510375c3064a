"""A trial's worst sensitivity and invariance examples, as one picture."""

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
"""Number of validation images, from the first, that are attacked for the gallery."""


class _Example(NamedTuple):
    """A perturbed image that a model is wrong about."""

    source: np.ndarray
    """(C, H, W) in [0, 1], as is `perturbed`."""
    perturbed: np.ndarray
    label: int
    """Class of the source."""
    answer: int
    """The model's answer to the perturbed image."""
    probability: float
    """The model's probability for its answer."""
    judged: int
    """The answer that most of the crowd give to the perturbed image, by the judge."""
    share: float
    """The share of the crowd who give it."""


def draw_gallery(plan: SweepPlan, number: int, model: nn.Module, prepared: Prepared, path: Path) -> None:
    """Draw both attacks' worst examples as one picture."""
    changed = "Sensitivity: too little changed for a person, the model changed its answer"
    kept = "Invariance: by the judge, a proxy for people, many see another class; the model kept its answer"
    groups = {changed: sensitivity_examples(model, prepared), kept: invariance_examples(model, prepared)}
    draw(f"{plan.name}, trial {number:03d}", groups, path)


def sensitivity_examples(model: nn.Module, prepared: Prepared) -> list[_Example]:
    """Find images that were right until the judging attack changed them; the highest probability of the wrong answer
    comes first."""
    from trainer.attacks import judged, worst_case
    from trainer.training import evaluation_attacks, judging_generator

    evaluation, validation = prepared.evaluation, prepared.data.validation
    images, labels = validation.images[:_ATTACKED], validation.labels[:_ATTACKED]
    with judged(model):
        found = worst_case(
            lambda batch: model(batch).logits,
            images,
            labels,
            evaluation_attacks(evaluation),
            generator=judging_generator(evaluation),
        )
    broken = found.clean & ~found.survived
    return _worst(model, prepared, images[broken], found.images[broken], labels[broken])


def invariance_examples(model: nn.Module, prepared: Prepared) -> list[_Example]:
    """Find images to which the model gives the source's label, and the crowd another class more often than that; those
    that most of it sees as changed come first."""
    from trainer.training import predict_labels

    judging = prepared.judging
    answers = predict_labels(model, judging.images, batch_size=_ATTACKED)
    changed = judging.crowd.argmax(1) != judging.source_labels
    stuck = (changed & (answers == judging.source_labels)).nonzero().squeeze(1)
    seen = judging.changed[stuck].sort(descending=True, stable=True).indices
    worst = stuck[seen[:EXAMPLES]]
    return _worst(model, prepared, judging.source_images[worst], judging.images[worst], judging.source_labels[worst])


def _worst(model: nn.Module, prepared: Prepared, sources: Tensor, perturbed: Tensor, labels: Tensor) -> list[_Example]:
    """Keep the examples of the model's highest probability; ties in their given order."""
    import torch

    if len(perturbed) == 0:
        return []
    with torch.no_grad():
        probabilities, answers = model(perturbed).logits.softmax(1).max(1)
    chosen = probabilities.sort(descending=True, stable=True).indices[:EXAMPLES]
    shares, judged = prepared.judge.shares(perturbed[chosen], prepared.crowd).max(1)
    columns = (labels[chosen], answers[chosen], probabilities[chosen], judged, shares)
    return [
        _Example(sources[index].numpy(), perturbed[index].numpy(), *row)
        for index, *row in zip(chosen.tolist(), *(column.tolist() for column in columns), strict=True)
    ]


def draw(title: str, groups: Mapping[str, Sequence[_Example]], path: Path) -> None:
    """Draw a column per example: source, perturbed image and difference, with the answers of model and judge."""
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
    for each in axes.flat:
        each.set_axis_off()
    for column, example in zip(axes.T, examples, strict=False):
        difference = example.perturbed - example.source
        _show(column[0], example.source, f"shows {example.label}", INK)
        judged = f"{example.share:.0%} of people {example.judged}"
        answer = f"model {example.answer} ({example.probability:.0%})"
        _show(column[1], example.perturbed, f"{answer}\n{judged}", KNEE_COLOUR)
        _show(column[2], difference, f"largest change {abs(difference).max():.2f}", MUTED, signed=True)


def _show(axes: Axes, image: np.ndarray, caption: str, colour: str, *, signed: bool = False) -> None:
    """Show an image (C, H, W) in [0, 1] or, if `signed`, a difference in [-1, 1] about grey."""
    pixels = image.transpose(1, 2, 0)
    if signed and pixels.shape[2] == 3:
        pixels = (pixels + 1) / 2
    look = {"vmin": -1, "vmax": 1, "cmap": "RdBu"} if signed else {"vmin": 0, "vmax": 1, "cmap": "gray_r"}
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], interpolation="nearest", **look)
    axes.set_title(caption, fontsize=8, color=colour, pad=3)
