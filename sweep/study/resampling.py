"""Resampling inside a sweep: its audited hypervolume, had other images, training seeds or judges been drawn.

A sweep's seed is the unit of a verdict, and what differs between seeds holds all of this already. Resampled one by one,
the parts tell what would lessen the spread: more images, more training seeds, more judges, or more sweeps.

Shapes: F finalists, R fresh training seeds, J judges, P positions in the test split, d objectives, B draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from sweep.audit import MEASURED, PERTURBED, Finalist
from sweep.front import Objectives, hypervolume
from sweep.state import JudgedImages
from trainer.answers import Answers

_PARTS = ("images", "training seeds", "judges")
_DRAWS = 200


def resampled_parts(
    finalists: Sequence[Finalist], judged: Sequence[JudgedImages], objectives: Objectives, crowd: str, *, seed: int
) -> np.ndarray:
    """Return hypervolumes (3, B) of the finalists' means, each of the parts drawn anew alone.

    Images are weighted anew (Bayesian bootstrap, Rubin 1981), each with all that was made from it; training seeds and
    judges are drawn with replacement, the same ones for all finalists.

    Args:
        finalists: those that fulfil the requirements.
        judged: judged test images, by judge.
        objectives: objectives whose names are those of reports, whichever the crowd.
        crowd: crowd that judges.
        seed: seed of the draws, the same for all sweeps on the same split.
    """
    if not finalists:
        return np.zeros((len(_PARTS), _DRAWS))
    own = [dataclasses.replace(each, shares={crowd: each.shares[crowd]}) for each in judged]
    of_images, of_seeds, of_judges = (np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(3))
    positions = 1 + max(*(int(each.source.max()) for each in own), *(int(_rows(one).max()) for one in finalists))
    weights = of_images.standard_exponential((_DRAWS, positions))
    drawn_seeds = of_seeds.random((_DRAWS, max(len(one.runs) for one in finalists)))
    drawn_judges = of_judges.integers(len(own), size=(_DRAWS, len(own)))
    points = np.empty((len(_PARTS), _DRAWS, len(finalists), len(objectives.names)))
    for place, one in enumerate(finalists):
        points[0, :, place] = _measured(one, own, objectives.names, weights).mean(axis=(1, 2))
        plain = _measured(one, own, objectives.names, np.ones((1, positions)))[0]
        seeds = (drawn_seeds[:, : len(one.runs)] * len(one.runs)).astype(int)
        points[1, :, place] = plain.mean(axis=1)[seeds].mean(axis=1)
        points[2, :, place] = plain.mean(axis=0)[drawn_judges].mean(axis=1)
    return np.array([[hypervolume(draw, objectives) for draw in part] for part in points])


def spread_of_parts(
    arm: Sequence[np.ndarray], control: Sequence[np.ndarray], counts: Sequence[int]
) -> dict[str, float]:
    """Return the standard deviation of one seed's difference that comes from each of the parts, root mean square.

    Args:
        arm: `resampled_parts` (3, B) of the arm, by seed.
        control: the same of the control.
        counts: number of units in each part that was drawn, 0 for images. A mean of so few, drawn with replacement,
            varies too little, by (n - 1) / n; of a single one nothing is known, and its part is left out.
    """
    drawn = np.array(arm) - np.array(control)
    deviations = np.sqrt(drawn.var(axis=2, ddof=1).mean(axis=0)).tolist()
    return {
        part: deviation * (math.sqrt(count / (count - 1)) if count else 1.0)
        for part, deviation, count in zip(_PARTS, deviations, counts, strict=True)
        if count != 1
    }


def _measured(one: Finalist, judged: Sequence[JudgedImages], names: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Return a finalist's numbers (B, R, J, d) under weights (B, P) of the test split's images."""
    rows = _rows(one)
    answers = [Answers.decode(run.answers) for run in one.runs]
    measured = np.empty((len(weights), len(answers), len(judged), len(names)))
    for r, given in enumerate(answers):
        for column, name in enumerate(names):
            for j, images in enumerate(judged):
                if j and name not in PERTURBED:
                    measured[:, r, j, column] = measured[:, r, 0, column]
                    continue
                drawn = weights[:, images.source if name in PERTURBED else rows]
                measured[:, r, j, column] = MEASURED[name](given, images).resampled(drawn)
    return measured


def _rows(one: Finalist) -> np.ndarray:
    """Return the positions in the test split of the images that a finalist was attacked on."""
    run = one.runs[0]
    return np.array(run.rows) if run.rows else np.arange(run.images)
