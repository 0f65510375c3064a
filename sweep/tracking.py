"""MLflow: one parent run per sweep, one child per trial. The only importer of mlflow; trials never talk to it.

What MLflow holds is brought up to the results again and again: every pass writes what is missing, and times come from
the ledger, so a pass that is repeated changes nothing. A store that is away for a while costs nothing but time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.results import Results
from sweep.tables import front_markdown, label
from trainer.config import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PASS_SECONDS = 5.0
"""Between two passes: MLflow's own cost (about 30 ms a call) then stays a small share of the driver's time."""

BATCH = 900
"""Metrics in one call; MLflow takes 1,000."""

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
CHOSEN = {
    "sensitivity_accuracy": "sel_sens",
    "invariance_accuracy": "sel_inv",
    "clean_accuracy": "sel_clean",
    "epoch": "sel_epoch",
}
"""Names of the chosen checkpoint's numbers: short, so that the page does not cut them off."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def connect(uri: str) -> MlflowClient:
    """A client of the store at `uri`, checked by asking it something.

    Raises:
        InputError: if nothing usable answers there.
    """
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # It writes the traceback of an error that it then raises: a store that is full is told in one line of ours.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        unreachable = "Max retries exceeded" in str(error)
        reason = "nothing listens there, or it took too long" if unreachable else str(error).splitlines()[0][:300]
        raise InputError(f"no MLflow store answers at {uri}: {reason}") from None
    return client


