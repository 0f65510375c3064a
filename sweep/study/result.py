"""The result of a study in plain values: what its verdict, pictures and tables are made from, and its file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from sweep.front import Objectives
from sweep.plan import StudyPlan
from trainer.config import OF_EARLIER_VERSIONS, EvaluationConfig
from trainer.errors import InputError
from trainer.files import write_whole

RESULT = "study.json"
"""File in a study's folder with its result; alone it gives the verdict and all pictures again."""

_FORMAT = 1


@dataclass(frozen=True)
class SweepResult:
    """One arm on one seed, audited."""

    arm: str
    seed: int

    hypervolumes: dict[str, float]
    """Audited hypervolume by crowd, of the finalists that fulfil the requirements; 0 where there is none."""

    points: list[dict[str, Any]]
    """Audited finalists: `trial`, `label`, and their numbers by name, means over the audit's seeds and judges."""

    course: list[list[float]]
    """Pairs of effort (trials or hours) and hypervolume on the validation split, in the order of the trials' ends."""

    curve: list[list[float]]
    """Pairs of sensitivity budget and the best finalist's accuracy under it on the test split, with the models of the
    sweep itself."""


@dataclass(frozen=True)
class ArmDifference:
    """An arm's audited hypervolume minus the control's, mean over the seeds, under one crowd."""

    arm: str
    crowd: str
    estimate: float

    low: float | None
    high: float | None
    """Ends of the 95% interval of this difference alone, Student's over the seeds; None where nothing is known of the
    variance."""

    p_value: float | None
    """Two-sided p-value of no difference; None where there are too few seeds for one."""

    adjusted: float | None
    """The same by Holm's correction over the arms, under this crowd."""

    deviation: float | None
    """Standard deviation of one seed's difference."""

    detectable: float | None
    """Least true difference that as many seeds show with a power of 0.8, if no other arm is shown to differ (so at the
    level that Holm's correction asks of the first)."""

    needed: int | None
    """Seeds that show a difference as large as the estimate, with the same power at the same level."""

    parts: dict[str, float]
    """Deviation of one seed's difference that comes from images, training seeds and judges, each drawn anew alone."""

    shown: bool
    """True if the adjusted p-value is below 0.05."""


@dataclass(frozen=True)
class StudyResult:
    """A study as far as it is done: the seeds on which all arms are audited."""

    name: str
    question: str
    arms: list[str]
    """Names, the control first."""
    seeds: list[int]
    planned_seeds: int
    effort: str
    """Effort of each arm on each seed, in words."""
    effort_unit: str
    """`trials` or `hours`."""
    audited: str
    """The audits' split, finalists and seeds, in words."""
    evaluation: dict[str, Any]
    objectives: list[str]
    maximise: list[bool]
    reference: list[float]
    crowds: list[str]
    """Crowds that judge, that of the evaluation first."""
    sweeps: list[SweepResult]
    """Results of every arm on every seed of `seeds`."""
    differences: list[ArmDifference]

    @property
    def control(self) -> str:
        return self.arms[0]

    @property
    def judged(self) -> EvaluationConfig:
        return EvaluationConfig.from_mapping({**OF_EARLIER_VERSIONS, **self.evaluation})

    def objectives_of(self, crowd: str) -> Objectives:
        """Return the objectives under a crowd; the other crowds' numbers have their name before them."""
        prefix = "" if crowd == self.crowds[0] else f"{crowd}/"
        names = (f"{prefix}{name}" if name.startswith("invariance_") else name for name in self.objectives)
        return Objectives(tuple(names), tuple(self.maximise), tuple(self.reference))

    def of(self, arm: str) -> list[SweepResult]:
        """Return an arm's sweeps by seed."""
        return [each for each in self.sweeps if each.arm == arm]

    def hypervolumes(self, arm: str, crowd: str) -> np.ndarray:
        """Return an arm's audited hypervolumes (s,) by seed."""
        return np.array([each.hypervolumes[crowd] for each in self.of(arm)])

    def under(self, crowd: str) -> list[ArmDifference]:
        return [each for each in self.differences if each.crowd == crowd]

    def to_json(self) -> str:
        """Return the file's text; the same result gives the same text."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    def write(self, folder: Path) -> None:
        write_whole(folder / RESULT, self.to_json().encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the result that a folder's file holds.

        Raises:
            InputError: naming the file, if there is none or it is damaged.
        """
        path = folder / RESULT
        try:
            plain = json.loads(path.read_bytes())
            if plain.pop("format") != _FORMAT:
                raise InputError(f"{path}: was written by another version; `otsweep study NAME` writes it anew")
            plain["sweeps"] = [SweepResult(**each) for each in plain["sweeps"]]
            plain["differences"] = [ArmDifference(**each) for each in plain["differences"]]
            return cls(**plain)
        except OSError as error:
            raise InputError(f"{path}: can't be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: is damaged ({error})") from None


def latest_alike(plan: StudyPlan) -> StudyResult | None:
    """Return the latest result in a study's storage that was judged as it will be, and tells of at least two seeds."""
    evaluation = plan.evaluation.to_dict()
    newest = sorted(plan.storage.glob(f"[!.]*/{RESULT}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest:
        with contextlib.suppress(InputError):
            result = StudyResult.read(path.parent)
            if result.evaluation == evaluation and len(result.seeds) > 1:
                return result
    return None
