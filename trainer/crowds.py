"""Crowds: which share of people looks at an image in which way, and how well that predicts what people say.

Two studies showed people the same attack at the same budget: one group overlooked pale ink, the other didn't. No single
calibration fits both, so a crowd is named. It is four numbers, fitted on its people's answers (`otsweep people --fit`);
the networks behind all crowds are the same. Needs no torch, so that a sweep's driver can show what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from trainer.config import UNANIMOUS, EvaluationConfig
from trainer.errors import InputError
from trainer.intervals import Interval
from trainer.words import did_you_mean

LEAST_THRESHOLD, LARGEST_THRESHOLD = 0.05, 0.85
"""Range of thresholds at which images in black and white are learnt, in pixel units."""

THRESHOLDS = tuple(LEAST_THRESHOLD + (LARGEST_THRESHOLD - LEAST_THRESHOLD) * (step + 0.5) / 12 for step in range(12))
"""Strengths of ink from which on a viewer may see it: the middles of equal stretches of that range."""


class Measured(NamedTuple):
    """A number and its 95% interval over sources."""

    value: float
    interval: Interval


class Prediction(NamedTuple):
    """A measure of how well a crowd's shares predict the answers of people to one set of images."""

    people: str
    """The people, and what they were shown."""
    images: int
    people_changed: float
    """Share of people's answers that are another class than the source's."""
    changed: Measured
    """The same share, as predicted."""
    brier: Measured
    """Mean over the images of the sum over the classes of squared differences of shares, in [0, 2]."""
    log_loss: Measured
    """Mean negative log of the predicted share of a person's answer, in nats."""
    auc: Measured
    """Area under the curve of "most people see a change" against the predicted changed share, in [0, 1]."""


@dataclass(frozen=True)
class Crowd:
    """The distribution of a crowd's ways of looking at an image."""

    name: str
    threshold: float = 0.5
    """Mean of the viewers' thresholds, in (0, 1); they follow a beta distribution."""
    concentration: float = 2.0
    """Concentration of the thresholds, above 0: the sum of the beta distribution's two parameters. At 2, with a mean of
    0.5, all of `THRESHOLDS` are equally frequent."""
    strength: float = 0.0
    """Share of viewers, in [0, 1], who go by how strong the ink is, not by a threshold."""
    lapse: float = 0.0
    """Share of viewers, in [0, 1], who give any class at random."""
    predictions: tuple[Prediction, ...] = ()
    """Predictions of the people it was fitted on, each image by numbers fitted on other sources; empty for an
    uncalibrated crowd."""

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """The four fitted numbers."""
        return self.threshold, self.concentration, self.strength, self.lapse


UNCALIBRATED = Crowd("uncalibrated")
"""A crowd whose thresholds are all equally frequent: taken where no people's answers are known."""


def _measured(value: float, low: float, high: float) -> Measured:
    return Measured(value, Interval(low, high))


_CROWDS: dict[str, tuple[Crowd, ...]] = {
    "mnist": (
        Crowd(
            "strict",
            threshold=0.493,
            concentration=18.5,
            strength=0.154,
            lapse=0.050,
            predictions=(
                Prediction(
                    "10 people (Rauter 2023, Linf 0.3)",
                    images=250,
                    people_changed=0.129,
                    changed=_measured(0.139, 0.127, 0.155),
                    brier=_measured(0.062, 0.045, 0.083),
                    log_loss=_measured(0.541, 0.473, 0.609),
                    auc=_measured(0.844, 0.720, 0.941),
                ),
            ),
        ),
        Crowd(
            "lenient",
            threshold=0.367,
            concentration=6.24,
            strength=0.611,
            lapse=0.005,
            predictions=(
                Prediction(
                    "people (Tramèr et al. 2020, L0)",
                    images=100,
                    people_changed=0.550,
                    changed=_measured(0.565, 0.497, 0.639),
                    brier=_measured(0.343, 0.250, 0.446),
                    log_loss=_measured(0.552, 0.415, 0.705),
                    auc=_measured(0.841, 0.757, 0.912),
                ),
                Prediction(
                    "people (Tramèr et al. 2020, Linf 0.3)",
                    images=100,
                    people_changed=0.210,
                    changed=_measured(0.236, 0.186, 0.287),
                    brier=_measured(0.205, 0.137, 0.296),
                    log_loss=_measured(0.406, 0.270, 0.603),
                    auc=_measured(0.850, 0.723, 0.944),
                ),
            ),
        ),
    ),
}
"""Crowds by data set, as `otsweep people --fit` fitted and measured them, each prediction cross-validated."""


def crowds_for(dataset: str) -> tuple[Crowd, ...]:
    """Return the calibrated crowds of a data set, or one uncalibrated crowd where no people's answers are known."""
    return _CROWDS.get(dataset, (UNCALIBRATED,))


def crowd_for(dataset: str, name: str) -> Crowd:
    """Return the crowd of a name; where a data set has no people's answers, the uncalibrated one whatever the name.

    Raises:
        InputError: for a name that no crowd has.
    """
    if dataset not in _CROWDS:
        return UNCALIBRATED
    known = {crowd.name: crowd for crowd in _CROWDS[dataset]}
    if name not in known:
        raise InputError(f"no crowd {name!r} for data set {dataset!r}: {did_you_mean(name, known)}")
    return known[name]


def check_crowd(evaluation: EvaluationConfig) -> None:
    """Check that something new may be judged by an evaluation's crowd.

    Raises:
        InputError: for a crowd that the data set lacks, and for the judge of earlier versions.
    """
    if evaluation.crowd == UNANIMOUS:
        raise InputError(
            f"crowd = {UNANIMOUS!r}: what the judge of earlier versions judged can be shown, compared and synced, but "
            "nothing new is judged by it: begin a sweep of your own, with crowd = strict or lenient"
        )
    crowd_for(evaluation.dataset, evaluation.crowd)


def other_crowds(dataset: str, name: str) -> tuple[Crowd, ...]:
    """Return the crowds whose numbers stand beside those of the named one."""
    return tuple(crowd for crowd in crowds_for(dataset) if crowd != crowd_for(dataset, name))


def crowd_line(crowd: Crowd) -> str:
    """Return in words who a crowd is and how well it predicts people."""
    if not crowd.predictions:
        return f"its crowd is {crowd.name}: it was never held against people, and all ways of looking count alike"
    return f"the {crowd.name} crowd, " + "; ".join(map(_prediction_line, crowd.predictions))


def _prediction_line(prediction: Prediction) -> str:
    """Return how well a crowd predicts one set of people, such as "sees 13% changed where 10 people saw 13%"."""
    return (
        f"{prediction.changed.value:.0%} changed where {prediction.people} saw {prediction.people_changed:.0%} "
        f"(Brier {prediction.brier.value:.2f}, AUC {prediction.auc.value:.2f})"
    )
