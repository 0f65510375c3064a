"""Send a sweep to a cluster as a Ray job: the project as it is here, and the words that start it there.

The project goes as source alone: the three packages (a few hundred kilobytes) and the search space, be they a working
tree or installed. No data, no environment, no secret: the cluster has its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from search_spaces import Space, dump_yaml, load_space
from sweep.cluster.cluster import ENDED, HASH, REFUSED, RUNNING, STORAGE, SWEEP, Cluster, ClusterError, Job
from sweep.plan import (
    CODE_VERSION,
    PLACES,
    SweepPlan,
    absolute_uri,
    check_name,
    check_options,
    code_version,
    default_mlflow_uri,
    default_name,
    installed_version,
    masked,
)
from sweep.search import with_given_points
from trainer.errors import InputError

_PACKAGES = ("search_spaces", "sweep", "trainer")
_SOURCE = ("*.py", "*.yaml", "*.html")

_STOP_SECONDS = 600
"""How long Ray waits for a job that was asked to end, before it kills it. Its own 3 seconds are too few for the epochs
in flight; a sweep that is killed can be resumed too, and says less."""

_ASK_SECONDS, _BEGIN_SECONDS, _LAST_WORDS_SECONDS = 60.0, 60.0, 3.0

_QUESTION = """
import importlib.util, json, os, platform
needed = ("mlflow", "optuna", "pyarrow", "ray", "rich", "scipy", "sklearn", "torch", "torchvision", "yaml")
print(json.dumps({
    "python": platform.python_version(),
    "missing": [name for name in needed if importlib.util.find_spec(name) is None],
    "storage": os.environ.get("OTSWEEP_STORAGE", ""),
    "mlflow_uri": os.environ.get("MLFLOW_TRACKING_URI", ""),
}))
"""
"""Asked before anything of ours is sent: one line that the cluster's own Python runs."""


class ClusterInfo(NamedTuple):
    """What a cluster has."""

    python: str
    ray: str
    missing: tuple[str, ...]
    """Libraries that a sweep needs and its head has not."""
    storage: str
    """Its own OTSWEEP_STORAGE, empty where it has none."""
    mlflow_uri: str
    """Its own MLFLOW_TRACKING_URI, empty where it has none."""


@dataclass(frozen=True)
class Submission:
    """A sweep that is ready to be sent."""

    plan: SweepPlan
    """As this machine sees it: its storage and its MLflow are the cluster's business."""

    storage: str | None
    """As the cluster's nodes see it; None for its own."""

    words: tuple[str, ...]
    """Of the command that runs there, after `otsweep`."""

    space_file: tuple[str, str] | None
    """Name and text of a space that does not come with otsweep as it is."""

    named: bool
    """Whether the user chose the name."""

    @classmethod
    def of(
        cls,
        space: str,
        *,
        name: str | None,
        options: Mapping[str, Any],
        places: Mapping[str, str | None],
        require: Sequence[str] = (),
        points: Path | None = None,
        front_of: str | None = None,
    ) -> Self:
        """From the words of the command.

        Args:
            space: a name or the path of a YAML file of this machine.
            require: what the space shall require too.
            points: a file of this machine with configurations to run first.
            front_of: a sweep of this machine whose front is run first.
            options: fields named in `sweep.plan.OPTIONS`, as typed; None where not given.
            places: `storage`, `data_dir` and `mlflow_uri` as the cluster's nodes see them; None for its own.

        Raises:
            InputError: naming what is wrong, before the cluster is asked anything.
        """
        given = {key: value for key, value in options.items() if value is not None}
        whole = with_given_points(load_space(space).requiring(require), file=points, sweep=front_of, storage=None)
        for place, text in places.items():
            _check_place(place, text)
        chosen = check_name(name) if name is not None else default_name(whole.name, Path("/nonexistent"))
        plan = _draft(whole, name=chosen, mlflow_uri=places.get("mlflow_uri"), options=given)
        changed = bool(require) or points is not None or front_of is not None
        sent = changed or Path(space).suffix in (".yaml", ".yml")
        file = (f"{whole.name}.yaml", dump_yaml(whole.to_dict())) if sent else None
        words = ["run", file[0] if file else space, "--name", chosen]
        for key, value in {**places, **given}.items():
            words += ["--" + key.replace("_", "-"), str(value)] if value is not None else []
        return cls(plan, places.get("storage"), tuple(words), file, name is not None)


