"""A sweep, or a study, ready to be sent to a cluster: its plan, the command that starts it there, its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from search_spaces import Space, dump_yaml
from sweep.cluster.cluster import REFUSED, RUNNING, Job
from sweep.plan import (
    StudyPlan,
    SweepPlan,
    absolute_uri,
    check_name,
    check_options,
    code_version,
    default_mlflow_uri,
    default_name,
    draft_study,
    flag,
    masked,
    option_words,
    storage_folder,
)
from trainer.errors import InputError
from trainer.own_crowds import find_crowd


@dataclass(frozen=True)
class Submission:
    """A sweep, or a study, that is ready to be sent."""

    plan: SweepPlan | StudyPlan
    """Plan as this machine sees it; storage and MLflow are the cluster's business."""

    storage: str | None
    """Storage folder as the cluster's nodes see it; None for the cluster's own."""

    command: tuple[str, ...]
    """Words of the command that runs there, after `otsweep`."""

    space_file: tuple[str, str] | None
    """Name and text of the space's or study's file; None for one that comes with otsweep and is swept as it is."""

    named: bool
    """True if the user chose the name."""

    @classmethod
    def of(
        cls,
        space: str,
        *,
        name: str | None,
        options: Mapping[str, Any],
        paths: Mapping[str, str | None],
        **changes: Any,
    ) -> Self:
        """Make a submission from the command's arguments.

        Args:
            space: a name or the path of a YAML or JSON file of this machine.
            options: fields named in `sweep.plan.OPTIONS`, as typed; None for what was not given.
            paths: `storage`, `data_dir` and `mlflow_uri` as the cluster's nodes see them; None for the cluster's own.
            changes: options of the space, named in `sweep.plan.SPACE_OPTIONS`; files, sweeps and crowds are this
                machine's, and are sent by value.

        Raises:
            InputError: naming what is wrong, before the cluster is asked anything.
        """
        from sweep.search import read_space  # Optuna comes with it

        given = {key: value for key, value in options.items() if value is not None}
        whole = read_space(space, changes, storage=None)
        whole = whole.judged_by(find_crowd(whole.evaluation.crowd, storage_folder()))
        for option, path in paths.items():
            check_path(option, path)
        chosen = check_name(name) if name is not None else default_name(whole.name, Path("/nonexistent"))
        plan = _draft(whole, name=chosen, mlflow_uri=paths.get("mlflow_uri"), options=given)
        sent = any(changes.values()) or Path(space).suffix.lower() in (".yaml", ".yml", ".json")
        file = (f"{whole.name}.yaml", dump_yaml(whole.to_dict())) if sent else None
        command = ("run", file[0] if file else space, "--name", chosen, *option_words({**paths, **given}))
        return cls(plan, paths.get("storage"), command, file, name is not None)


def study_submission(
    file: str,
    *,
    name: str | None,
    options: Mapping[str, Any],
    paths: Mapping[str, str | None],
    settings: Sequence[str] = (),
) -> Submission:
    """Make a submission of a study from the command's arguments, which are those of `Submission.of`.

    Args:
        settings: values that `--set` fixes for all arms.

    Raises:
        InputError: naming what is wrong, before the cluster is asked anything.
    """
    for option, path in paths.items():
        check_path(option, path)
    plan = draft_study(file, name=name, options=options, folder=Path("/nonexistent"), settings=settings)
    named = plan.study.space(*plan.steps[0]).evaluation.crowd
    crowd = find_crowd(named, storage_folder())
    if crowd != named:  # one of this machine's storage, which the cluster does not have, is sent by value
        plan = dataclasses.replace(plan, study=plan.study.judged_by(crowd))
    sent = bool(settings) or crowd != named or Path(file).suffix.lower() in (".yaml", ".yml", ".json")
    space_file = (f"{plan.study.name}.yaml", dump_yaml(plan.study.source)) if sent else None
    words = ("study", space_file[0] if space_file else file, "--name", plan.name, *option_words({**paths, **options}))
    return Submission(plan, paths.get("storage"), words, space_file, name is not None)


def _draft(space: Space, *, name: str, mlflow_uri: str | None, options: Mapping[str, Any]) -> SweepPlan:
    """Make the plan that the cluster will make of these options, apart from the paths there."""
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


def check_path(option: str, path: str | None) -> None:
    """Check a folder or URL on the cluster, which this machine can't look into.

    Raises:
        InputError: if it depends on the current folder, or holds a secret.
    """
    if path is None or option == "mlflow_uri":
        return
    if masked(path) != path:
        raise InputError(f"{flag(option)} {masked(path)!r}: holds a secret; give it to the cluster's nodes instead")
    if not (path.startswith("/") or "://" in path):
        raise InputError(f"{flag(option)} {path!r}: must be an absolute path or a URL, as the cluster's nodes see it")


def refuse_duplicate(submission: Submission, jobs: list[Job]) -> None:
    """Check that the cluster has not run the same plan, unless it was given another name; refused jobs do not count.

    Raises:
        InputError: naming the job that runs or ran it.
    """
    plan = submission.plan
    for job in jobs:
        if job.exit_status == REFUSED:
            continue
        if job.sweep == plan.name:
            raise InputError(f"--name {plan.name!r}: that sweep is on this cluster, {_describe(job)}")
        if job.plan_hash == plan.hash and not submission.named:
            raise InputError(f"this very plan is on this cluster as {job.sweep!r}, {_describe(job)}")


def _describe(job: Job) -> str:
    """Tell a job's state, and what can be done instead of sending its sweep again."""
    goes_on = f"otsweep logs {job.id} --follow" if job.state in RUNNING else f"otsweep resume {job.sweep} --address ..."
    return f"job {job.id}, {job.state.lower()}; go on with it by `{goes_on}`, or give this one another --name"
