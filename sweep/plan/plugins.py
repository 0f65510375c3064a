"""The functions of one's own that a sweep or study names: what must go along to where it runs."""

from __future__ import annotations

from search_spaces import Space
from sweep.plan.plan import SweepPlan
from sweep.plan.study_plan import StudyPlan
from trainer.plugins import is_plugin

_KNOBS = ("architecture", "regularizer", "sensitivity_attack")


def plugins_of(plan: SweepPlan | StudyPlan) -> list[str]:
    """Return every value of a knob of the plan that names a function of one's own."""
    spaces = plan.study.arms.values() if isinstance(plan, StudyPlan) else [plan.space]
    return sorted({value for space in spaces for value in _named(space) if is_plugin(value)})


def _named(space: Space) -> set[str]:
    return {space.evaluation.dataset, *(value for knob in _KNOBS for value in space.values_of(knob))}
