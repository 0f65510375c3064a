"""The choice of finalists, and what is known of each.

Shapes: n finalists, d objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from sweep.audit.differences import Stages
from sweep.audit.measures import MEASURED
from sweep.audit.results import AuditResult
from sweep.front import Objectives, contributions, front_mask
from sweep.ledger import TrialRecord
from sweep.state import JudgedImages, SweepState
from trainer.answers import Answers
from trainer.config import OWN_KNOBS, TrialConfig
from trainer.intervals import wilson_interval
from trainer.plugins import is_plugin
from trainer.report import images_behind

COUNTS: dict[str, Callable[[Mapping[str, float]], int]] = {
    "invariance_accuracy": images_behind,
    "adversary_accuracy": lambda result: int(result["adversary_size"]),
}
"""Shares whose number of images is in the result itself; the others with an interval are of all test images."""


@dataclass(frozen=True)
class Finalist:
    """A configuration of the sweep beside its audited results."""

    record: TrialRecord
    """Its first trial, with the means over its seeds as result."""
    members: tuple[TrialRecord, ...]
    """Its trials, one a seed of the sweep."""
    own: tuple[AuditResult, ...]
    """Results of the models that these trials chose, in the same order."""
    runs: tuple[AuditResult, ...]
    """Results by fresh seed, at least one."""

    @property
    def selected(self) -> Mapping[str, float]:
        """The numbers that it was selected by, on the validation split."""
        assert self.record.result is not None
        return self.record.result

    @property
    def mean(self) -> dict[str, float]:
        """The audited numbers, mean over the fresh seeds; `curve_area` over the sweep's own models."""
        means = {name: fmean(run.numbers[name] for run in self.runs) for name in self.runs[0].numbers}
        return means | {"curve_area": fmean(each.numbers["curve_area"] for each in self.own)}

    @property
    def images(self) -> int:
        return self.runs[0].images

    def spread(self, name: str) -> float:
        """Return the sample standard deviation over the fresh seeds; 0 for one seed."""
        values = [run.numbers[name] for run in self.runs if name in run.numbers]
        return stdev(values) if len(values) > 1 else 0.0

    def stages(self, name: str, validation: JudgedImages, test: Sequence[JudgedImages]) -> Stages:
        """Return a number between selection and audit; `name` is one of `MEASURED`.

        Args:
            name: field of a report.
            validation: judged images of the validation split.
            test: those of the test split, by judge.
        """
        measure = MEASURED[name]
        selected, attacked = (
            [measure(Answers.decode(text), validation) for text in texts]
            for texts in (self.selected_answers, [each.validation["attacked"] for each in self.own])
        )
        own, fresh = ([Answers.decode(run.answers) for run in runs] for runs in (self.own, self.runs))
        by_judge = [[measure(answers, judged) for answers in fresh] for judged in test]
        return Stages(selected, attacked, [measure(answers, test[0]) for answers in own], by_judge[0], by_judge)

    @property
    def selected_answers(self) -> list[str]:
        """The answers that each trial was selected by: as it reported them, else as its model gave them again."""
        reported = [(member.result or {}).get("answers") for member in self.members]
        return [text or own.validation["selected"] for text, own in zip(reported, self.own, strict=True)]


class _Cloud(NamedTuple):
    """Points with their 95% Wilson intervals, (n, d) each, turned so that more is better."""

    gains: np.ndarray
    low: np.ndarray
    high: np.ndarray


def cloud(results: Sequence[Mapping[str, float]], objectives: Objectives, *, images: int) -> _Cloud:
    """Return the points of results, each share with the interval of its own number of images.

    Args:
        results: shares by name; means over seeds too, which have no more images than one seed: all saw the same.
        images: number behind clean and sensitivity accuracy; that behind invariance accuracy is in the results.
    """
    points = [[result[name] for name in objectives.names] for result in results]
    bounds = np.array(
        [[share_interval(name, result, images=images) for name in objectives.names] for result in results]
    )
    ends = objectives.turn(bounds[..., 0]), objectives.turn(bounds[..., 1])
    return _Cloud(objectives.turn(points), np.minimum(*ends), np.maximum(*ends))


