"""What a trial says after each epoch: one flat record of finite numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.errors import TrialFailed

STRENGTH = "evaluation_strength"
"""Term of a report that says what its sensitivity was measured with, where that changes from epoch to epoch: gradient
steps per image, over all restarts."""


def check_finite(epoch: int, numbers: Mapping[str, float]) -> None:
    """A NaN or an infinity never enters a front or a searcher.

    Raises:
        TrialFailed: naming what is not finite, and the epoch.
    """
    bad = [f"{name} = {value}" for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        raise TrialFailed(f"not finite in epoch {epoch}: {', '.join(bad)}")


def collapse(numbers: Mapping[str, Any]) -> str:
    """The alarm that a flat report raises, in words; empty where the embeddings are spread out."""
    if not numbers.get("collapsed"):
        return ""
    rank, spread = numbers["embedding_rank"], numbers["embedding_spread"]
    return f"its embeddings have collapsed (effective rank {rank:.2f}, spread {spread:.2%})"


@dataclass(frozen=True)
class EpochReport:
    """The numbers of one epoch, on the validation split; accuracies and shares lie in [0, 1].

    Raises:
        TrialFailed: at construction, if any number is not finite.
    """

    epoch: int
    """Epochs trained so far, from 1; in the last report the epoch whose model was chosen."""

    final: bool
    """Whether this is the last report: the chosen checkpoint's numbers, said once more."""

    clean_accuracy: float
    """On unperturbed images."""

    sensitivity_accuracy: float
    """Share of images right when clean and under every sensitivity attack."""

    invariance_accuracy: float
    """Share of the changed images C to which the model gives the oracle's label."""

    invariance_stuck: float
    """Share of C, among images right when clean, where the model still gives the source's label."""

    invariance_unchanged: float
    """Agreement with the oracle on perturbed images whose label it says is unchanged."""

    invariance_changed_size: int
    """Size of C."""

    invariance_original_label: float
    """Agreement with the source's label over all perturbed images: what the published tables call invariance accuracy,
    and what a model that never changes its answer scores best at. To compare with them, never to select by."""

    learning_rate: float
    train_seconds: float
    evaluation_seconds: float
    """The clock's; of a trial in a pack its equal share, so that those of all trials add up to the device's time."""

    terms: dict[str, float] = field(default_factory=dict)
    """What else there is to say, by name: `loss/<term>`, not weighted, mean over the epoch; `marginal_error`, the
    largest of the epoch's transport problems; and of the epoch's last step `gradient_share/<term>`, the norm of a
    weighted term's gradient over the cross-entropy's, `embedding_rank`, `embedding_spread`, `collapsed` (0 or 1)."""

    def __post_init__(self) -> None:
        check_finite(self.epoch, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """One flat mapping, the terms beside the rest."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "terms"}
        return plain | self.terms
