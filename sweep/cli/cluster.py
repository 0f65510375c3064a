"""The commands about a cluster's jobs: `submit`, `jobs`, `logs`, `stop`, and `resume` there."""

from __future__ import annotations

import argparse
import json
import shlex
import time

from rich.table import Table

from sweep.cli.console import DONE, add_format, check_format, console, errors
from sweep.cli.study import study_options
from sweep.cluster import (
    ENDED,
    RUNNING,
    Cluster,
    Job,
    Sent,
    Submission,
    ask_cluster,
    check_cluster,
    differences,
    exit_status,
    refuse_duplicate,
    send,
    send_resume,
    study_submission,
    wait_for_start,
)
from trainer.errors import InputError
from trainer.progress import ProgressLine

_LONGEST_NAME = 32


def add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="URL", help="the cluster's dashboard (default: RAY_API_SERVER_ADDRESS)")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    add_address(parser)
    add_format(parser, ("table", "json"))


def add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", action="store_true", help="follow the job's log to its end, and exit with the job's status"
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="list every file that is sent, with its size in bytes")


def add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="id of a job, or the name of its sweep")
    add_address(parser)


def add_logs(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument(
        "--follow", action="store_true", help="show new lines until the job ends, and exit with its status"
    )


def submit(arguments: argparse.Namespace) -> int:
    """Check everything here, ask the cluster what it runs, and send the sweep or the study."""
    submission = _submission_of(arguments)
    cluster = Cluster(arguments.address)
    known = cluster.jobs()
    refuse_duplicate(submission, known)
    with ProgressLine(console.file, f"Asking {cluster.address} ..."):
        info = ask_cluster(cluster)
    if differing := differences(info):
        errors.print(f"the cluster differs from this machine: {'; '.join(differing)}", markup=False)
    check_cluster(info, cluster.address)
    sent = send(submission, cluster, known)
    _show_sent(cluster, sent, is_listed=arguments.verbose)
    storage = arguments.storage or info.storage or "~/otsweep"
    console.print(f"storage  {storage}, on the cluster")
    uri = arguments.mlflow_uri or info.mlflow_uri
    view = f"otsweep ui {submission.plan.name} --storage {shlex.quote(storage)}, where that folder is mounted"
    console.print(f"MLflow   {uri or view}", markup=False)
    return _wait(cluster, sent.job_id, arguments)


def _submission_of(arguments: argparse.Namespace) -> Submission:
    """Return the sweep, or the study, that the arguments describe."""
    from search_spaces import names_study
    from sweep.plan import OPTIONS, PLACES, SPACE_OPTIONS

    is_study = names_study(arguments.space)
    given = study_options(arguments) if is_study else {option: getattr(arguments, option) for option in OPTIONS}
    paths = {place: given.pop(place) for place in PLACES}
    if is_study:
        return study_submission(
            arguments.space, name=arguments.name, options=given, paths=paths, settings=arguments.set or ()
        )
    changes = {option: getattr(arguments, option) for option in SPACE_OPTIONS}
    return Submission.of(arguments.space, name=given.pop("name"), options=given, paths=paths, **changes)


def resume_there(arguments: argparse.Namespace) -> int:
    """Send the resumption of a sweep."""
    from sweep.plan import EXTENDING, RESUMABLE

    cluster = Cluster(arguments.address)
    if arguments.space is not None:
        raise InputError("--space: extends a sweep where its storage is; leave it, or --address, out")
    overrides = {key: getattr(arguments, key) for key in (*RESUMABLE, *EXTENDING)}
    given = {"--other-versions": arguments.other_versions, "--retry-failed": arguments.retry_failed}
    flags = tuple(flag for flag, is_set in given.items() if is_set)
    sent = send_resume(arguments.name, arguments.storage, overrides, cluster, cluster.jobs(), flags=flags)
    _show_sent(cluster, sent)
    return _wait(cluster, sent.job_id, arguments)


def _show_sent(cluster: Cluster, sent: Sent, *, is_listed: bool = False) -> None:
    job_id, package = sent
    if package.warning:
        errors.print(package.warning, markup=False)
    console.print(f"sent     {package.summary}", markup=False)
    if is_listed:
        for name, size in package.sizes.items():
            console.print(f"{size:>9,}  {name}", markup=False)
    console.print(f"job      {job_id} on {cluster.address}", markup=False)
    console.print(f"follow   otsweep logs {job_id} --follow --address {cluster.address}", markup=False)
    console.print(f"stop     otsweep stop {job_id} --address {cluster.address}", markup=False)


def _wait(cluster: Cluster, job_id: str, arguments: argparse.Namespace) -> int:
    """Wait until the end, or until the job has begun: what is wrong there shows within seconds."""
    if arguments.wait:
        return _follow(cluster, job_id)
    with ProgressLine(console.file, "Waiting for it to begin ..."):
        job = wait_for_start(cluster, job_id)
    if job.state in ENDED and job.state != "SUCCEEDED":
        _print_plain(cluster.log(job_id))
        return exit_status(job)
    return DONE


def _follow(cluster: Cluster, job_id: str) -> int:
    """Show the job's log as it grows; return the job's own exit status."""
    try:
        job = cluster.follow(job_id, _print_plain, lambda text: errors.print(text, markup=False))
    except KeyboardInterrupt:
        errors.print(f"no longer following; the sweep goes on: otsweep logs {job_id} --follow", markup=False)
        return DONE
    if job.state == "STOPPED":
        console.print(f"{job.id} was stopped; to go on: otsweep resume {job.sweep} --address {cluster.address}")
    return exit_status(job)


def logs(arguments: argparse.Namespace) -> int:
    """Show what a job has printed, or prints until it ends."""
    cluster = Cluster(arguments.address)
    job = cluster.find(arguments.job)
    if arguments.follow:
        return _follow(cluster, job.id)
    _print_plain(cluster.log(job.id))
    return DONE


def stop(arguments: argparse.Namespace) -> int:
    """Stop a job as Ctrl-C would: the epochs in flight end, the ledger is closed, MLflow is brought up to date."""
    cluster = Cluster(arguments.address)
    job = cluster.find(arguments.job)
    if job.state not in RUNNING:
        console.print(f"{job.id} is over already ({job.state})")
        return DONE
    cluster.stop(job)
    with ProgressLine(console.file, f"{job.id}: stopping after the epochs in flight ..."):
        while (job := cluster.job(job.id)).state in RUNNING:
            time.sleep(0.5)
    console.print(f"{job.id}: {job.state.lower()}. To go on:\n  otsweep resume {job.sweep} --address {cluster.address}")
    return DONE


def jobs(arguments: argparse.Namespace) -> int:
    """Show the sweeps of a cluster, the latest first."""
    from sweep.report import duration

    check_format(arguments)
    cluster = Cluster(arguments.address)
    found = cluster.jobs()
    if arguments.format == "json":
        print(json.dumps({"cluster": cluster.address, "jobs": [job._asdict() for job in found]}, indent=2))
        return DONE
    if not found:
        console.print(f"{cluster.address} has run no sweep yet.")
        return DONE
    table = Table(box=None, pad_edge=False, header_style="")
    for heading in ("job", "state", "begun", "took", "sweep"):
        justify = "right" if heading == "took" else "left"
        table.add_column(heading, justify=justify, max_width=_LONGEST_NAME, no_wrap=True)
    for job in found:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started))
        table.add_row(job.id, _state_of(job), begun, duration(job.seconds), job.sweep)
    console.print(table)
    return DONE


def _state_of(job: Job) -> str:
    return f"failed ({job.exit_status})" if job.state == "FAILED" and job.exit_status else job.state.lower()


def _print_plain(text: str) -> None:
    """Print a job's own text as it is."""
    console.print(text, end="", markup=False, highlight=False)
