"""Audit a sweep: its finalists trained again on fresh seeds and judged on the test split by the full set of attacks.

A front is the best of many noisy numbers, selected on the validation split under a cheap attack, so it looks better
than it is. The audit says how much of it is left. All that it finds lies in `<sweep>/audit/`:

    0003-<seed>.json       one finalist on one seed, written at once and whole: an audit that was stopped goes on here
    models/                checkpoints and models: 0003-<seed>/, and undefended-<digest>/ for the twins
    audit.png curves.png   the audited front beside the selected one; accuracy over epsilon
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from sweep.audit.finalists import MEASURED, Finalist, choose_finalists, one_of_each
from sweep.audit.judging import (
    AuditOptions,
    AuditResult,
    AuditTask,
    audit_one,
    prepare_test,
    read_result,
    train_undefended,
)
from sweep.engine import (
    LOST_WORKER_RETRIES,
    SignalHandler,
    concurrency,
    make_task,
    prepare,
    ray_session,
    record_data_summary,
)
from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.report import duration, requirements_text
from sweep.state import SweepState
from trainer.config import TrialConfig
from trainer.errors import InputError
from trainer.fields import check_value
from trainer.human_agreement import ExamplesFolder
from trainer.progress import ProgressLine
from trainer.words import did_you_mean

AUDIT_FOLDER = "audit"
_POLL_SECONDS = 0.5

_TWIN_KEEPS = ("architecture", "embedding_size", "learning_rate", "weight_decay", "batch_size", "epochs")
"""What a finalist and its undefended twin have in common; every weight of a defence is at its default, 0."""

OPTIONS: dict[str, dataclasses.Field] = {field.name: field for field in dataclasses.fields(AuditOptions)}


def read_options(given: Mapping[str, Any]) -> AuditOptions:
    """Options as typed, by name; what is None or left out keeps its default.

    Raises:
        InputError: naming the option, the value and what would be right.
    """
    typed = {name: given[name] for name in OPTIONS if given.get(name) is not None}
    return AuditOptions(**{name: _read_option(name, value) for name, value in typed.items()})


def _read_option(name: str, value: Any) -> int:
    with contextlib.suppress(ValueError):  # a word is refused below, by name
        value = int(value)
    return check_value(flag(name), value, OPTIONS[name])


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# --------------------------------------------------------------------------------------------------- what is to be done


@dataclass(frozen=True)
class Audit:
    """What an audit of a sweep has to do, and what is done already."""

    plan: SweepPlan
    results: SweepState
    options: AuditOptions
    examples: ExamplesFolder | None = None
    """Images that people labelled, with which the oracle and the models are compared."""

    def __post_init__(self) -> None:
        """Refuse what would give no numbers, before anything is spent."""
        if self.results.configurations and not self.results.contenders:
            raise InputError(
                f"no trial of {self.plan.name!r} fulfils {requirements_text(self.plan)}: there is nothing to audit"
            )
        if not self.results.contenders:
            raise InputError(f"no trial of {self.plan.name!r} has finished: there is nothing to audit yet")
        if self.plan.space.evaluation.eval_sensitivity_epsilon == 0:
            raise InputError("eval_sensitivity_epsilon = 0: an audit needs an attack, and so a budget above 0")
        for name in self.plan.objectives.names:
            if name not in MEASURED:
                raise InputError(f"objective {name!r} can't be audited: {did_you_mean(name, MEASURED)}")

    @property
    def folder(self) -> Path:
        return self.plan.folder / AUDIT_FOLDER

    def candidates(self) -> list[list[TrialRecord]]:
        """All finalists, the most wanted first, each with those that differ from it only in knobs that none uses."""
        return one_of_each(choose_finalists(self.results, images=self.results.facts["validation_images"]))

    def fresh_seeds(self) -> list[int]:
        """Seeds that no trial of the sweep has had: one for the twins, then those of the finalists. Asking for more
        leaves the first as they are."""
        used = {record.seed for record in self.results.trials.values()}
        generator = np.random.default_rng(self.plan.seed)
        seeds: list[int] = []
        while len(seeds) <= self.options.seeds:
            seed = int(generator.integers(2**31))
            seeds += [seed] if seed not in used and seed not in seeds else []
        return seeds

    def jobs(self) -> list[AuditTask]:
        """Seed by seed: what a stopped audit has done compares all finalists."""
        records = [first for first, *_ in self.candidates()[: self.options.finalists]]
        return [
            AuditTask(f"{record.number:04d}-{seed}", record.number, {**record.config, "seed": seed})
            for seed in self.fresh_seeds()[1:]
            for record in records
        ]

    def twin(self, job: AuditTask) -> AuditTask:
        """The undefended model beside a finalist's; the same for all finalists of one architecture and optimiser."""
        kept = {name: job.config[name] for name in _TWIN_KEEPS if name in job.config}
        config = TrialConfig(**kept, seed=self.fresh_seeds()[0]).to_dict()
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
        return AuditTask(f"undefended-{digest}", -1, config)

    def find(self, job: AuditTask) -> AuditResult | None:
        """What is known of a job."""
        return read_result(self.folder, job, self.options)

    def missing(self) -> list[AuditTask]:
        """Jobs that are not done, or whose model was not yet compared with people on these examples."""
        return [
            job
            for job in self.jobs()
            if (found := self.find(job)) is None or (self.examples and not found.answers_to(self.examples))
        ]

    def finalists(self) -> list[Finalist]:
        """Those with a result, the best in the first objective first."""
        runs: dict[int, list[AuditResult]] = {}
        for audited in filter(None, map(self.find, self.jobs())):
            runs.setdefault(audited.number, []).append(audited)
        finalists = [Finalist(self.results.configurations[number], tuple(found)) for number, found in runs.items()]
        first, sign = self.plan.objectives.names[0], -1 if self.plan.objectives.maximise[0] else 1
        return sorted(finalists, key=lambda one: (sign * one.selected[first], one.record.number))


