"""The choice among a trial's epochs, made so that what is reported of it has not been made too good by the choice.

The best of many noisy numbers is too high. So the validation images are split into halves by seed: the epoch that one
half chooses answers for the images of the other, and the report joins both (cross-fitting, Stone 1974). The model that
is kept is of the epoch that all images choose. Where all three are the same epoch, nothing differs from a plain choice.

Shape letters: N images of the validation split, M perturbed images of the judging set.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

from trainer.answers import Answers, invariance_terms
from trainer.invariance import JudgingSet
from trainer.report import EpochReport

ALL, FIRST, SECOND = "all", "first", "second"
"""Images by which an epoch is chosen: all of them, those of the first half, those of the second."""

_Merit = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Candidate:
    """An epoch that was chosen."""

    report: EpochReport
    weights: dict[str, Tensor]
    """The model's weights after it."""
    answers: Answers
    """Its answers then."""


class Halves:
    """The halves of the validation images; a perturbed image is in that of its source.

    Args:
        judging: the judging set of the split.
        images: N.
        seed: of the halves; the same for all trials of a sweep.
    """

    def __init__(self, judging: JudgingSet, *, images: int, seed: int) -> None:
        self.first = np.zeros(images, dtype=bool)
        """The images of the first half, (N,) bool."""
        self.first[np.random.default_rng(seed).permutation(images)[: images // 2]] = True
        self.first_perturbed = self.first[judging.source_index.cpu().numpy()]
        """The perturbed images of the first half, (M,) bool."""
        self._labels = judging.source_labels.cpu().numpy()
        self._shares = judging.crowd.double().cpu().numpy()

    def merit(self, candidate: Candidate, by: str) -> _Merit:
        """Return what epochs are compared by, in order: hypervolume, sum of the two accuracies, clean accuracy.

        The hypervolume is that of the one point against (0, 0). It is 0 for all models that fall to every attack.

        Args:
            by: the images that choose: `ALL`, `FIRST` or `SECOND`.
        """
        if by == ALL:
            report = candidate.report
            clean, sensitivity, invariance = (
                *(report.clean_accuracy, report.sensitivity_accuracy),
                report.invariance_accuracy,
            )
        else:
            clean, sensitivity, invariance = self._accuracies(candidate.answers, inside=by == FIRST)
        return sensitivity * invariance, sensitivity + invariance, clean

    def _accuracies(self, answers: Answers, *, inside: bool) -> _Merit:
        """Return clean, sensitivity and invariance accuracy on the first half (`inside`) or the second."""
        images = self.first[: len(answers.right)] == inside
        rows = np.flatnonzero(self.first_perturbed[: len(answers.perturbed)] == inside)
        agreeing, changed = (
            terms.sum() for terms in invariance_terms(answers.perturbed[rows], self._labels[rows], self._shares[rows])
        )
        counted = max(int(images.sum()), 1)
        return (
            float(answers.right[images].sum() / counted),
            float(answers.robust[images].sum() / counted),
            float(agreeing / changed) if changed > 0 else 0.0,
        )

    def join(self, first: Answers, second: Answers) -> Answers:
        """Return the answers of one epoch to the first half and of another to the second."""
        parts = {
            field.name: self.first if field.name in ("right", "robust") else self.first_perturbed
            for field in fields(Answers)
        }
        return Answers(
            **{name: np.where(inside, getattr(first, name), getattr(second, name)) for name, inside in parts.items()}
        )
