"""Settings that models are judged by: the data, the budgets, the crowd, the effort, and where results go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces import space_from_dict
from sweep.plan import JUDGE_OPTIONS, AuditOptions, SweepPlan, make_plan
from trainer.config import DATASETS, EvaluationConfig, TrialConfig, usual_evaluation
from trainer.crowds import check_crowd
from trainer.errors import InputError
from trainer.fields import parse_settings


def judging_options(given: Mapping[str, Any]) -> AuditOptions:
    """Return the effort, as typed; errors as of `AuditOptions.of`."""
    return AuditOptions.of({name: given.get(name) for name in JUDGE_OPTIONS})


def judging_plan(
    dataset: str,
    *,
    settings: Sequence[str] = (),
    crowd: str | None = None,
    storage: str | None = None,
    mlflow_uri: str | None = None,
    data_dir: str | None = None,
    cpus: int | None = None,
) -> SweepPlan:
    """Return a plan that is never run: it holds what models are judged by as a sweep's does.

    Args:
        dataset: name of the data, or one's own.
        settings: `key=value` of fields of `EvaluationConfig`, in place of what is usual for the data.
        crowd: whose answers count; None for the usual one.
        storage: folder of all sweeps.
        mlflow_uri: store or server of MLflow.
        data_dir: folder with data sets.
        cpus: threads, on which the last digits depend.

    Raises:
        InputError: naming the option that is wrong.
    """
    given = parse_settings([f"dataset={dataset}", *settings], TrialConfig, EvaluationConfig)
    if wrong := sorted(given.keys() - EvaluationConfig.fields().keys()):
        raise InputError(
            f"--set {wrong[0]}: says how a model trains; what it is judged by is {', '.join(EvaluationConfig.fields())}"
        )
    evaluation = usual_evaluation(given["dataset"]).replace(**given)
    if evaluation.eval_sensitivity_epsilon == 0:
        raise InputError("eval_sensitivity_epsilon = 0: judging needs an attack, and so a budget above 0")
    name = f"judge-{evaluation.dataset if evaluation.dataset in DATASETS else 'own'}"
    space = space_from_dict({"name": name, "evaluation": evaluation.written(), "space": {}, "points": [{}]})
    plan = make_plan(
        space.judged_by(crowd), storage=storage, mlflow_uri=mlflow_uri, data_dir=data_dir, cpus_per_trial=cpus
    )
    check_crowd(plan.space.evaluation)
    return plan
