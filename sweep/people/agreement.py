"""The agreement of people with the judge, and with each other, on the images of a survey.

Shapes: N images, P people.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

from sweep.people.answers import AnswerLog
from trainer.human_agreement import Share


class _PersonAgreement(NamedTuple):
    """One person's answers beside the judge's."""

    person: str
    answered: Share
    """Share of all images that were answered by a class."""
    right: Share
    """Share of unperturbed images answered with their class: whoever misreads many did not look."""
    changed: Share
    """Share of perturbed images answered with another class than the source's."""
    predicted_changed: float
    """The same share as the judge predicts it for the sweep's crowd, on the images that were answered."""
    agrees: Share
    """Share of perturbed images answered with the class that most of the crowd would name, by the judge."""
    log_loss: float
    """Mean negative log of the predicted share of this person's answers, in nats."""


def agreement_of(log: AnswerLog) -> list[_PersonAgreement]:
    """Return every person's agreement with the judge."""
    votes = log.votes()
    return [_of_person(log, person, votes[:, column]) for column, person in enumerate(log.people)]


def _of_person(log: AnswerLog, person: str, votes: np.ndarray) -> _PersonAgreement:
    survey = log.survey
    told = votes >= 0
    plain, shown = told & ~survey.perturbed, told & survey.perturbed
    rows = np.flatnonzero(shown)
    changed = 1 - survey.shares[rows, survey.labels[rows]]
    likelihood = np.clip(survey.shares[rows, votes[rows]], 1e-6, 1)
    return _PersonAgreement(
        person,
        answered=Share(int(told.sum()), len(votes)),
        right=_share(votes[plain] == survey.labels[plain]),
        changed=_share(votes[shown] != survey.labels[shown]),
        predicted_changed=float(changed.mean()) if len(rows) else 0.0,
        agrees=_share(votes[shown] == survey.shares[shown].argmax(1)),
        log_loss=float(-np.log(likelihood).mean()) if len(rows) else 0.0,
    )


def pair_agreement(log: AnswerLog) -> Share:
    """Return the share of equal answers, over all pairs of people and perturbed images that both named a class for."""
    votes = log.votes()[log.survey.perturbed]
    pairs = [
        votes[both, a] == votes[both, b]
        for a, b in combinations(range(votes.shape[1]), 2)
        for both in [(votes[:, a] >= 0) & (votes[:, b] >= 0)]
    ]
    return _share(np.concatenate(pairs)) if pairs else Share(0, 0)


def _share(flags: np.ndarray) -> Share:
    return Share(int(flags.sum()), len(flags))