class Tracker:
    """Writes results into MLflow from a thread of its own, so that neither trials nor the driver wait for it."""

    def __init__(self, plan: SweepPlan, results: Results, say: Callable[[str], None]) -> None:
        self.plan, self.results, self.say = plan, results, say
        self.runs: dict[int, str] = {}
        self.written: dict[int, int] = {}
        self.closed: set[int] = set()
        self.parent: str | None = None
        self.experiment: str | None = None
        self.away = False
        self.problem: InputError | None = None
        self.connected, self.ending = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin to connect; a server is waited for here, since a wrong address should cost no time later."""
        self.thread.start()
        if not self.plan.mlflow_uri.startswith("sqlite:"):
            self.wait_connected()

    def wait_connected(self) -> None:
        """Until the store has answered.

        Raises:
            InputError: if it can't be reached.
        """
        self.connected.wait()
        if self.problem is not None:
            raise self.problem

    def close(self, *, complete: bool) -> None:
        """Write what is left; the parent run is ended if the sweep is complete."""
        self.ending.set()
        self.thread.join()
        if self.problem is None and not self.attempt(lambda: self.finish(complete)):
            self.say("MLflow did not answer at the end: the ledger holds everything that it lacks")

    def work(self) -> None:
        try:
            self.client = connect(self.plan.mlflow_uri)
        except InputError as error:
            self.problem = error
        self.connected.set()
        while self.problem is None and not self.ending.wait(PASS_SECONDS):
            self.attempt(self.write_pass)

    def attempt(self, write: Callable[[], None]) -> bool:
        """Whether it went through; the first failure in a row is said, and the next pass tries again."""
        try:
            write()
        except Exception as error:  # noqa: BLE001 - whatever the store answers, the sweep goes on
            if not self.away:
                self.say(f"MLflow does not take results at the moment ({str(error).splitlines()[0][:200]}); going on")
            self.away = True
            return False
        self.away = False
        return True

    def write_pass(self) -> None:
        """What is missing; nothing before the first trial, so that a sweep that can't begin leaves no run."""
        if not self.results.trials:
            return
        if self.parent is None:
            self.open_parent()
        for record in list(self.results.trials.values()):
            if record.number not in self.closed:
                self.write_trial(record)
        self.write_front()

    def open_parent(self) -> None:
        """This sweep's experiment and parent run: found if an earlier run of the sweep made them, else made."""
        plan, client = self.plan, self.client
        found = client.get_experiment_by_name(plan.space.name)
        if found is None:
            local = plan.mlflow_uri.startswith("sqlite:")
            location = (Path(plan.storage) / "artifacts" / plan.space.name).as_uri() if local else None
            self.experiment = client.create_experiment(plan.space.name, artifact_location=location)
        else:
            self.experiment = found.experiment_id
        parents = self.find_runs(f"tags.`otsweep.sweep` = '{plan.name}' and tags.`otsweep.kind` = 'sweep'")
        self.parent = parents[0].info.run_id if parents else self.create_parent()
        client.update_run(self.parent, status="RUNNING")
        for run in self.find_runs(f"tags.`mlflow.parentRunId` = '{self.parent}'"):
            number = int(run.data.tags["otsweep.trial"])
            self.runs[number] = run.info.run_id
            if run.info.status in STATUS.values() and "otsweep.complete" in run.data.tags:
                self.closed.add(number)

    def find_runs(self, query: str) -> list[Run]:
        assert self.experiment is not None
        runs, token = [], None
        while True:
            page = self.client.search_runs([self.experiment], query, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def create_parent(self) -> str:
        plan = self.plan
        tags = {
            "otsweep.kind": "sweep",
            "otsweep.sweep": plan.name,
            "otsweep.plan_hash": plan.hash,
            "otsweep.code_version": plan.code_version,
            "otsweep.data_fingerprint": self.results.facts.get("data_fingerprint", ""),
        }
        assert self.experiment is not None
        run_id = self.client.create_run(self.experiment, run_name=plan.name, tags=tags).info.run_id
        self.write_params(
            run_id,
            plan.space.evaluation.to_dict() | {"trials": plan.trials, "seeds": plan.seeds, "sampler": plan.sampler},
        )
        return run_id

    def write_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, parameter_text(value)) for key, value in values.items()]
        self.client.log_batch(run_id, params=params)

    def write_trial(self, record: TrialRecord) -> None:
        """Everything of a trial that is not in MLflow yet."""
        if record.number not in self.runs:
            self.runs[record.number] = self.create_child(record)
        run_id, known = self.runs[record.number], self.written.get(record.number, 0)
        reports = record.reports[known:]
        self.write_metrics(run_id, (metric for report in reports for metric in metrics_of(report)))
        self.written[record.number] = known + len(reports)
        if record.state != "running":
            self.close_child(run_id, record)

    def create_child(self, record: TrialRecord) -> str:
        assert self.experiment is not None
        name = f"{record.number:03d} {label(self.plan.space, record.config)}"
        tags = {
            "mlflow.parentRunId": str(self.parent),
            "otsweep.kind": "trial",
            "otsweep.trial": str(record.number),
            "otsweep.seed": str(record.seed),
            "otsweep.configuration": str(record.number - record.number % self.plan.seeds),
        }
        started = int((record.started or 0) * 1000)
        run = self.client.create_run(self.experiment, start_time=started, run_name=name, tags=tags)
        self.write_params(run.info.run_id, record.config)
        return run.info.run_id

    def close_child(self, run_id: str, record: TrialRecord) -> None:
        """End the run; its status is written last, so that a run that has ended is known to be complete."""
        if record.reason:
            self.client.set_tag(run_id, "otsweep.reason", record.reason)
        self.client.set_tag(run_id, "otsweep.complete", "true")
        self.client.set_terminated(run_id, STATUS[record.state], end_time=int((record.ended or 0) * 1000))
        self.closed.add(record.number)

    def write_metrics(self, run_id: str, metrics: Iterable[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        rows = [Metric(key, value, timestamp, step) for key, value, timestamp, step in metrics]
        for start in range(0, len(rows), BATCH):
            self.client.log_batch(run_id, metrics=rows[start : start + BATCH])

    def write_front(self) -> None:
        """The parent's description and, by finished trials, its curves."""
        assert self.parent is not None
        results, count = self.results, len(self.results.finished)
        if not count or count == self.written.get(-1):
            return
        newest = max(record.ended or 0.0 for record in results.finished.values())
        values = {"front_hypervolume": results.front.hypervolume, "front_size": float(results.front.size)}
        self.write_metrics(self.parent, ((key, value, int(newest * 1000), count) for key, value in values.items()))
        self.client.set_tag(self.parent, "mlflow.note.content", front_markdown(self.plan, results, self.runs))
        self.written[-1] = count

    def finish(self, complete: bool) -> None:
        """One more pass, then ranks, picture and table, and the parent's end."""
        self.write_pass()
        if self.parent is None:
            return
        replicates = self.results.replicates()
        for number, rank in self.results.ranks().items():
            run_id, ended = self.runs[number], int((self.results.trials[number].ended or 0) * 1000)
            told = {"pareto_rank": float(rank), **self.results.told_together(number, replicates)}
            self.write_metrics(run_id, [(key, value, ended, 0) for key, value in told.items()])
            self.client.set_tag(run_id, "pareto.rank", str(rank))
            self.client.set_tag(run_id, "pareto.front", str(rank == 0).lower())
        self.write_artifacts()
        last = max((record.ended or 0.0 for record in self.results.trials.values()), default=0.0)
        status = "FINISHED" if complete else "KILLED"
        self.client.set_terminated(self.parent, status, end_time=int(last * 1000) or None)

    def write_artifacts(self) -> None:
        from sweep.figures import save_figure
        from sweep.tables import front_csv, front_picture

        assert self.parent is not None
        with tempfile.TemporaryDirectory(prefix="otsweep-front-") as scratch:
            folder = Path(scratch)
            (folder / "front.csv").write_text(front_csv(self.plan, self.results))
            if self.results.finished:
                save_figure(front_picture(self.plan, self.results), folder / "front.png")
            self.client.log_artifacts(self.parent, str(folder), artifact_path="front")
        self.client.log_artifact(self.parent, str(self.plan.folder / "plan.yaml"))


def metrics_of(report: Mapping[str, Any]) -> Iterable[tuple[str, float, int, int]]:
    """(key, value, milliseconds, step) of a report: per epoch as they are, chosen ones under their short names."""
    timestamp = int(report["time"] * 1000)
    if report["final"]:
        return [(short, float(report[name]), timestamp, 0) for name, short in CHOSEN.items()]
    skipped = ("epoch", "final", "time")
    return [(key, float(value), timestamp, report["epoch"]) for key, value in report.items() if key not in skipped]


def parameter_text(value: Any) -> str:
    """The one form in which a parameter is written: MLflow refuses a second form of the same value."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def serve(plan: SweepPlan, *, port: int, browser: bool, say: Callable[[str], None]) -> int:
    """MLflow's page on the plan's store, on 127.0.0.1, until Ctrl-C; the exit status.

    Raises:
        InputError: if the port is taken, or the store is a server already.
    """
    if not plan.mlflow_uri.startswith("sqlite:"):
        say(f"{plan.name} is tracked by a server already: {page(plan.mlflow_uri, plan)}")
        return 0
    address = f"http://127.0.0.1:{free_port(port)}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", plan.mlflow_uri]
    command += ["--artifacts-destination", str(Path(plan.storage) / "artifacts")]
    environment = {**os.environ, **ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Ended by SIGTERM as by Ctrl-C: the server must not outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            say("Starting MLflow (10 to 30 seconds) ...")
            wait_until_up(address, server)
            if server.poll() is not None:
                log.seek(0)
                say(log.read().decode(errors="replace")[-2000:])
                return 1
            link = page(address, plan)
            say(f"{plan.name}: {link}\nCtrl-C ends it.")
            if browser:
                webbrowser.open(link)
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()
    return 0


def free_port(port: int) -> int:
    """The port, or for 0 any free one, on the loopback address.

    Raises:
        InputError: if it can't be had.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: can't be used ({error}); --port 0 takes a free one") from None
        return probe.getsockname()[1]


def wait_until_up(address: str, server: subprocess.Popen[bytes]) -> None:
    """Until the server answers, or has ended."""
    while server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        time.sleep(0.3)


def page(address: str, plan: SweepPlan) -> str:
    """The link to the sweep's parent run on MLflow's page at `address`."""
    client = connect(plan.mlflow_uri)
    experiment = client.get_experiment_by_name(plan.space.name)
    if experiment is None:
        return address
    query = f"tags.`otsweep.sweep` = '{plan.name}' and tags.`otsweep.kind` = 'sweep'"
    runs = client.search_runs([experiment.experiment_id], query, max_results=1)
    start = f"{address}/#/experiments/{experiment.experiment_id}"
    return f"{start}/runs/{runs[0].info.run_id}?workflowType=machine_learning" if runs else start
