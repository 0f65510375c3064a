"""The calibration of crowds on people's answers, and the measure of how well a crowd predicts them.

A crowd's four numbers minimise the log loss of its people's answers. How well they predict people is measured by
cross-validation over the sources, so that no image is predicted by numbers that were fitted on it.

Shapes: N images, K classes, R readings of an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from trainer.crowds import Crowd, Measured, Prediction, crowd_fields, crowd_from_fields
from trainer.data import Data, Split
from trainer.errors import InputError
from trainer.intervals import Interval
from trainer.invariance.judge import Judge
from trainer.invariance.labelled_sets import read_examples
from trainer.invariance.people import Answers, answers_of_set, read_votes, votes_fingerprint
from trainer.invariance.readings import Readings

_GIVEN = ("l0/automated", "linf/automated_eps03")
"""Published sets that the lenient crowd is fitted on; the others stay what it can be held against."""
_FOLDS = 5
_FEWEST_SOURCES = 4 * _FOLDS
"""Sources that a crowd of one's own needs, at least."""
_DRAWS = 1000
"""Bootstrap samples of sources."""
_START = (0.5, 2.0, 0.25, 0.05)
"""Numbers that the fit starts from, and towards which a weak prior draws them."""
_BOUNDED = torch.tensor([True, False, True, True])
"""Marks of the numbers that are shares, transformed by the logit; the other is positive, transformed by the log."""
_PRIOR = 0.125
"""Strength of that prior, in the units of the log loss of one image: half the squared distance of the transformed
numbers times 0.25."""


class Calibration(NamedTuple):
    """A crowd that was fitted anew, and what it says of sets that it was not fitted on."""

    crowd: Crowd
    elsewhere: tuple[Prediction, ...]


def calibrate(judge: Judge, test: Split, folder: Path, *, classes: int) -> list[Calibration]:
    """Fit the crowds of MNIST anew on the answers of people in a data folder.

    `strict` is fitted on `people_votes/`, `lenient` on two of the sets in `invariance_examples/`; of other sets there
    it says what `lenient` predicts, which knows nothing of them.

    Args:
        test: the data set's test images, in the published order.
        folder: the data folder.
        classes: K.

    Raises:
        InputError: naming the file that is missing, damaged, or of another shape or range.
    """
    votes = read_votes(folder / "people_votes", test, classes=classes)
    sets = read_examples(folder / "invariance_examples", test, classes=classes)
    given = [answers_of_set(each, classes=classes) for each in sets if each.name in _GIVEN]
    others = [answers_of_set(each, classes=classes) for each in sets if each.name not in _GIVEN]
    found = []
    for name, answers, elsewhere in (("strict", [votes], []), ("lenient", given, others)):
        crowd = _fit_and_measure(judge, name, answers)
        unseen = tuple(measure(judge.shares(each.images, crowd), each) for each in elsewhere)
        found.append(Calibration(crowd, unseen))
    return found


def calibrate_on(judge: Judge, data: Data, folder: Path, name: str) -> Crowd:
    """Fit a crowd of one's own on a folder of votes on images made from a data set's.

    Raises:
        InputError: naming the file that is missing, damaged, or of another shape or range, or has too few votes.
    """
    answers = read_votes(folder, data.test, classes=data.classes)
    sources = len(answers.sources.unique())
    if sources < _FEWEST_SOURCES:
        raise InputError(
            f"{folder / 'votes.npy'}: {len(answers.labels)} images of {sources} sources have an answer: too few to fit "
            f"a crowd, of which at least {_FEWEST_SOURCES} sources are needed"
        )
    crowd = _fit_and_measure(judge, name, [answers])
    crowd = dataclasses.replace(crowd, votes=votes_fingerprint(folder), dataset=data.name)
    return crowd_from_fields(name, crowd_fields(crowd))  # as it is read again, with rounded numbers


def _fit_and_measure(judge: Judge, name: str, answers: Sequence[Answers]) -> Crowd:
    """Fit a crowd on all its people's answers, with the cross-validated measure of each set."""
    readings = [judge.read(each.images) for each in answers]
    shares = cross_validate(readings, answers)
    predictions = tuple(measure(predicted, each) for predicted, each in zip(shares, answers, strict=True))
    return dataclasses.replace(fit_crowd(name, readings, answers), predictions=predictions)


