"""Crowds: which share of people looks at an image in which way, and how well that predicts what people say.

Two studies showed people the same attack at the same budget: one group overlooked pale ink, the other didn't. No single
calibration fits both, so a crowd is named. It is four numbers, fitted on its people's answers (`otsweep people --fit`);
the networks behind all crowds are the same. Needs no torch, so that a sweep's driver can show what stands here.

A crowd of one's own is carried by value, as a text such as `mine dataset=mnist threshold=0.41 ... auc=[0.9,0.8,0.95]`
(`crowd_text`), so that what it judged stays defined whatever becomes of its file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote

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
    votes: str = ""
    """Fingerprint of the votes that a crowd of one's own was fitted on."""
    dataset: str = ""
    """Data set whose images these show."""

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """The four fitted numbers."""
        return self.threshold, self.concentration, self.strength, self.lapse

    @property
    def numbers_text(self) -> str:
        """The four numbers with their names, for people."""
        return ", ".join(f"{name} {value:g}" for name, value in zip(_NUMBERS, self.numbers, strict=True))


BUILT_IN_CROWDS = ("strict", "lenient")
"""Names of the crowds whose numbers come with otsweep."""

_NUMBERS = ("threshold", "concentration", "strength", "lapse")
_MEASURES = ("changed", "brier", "log_loss", "auc")
_FIELDS = ("dataset", *_NUMBERS, "votes", "people", "images", "people_changed", *_MEASURES)
"""Fields of a crowd of one's own, in the order of its text and its file."""

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
    """Return the crowd of a name, or of the text of one's own.

    Where a data set has no people's answers, `strict` and `lenient` both are the uncalibrated one.

    Raises:
        InputError: for a name that no crowd has, a damaged text, or a crowd of another data set's people.
    """
    own, *given = name.split(" ")
    if given:
        crowd = crowd_from_fields(own, split_fields(given, "="))
        if crowd.dataset != dataset:
            raise InputError(f"crowd {own!r}: its people answered to {crowd.dataset}, and can't judge {dataset}")
        return crowd
    if name not in BUILT_IN_CROWDS:
        raise InputError(f"no crowd {name!r} for data set {dataset!r}: {did_you_mean(name, BUILT_IN_CROWDS)}")
    return next((crowd for crowd in _CROWDS.get(dataset, ()) if crowd.name == name), UNCALIBRATED)


def crowd_fields(crowd: Crowd) -> dict[str, str]:
    """Return a crowd of one's own by field, as texts; `crowd_from_fields` is the inverse."""
    (quality,) = crowd.predictions
    measured: list[Measured] = [getattr(quality, name) for name in _MEASURES]
    values = [
        quote(crowd.dataset, safe="/:"),  # a path may hold blanks
        *(f"{number:g}" for number in crowd.numbers),
        crowd.votes,
        quality.people.split(" ")[0],
        str(quality.images),
        f"{quality.people_changed:.4g}",
        *(f"[{value:.4g},{low:.4g},{high:.4g}]" for value, (low, high) in measured),
    ]
    return dict(zip(_FIELDS, values, strict=True))


def split_fields(parts: Iterable[str], separator: str) -> dict[str, str]:
    """Return fields and values from parts such as `lapse=0.05`."""
    return {name: value for name, _, value in (part.partition(separator) for part in parts)}


def crowd_text(crowd: Crowd) -> str:
    """Return a crowd of one's own in one line, by value; `crowd_for` reads it."""
    return " ".join([crowd.name, *(f"{name}={value}" for name, value in crowd_fields(crowd).items())])


def crowd_from_fields(name: str, fields: Mapping[str, str]) -> Crowd:
    """Return the crowd that its fields describe.

    Raises:
        InputError: naming the field that is missing, unknown or wrong.
    """
    if different := sorted(set(_FIELDS) ^ set(fields)):
        raise InputError(f"crowd {name!r}: {different[0]!r} is {'missing' if different[0] in _FIELDS else 'unknown'}")
    threshold, concentration, strength, lapse = (_number(name, fields, each) for each in _NUMBERS)
    if not (0 < threshold < 1 and 0 < concentration < math.inf and 0 <= strength <= 1 and 0 <= lapse <= 1):
        raise InputError(
            f"crowd {name!r}: threshold {threshold:g} must be above 0 and below 1, concentration {concentration:g} a "
            f"number above 0, strength {strength:g} and lapse {lapse:g} from 0 to 1"
        )
    quality = Prediction(
        f"{_number(name, fields, 'people'):.0f} people",
        int(_number(name, fields, "images")),
        _number(name, fields, "people_changed"),
        *(_read_measured(name, fields, each) for each in _MEASURES),
    )
    return Crowd(
        name,
        threshold,
        concentration,
        strength,
        lapse,
        (quality,),
        votes=fields["votes"],
        dataset=unquote(fields["dataset"]),
    )


def _read_measured(name: str, fields: Mapping[str, str], field: str) -> Measured:
    parts = fields[field].strip("[]").split(",")
    if len(parts) != 3:
        raise InputError(f"crowd {name!r}: {field} = {fields[field][:40]!r}: must be [value,low,high]")
    value, low, high = (_number(name, {field: part}, field) for part in parts)
    return _measured(value, low, high)


def _number(name: str, fields: Mapping[str, str], field: str) -> float:
    try:
        return float(fields[field])
    except ValueError:
        raise InputError(f"crowd {name!r}: {field} = {fields[field][:40]!r}: must be a number") from None


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


def crowd_words(evaluation: EvaluationConfig) -> str:
    """Return the name of an evaluation's crowd, with its numbers if it is one's own: `mine (threshold 0.41, ...)`."""
    if " " not in evaluation.crowd:
        return evaluation.crowd
    crowd = crowd_for(evaluation.dataset, evaluation.crowd)
    return f"{crowd.name} ({crowd.numbers_text})"


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
