"""The outcome of judging models: every number of each, their front, and how far both are a matter of the images drawn.

Shapes: n models, B draws of images, N attacked images, M perturbed images, T images of the test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sweep.audit import MEASURED, PERTURBED, Measured, judged_by, share_interval
from sweep.front import front_draws, front_mask, source_weights
from sweep.judge.files import ModelFile
from sweep.plan import AuditOptions, SweepPlan
from sweep.state import JudgedImages
from trainer.answers import Answers

if TYPE_CHECKING:
    import pandas
    import pyarrow

_FORMAT = 1
"""Version of the JSON; raised when a key changes its meaning."""
_DRAWS = 1000
_OF_IMAGES = ("clean_accuracy", "certified_accuracy", "adversary_accuracy")
"""Numbers with Wilson's interval: answers do not tell them, or no other model is compared by them."""


class JudgedModel(NamedTuple):
    """One model with its numbers."""

    file: ModelFile
    kind: str
    """The form of the file, in words."""
    measured: Measured
    uncertified: str
    """Reason for which no certified accuracy could be computed; empty where it could."""
    people: dict[str, Any] | None
    """A `HumanAgreement` in plain values, where people labelled images of the data."""


class _Standing(NamedTuple):
    """The models' places among one another."""

    on_front: np.ndarray
    """(n,) bool."""
    chances: np.ndarray
    """(n,): share of the draws of images in which each is on the front."""
    intervals: np.ndarray
    """(n, d, 2): 95% intervals of the objectives, images drawn anew for all models at once."""


@dataclass(frozen=True, eq=False)
class JudgedModels:
    """Models that were judged alike."""

    plan: SweepPlan
    """Plan of what they were judged by; it was never run."""
    options: AuditOptions
    models: tuple[JudgedModel, ...]
    """The models, the best first: by the area that each dominates alone."""
    judged: Sequence[JudgedImages]
    """Readings of the perturbed images, by judge."""
    split: int
    """T."""
    ceiling: Sequence[Sequence[float]]
    """Points (sensitivity accuracy, most invariance accuracy) that no classifier can pass; empty without a limit."""
    data_fingerprint: str

    def __repr__(self) -> str:
        names = ", ".join(model.file.name for model in self.models)
        return f"<Judgement on {self.plan.space.evaluation.dataset}: {names}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self.table.to_html(index=False, float_format="{:.3f}".format)

    @property
    def images(self) -> int:
        """Test images that were attacked, N."""
        return self.models[0].measured.images

    @property
    def table(self) -> pandas.DataFrame:
        """A row per model, the best first: name, front, P(front), then every number."""
        return self.arrow().to_pandas()

    def arrow(self) -> pyarrow.Table:
        """Return the same table in Arrow's form."""
        import pyarrow

        names = dict.fromkeys(name for model in self.models for name in model.measured.numbers)
        rows = zip(self.models, self.standing.on_front.tolist(), self.standing.chances.tolist(), strict=True)
        return pyarrow.Table.from_pylist(
            [
                {
                    "model": model.file.name,
                    "front": front,
                    "p_front": chance,
                    **{name: model.measured.numbers.get(name) for name in names},
                }
                for model, front, chance in rows
            ]
        )

    @cached_property
    def points(self) -> np.ndarray:
        """The objectives (n, d) of all models."""
        names = self.plan.objectives.names
        return np.array([[model.measured.numbers[name] for name in names] for model in self.models])

    @cached_property
    def standing(self) -> _Standing:
        """Their front, and how often each is on it when the images are drawn anew, for all models at once."""
        objectives = self.plan.objectives
        drawn = self._drawn()
        intervals = np.moveaxis(np.quantile(drawn, [0.025, 0.975], axis=0), 0, -1)
        return _Standing(front_mask(self.points, objectives), front_draws(drawn, objectives).on_front, intervals)

    def _drawn(self) -> np.ndarray:
        """Return the objectives (B, n, d) in draws of the test images that are attacked, or sources of others."""
        rows = np.array(self.models[0].measured.rows or range(self.split))
        source = self.judged[0].source
        used, positions = np.unique(np.concatenate([rows, source]), return_inverse=True)
        weights = source_weights(len(used), draws=_DRAWS, generator=np.random.default_rng(0))
        attacked, perturbed = weights[:, positions[: len(rows)]], weights[:, positions[len(rows) :]]

        def resampled(model: JudgedModel, name: str) -> np.ndarray:
            answers = Answers.decode(model.measured.answers)
            terms = [MEASURED[name](answers, judged) for judged in self.judged]
            drawn = perturbed if name in PERTURBED else attacked
            return np.mean([each.resampled(drawn) for each in terms], axis=0)

        names = self.plan.objectives.names
        return np.array([[resampled(model, name) for name in names] for model in self.models]).transpose(2, 0, 1)

    def interval(self, position: int, name: str) -> tuple[float, float] | None:
        """Return the 95% interval of a number of a model, by the model's position; None where it has none."""
        if name in self.plan.objectives.names:
            low, high = self.standing.intervals[position, self.plan.objectives.names.index(name)].tolist()
            return low, high
        measured = self.models[position].measured
        if name not in _OF_IMAGES or name not in measured.numbers:
            return None
        low, high = share_interval(name, measured.numbers, images=measured.images)
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, those of `otsweep judge --format json`; sweep/README.md explains them."""
        return {
            "format": _FORMAT,
            "dataset": self.plan.space.evaluation.dataset,
            "data_fingerprint": self.data_fingerprint,
            "code_version": self.plan.code_version,
            "evaluation": self.plan.space.evaluation.to_dict(),
            "effort": judged_by(self.options),
            "objectives": list(self.plan.objectives.names),
            "ceiling": [list(point) for point in self.ceiling],
            "models": [self._plain(position, model) for position, model in enumerate(self.models)],
        }

    def _plain(self, position: int, model: JudgedModel) -> dict[str, Any]:
        numbers = model.measured.numbers
        intervals = {name: self.interval(position, name) for name in numbers}
        return {
            "model": model.file.name,
            "path": str(model.file.path),
            "sha256": model.file.digest,
            "kind": model.kind,
            "architecture": model.file.architecture or None,
            "images": model.measured.images,
            "front": bool(self.standing.on_front[position]),
            "p_front": float(self.standing.chances[position]),
            "numbers": numbers,
            "intervals": {name: list(each) for name, each in intervals.items() if each is not None},
            "not_certified": model.uncertified or None,
            "broken_by": model.measured.broken_by,
            "curve": model.measured.curve,
            "evidence": model.measured.evidence,
            "warnings": model.measured.warnings,
            "people": model.people,
        }
