"""Verdicts on finalists by their differences between selection and audit, and the change of the front as a whole.

Shapes: F finalists, d objectives, B draws, S seeds, J judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sweep.audit.audit import Audit
from sweep.audit.differences import Change, Stages, changes
from sweep.audit.finalists import Finalist
from sweep.audit.measures import PERTURBED, Terms
from sweep.front import Objectives, holm, hypervolume
from sweep.report import ACCURACIES
from sweep.state import JudgedImages

_ALPHA = 0.05
_DRAWS = 1000


class Outcome(NamedTuple):
    """Outcome of an audit."""

    finalists: list[Finalist]
    changes: list[dict[str, Change]]
    """Changes by finalist and objective."""
    p_values: list[dict[str, float]]
    """P-values of no difference, corrected for all finalists and objectives (Holm)."""
    verdicts: list[str]
    """Verdict by finalist: `held`, `fell: ...` or `not decided`."""
    front: Front

    @property
    def tally(self) -> dict[str, int]:
        """Number of finalists by verdict."""
        words = [verdict.split(":")[0] for verdict in self.verdicts]
        return {word: words.count(word) for word in ("held", "fell", "not decided")}


class Front(NamedTuple):
    """The hypervolume of the finalists' front at every stage."""

    values: tuple[float, ...]
    """Hypervolume at each of the five stages."""
    steps: tuple[tuple[float, float, float], ...]
    """Difference from each stage to the next, and its 95% interval, a reflected bootstrap."""
    total: tuple[float, float, float]
    """The same from the first stage to the last."""


def read_outcome(audit: Audit) -> Outcome | None:
    """Return what the results on disk tell; None if there are none."""
    finalists, judged = audit.finalists(), audit.judged()
    if not finalists or judged is None:
        return None
    return outcome(finalists, *judged, objectives=audit.plan.objectives, margin=audit.options.margin)


def outcome(
    finalists: list[Finalist],
    validation: JudgedImages,
    test: Sequence[JudgedImages],
    *,
    objectives: Objectives,
    margin: float,
) -> Outcome:
    """Return what became of finalists.

    Args:
        finalists: at least one.
        validation: judged images of the validation split.
        test: those of the test split, by judge.
        objectives: the sweep's.
        margin: that of `verdict`.
    """
    stages = {name: [one.stages(name, validation, test) for one in finalists] for name in objectives.names}
    by_name = {name: changes(each) for name, each in stages.items()}
    found = [{name: by_name[name][index] for name in stages} for index in range(len(finalists))]
    corrected = iter(holm([change.total.p_value for each in found for change in each.values()]).tolist())
    p_values = [{name: next(corrected) for name in each} for each in found]
    said = [verdict(each, p, margin=margin) for each, p in zip(found, p_values, strict=True)]
    one = finalists[0].runs[0]
    rows = np.array(one.rows) if one.rows else np.arange(one.images)
    images = ((np.arange(_images(stages)), validation.source), (rows, test[0].source))
    return Outcome(finalists, found, p_values, said, _front(stages, images, len(test), objectives))


def verdict(found: Mapping[str, Change], p_values: Mapping[str, float], *, margin: float) -> str:
    """Return the verdict on one finalist.

    Args:
        found: its changes by objective.
        p_values: of no difference, corrected for the number of tests.
        margin: it held only if every interval excludes a loss of more.
    """
    fell = [
        f"{ACCURACIES[name]} by {points(-change.total.value)} ({points(-change.total.high)} to "
        f"{points(-change.total.low)})"
        for name, change in found.items()
        if change.total.value < 0 and p_values[name] < _ALPHA
    ]
    if fell:
        return f"fell: {', '.join(fell)}"
    return "held" if all(change.total.low > -margin for change in found.values()) else "not decided"


def points(share: float) -> str:
    """Return a share in percentage points."""
    return f"{100 * share:.1f}"


