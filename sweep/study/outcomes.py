"""The findings of a study, collected from its sweeps' ledgers and audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from search_spaces import violation
from sweep.audit import Audit, Finalist
from sweep.front import Objectives, hypervolume
from sweep.plan import Step, StudyPlan
from sweep.report import trial_label
from sweep.state import SweepState, read_state
from sweep.study.resampling import resampled_parts, spread_of_parts
from sweep.study.result import ArmDifference, StudyResult, SweepResult
from sweep.study.run import audit_of, is_audited, is_swept
from sweep.study.verdict import arm_differences
from trainer.crowds import crowd_for, other_crowds

_SHOWN = ("sensitivity_accuracy", "invariance_accuracy", "invariance_stuck", "clean_accuracy", "certified_accuracy")
"""Numbers of a finalist that are kept, those by other crowds beside them."""


def collect(plan: StudyPlan) -> StudyResult:
    """Return the result of a study as far as it is done: a seed counts once all arms are audited on it."""
    study, arms = plan.study, list(plan.study.arms)
    evaluation, options = plan.evaluation, plan.audit_options
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
        audited=(
            f"test split, {options.finalists} finalists at most, {options.seeds} fresh training seeds, "
            f"{options.judges} judges"
        ),
        evaluation=evaluation.to_dict(),
        objectives=list(objectives.names),
        maximise=list(objectives.maximise),
        reference=list(objectives.reference),
        crowds=crowds,
        sweeps=[],
        differences=[],
    )
    audited = {(arm, seed): _audited(plan, Step(arm, seed)) for arm in arms for seed in result.seeds}
    result.sweeps.extend(_sweep_result(result, *step, *found) for step, found in audited.items())
    if result.seeds:
        result.differences.extend(_differences(plan, result, objectives, audited))
    return result


_Audited = tuple[Audit | None, list[Finalist]]
"""The audit of a sweep, if it has a front, and the finalists that fulfil what the study requires."""


def _differences(
    plan: StudyPlan, result: StudyResult, objectives: Objectives, audited: Mapping[tuple[str, int], _Audited]
) -> list[ArmDifference]:
    """Return the differences to the control, with the parts of their spread."""
    volumes = {(a, c): result.hypervolumes(a, c).tolist() for a in result.arms for c in result.crowds}
    drawn = {
        (arm, crowd): [_drawn(*audited[arm, seed], objectives, crowd, seed) for seed in result.seeds]
        for arm in result.arms
        for crowd in result.crowds
    }
    counts = (0, plan.audit_options.seeds, plan.audit_options.judges)
    return [
        replace(one, parts=spread_of_parts(drawn[one.arm, one.crowd], drawn[result.control, one.crowd], counts))
        for one in arm_differences(volumes, arms=result.arms, crowds=result.crowds)
    ]


def _drawn(
    audit: Audit | None, finalists: Sequence[Finalist], objectives: Objectives, crowd: str, seed: int
) -> np.ndarray:
    judged = audit.judged() if audit else None
    return resampled_parts(finalists if judged else [], judged[1] if judged else [], objectives, crowd, seed=seed)


def _audited(plan: StudyPlan, step: Step) -> _Audited:
    audit = audit_of(plan, step)
    if audit is None:
        return None, []
    return audit, [one for one in audit.finalists() if violation(audit.plan.space.require, _numbers(one)) == 0]


def damage(plan: StudyPlan) -> list[str]:
    """Return messages for people about what the ledgers of a study's sweeps have lost."""
    sweeps = [plan.sweep_plan(step) for step in plan.steps if plan.begun(step)]
    return [warning for sweep in sweeps for warning in read_state(sweep).warnings]


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


def _sweep_result(
    result: StudyResult, arm: str, seed: int, audit: Audit | None, finalists: Sequence[Finalist]
) -> SweepResult:
    volumes = {crowd: _hypervolume(finalists, result.objectives_of(crowd)) for crowd in result.crowds}
    if audit is None:
        return SweepResult(arm, seed, volumes, [], [], [])
    course = _course(audit.results, hours=result.effort_unit == "hours")
    return SweepResult(arm, seed, volumes, [_point(audit, one) for one in finalists], course, _curve(finalists))


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


def _curve(finalists: Sequence[Finalist]) -> list[list[float]]:
    """Return the best finalist's accuracy at each budget; all were attacked at the same ones."""
    curves = [each.curve for one in finalists for each in one.own]
    if not curves:
        return []
    best = np.max([curve["accuracies"] for curve in curves], axis=0)
    return [list(pair) for pair in zip(curves[0]["epsilons"], best.tolist(), strict=True)]


def _course(state: SweepState, *, hours: bool) -> list[list[float]]:
    """Return the hypervolume on the validation split over the effort."""
    if hours:
        return [[each.hours, each.hypervolume] for each in state.course]
    return [[float(number), volume] for number, volume in enumerate(state.volumes, start=1)]
