"""Models and pictures of trials, uploaded to their runs once a sweep is over."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan, trial_folder
from sweep.state import SweepState
from sweep.tracking.curves import audited_numbers, write_curves
from sweep.tracking.gallery import GALLERY
from sweep.tracking.metrics import MetricRow, milliseconds, parameter_text, report_metrics
from sweep.tracking.model_export import MODEL, export_models
from sweep.tracking.parts import Parts
from sweep.tracking.store import Log, Store
from sweep.tracking.trial_runs import TrialRun, TrialRuns
from trainer.interrupts import in_hurry
from trainer.plugins import is_plugin


def write_artifacts(plan: SweepPlan, state: SweepState, trials: TrialRuns, parts: Parts, *, log: Log) -> None:
    """Upload models and pictures of the front's trials; models of the others too, where the plan asks for them."""
    if plan.keep_models == "none":
        return
    # A network of one's own is not imported to show it; its model lies in the trial's folder.
    shown = [number for number in state.finished if not is_plugin(state.trials[number].config["architecture"])]
    front = [record.number for record in state.front_records if record.number in shown]
    kept = front if plan.keep_models == "front" else shown
    if problem := export_models(plan, front, models=kept):
        log(f"models and galleries could not be made for MLflow: {problem}")
    store, written = parts.store, trials.runs.keys()
    with parts.apart("models"):
        for number in sorted(written & kept):
            run, folder = trials.runs[number], trial_folder(plan.folder, number) / MODEL
            if (folder / "MLmodel").exists() and not in_hurry():
                write = partial(_write_model, plan, state, store, run.run_id, state.trials[number], folder)
                _once(store, run, "otsweep.model", "mlflow.pytorch", write)
    with parts.apart("galleries and audits"):
        for number in sorted(written & front):
            gallery = trial_folder(plan.folder, number) / GALLERY
            _write_pictures(plan, state, store, trials.runs[number], number, gallery)


def _once(store: Store, run: TrialRun, tag: str, value: str, write: Callable[[], None]) -> None:
    """Write something unless a tag tells that it is there; then write the tag."""
    if run.tags.get(tag) != value:
        write()
        store.client.set_tag(run.run_id, tag, value)
        run.tags[tag] = value


def _write_pictures(
    plan: SweepPlan, state: SweepState, store: Store, run: TrialRun, number: int, gallery: Path
) -> None:
    """Upload a trial's worst examples and, if it was audited, its numbers then and its accuracy over epsilon."""
    upload = partial(store.client.log_artifact, run.run_id)
    if gallery.exists():
        _once(store, run, "otsweep.gallery", GALLERY, partial(upload, str(gallery)))
    with tempfile.TemporaryDirectory(prefix="otsweep-curve-") as scratch:
        audited = Path(scratch) / "audit"
        if digest := write_curves(plan, state, number, audited):
            _once(store, run, "otsweep.audit", digest, partial(upload, str(audited)))
    if numbers := audited_numbers(plan, number):
        timestamp = milliseconds(state.trials[number].reports[-1]["time"])
        rows = [MetricRow(name, value, timestamp, 0) for name, value in numbers.items()]
        write = partial(store.log_batch, run.run_id, metrics=rows)
        _once(store, run, "otsweep.audit_numbers", json.dumps(numbers), write)


def _write_model(
    plan: SweepPlan, state: SweepState, store: Store, run_id: str, record: TrialRecord, folder: Path
) -> None:
    """Upload an MLflow model, linked to its trial's run and to the numbers that it earned."""
    from mlflow.entities import LoggedModelOutput, Metric

    client = store.client
    for unfinished in client.search_logged_models([store.experiment], filter_string=f"source_run_id = '{run_id}'"):
        client.delete_logged_model(unfinished.model_id)
    params = {key: parameter_text(value) for key, value in plan.space.active(record.config).items()}
    model = client.create_logged_model(
        store.experiment, f"{plan.name}-{record.number:03d}", run_id, params=params, model_type="classifier"
    )
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    earned = [
        Metric(
            *row,
            model_id=model.model_id,
            dataset_name=plan.space.evaluation.dataset,
            dataset_digest=state.data_summary.get("data_fingerprint", ""),
            run_id=run_id,
        )
        for row in report_metrics(record.reports[-1])
    ]
    client.log_batch(run_id, metrics=earned)
