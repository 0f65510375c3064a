"""A sweep as an Optuna study in an SQLite file, for Optuna's own tools, such as its dashboard."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.search.optuna_internals import CONSTRAINTS, contains

_STATES = {
    "running": TrialState.RUNNING,
    "paused": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def write_optuna_study(plan: SweepPlan, trials: Mapping[int, TrialRecord], path: Path) -> None:
    """Write a study that has the sweep's name, and a trial for each of its trials with the same number.

    A trial has the drawn knobs with the sampler's own distributions, the objectives, the amounts by which it violates
    requirements as constraints, and the first objective by epoch as intermediate values. All else that is known of it
    are attributes: `config.<knob>` for settings that were not drawn, `report.<number>` of its last report, and each
    objective by epoch under its name.

    Args:
        path: an SQLite file, replaced if it exists.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = [StudyDirection.MAXIMIZE if high else StudyDirection.MINIMIZE for high in plan.objectives.maximise]
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".otsweep-") as folder:
        draft = Path(folder) / "study.db"
        storage = RDBStorage(f"sqlite:///{draft}")
        study = optuna.create_study(storage=storage, study_name=plan.name, directions=directions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(plan.objectives.names))
        for name, value in {"sampler": plan.sampler, "seed": plan.seed, "plan_hash": plan.hash}.items():
            study.set_user_attr(name, value)
        for number in range(max(trials, default=-1) + 1):
            study.add_trial(_trial(plan, trials.get(number, TrialRecord(number, state="failed", reason="lost"))))
        storage.remove_session()
        storage.engine.dispose()
        os.replace(draft, path)


def _trial(plan: SweepPlan, record: TrialRecord) -> FrozenTrial:
    """Return a trial as Optuna has it; one whose result was lost has failed."""
    state = _STATES[record.state]
    if state == TrialState.COMPLETE and record.result is None:
        state = TrialState.FAIL
    drawn = plan.space.distributions(record.config) if record.config else {}
    drawn = {name: each for name, each in drawn.items() if contains(each, record.config[name])}
    epochs = {report["epoch"]: report for report in record.reports if not report["final"]}
    first = plan.objectives.names[0]
    attributes: dict[str, Any] = {"seed": record.seed, "host": record.host, "reason": record.reason}
    attributes |= {f"config.{name}": value for name, value in record.config.items() if name not in drawn}
    attributes |= {f"report.{name}": value for name, value in (record.reports[-1] if record.reports else {}).items()}
    attributes |= {name: [report[name] for report in epochs.values()] for name in plan.objectives.names}
    system = json.loads(record.sampler_state or "{}").get("trial", {})
    if record.result is not None and plan.space.require:
        system[CONSTRAINTS] = [each.excess(record.result[each.name]) for each in plan.space.require]
    values = [record.result[name] for name in plan.objectives.names] if record.result else None
    return FrozenTrial(
        number=record.number,
        trial_id=record.number,
        state=state,
        value=None,
        values=values if state == TrialState.COMPLETE else None,
        datetime_start=_time(record.started),
        datetime_complete=None if state == TrialState.RUNNING else _time(record.ended),
        params={name: record.config[name] for name in drawn},
        distributions=drawn,
        user_attrs=attributes,
        system_attrs=system,
        intermediate_values={epoch: report[first] for epoch, report in epochs.items()},
    )


def _time(seconds: float | None) -> datetime.datetime:
    """Return a time as Optuna keeps it: local, without a zone; the epoch where it was lost."""
    return datetime.datetime.fromtimestamp(seconds or 0.0)