def run_audit(audit: Audit, console: Console) -> bool:
    """Do what is not done yet; False if it was interrupted, and so can be gone on with.

    Raises:
        InputError: if the cluster can't give what one trial needs, the data can't be had or is not the sweep's, or
            nothing can be judged on the test split.
    """
    if audit.results.facts and not audit.missing():
        return True
    # In this order: Ray installs a handler of its own for SIGTERM.
    with _AuditProgress(console.file, "starting Ray") as line, ray_session(), SignalHandler() as interruption:
        crew, task = (
            _TaskPool(audit.plan, concurrency(audit.plan, line.prepare), interruption, line),
            make_task(audit.plan),
        )
        facts = prepare(task, audit.plan, line.prepare, interruption)
        if facts is None:
            return False
        record_data_summary(audit.plan.folder, facts)
        audit.results.facts = facts
        crew.work("preparing", prepare_test, {"the test split": (task, audit.examples)})
        jobs = audit.missing()
        twins = {job.name: audit.twin(job) for job in jobs if audit.find(job) is None}
        lost = crew.work("training", train_undefended, {t.name: (task, t, audit.folder) for t in twins.values()})
        known = {name: None if twin.name in lost else twin for name, twin in twins.items()}
        work = {job.name: (task, job, known.get(job.name), audit.folder, audit.options, audit.examples) for job in jobs}
        crew.work("auditing", audit_one, work)
    return not interruption.asked


class _TaskPool(NamedTuple):
    """Ray tasks on the plan's resources."""

    plan: SweepPlan
    concurrent: int
    interruption: SignalHandler
    line: _AuditProgress

    def work(self, doing: str, function: Callable[..., Any], jobs: Mapping[str, tuple[Any, ...]]) -> dict[str, str]:
        """Call a function for every job, by name, until all are done or somebody asked to stop; why some failed."""
        remote = ray.remote(function).options(
            num_cpus=self.plan.cpus_per_trial, num_gpus=self.plan.gpus_per_trial, max_retries=LOST_WORKER_RETRIES
        )
        waiting, running, failed = deque(jobs), {}, {}
        self.line.begin_jobs(doing, len(jobs))
        while (waiting or running) and not self.interruption.asked:
            while waiting and len(running) < self.concurrent:
                name = waiting.popleft()
                running[remote.remote(*jobs[name])] = name
            self.line.show_running(running.values())
            for ended in ray.wait(list(running), timeout=_POLL_SECONDS)[0]:
                name, reason = running.pop(ended), _outcome(ended)
                self.line.ended(name, reason)
                failed |= {name: reason} if reason else {}
        return failed


def _outcome(ended: ray.ObjectRef) -> str:
    """Why a task failed, or nothing."""
    try:
        return ray.get(ended) or ""
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
    except RayError:
        return f"its worker was lost {LOST_WORKER_RETRIES + 1} times (killed or out of memory)"


class _AuditProgress(ProgressLine):
    """The progress of an audit; elsewhere than on a terminal a line for each job that ended."""

    doing, done, total, begun = "", 0, 0, 0.0

    def prepare(self, stage: str, done: int, total: int) -> None:
        """Show how far the preparation is."""
        self.show(f"preparing: {stage}", done, total)

    def begin_jobs(self, doing: str, total: int) -> None:
        """Begin the next jobs, `total` in number."""
        self.doing, self.done, self.total, self.begun = doing, 0, total, time.monotonic()

    def show_running(self, names: Iterable[str]) -> None:
        """Show which jobs run."""
        self.update(f"{self.progress()}: {', '.join(names)}")

    def ended(self, name: str, reason: str) -> None:
        """Count a job that is done, or failed for a reason, which stays on the screen."""
        self.done += 1
        if reason:
            self.log(f"{name} failed: {reason}")
        elif not self.living:
            self.log(f"{self.progress()}: {name}")

    def progress(self) -> str:
        """Describe how many jobs are done, and the time gone and left."""
        gone = time.monotonic() - self.begun
        left = f", about {duration(gone / self.done * (self.total - self.done))} left" if self.done else ""
        return f"{self.doing} {self.done}/{self.total}; {duration(gone)} gone{left}"