def fit_crowd(name: str, readings: Sequence[Readings], answers: Sequence[Answers]) -> Crowd:
    """Fit a crowd's numbers on all answers of its people, given the judge's readings of the same images."""
    everything = [torch.arange(len(each.labels)) for each in answers]
    return Crowd(name, *_fit(readings, answers, everything).tolist())


def cross_validate(readings: Sequence[Readings], answers: Sequence[Answers], *, seed: int = 0) -> list[Tensor]:
    """Return shares (N, K) for every set, each image's by numbers fitted on the folds that its source is not in."""
    folds = _folds(answers, seed=seed)
    shares = [torch.zeros_like(each.shares, dtype=torch.float64) for each in answers]
    for fold in range(_FOLDS):
        numbers = _fit(readings, answers, [(own != fold).nonzero().squeeze(1) for own in folds])
        for own, predicted, seen in zip(folds, shares, readings, strict=True):
            left_out = (own == fold).nonzero().squeeze(1)
            predicted[left_out] = seen.of(left_out).mix(numbers)
    return shares


def _folds(answers: Sequence[Answers], *, seed: int) -> list[Tensor]:
    """Return the fold of every image of every set; images of one source are in one fold, in all sets."""
    known, inverse = torch.cat([each.sources for each in answers]).unique(return_inverse=True)
    drawn = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed)) % _FOLDS
    return list(drawn[inverse].split([len(each.labels) for each in answers]))


def _fit(readings: Sequence[Readings], answers: Sequence[Answers], chosen: Sequence[Tensor]) -> Tensor:
    """Return the numbers (4,) that minimise the log loss of the answers to the chosen images of every set."""
    start = torch.tensor(_START, dtype=torch.float64)
    start = torch.where(_BOUNDED, start.logit(), start.log())
    free = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        numbers = torch.where(_BOUNDED, free.sigmoid(), free.exp())
        total = _PRIOR * (free - start).square().sum()
        for seen, said, own in zip(readings, answers, chosen, strict=True):
            total = total - (said.shares[own] * seen.of(own).mix(numbers).clamp_min(1e-9).log()).sum()
        total.backward()
        return total

    optimizer.step(loss)
    return torch.where(_BOUNDED, free.sigmoid(), free.exp()).detach()


def measure(predicted: Tensor, answers: Answers, *, seed: int = 0) -> Prediction:
    """Measure how well `predicted` shares (N, K) meet the people's.

    The intervals are the 95% of a bootstrap over sources.
    """
    shares, own = predicted.double(), torch.arange(len(answers.labels))
    said = answers.shares.double()
    changed, people = (1 - each[own, answers.labels] for each in (shares, said))
    columns = {
        "changed": changed,
        "brier": (shares - said).square().sum(1),
        "log_loss": -(said * shares.clamp_min(1e-9).log()).sum(1),
    }
    samples = _resampled(answers.sources, np.random.default_rng(seed))
    numbers = {
        name: Measured(values.mean().item(), _interval([values[chosen].mean().item() for chosen in samples]))
        for name, values in columns.items()
    }
    most = (people > 0.5).numpy()

    def auc(chosen: Tensor) -> float:
        seen = most[chosen]
        return float(roc_auc_score(seen, changed[chosen])) if seen.any() and not seen.all() else float("nan")

    return Prediction(
        people=answers.people,
        images=len(answers.labels),
        people_changed=people.mean().item(),
        auc=Measured(auc(own), _interval([auc(chosen) for chosen in samples])),
        **numbers,
    )


def _resampled(sources: Tensor, generator: np.random.Generator) -> list[Tensor]:
    """Return bootstrap samples of the images, as positions: whole sources are drawn, with replacement."""
    known, inverse = sources.unique(return_inverse=True)
    of_source = [(inverse == number).nonzero().squeeze(1) for number in range(len(known))]
    drawn = generator.integers(len(known), size=(_DRAWS, len(known)))
    return [torch.cat([of_source[number] for number in row]) for row in drawn]


def _interval(values: Sequence[float]) -> Interval:
    """Return the middle 95% of bootstrap values; undefined ones are left out."""
    if np.isnan(values).all():
        return Interval(float("nan"), float("nan"))
    low, high = np.nanquantile(values, [0.025, 0.975]).tolist()
    return Interval(low, high)
