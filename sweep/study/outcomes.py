"""The findings of a study, collected from its sweeps' ledgers and audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search_spaces import violation
from sweep.audit import Audit, Finalist
from sweep.front import Objectives, hypervolume
from sweep.plan import Step, StudyPlan
from sweep.report import trial_label
from sweep.state import SweepState, read_state
from sweep.study.result import StudyResult, SweepResult
from sweep.study.run import audit_of, is_audited, is_swept
from sweep.study.verdict import arm_differences
from trainer.crowds import crowd_for, other_crowds

_SHOWN = ("sensitivity_accuracy", "invariance_accuracy", "invariance_stuck", "clean_accuracy", "certified_accuracy")
"""Numbers of a finalist that are kept, those by other crowds beside them."""


def collect(plan: StudyPlan) -> StudyResult:
    """Return the result of a study as far as it is done: a seed counts once all arms are audited on it."""
    study, arms = plan.study, list(plan.study.arms)
    evaluation, options = study.arms[plan.control].evaluation, plan.audit_options
    objectives = plan.sweep_plan(plan.steps[0]).objectives
    crowds = [each.name for each in _crowds(evaluation.dataset, evaluation.crowd)]
    done = [steps for steps in plan.rounds() if all(_is_done(plan, step) for step in steps)]
    result = StudyResult(
        name=plan.name,
        question=study.question,
        arms=arms,
        seeds=[steps[0].seed for steps in done],
        planned_seeds=len(study.seeds),
        effort=str(study.effort),
        effort_unit="hours" if study.effort.hours else "trials",
        audited=f"test split, {options.finalists} finalists at most, {options.seeds} fresh seeds",
        evaluation=evaluation.to_dict(),
        objectives=list(objectives.names),
        maximise=list(objectives.maximise),
        reference=list(objectives.reference),
        crowds=crowds,
        sweeps=[],
        differences=[],
    )
    result.sweeps.extend(_sweep_result(plan, result, Step(arm, seed)) for arm in arms for seed in result.seeds)
    if result.seeds:
        volumes = {(arm, crowd): result.hypervolumes(arm, crowd).tolist() for arm in arms for crowd in crowds}
        result.differences.extend(arm_differences(volumes, arms=arms, crowds=crowds))
    return result


def ended_at(plan: StudyPlan) -> float:
    """Return when the latest trial of a study ended, in unix seconds."""
    records = [record for step in plan.steps for record in read_state(plan.sweep_plan(step)).trials.values()]
    return max((record.ended or 0.0 for record in records), default=0.0)


def _crowds(dataset: str, crowd: str) -> Sequence[Any]:
    return crowd_for(dataset, crowd), *other_crowds(dataset, crowd)


def _is_done(plan: StudyPlan, step: Step) -> bool:
    """Return whether an arm is swept and audited on a seed."""
    if not plan.begun(step):
        return False
    sweep = plan.sweep_plan(step)
    state = read_state(sweep)
    audit = audit_of(plan, step)
    return is_swept(sweep, state) if audit is None else is_audited(plan, audit)


def _sweep_result(plan: StudyPlan, result: StudyResult, step: Step) -> SweepResult:
    audit = audit_of(plan, step)
    if audit is None:
        return SweepResult(step.arm, step.seed, dict.fromkeys(result.crowds, 0.0), [], [])
    finalists = [one for one in audit.finalists() if violation(audit.plan.space.require, _numbers(one)) == 0]
    volumes = {crowd: _hypervolume(finalists, result.objectives_of(crowd)) for crowd in result.crowds}
    course = _course(audit.results, hours=result.effort_unit == "hours")
    return SweepResult(step.arm, step.seed, volumes, [_point(audit, one) for one in finalists], course)


def _numbers(one: Finalist) -> Mapping[str, float]:
    """Return a finalist's audited numbers; those that no audit measures are as selected."""
    return {**one.selected, **one.mean}


def _hypervolume(finalists: Sequence[Finalist], objectives: Objectives) -> float:
    points = [[one.mean[name] for name in objectives.names] for one in finalists]
    return hypervolume(np.array(points).reshape(-1, len(objectives.names)), objectives)


def _point(audit: Audit, one: Finalist) -> dict[str, Any]:
    """Return a finalist as it is kept."""
    numbers = {name: value for name, value in one.mean.items() if name.rpartition("/")[2] in _SHOWN}
    return {"trial": one.record.number, "label": trial_label(audit.plan.space, one.record.config), **numbers}


def _course(state: SweepState, *, hours: bool) -> list[list[float]]:
    """Return the hypervolume on the validation split over the effort."""
    if hours:
        return [[each.hours, each.hypervolume] for each in state.course]
    return [[float(number), volume] for number, volume in enumerate(state.volumes, start=1)]
