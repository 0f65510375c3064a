"""The line between the two accuracies that no classifier can cross, where the invariance budget lies within the other.

A changed image x* then lies within the sensitivity budget of its source x, so that a model that is robust at x gives x*
the label of x, and is wrong for all who see the change. On shared sources one of the two must be lost.

Shapes: M images of a judging set, K classes.
"""

from __future__ import annotations

import torch

from trainer.config import EvaluationConfig
from trainer.invariance.perturbations import JudgingSet

_POINTS = 33
"""Most points of the line."""


def ceiling(judging: JudgingSet, evaluation: EvaluationConfig, *, images: int) -> list[tuple[float, float]]:
    """Return points (sensitivity accuracy, most invariance accuracy) from left to right; none where there is no limit.

    The best classifier of a given robustness is robust where fewest see a change, and elsewhere gives the answer of the
    most who do. Sources of the split that were not changed may all be robust at no loss.

    Args:
        judging: the judging set, made from images of the split.
        evaluation: both budgets and their norms.
        images: of the split, on which sensitivity accuracy is measured; at least M.
    """
    within = evaluation.eval_invariance_epsilon <= evaluation.eval_sensitivity_epsilon
    if not within or evaluation.eval_invariance_norm != "linf" or evaluation.eval_sensitivity_norm != "linf":
        return []
    shares = judging.crowd.double()
    gain = shares.scatter(1, judging.source_labels[:, None], 0).amax(1).sort().values  # (M,) fewest first
    left = torch.cat(
        [gain.flip(0).cumsum(0).flip(0), gain.new_zeros(1)]
    )  # (M + 1,) what is left beyond the robust ones
    robust = torch.linspace(0, images, min(images + 1, _POINTS)).round().long()
    lost = (robust - (images - len(gain))).clamp(min=0)
    return list(zip((robust / images).tolist(), (left[lost] / judging.changed.double().sum()).tolist(), strict=True))
