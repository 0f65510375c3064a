"""The findings of an audit for people: a summary, a table, warnings and the pictures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from sweep.audit.audit import Audit
from sweep.audit.figures import audit_figure, curves_figure
from sweep.audit.finalists import COUNTS, MEASURED, Finalist, cloud, share_interval, verdicts
from sweep.front import Objectives, front_mask, hypervolume
from sweep.plan import AUDIT_OPTIONS, SweepPlan, flag, storage_folder
from sweep.report import accuracies, judge_line, percent, plain_table, save_figure, trial_label
from trainer.config import EvaluationConfig
from trainer.human_agreement import EXAMPLES_OPTION, HEADINGS, LEGEND, MODEL, HumanAgreement, cells, unknown_agreement
from trainer.report import images_behind

_FRONT_PICTURE, _CURVES_PICTURE = "audit.png", "curves.png"

_CERTIFIED = "certified_accuracy"

_ROWS = {
    _CERTIFIED: "certified",
    "adversary_accuracy": "per-model invariance",
    "adversary_stuck": "per-model stuck",
    "curve_area": "curve area",
}
"""Numbers of a finalist's rows beside its accuracies, and their headings."""


def show_audit(audit: Audit, console: Console) -> bool:
    """Print summary, table and warnings, and save the pictures; return False if there is nothing to show."""
    finalists = audit.finalists()
    if not finalists:
        return False
    console.print()
    console.print(_summary(audit, finalists), "\n", sep="", markup=False)
    console.print(*finalist_lines(audit, finalists), *_warnings(finalists), *doubles(audit), sep="\n", markup=False)
    show_people(audit, finalists, console)
    save_figure(audit_figure(audit, finalists), audit.folder / _FRONT_PICTURE)
    save_figure(curves_figure(audit, finalists), audit.folder / _CURVES_PICTURE)
    console.print(
        f"\npicture  {audit.folder / _FRONT_PICTURE}\ncurves   {audit.folder / _CURVES_PICTURE}", markup=False
    )
    return True


def command(audit: Audit) -> str:
    """Return the command that resumes an audit."""
    given = {name: getattr(audit.options, name) for name in AUDIT_OPTIONS}
    words = [f"{flag(name)} {value}" for name, value in given.items() if value != AUDIT_OPTIONS[name].default]
    if audit.examples:
        words.append(f"{EXAMPLES_OPTION} {shlex.quote(audit.examples.path)}")
    if Path(audit.plan.storage) != storage_folder():
        words.append(f"--storage {shlex.quote(audit.plan.storage)}")
    return " ".join(["otsweep audit", audit.plan.name, *words])


def finalist_verdicts(audit: Audit, finalists: Sequence[Finalist]) -> list[str]:
    """Return the verdict on each finalist."""
    objectives, images = audit.plan.objectives, audit.results.data_summary["validation_images"]
    selected = cloud([one.selected for one in finalists], objectives, images=images)
    audited = cloud([one.mean for one in finalists], objectives, images=finalists[0].images)
    return verdicts(selected, audited, objectives.names)


def _summary(audit: Audit, finalists: Sequence[Finalist]) -> str:
    """Return how much of the front held, and how it was judged."""
    plan, options, known = audit.plan, audit.options, audit.results.data_summary
    evaluation, mean = plan.space.evaluation, finalists[0].mean
    left_out = len(audit.candidates()) - len(finalists)
    return (
        f"{evaluation.dataset}: {finalist_verdicts(audit, finalists).count('held')} of {len(finalists)} finalists held"
        f"{f' ({left_out} more were not audited)' if left_out else ''}. "
        f"Selected: {front_line([one.selected for one in finalists], finalists, plan.objectives)}; "
        f"audited: {front_line([one.mean for one in finalists], finalists, plan.objectives)}.\n"
        f"Audited on {finalists[0].images} test images, mean ± standard deviation over {options.seeds} fresh seeds: "
        f"sensitivity under {evaluation.eval_sensitivity_norm} {evaluation.eval_sensitivity_epsilon:.3g} (APGD-CE, "
        f"APGD-T and the embedding's, {options.steps} steps; Square, {options.queries} queries), "
        f"{_proof(evaluation)}; invariance under "
        f"{evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g} on "
        f"the worth of {images_behind(mean)} changed images, the per-model attack on that of "
        f"{mean['adversary_size']:.0f}, by the judge, a proxy for people: {judge_line(evaluation, known)}"
    )