def _front(
    stages: Mapping[str, Sequence[Stages]],
    images: Sequence[tuple[np.ndarray, np.ndarray]],
    judges_in_all: int,
    objectives: Objectives,
) -> Front:
    """Return the hypervolumes, and intervals of their differences from images, seeds and judges drawn anew.

    All finalists meet the same draws of images and judges. Each draw of seeds or judges is moved away from the mean by
    the root of k / (k - 1), as a mean of k draws from k values varies too little. The intervals are reflected: the
    front of drawn numbers is too good by about as much as that of the measured ones.

    Args:
        stages: by objective, by finalist.
        images: positions in the validation split, then in the test split, of the images behind plain shares and of
            the sources of judged images.
        judges_in_all: J.
        objectives: the sweep's.
    """
    generator = np.random.default_rng(0)
    weights = [_weights(generator, split) for split in images]
    judges = _drawn(generator, judges_in_all)
    seeds = [_drawn(generator, len(each.fresh)) for each in stages[objectives.names[0]]]
    drawn, measured = [], []
    for name in objectives.names:
        at = [split[name in PERTURBED] for split in weights]
        columns = [_stages_drawn(each, at, seeds[k], judges) for k, each in enumerate(stages[name])]
        drawn.append(np.stack(columns, axis=-1))  # (5, B, F)
        measured.append(np.array([each.values for each in stages[name]]).T)  # (5, F)
    volumes = np.array([hypervolume(at_stage, objectives) for at_stage in np.stack(measured, axis=-1)])
    resampled = np.array(
        [[hypervolume(draw, objectives) for draw in at_stage] for at_stage in np.stack(drawn, axis=-1)]
    )
    steps = [_reflected(volumes[k + 1] - volumes[k], resampled[k + 1] - resampled[k]) for k in range(len(volumes) - 1)]
    return Front(
        tuple(volumes.tolist()), tuple(steps), _reflected(volumes[-1] - volumes[0], resampled[-1] - resampled[0])
    )


def _images(stages: Mapping[str, Sequence[Stages]]) -> int:
    """Return the number of validation images behind the plain shares; 0 if only judged images are compared."""
    return max((len(each[0].selected[0].part) for name, each in stages.items() if name not in PERTURBED), default=0)


def _weights(generator: np.random.Generator, positions: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return weights of one bootstrap over all images of a split that are in use: (B, n) for each list of positions."""
    used = np.unique(np.concatenate(positions))
    weights = generator.multinomial(len(used), np.full(len(used), 1 / len(used)), size=_DRAWS).astype(float)
    return [weights[:, np.searchsorted(used, each)] for each in positions]


def _drawn(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return weights (B, count), of sum 1, of a mean over so many seeds or judges drawn anew."""
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=_DRAWS) / count
    wide = math.sqrt(count / (count - 1)) if count > 1 else 0.0
    return 1 / count + wide * (drawn - 1 / count)


def _stages_drawn(stages: Stages, weights: Sequence[np.ndarray], seeds: np.ndarray, judges: np.ndarray) -> np.ndarray:
    """Return one finalist's number (5, B) at every stage.

    Args:
        stages: the finalist's.
        weights: (B, N) of the validation images and of the test images.
        seeds: (B, S) weights of its fresh seeds.
        judges: (B, J) weights of the judges.
    """

    def models(each: Sequence[Terms], split: int) -> np.ndarray:
        return np.stack([terms.resampled(weights[split]) for terms in each], axis=1)

    by_judge = np.stack([models(each, 1) for each in stages.judged], axis=2)  # (B, S, J)
    fresh = (by_judge[:, :, 0] * seeds).sum(1)
    judged = np.einsum("bsj,bs,bj->b", by_judge, seeds, judges)
    first = (models(stages.selected, 0), models(stages.attacked, 0), models(stages.on_test, 1))
    return np.stack([*(each.mean(1) for each in first), fresh, judged])


def _reflected(value: float, draws: np.ndarray) -> tuple[float, float, float]:
    """Return a difference and its interval, reflected at it."""
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return float(value), 2 * float(value) - high, 2 * float(value) - low
