"""The functions of one's own that a sweep or study names: what must go along to where it runs."""

from __future__ import annotations

from typing import Any

from search_spaces import Space
from sweep.plan.plan import SweepPlan
from sweep.plan.study_plan import StudyPlan
from trainer.config import OWN_KNOBS, TrialConfig
from trainer.plugins import is_plugin

_KNOBS = ("architecture", "regularizer", "sensitivity_attack")
_WEIGHTS = ("sensitivity_weight", "invariance_weight", "sensitivity_ce_weight", "trades_weight")
"""Knobs by which a regulariser or an attack is used or not."""


def plugins_of(plan: SweepPlan | StudyPlan) -> list[str]:
    """Return every value of a knob of the plan that names a function of one's own."""
    spaces = plan.study.arms.values() if isinstance(plan, StudyPlan) else [plan.space]
    return sorted({value for space in spaces for value in _named(space) if is_plugin(value)})


def own_corners(space: Space) -> list[dict[str, Any]]:
    """Return the configurations by which what a space has of one's own is checked before a sweep.

    They use each function of one's own that it names, with its knobs at their ends; and batches of every size, if the
    data is one's own. There are none if nothing is one's own.
    """
    if not any(":" in value for value in _named(space)):
        return []
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for config in [*space.grid((*_KNOBS, *OWN_KNOBS, *_WEIGHTS, "batch_size")), *space.points]:
        trial = TrialConfig.from_mapping(config)
        settings = (getattr(trial, name) for name in (*_KNOBS, *OWN_KNOBS, "batch_size"))
        found.setdefault((*settings, trial.uses_regularizer, trial.uses_sensitivity), config)
    return list(found.values())


def _named(space: Space) -> set[str]:
    return {space.evaluation.dataset, *(value for knob in _KNOBS for value in space.values_of(knob))}
