"""Audit a sweep: its finalists trained again on fresh seeds and judged on the test split by the full set of attacks.

A front is the best of many noisy numbers, selected on the validation split under a cheap attack, so it looks better
than it is. The audit shows how much of it is left, and what took the rest. All that it finds lies in `<sweep>/audit/`:

    0003-own.json          the model that was selected, judged again; also written at once and whole
    0003-<seed>.json       the same finalist on a fresh seed: an audit that was stopped resumes here
    judged-0.parquet       what each judge's crowds say of the judged test images
    models/                checkpoints and models: 0003-<seed>/, and undefended-<digest>/ for the undefended baselines
    audit.json             what is shown on screen, for programs
    audit.png curves.png   the audited front beside the selected one; accuracy over epsilon
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from sweep.audit.finalists import Finalist, choose_finalists, one_of_each
from sweep.audit.measures import MEASURED
from sweep.audit.pool import AuditProgress, TaskPool
from sweep.audit.results import AuditResult, AuditTask, judged_file, read_result
from sweep.audit.worker import audit_one, prepare_test, train_undefended
from sweep.engine import concurrency, make_task, prepare, ray_session, record_preparation
from sweep.ledger import TrialRecord
from sweep.plan import AuditOptions, SweepPlan
from sweep.report import AUDIT_FOLDER, requirements_text
from sweep.state import JUDGED_IMAGES, JudgedImages, SweepState, read_judged_images
from trainer.config import TrialConfig
from trainer.errors import InputError
from trainer.human_agreement import ExamplesFolder
from trainer.interrupts import SignalHandler
from trainer.words import did_you_mean

_UNDEFENDED_KEEPS = (
    *("architecture", "embedding_size", "batch_size", "epochs", "augmentation"),
    *("optimizer", "learning_rate", "learning_rate_schedule", "momentum", "weight_decay"),
)
"""Settings that an undefended baseline shares with its finalist; every weight of a defence is at its default, 0."""


@dataclass(frozen=True)
class Audit:
    """The work of auditing a sweep, and what is done of it already."""

    plan: SweepPlan
    results: SweepState
    options: AuditOptions
    examples: ExamplesFolder | None = None
    """Images that people labelled, with which the judge and the models are compared."""

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
        """List all finalists, the most wanted first, each with those that differ from it only in unused knobs."""
        return one_of_each(choose_finalists(self.results, images=self.results.data_summary["validation_images"]))

    def fresh_seeds(self) -> list[int]:
        """List seeds that no trial of the sweep has had: one for the undefended baselines, then the finalists'.

        Asking for more leaves the first as they are.
        """
        used = {record.seed for record in self.results.trials.values()}
        generator = np.random.default_rng(self.plan.seed)
        seeds: list[int] = []
        while len(seeds) <= self.options.seeds:
            seed = int(generator.integers(2**31))
            seeds += [seed] if seed not in used and seed not in seeds else []
        return seeds

    def records(self) -> list[TrialRecord]:
        """List the configurations that are audited."""
        return [first for first, *_ in self.candidates()[: self.options.finalists]]

    def tasks(self) -> list[AuditTask]:
        """List all tasks, the sweep's own models first, then seed by seed: a stopped audit compares all finalists."""
        return [
            *(task for record in self.records() for task in self.own_tasks(record.number)),
            *(task for seed in self.fresh_seeds()[1:] for task in self._on_seed(seed)),
        ]

    def own_tasks(self, number: int) -> list[AuditTask]:
        """List a configuration's tasks with the sweep's own models, one a trial of it."""
        members = self.results.members(number)
        return [AuditTask(f"{each.number:04d}-own", each.number, dict(each.config), own=True) for each in members]

    def _on_seed(self, seed: int) -> list[AuditTask]:
        return [
            AuditTask(f"{record.number:04d}-{seed}", record.number, {**record.config, "seed": seed})
            for record in self.records()
        ]

    def undefended(self, task: AuditTask) -> AuditTask:
        """Return the undefended baseline of a finalist; it is the same for all of one architecture and optimiser."""
        kept = {name: task.config[name] for name in _UNDEFENDED_KEEPS if name in task.config}
        config = TrialConfig(**kept, seed=self.fresh_seeds()[0]).to_dict()
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
        return AuditTask(f"undefended-{digest}", -1, config)

    def find(self, task: AuditTask) -> AuditResult | None:
        """Return a task's result, if there is one."""
        return read_result(self.folder, task, self.options)

    def missing(self) -> list[AuditTask]:
        """List tasks that are not done, or whose model was not yet compared with people on these examples."""
        return [
            task
            for task in self.tasks()
            if (found := self.find(task)) is None or (self.examples and not found.answers_to(self.examples))
        ]

    def finalists(self) -> list[Finalist]:
        """List the finalists with all results of their own models and one on a fresh seed, the best first."""
        fresh: dict[int, list[AuditResult]] = {}
        for seed in self.fresh_seeds()[1:]:
            for audited in filter(None, map(self.find, self._on_seed(seed))):
                fresh.setdefault(audited.number, []).append(audited)
        finalists = []
        for number, runs in fresh.items():
            own = [self.find(task) for task in self.own_tasks(number)]
            if None not in own:
                members = tuple(self.results.members(number))
                record = self.results.configurations[number]
                finalists.append(Finalist(record, members, tuple(filter(None, own)), tuple(runs)))
        first, sign = self.plan.objectives.names[0], -self.plan.objectives.signs[0]
        return sorted(finalists, key=lambda one: (sign * one.selected[first], one.record.number))

    def judged(self) -> tuple[JudgedImages, list[JudgedImages]] | None:
        """Return the judged images of the validation split, and those of the test split by judge; None if there are
        none yet."""
        tests = [self.folder / judged_file(judge) for judge in range(self.options.judges)]
        known = [read_judged_images(path) for path in (self.plan.folder / JUDGED_IMAGES, *tests)]
        found = [each for each in known if each is not None]
        return (found[0], found[1:]) if len(found) == len(known) else None


def run_audit(audit: Audit, console: Console, progress: AuditProgress | None = None) -> bool:
    """Run what is not done yet; return False if it was interrupted, and so can be resumed.

    Args:
        progress: shows how far it is; None for a line of its own.

    Raises:
        InputError: if the cluster can't give what one trial needs, the data can't be had or is not the sweep's, or
            nothing can be judged on the test split.
    """
    if audit.results.data_summary and audit.judged() and not audit.missing():
        return True
    line = progress or AuditProgress(console.file, "starting Ray")
    with line as progress, SignalHandler() as signals, ray_session():
        signals.take_back()
        pool = TaskPool(audit.plan, concurrency(audit.plan, progress.prepare), signals, progress)
        common = make_task(audit.plan)
        prepared = prepare(common, audit.plan, progress.prepare, signals)
        if prepared is None:
            return False
        record_preparation(audit.plan.folder, prepared)
        audit.results.data_summary = prepared.summary
        pool.run("preparing", prepare_test, {"the test split": (common, audit.examples, audit.folder, audit.options)})
        tasks = audit.missing()
        undefended = {task.name: audit.undefended(task) for task in tasks if task.own and audit.find(task) is None}
        trainings = {each.name: (common, each, audit.folder) for each in undefended.values()}
        lost = pool.run("training", train_undefended, trainings)
        known = {name: None if each.name in lost else each for name, each in undefended.items()}
        given = (audit.folder, audit.options, audit.examples)
        pool.run("auditing", audit_one, {task.name: (common, task, known.get(task.name), *given) for task in tasks})
    return not signals.asked
