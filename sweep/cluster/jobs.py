"""The commands about a cluster's jobs: what they show. `cluster.py` asks the cluster, `submit.py` sends the sweep."""

from __future__ import annotations

import argparse
import shlex
import time

from rich.console import Console
from rich.table import Table

from sweep.cluster.cluster import ENDED, RUNNING, Cluster, Job, exit_status
from sweep.report import duration
from trainer.progress import ProgressLine

_NAME_SHOWN = 32


def submit_sweep(arguments: argparse.Namespace, console: Console, warn: Console) -> int:
    """Check everything here, ask the cluster what it is, send; the exit status."""
    from sweep.cluster import submit as sending
    from sweep.plan import OPTIONS

    submission = sending.Submission.of(
        arguments.space,
        name=arguments.name,
        options={option: getattr(arguments, option) for option in OPTIONS},
        places={place: getattr(arguments, place) for place in ("storage", "data_dir", "mlflow_uri")},
        require=arguments.require,
        points=arguments.points,
        front_of=arguments.front_of,
    )
    cluster = Cluster(arguments.address)
    jobs = cluster.jobs()
    sending.refuse_twice(submission, jobs)
    with ProgressLine(console.file, f"Asking {cluster.address} ..."):
        there = sending.ask(cluster)
    if differing := sending.differences(there):
        warn.print(f"the cluster differs from this machine: {'; '.join(differing)}", markup=False)
    sending.check_cluster(there, cluster)
    job_id = sending.send(submission, cluster, jobs)
    _show_sent(cluster, job_id, console)
    storage = arguments.storage or there.storage or "~/otsweep"
    console.print(f"storage  {storage}, on the cluster")
    uri = arguments.mlflow_uri or there.mlflow_uri
    view = f"otsweep ui {submission.plan.name} --storage {shlex.quote(storage)}, where that folder is mounted"
    console.print(f"MLflow   {uri or view}", markup=False)
    return _see_off(cluster, job_id, arguments, console, warn)


def resume_sweep(arguments: argparse.Namespace, console: Console, warn: Console) -> int:
    from sweep.cluster import submit as sending

    cluster = Cluster(arguments.address)
    changes = ("data_dir", "mlflow_uri", "max_hours", "max_gpu_hours", "max_concurrent", "pack")
    circumstances = {key: getattr(arguments, key) for key in changes}
    job_id = sending.send_resume(arguments.name, arguments.storage, circumstances, cluster, cluster.jobs())
    _show_sent(cluster, job_id, console)
    return _see_off(cluster, job_id, arguments, console, warn)


def _show_sent(cluster: Cluster, job_id: str, console: Console) -> None:
    console.print(f"job      {job_id} on {cluster.address}", markup=False)
    console.print(f"follow   otsweep logs {job_id} --follow --address {cluster.address}", markup=False)
    console.print(f"stop     otsweep stop {job_id} --address {cluster.address}", markup=False)


def _see_off(cluster: Cluster, job_id: str, arguments: argparse.Namespace, console: Console, warn: Console) -> int:
    """Stay until the end, or until the job has begun: what is wrong there shows within seconds."""
    from sweep.cluster.submit import wait_begun

    if arguments.wait:
        return _follow(cluster, job_id, console, warn)
    with ProgressLine(console.file, "Waiting for it to begin ..."):
        job = wait_begun(cluster, job_id)
    if job.state in ENDED and job.state != "SUCCEEDED":
        _print_plain(console, cluster.log(job_id))
        return exit_status(job)
    return 0


def _follow(cluster: Cluster, job_id: str, console: Console, warn: Console) -> int:
    """Show the job's log as it grows; the job's own exit status."""
    try:
        job = cluster.follow(
            job_id, lambda text: _print_plain(console, text), lambda text: warn.print(text, markup=False)
        )
    except KeyboardInterrupt:
        warn.print(f"no longer following; the sweep goes on: otsweep logs {job_id} --follow", markup=False)
        return 0
    if job.state == "STOPPED":
        console.print(f"{job.id} was stopped; to go on: otsweep resume {job.sweep} --address {cluster.address}")
    return exit_status(job)


def show_logs(arguments: argparse.Namespace, console: Console, warn: Console) -> int:
    cluster = Cluster(arguments.address)
    job = cluster.find(arguments.job)
    if arguments.follow:
        return _follow(cluster, job.id, console, warn)
    _print_plain(console, cluster.log(job.id))
    return 0


def stop_job(arguments: argparse.Namespace, console: Console) -> int:
    """As Ctrl-C would: the epochs in flight end, the ledger is closed, MLflow hears of it."""
    cluster = Cluster(arguments.address)
    job = cluster.find(arguments.job)
    if job.state not in RUNNING:
        console.print(f"{job.id} is over already ({job.state})")
        return 0
    cluster.stop(job)
    with ProgressLine(console.file, f"{job.id}: stopping after the epochs in flight ..."):
        while (job := cluster.job(job.id)).state in RUNNING:
            time.sleep(0.5)
    console.print(f"{job.id}: {job.state.lower()}. To go on:\n  otsweep resume {job.sweep} --address {cluster.address}")
    return 0


def show_jobs(arguments: argparse.Namespace, console: Console) -> int:
    """The sweeps of a cluster, the latest first."""
    cluster = Cluster(arguments.address)
    jobs = cluster.jobs()
    if not jobs:
        console.print(f"{cluster.address} has run no sweep yet.")
        return 0
    table = Table(box=None, pad_edge=False, header_style="")
    for heading in ("job", "state", "begun", "took", "sweep"):
        table.add_column(heading, justify="right" if heading == "took" else "left", max_width=_NAME_SHOWN, no_wrap=True)
    for job in jobs:
        table.add_row(job.id, _state_of(job), _clock(job.started), duration(job.seconds), job.sweep)
    console.print(table)
    return 0


def _state_of(job: Job) -> str:
    return f"failed ({job.exit_status})" if job.state == "FAILED" and job.exit_status else job.state.lower()


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _print_plain(console: Console, text: str) -> None:
    """As it was said there."""
    console.print(text, end="", markup=False, highlight=False)