def _proof(evaluation: EvaluationConfig) -> str:
    """Return how robustness was proven, or why it was not."""
    if evaluation.eval_sensitivity_norm == "linf":
        return "certified at the same budget by intervals and CROWN's bounds"
    return "not certified (bounds are known for linf alone)"


def front_line(points: Sequence[Mapping[str, float]], finalists: Sequence[Finalist], objectives: Objectives) -> str:
    """Return `front 003, 001, hypervolume 0.2345` of the finalists at these points."""
    values = np.array([[point[name] for name in objectives.names] for point in points])
    on_front = front_mask(values, objectives)
    numbers = [f"{one.record.number:03d}" for one, member in zip(finalists, on_front, strict=True) if member]
    return f"front {', '.join(numbers)}, hypervolume {hypervolume(values, objectives):.4f}"


def finalist_lines(audit: Audit, finalists: Sequence[Finalist]) -> list[str]:
    """Return the table within 80 columns: per finalist its verdict and configuration, then a line for every number."""
    lines = [f"{'trial':5}  {'':20}  {'selected':>8}  {'audited':>14}  {'95% interval':>16}"]
    for one, verdict in zip(finalists, finalist_verdicts(audit, finalists), strict=True):
        seeds = "" if len(one.runs) == audit.options.seeds else f" ({len(one.runs)} of {audit.options.seeds} seeds)"
        lines.append(f"  {one.record.number:03d}  {verdict}{seeds}: {trial_label(audit.plan.space, one.record.config)}")
        lines += [_row(one, name, heading) for name, heading in rows(audit.plan).items()]
    return lines


def rows(plan: SweepPlan) -> dict[str, str]:
    """Return the numbers of a finalist's rows, and their headings."""
    certified = plan.space.evaluation.eval_sensitivity_norm == "linf"
    return accuracies(plan) | {name: heading for name, heading in _ROWS.items() if certified or name != _CERTIFIED}


def _row(one: Finalist, name: str, heading: str) -> str:
    """Return a number as selected and as audited, and the latter's interval where its images are counted."""
    selected = percent(one.selected[name]) if name in one.selected else ""
    audited = f"{percent(one.mean[name])} ± {100 * one.spread(name):4.1f}"
    interval = ""
    if name in (*MEASURED, *COUNTS, _CERTIFIED):
        low, high = share_interval(name, one.mean, images=one.images)
        interval = f"{percent(low)} to {percent(high)}"
    return f"{'':5}  {heading:20}  {selected:>8}  {audited:>14}  {interval:>16}"


def _warnings(finalists: Sequence[Finalist]) -> list[str]:
    """Return every failed check against a meaningless attack, by trial and seed."""
    return [
        f"trial {one.record.number:03d}, seed {run.seed}: {warning}"
        for one in finalists
        for run in one.runs
        for warning in run.warnings
    ]


def doubles(audit: Audit) -> list[str]:
    """Return a line for every trial that is a finalist's double, and so was not audited again."""
    return [
        f"trial {other.number:03d} is trial {first.number:03d} again: they differ in knobs that neither uses"
        for first, *others in audit.candidates()
        for other in others
    ]


def show_people(audit: Audit, finalists: Sequence[Finalist], console: Console) -> None:
    """Print how far the judge, and each finalist, agrees with people: a table per set of examples."""
    known = _people_of(audit, finalists)
    console.print()
    if not known:
        console.print(unknown_agreement(audit.plan.space.evaluation.dataset), markup=False)
        return
    first = next(iter(known.values()))[0]
    console.print(f"Agreement with people, on the examples in {first.folder}\n", markup=False)
    for index, compared in enumerate(first.sets):
        table = plain_table(*HEADINGS, left=[0])
        table.title = compared.title
        for each in compared.agreements:
            if each.answerer != MODEL:
                table.add_row(*cells([each]))
        for number, runs in known.items():
            _, *shares = cells([run.sets[index].by(MODEL) for run in runs])
            table.add_row(f"trial {number:03d}", *shares)
        console.print(table, "")
    console.print(LEGEND, markup=False)


def _people_of(audit: Audit, finalists: Sequence[Finalist]) -> dict[int, list[HumanAgreement]]:
    """Return, by finalist, a comparison per seed: on the given examples, else on those of the first comparison."""
    compared = [(one, run.people) for one in finalists for run in one.runs if run.people]
    digest = audit.examples.digest if audit.examples else compared[0][1]["digest"] if compared else ""
    known: dict[int, list[HumanAgreement]] = {}
    for one, people in compared:
        if people["digest"] == digest:
            known.setdefault(one.record.number, []).append(HumanAgreement.from_plain(people))
    return known
