"""Audits and studies from Python, and the parts of them that the command shares."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

from rich.console import Console

from sweep.api.options import knob_words, typed_words
from sweep.api.recorded import run_recorded
from sweep.api.running import alone
from sweep.plan import AuditOptions, StudyPlan, begin_study, has_study, make_study, read_plan, read_study, url_of
from sweep.report import AUDIT_JSON
from sweep.state import read_state
from trainer.crowds import check_crowd
from trainer.errors import InputError, OtsweepError
from trainer.human_agreement import find_examples
from trainer.interrupts import remembered_interrupts

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from matplotlib.figure import Figure

    from sweep.audit import Audit
    from sweep.report import Screen
    from sweep.study import StudyResult


class _AuditWords(TypedDict, total=False):
    """Options of `otsweep audit` by name; None and what is left out keep their defaults."""

    seeds: int | None
    finalists: int | None
    test_size: int | None
    steps: int | None
    queries: int | None
    fab: int | None
    judges: int | None
    margin: float | None


class _StudyWords(TypedDict, total=False):
    """Options of `otsweep study` by name; None and what is left out keep their defaults."""

    storage: str | Path | None
    mlflow_uri: str | None
    data_dir: str | Path | None
    sampler: str | None
    keep_models: str | None
    cpus_per_trial: float | None
    gpus_per_trial: float | None
    pack: int | None
    max_concurrent: int | str | None


class Audited(NamedTuple):
    """An audit that is done."""

    audit: Audit

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, those of `otsweep audit --format json`."""
        return json.loads((self.audit.folder / AUDIT_JSON).read_bytes())

    def arrow(self) -> pyarrow.Table:
        """Return a row per finalist: trial, verdict, every audited number, the number of its alarms."""
        import pyarrow

        rows = [
            {
                "trial": each["trial"],
                "verdict": each["verdict"],
                **each["numbers"],
                "alarms": len(each["warnings"]),
            }
            for each in self.to_dict()["finalists"]
        ]
        return pyarrow.Table.from_pylist(rows)

    @property
    def table(self) -> pandas.DataFrame:
        """The rows of `arrow` as pandas has them."""
        return self.arrow().to_pandas()

    def figure(self) -> Figure:
        """Return the picture of the audited front beside the selected one."""
        from sweep.audit import audit_figure, read_outcome

        found = read_outcome(self.audit)
        assert found is not None
        return audit_figure(self.audit, found)


def open_audit(
    name: str,
    options: Mapping[str, Any],
    *,
    storage: str | None,
    invariance_examples: str | Path | None,
    warn: Callable[[str], object],
) -> Audit:
    """Return the audit of a sweep, with what is done of it.

    Args:
        name: of a sweep in the storage.
        options: those of `AuditOptions` by name, as typed.
        storage: folder of all sweeps.
        invariance_examples: folder with images that people labelled.
        warn: called with a message for each part of the ledger that is damaged and left out.

    Raises:
        InputError: for a sweep that is not there or can't be audited, or an option that is wrong.
    """
    from sweep.audit import Audit

    plan = read_plan(name, storage=storage)
    check_crowd(plan.space.evaluation)
    if url := url_of(plan.folder):
        raise InputError(f"{url}: a sweep at a URL can't be audited there; copy its folder here and give --storage DIR")
    examples = find_examples(invariance_examples, dataset=plan.space.evaluation.dataset, data_dir=plan.data_dir)
    results = read_state(plan)
    for message in results.warnings:
        warn(message)
    return Audit(plan, results, AuditOptions.of(options), examples)


def audit(
    name: str,
    *,
    storage: str | Path | None = None,
    invariance_examples: str | Path | None = None,
    progress: bool = False,
    warn: Callable[[str], object] = warnings.warn,
    **options: Unpack[_AuditWords],
) -> Audited:
    """Run the audit of a sweep, or what is left of it, as `otsweep audit` does; MLflow gets it by `otsweep sync`.

    Args:
        name: of a sweep in the storage.
        storage: folder of all sweeps; None for `OTSWEEP_STORAGE`, else `~/otsweep`.
        invariance_examples: folder with images that people labelled.
        progress: True to show how far it is.
        warn: called with a message for each part of the ledger that is damaged and left out.
        options: the effort, as of `otsweep audit`.

    Raises:
        InputError: for a sweep that is not there or can't be audited, or an option that is wrong.
        OtsweepError: if no finalist could be audited.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    from sweep.audit import AuditProgress, run_audit, show_audit

    where = None if storage is None else str(storage)
    begun = open_audit(name, options, storage=where, invariance_examples=invariance_examples, warn=warn)
    unseen = Console(file=io.StringIO())
    with alone(), remembered_interrupts():
        line = AuditProgress(sys.stderr if progress else unseen.file, "starting Ray", shown=progress)
        if not run_audit(begun, unseen, line):
            raise KeyboardInterrupt(f"the audit of {name} was stopped; nothing is lost: the same call goes on")
    if not show_audit(begun, unseen):  # writes its files too
        raise OtsweepError(f"no finalist of {name!r} could be audited")
    return Audited(begun)


def run_recorded_study(
    plan: StudyPlan, console: Console, run_sweep: Callable[[Screen, bool], bool]
) -> tuple[bool, StudyResult]:
    """Run what is left of a study, and write its files; return False if it was interrupted, and what it found."""
    from sweep.study import collect, run_study, write_study_files

    complete = run_study(plan, console, run_sweep, lambda: write_study_files(collect(plan), plan.folder))
    result = collect(plan)
    write_study_files(result, plan.folder)
    return complete, result


def study(
    study: str | Path,
    *,
    name: str | None = None,
    set: Mapping[str, Any] | Sequence[str] = (),
    progress: bool = False,
    warn: Callable[[str], object] = warnings.warn,
    **options: Unpack[_StudyWords],
) -> StudyResult:
    """Run a study to its end, or return what one of the storage has found, as `otsweep study` does.

    Args:
        study: a name in search_spaces/studies/, a YAML file, or the name of a study in the storage.
        name: of the study, new or begun; None for the file's name and the time.
        set: knobs fixed for all arms.
        progress: True to show how far it is.
        warn: called with a message for each sweep that is damaged.
        options: as of `otsweep study`.

    Raises:
        InputError: naming what is wrong.
        KeyboardInterrupt: after Ctrl-C; the same call with the study's name goes on.
    """
    from sweep.study import collect, damage

    words = typed_words(options)
    if has_study(str(study), storage=words.get("storage")):
        plan = read_study(str(study), storage=words.get("storage"))
        complete, result = True, collect(plan)
    else:
        plan = begin_study(make_study(str(study), name=name, options=words, settings=knob_words(set)))
        console = Console(file=sys.stderr if progress else io.StringIO(), soft_wrap=True, highlight=False, emoji=False)
        with alone(), remembered_interrupts():
            complete, result = run_recorded_study(
                plan, console, lambda screen, fresh: run_recorded(screen, fresh=fresh)[0]
            )
    for message in damage(plan):
        warn(message)
    if not complete:
        raise KeyboardInterrupt(f"{plan.name} was stopped; nothing is lost: study(..., name={plan.name!r}) goes on")
    return result