def share_interval(name: str, result: Mapping[str, float], *, images: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share of `images`, or of as many as the result itself counts."""
    count = COUNTS[name](result) if name in COUNTS else images
    return wilson_interval(round(result[name] * count), count)


def dominated_beyond(points: _Cloud, by: _Cloud) -> np.ndarray:
    """Return (n,) bool: one of `by` is at least as good in every objective and better beyond the intervals in one.

    Better beyond the intervals means that the two intervals don't meet.
    """
    at_least = np.all(by.gains[None] >= points.gains[:, None], axis=-1)
    beyond = np.any(by.low[None] > points.high[:, None], axis=-1)
    return np.logical_and(at_least, beyond).any(axis=1)


def choose_finalists(results: SweepState, *, images: int) -> list[TrialRecord]:
    """Return the front and its near neighbours: the feasible trials that none dominates beyond the intervals.

    Feasible are finished trials that fulfil what the sweep requires. Of several seeds of a configuration the first
    stands for all, with their means. Trials on the front come first, by what each alone adds to the hypervolume; then
    the others, by the least amount that, added to every objective, would bring each onto the front.
    """
    finished = sorted(results.contenders.values(), key=lambda record: record.number)
    points, objectives = results.points(finished), results.objectives
    measured = cloud([record.reports[-1] for record in finished], objectives, images=images)
    on_front = front_mask(points, objectives)
    # A trial dominated beyond the intervals is so by the front: an interval rises with its share.
    front = _Cloud(*(field[on_front] for field in measured))
    short = (front.gains[None] - measured.gains[:, None]).min(-1).max(1)
    # A tie in one objective leaves a dominated trial short of nothing: so the front must come first.
    best_first = np.lexsort((-contributions(points, objectives), short, ~on_front))
    near = ~dominated_beyond(measured, front)
    return [finished[index] for index in best_first if near[index]]


def one_of_each(records: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    """Group trials by what they really train, in the given order: all of a group are the same experiment."""
    groups: dict[tuple[Any, ...], list[TrialRecord]] = {}
    for record in records:
        groups.setdefault(tuple(effective(record.config).items()), []).append(record)
    return list(groups.values())


def effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that decide the training, its seed aside."""
    trained = TrialConfig.from_mapping(config)
    weight = max(trained.sensitivity_weight, trained.invariance_weight)
    regularizer = trained.regularizer if weight > 0 else "none"
    transported = regularizer in ("sinkhorn", "ot_triplet")
    own_attack = trained.uses_sensitivity and is_plugin(trained.sensitivity_attack)
    sensitivity = ("sensitivity_attack", "sensitivity_norm", "sensitivity_epsilon", "sensitivity_steps")
    invariance = ("invariance_norm", "invariance_epsilon")
    certified = ("certified_epsilon", "certified_ramp", "certified_method")
    regularised = ("regularizer", "regularizer_on", "ground_metric", "sensitivity_weight", "invariance_weight")
    used = {
        **dict.fromkeys(sensitivity, trained.uses_sensitivity),
        **dict.fromkeys(invariance, trained.uses_invariance),
        **dict.fromkeys(regularised, regularizer != "none"),
        **dict.fromkeys(certified, trained.certified_ce_weight > 0),
        "margin": regularizer in ("triplet", "ot_triplet") or is_plugin(regularizer),
        "mining": regularizer == "triplet",
        "transport": transported,
        "entropy": transported and trained.transport == "entropic",
        "label_cost": regularizer == "sinkhorn",
        "negative_share": regularizer == "ot_triplet",
        **dict.fromkeys(OWN_KNOBS, is_plugin(regularizer) or own_attack),
        "sensitivity_objective": trained.uses_sensitivity and not own_attack,
        "sensitivity_step_size": trained.uses_sensitivity and not trained.is_fgsm,
        "momentum": trained.optimizer == "sgd",
        "seed": False,
    }
    return {name: value for name, value in trained.to_dict().items() if used.get(name, True)}
