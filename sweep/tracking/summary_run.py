"""A run of its own in MLflow for what several sweeps say together (a comparison, a study), or for judged models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sweep.plan import SweepPlan, masked
from sweep.state import read_data_summary
from sweep.tracking.identity import identity_tags, is_own
from sweep.tracking.metrics import MetricRow, milliseconds
from sweep.tracking.mlflow_internals import NOTE_TAG, PARENT_TAG, explain_error, store_errors
from sweep.tracking.store import Store
from trainer.errors import InputError

_FOLDERS = {"comparison": "compare", "study": "study", "judgement": "judge"}
"""Folder among a run's artifacts, by its kind."""


def write_summary(
    plan: SweepPlan,
    kind: str,
    name: str,
    *,
    metrics: Mapping[str, float],
    note: Callable[[str], str],
    folder: Path,
    time: float,
    sweeps: Sequence[SweepPlan] = (),
) -> str:
    """Write a run of such a kind, in place of an earlier one of its name; return its link below an address.

    Args:
        plan: plan of the sweep in whose experiment the run stands.
        kind: `comparison`, `study` or `judgement`.
        note: makes the description from the run's identifier.
        folder: files to upload.
        time: when the latest of the trials ended, in unix seconds.
        sweeps: plans of sweeps whose runs are put below this one.

    Raises:
        InputError: if nothing usable answers.
    """
    store, moment = Store(plan, plan.mlflow_uri), milliseconds(time)
    try:
        store.open_experiment()
        for earlier in store.find_own(kind, name):
            store.client.delete_run(earlier.info.run_id)
        tags = {**identity_tags(plan), "otsweep.plan_hash": plan.hash, "otsweep.kind": kind, f"otsweep.{kind}": name}
        run_id = store.create_run(name, started=moment, tags=tags)
        rows = [MetricRow(key, value, moment, 0) for key, value in metrics.items()]
        params = plan.space.evaluation.to_dict()
        store.log_batch(run_id, metrics=rows, params=params, tags={NOTE_TAG: note(run_id)})
        store.log_data(run_id, read_data_summary(plan.folder))
        store.client.log_artifacts(run_id, str(folder), artifact_path=_FOLDERS[kind])
        for sweep in store.find_runs("tags.`otsweep.kind` = 'sweep'") if sweeps else ():
            if any(is_own(each, sweep.data.tags) and sweep.data.tags["otsweep.sweep"] == each.name for each in sweeps):
                store.client.set_tag(sweep.info.run_id, PARENT_TAG, run_id)
        store.client.set_terminated(run_id, "FINISHED", end_time=moment)
    except store_errors() as error:
        raise InputError(
            f"MLflow at {masked(plan.mlflow_uri)} did not take the {kind} ({explain_error(error)})"
        ) from None
    return f"/#/experiments/{store.experiment}/runs/{run_id}"
