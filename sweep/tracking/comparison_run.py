"""A run of its own in MLflow for a comparison of sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sweep.plan import SweepPlan, masked
from sweep.state import read_data_summary
from sweep.tracking.metrics import MetricRow, milliseconds
from sweep.tracking.mlflow_internals import NOTE_TAG, explain_error, store_errors
from sweep.tracking.store import Store
from trainer.errors import InputError


def write_comparison(
    plan: SweepPlan,
    name: str,
    *,
    metrics: Mapping[str, float],
    note: Callable[[str], str],
    folder: Path,
    time: float,
) -> str:
    """Write a run for a comparison, in place of an earlier one of the same name; return its link below an address.

    Args:
        plan: plan of the sweep in whose experiment the run stands.
        note: makes the description from the run's identifier.
        folder: files to upload.
        time: when the latest of the compared trials ended, in unix seconds.

    Raises:
        InputError: if nothing usable answers.
    """
    store, moment = Store(plan, plan.mlflow_uri), milliseconds(time)
    try:
        store.open_experiment()
        for earlier in store.find_runs(f"tags.`otsweep.comparison` = '{name}'"):
            store.client.delete_run(earlier.info.run_id)
        tags = {"otsweep.kind": "comparison", "otsweep.comparison": name}
        run_id = store.create_run(name, started=moment, tags=tags)
        rows = [MetricRow(key, value, moment, 0) for key, value in metrics.items()]
        params = plan.space.evaluation.to_dict()
        store.log_batch(run_id, metrics=rows, params=params, tags={NOTE_TAG: note(run_id)})
        store.log_data(run_id, read_data_summary(plan.folder))
        store.client.log_artifacts(run_id, str(folder), artifact_path="compare")
        store.client.set_terminated(run_id, "FINISHED", end_time=moment)
    except store_errors() as error:
        raise InputError(
            f"MLflow at {masked(plan.mlflow_uri)} did not take the comparison ({explain_error(error)})"
        ) from None
    return f"/#/experiments/{store.experiment}/runs/{run_id}"