def _draft(space: Space, *, name: str, mlflow_uri: str | None, options: Mapping[str, Any]) -> SweepPlan:
    """The plan that the cluster will make of these options, but for where things are there."""
    given = check_options(options)
    return SweepPlan(
        name=name,
        space=space,
        storage="",
        mlflow_uri=absolute_uri(mlflow_uri) if mlflow_uri else default_mlflow_uri(Path("/")),
        created="",
        code_version=code_version(),
        versions={},
        **{"trials": space.trials, **given},
    )


def _check_place(place: str, text: str | None) -> None:
    """A folder or URL on the cluster, which this machine can't look into.

    Raises:
        InputError: if it depends on the folder that one is in, or holds a secret.
    """
    flag = "--" + place.replace("_", "-")
    if text is None or place == "mlflow_uri":
        return
    if masked(text) != text:
        raise InputError(f"{flag} {masked(text)!r}: holds a secret; give it to the cluster's nodes instead")
    if not (text.startswith("/") or "://" in text):
        raise InputError(f"{flag} {text!r}: must be an absolute path or a URL, as the cluster's nodes see it")


def ask(cluster: Cluster) -> ClusterInfo:
    """What the cluster runs and where it keeps things; nothing of ours is sent for that.

    Raises:
        ClusterError: if its Python does not answer.
    """
    client = cluster.client
    with cluster.answering():
        job_id = client.submit_job(entrypoint=f"python -c {shlex.quote(_QUESTION)}")
        deadline = time.monotonic() + _ASK_SECONDS
        while (state := client.get_job_status(job_id)) not in ENDED:
            if time.monotonic() > deadline:
                client.stop_job(job_id)
                raise ClusterError(f"{cluster.address}: its head has started nothing within {_ASK_SECONDS:.0f} s")
            time.sleep(0.2)
    said = cluster.log(job_id).strip()
    while state == "SUCCEEDED" and not answer_in(said) and time.monotonic() < deadline:
        time.sleep(0.2)  # a job can have ended before all that it said is in its log
        said = cluster.log(job_id).strip()
    with cluster.answering():
        client.delete_job(job_id)
    if state != "SUCCEEDED":
        raise ClusterError(f"{cluster.address}: its head has no command `python` that runs: {said[-300:]}")
    answer = answer_in(said)
    if not answer:
        raise ClusterError(f"{cluster.address}: its head did not say what it runs, but: {said[-300:]}")
    return ClusterInfo(
        answer["python"], cluster.ray_version, tuple(answer["missing"]), answer["storage"], masked(answer["mlflow_uri"])
    )


def answer_in(said: str) -> dict[str, Any]:
    """What `QUESTION` printed, among lines that Ray may write around it; empty where it is not there."""
    for line in reversed(said.splitlines()):
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict) and "python" in answer:
                return answer
    return {}


def differences(there: ClusterInfo, *, python: str | None = None, ray: str | None = None) -> list[str]:
    """Clauses that tell how the cluster differs from this machine; a patch release of Python is none."""
    here_python, here_ray = python or platform.python_version(), ray or installed_version("ray")
    said = []
    if there.python.split(".")[:2] != here_python.split(".")[:2]:
        said.append(f"Python {there.python} there, {here_python} here")
    if there.ray != here_ray:
        said.append(f"Ray {there.ray} there, {here_ray} here")
    return said


def check_cluster(there: ClusterInfo, cluster: Cluster) -> None:
    """Whether the sweep can run there at all.

    Raises:
        InputError: if it can't.
    """
    if tuple(map(int, there.python.split(".")[:2])) < (3, 11):
        raise InputError(f"{cluster.address}: runs Python {there.python}; otsweep needs 3.11 or newer")
    if there.missing:
        raise InputError(
            f"{cluster.address}: its head lacks {', '.join(there.missing)}; use the image in docker/, or install "
            "what otsweep depends on there"
        )


