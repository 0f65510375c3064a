"""The report of a trial after each epoch: one flat record of finite numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.errors import TrialFailed

STRENGTH = "evaluation_strength"
"""Term of a report for the strength of the attack that measured its sensitivity, if that changes from epoch to epoch:
gradient steps per image, over all restarts."""


OF_EPOCH = "epoch_sensitivity_accuracy"
"""Term of the final report: the sensitivity accuracy by which the epoch was chosen, under the cheap attack."""


def check_finite(epoch: int, numbers: Mapping[str, float]) -> None:
    """Check that no NaN or infinity enters a front or a searcher.

    Raises:
        TrialFailed: if a number is not finite; names it and the epoch.
    """
    bad = [f"{name} = {value}" for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        raise TrialFailed(f"not finite in epoch {epoch}: {', '.join(bad)}")


def images_behind(numbers: Mapping[str, Any]) -> int:
    """Return how many changed images a flat report's invariance accuracy is measured on: the effective number.

    In reports of earlier versions, whose judge gave one label, that is the number of images.
    """
    return int(numbers.get("invariance_effective_size", numbers.get("invariance_changed_size", 0)))


_UNSOLVED = 0.02
"""Marginal error of a transport problem, of at most 2, above which its plan is another than the one asked for."""


def alarms(numbers: Mapping[str, Any]) -> list[str]:
    """Return warnings in words on a flat report: embeddings that have collapsed, transport that was not solved."""
    found = []
    if numbers.get("collapsed"):
        rank, spread = numbers["embedding_rank"], numbers["embedding_spread"]
        found.append(f"the embeddings have collapsed (effective rank {rank:.2f}, spread {spread:.2%})")
    if (error := numbers.get("marginal_error", 0.0)) > _UNSOLVED:
        found.append(
            f"transport was not solved in time (marginal error {error:.2g} of 2): the entropy is too small for the "
            "costs between its embeddings; raise `entropy`, or take the cosine as `ground_metric`"
        )
    return found


@dataclass(frozen=True)
class EpochReport:
    """The numbers of one epoch, on the validation split; accuracies and shares lie in [0, 1].

    Raises:
        TrialFailed: at construction, if any number is not finite.
    """

    epoch: int
    """Number of epochs trained so far, from 1; in the last report the epoch whose model was chosen."""

    final: bool
    """True for the last report, which repeats the numbers of the chosen checkpoint, with its sensitivity accuracy under
    stronger attacks."""

    clean_accuracy: float
    """Accuracy on unperturbed images."""

    sensitivity_accuracy: float
    """Share of images right when clean and under every sensitivity attack."""

    invariance_accuracy: float
    """Share of times that the model gives the answer of a random person of the crowd who sees a change: the sum over
    the perturbed images of q(the model's answer), where that is not the source's label, over their changed mass."""

    invariance_stuck: float
    """Share of times that the model still gives the source's label where a random person sees a change, among sources
    that are right when clean."""

    invariance_unchanged: float
    """Share of times that the model gives the source's label where a random person sees no change."""

    invariance_changed_mass: float
    """Sum over the perturbed images of the share of the crowd who see a change: the number of changed images."""

    invariance_effective_size: float
    """Number of equally weighted images that would measure as surely: squared sum of these shares over sum of their
    squares."""

    invariance_original_label: float
    """Agreement with the source's label over all perturbed images: what the published tables call invariance accuracy.
    For comparison with them, never for selection: a model that never changes its answer scores best."""

    learning_rate: float
    train_seconds: float
    evaluation_seconds: float
    """Wall-clock time. A trial in a pack gets an equal share, so that the shares add up to the device's time."""

    answers: str = ""
    """The answers that the numbers of the final report follow from, as `Answers.encode` writes them; empty before."""

    terms: dict[str, float] = field(default_factory=dict)
    """Further numbers by name. `<crowd>/invariance_...`: those above by another crowd. `loss/<term>`: unweighted, mean
    over the epoch. `marginal_error`: the largest of the epoch's transport problems. From the epoch's last step
    `gradient_share/<term>`, the norm of a weighted term's gradient over that of the cross-entropy; `embedding_rank`,
    `embedding_spread`, and `collapsed` (0 or 1)."""

    def __post_init__(self) -> None:
        check_finite(self.epoch, {name: value for name, value in self.to_dict().items() if name != "answers"})

    def to_dict(self) -> dict[str, Any]:
        """Return one flat mapping, in which the terms stand beside the other numbers; answers only if there are any."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("answers", "terms")}
        return plain | self.terms | ({"answers": self.answers} if self.answers else {})
