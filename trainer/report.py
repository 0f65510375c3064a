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


def check_finite(epoch: int, numbers: Mapping[str, float]) -> None:
    """Check that no NaN or infinity enters a front or a searcher.

    Raises:
        TrialFailed: if a number is not finite; names it and the epoch.
    """
    bad = [f"{name} = {value}" for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        raise TrialFailed(f"not finite in epoch {epoch}: {', '.join(bad)}")


def collapse(numbers: Mapping[str, Any]) -> str:
    """Return a warning in words if a flat report says that the embeddings have collapsed, else an empty text."""
    if not numbers.get("collapsed"):
        return ""
    rank, spread = numbers["embedding_rank"], numbers["embedding_spread"]
    return f"the embeddings have collapsed (effective rank {rank:.2f}, spread {spread:.2%})"


@dataclass(frozen=True)
class EpochReport:
    """The numbers of one epoch, on the validation split; accuracies and shares lie in [0, 1].

    Raises:
        TrialFailed: at construction, if any number is not finite.
    """

    epoch: int
    """Number of epochs trained so far, from 1; in the last report the epoch whose model was chosen."""

    final: bool
    """True for the last report, which repeats the numbers of the chosen checkpoint."""

    clean_accuracy: float
    """Accuracy on unperturbed images."""

    sensitivity_accuracy: float
    """Share of images right when clean and under every sensitivity attack."""

    invariance_accuracy: float
    """Share of the changed images C to which the model gives the judge's label."""

    invariance_stuck: float
    """Share of C, among images right when clean, where the model still gives the source's label."""

    invariance_unchanged: float
    """Agreement with the judge on perturbed images whose label, by its answer, is unchanged."""

    invariance_changed_size: int
    """Size of C."""

    invariance_original_label: float
    """Agreement with the source's label over all perturbed images: what the published tables call invariance accuracy.
    For comparison with them, never for selection: a model that never changes its answer scores best."""

    learning_rate: float
    train_seconds: float
    evaluation_seconds: float
    """Wall-clock time. A trial in a pack gets an equal share, so that the shares add up to the device's time."""

    terms: dict[str, float] = field(default_factory=dict)
    """Further numbers by name. `loss/<term>`: unweighted, mean over the epoch. `marginal_error`: the largest of the
    epoch's transport problems. From the epoch's last step `gradient_share/<term>`, the norm of a weighted term's
    gradient over that of the cross-entropy; `embedding_rank`, `embedding_spread`, and `collapsed` (0 or 1)."""

    def __post_init__(self) -> None:
        check_finite(self.epoch, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return one flat mapping, in which the terms stand beside the other numbers."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "terms"}
        return plain | self.terms