def refuse_twice(submission: Submission, jobs: list[Job]) -> None:
    """The same plan runs once, unless it was given another name; one that was refused there does not count.

    Raises:
        InputError: naming the job that runs or ran it.
    """
    plan = submission.plan
    counting = [job for job in jobs if job.exit_status != REFUSED]
    for job in counting:
        if job.sweep == plan.name:
            raise InputError(f"--name {plan.name!r}: that sweep is on this cluster, {_told(job)}")
        if job.plan_hash == plan.hash and not submission.named:
            raise InputError(f"this very plan is on this cluster as {job.sweep!r}, {_told(job)}")


def _told(job: Job) -> str:
    """How a job stands, and what can be done instead of sending its sweep again."""
    on = f"otsweep logs {job.id} --follow" if job.state in RUNNING else f"otsweep resume {job.sweep} --address ..."
    return f"job {job.id}, {job.state.lower()}; go on with it by `{on}`, or give this one another --name"


def free_id(sweep: str, jobs: list[Job]) -> str:
    """The sweep's name and the number of its job: one more with each resumption."""
    taken = {job.id for job in jobs}
    return next(name for number in itertools.count(1) if (name := f"{sweep}.{number}") not in taken)


def send(submission: Submission, cluster: Cluster, jobs: list[Job]) -> str:
    """Submit the sweep; the job's id."""
    plan = submission.plan
    metadata = {SWEEP: plan.name, HASH: plan.hash, STORAGE: submission.storage or ""}
    return _start(cluster, submission.words, metadata, jobs, space_file=submission.space_file)


def send_resume(
    name: str, storage: str | None, overrides: Mapping[str, str | None], cluster: Cluster, jobs: list[Job]
) -> str:
    """Submit the resumption of a sweep that the cluster's storage holds; the job's id.

    Args:
        storage: None for where the sweep's latest job had it.
        overrides: what a resume may change, as typed; None where not given.

    Raises:
        InputError: if it runs already.
    """
    check_name(name)
    _check_place("storage", storage)
    earlier = [job for job in jobs if job.sweep == name]
    if running := [job for job in earlier if job.state in RUNNING]:
        raise InputError(f"{name} runs already: follow it by `otsweep logs {running[0].id} --follow`")
    storage = storage or (earlier[0].storage if earlier else "")
    check_options({key: value for key, value in overrides.items() if key not in PLACES})
    given = {**overrides, "storage": storage or None}
    options = [("--" + key.replace("_", "-"), value) for key, value in given.items() if value is not None]
    words = ("resume", name, *itertools.chain.from_iterable(options))
    metadata = {SWEEP: name, HASH: earlier[0].plan_hash if earlier else "", STORAGE: storage}
    return _start(cluster, words, metadata, jobs)


def _start(
    cluster: Cluster,
    words: tuple[str, ...],
    metadata: dict[str, str],
    jobs: list[Job],
    *,
    space_file: tuple[str, str] | None = None,
) -> str:
    """Send the project, and run `otsweep` with these words in it; the job's id."""
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS), CODE_VERSION: code_version()}
    with tempfile.TemporaryDirectory(prefix="otsweep-submit-") as scratch, cluster.answering():
        pack(Path(scratch), space_file)
        return cluster.client.submit_job(
            # The shell gives its place to the sweep, which then is the one that is asked to stop.
            entrypoint=f"exec python -m sweep {shlex.join(words)}",
            submission_id=free_id(metadata[SWEEP], jobs),
            runtime_env={"working_dir": scratch, "env_vars": environment},
            metadata=metadata,
        )


def pack(folder: Path, space_file: tuple[str, str] | None) -> None:
    """The project's source, as it is imported here, and the space."""
    root = Path(__file__).resolve().parents[2]
    for package in _PACKAGES:
        for path in sorted(path for pattern in _SOURCE for path in (root / package).rglob(pattern)):
            target = folder / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    if space_file:
        name, text = space_file
        (folder / name).write_text(text)


def wait_begun(cluster: Cluster, job_id: str, *, seconds: float = _BEGIN_SECONDS) -> Job:
    """The job once it runs or has ended, so that what is wrong there is known here; or as it is after `seconds`."""
    deadline, said = time.monotonic() + seconds, False
    while (job := cluster.job(job_id)).state in RUNNING and time.monotonic() < deadline:
        if not said and cluster.log(job_id).strip():
            # What it says first may be its last words, and its end is known a moment later.
            deadline, said = time.monotonic() + _LAST_WORDS_SECONDS, True
        time.sleep(0.3)
    return job
