"""The findings of an audit for people: a summary, a table, warnings and the pictures."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sweep.audit.audit import Audit
from sweep.audit.differences import STEPS, Change
from sweep.audit.figures import audit_figure, curves_figure
from sweep.audit.finalists import COUNTS, Finalist, share_interval
from sweep.audit.measures import MEASURED
from sweep.audit.verdicts import Outcome, points, read_outcome
from sweep.front import Objectives, front_mask
from sweep.plan import AUDIT_OPTIONS, AuditOptions, SweepPlan, flag, storage_folder
from sweep.report import AUDIT_JSON, AUDITED, accuracies, judge_line, percent, plain_table, save_figure, trial_label
from trainer.config import EvaluationConfig
from trainer.files import write_whole
from trainer.human_agreement import EXAMPLES_OPTION, HEADINGS, LEGEND, MODEL, HumanAgreement, cells, unknown_agreement
from trainer.report import images_behind

_FRONT_PICTURE, _CURVES_PICTURE = "audit.png", "curves.png"

_CERTIFIED = "certified_accuracy"

ROWS = {
    _CERTIFIED: "certified",
    **AUDITED,
    "sensitivity_doubted": "and before the attack",
    "adversary_accuracy": "per-model invariance",
    "adversary_stuck": "per-model stuck",
    "curve_area": "curve area",
}
"""Numbers of a finalist's rows beside its accuracies, and their headings."""


def show_audit(audit: Audit, console: Console) -> bool:
    """Print summary, table and warnings, and write pictures and JSON; return False if there is nothing to show."""
    found = read_outcome(audit)
    if found is None:
        return False
    finalists = found.finalists
    console.print()
    console.print(_summary(audit, found), *front_lines(audit, found), "", sep="\n", markup=False)
    console.print(*finalist_lines(audit, found), *_warnings(finalists), *doubles(audit), sep="\n", markup=False)
    show_people(audit, finalists, console)
    save_figure(audit_figure(audit, found), audit.folder / _FRONT_PICTURE)
    save_figure(curves_figure(audit, finalists), audit.folder / _CURVES_PICTURE)
    write_whole(audit.folder / AUDIT_JSON, (json.dumps(_audit_json(audit, found), indent=2) + "\n").encode())
    console.print(
        f"\npicture  {audit.folder / _FRONT_PICTURE}\ncurves   {audit.folder / _CURVES_PICTURE}\n"
        f"JSON     {audit.folder / AUDIT_JSON}",
        markup=False,
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


def _summary(audit: Audit, found: Outcome) -> str:
    """Return how much of the front held, and how it was judged."""
    plan, options, known = audit.plan, audit.options, audit.results.data_summary
    finalists, count = found.finalists, found.tally
    evaluation, mean = plan.space.evaluation, finalists[0].mean
    left_out = len(audit.candidates()) - len(finalists)
    fab = f"; FAB, {options.fab} steps" if options.fab else ""
    seeds = (
        f"{options.seeds} fresh seeds" if options.seeds > 1 else "one fresh seed, whose own spread is in no interval"
    )
    return (
        f"{evaluation.dataset}: {count['held']} of {len(finalists)} finalists held, {count['fell']} fell, "
        f"{count['not decided']} not decided{f' ({left_out} more were not audited)' if left_out else ''}. "
        f"Fell: a loss is shown (5%, Holm's correction over finalists and objectives). Held: a loss of more than "
        f"{points(options.margin)} points is excluded (95%).\n"
        f"Audited on {finalists[0].images} test images, mean ± standard deviation over {seeds}: "
        f"sensitivity under {evaluation.eval_sensitivity_norm} {evaluation.eval_sensitivity_epsilon:.3g} (APGD-CE, "
        f"APGD-T and the embedding's, {options.steps} steps; Square, {options.queries} queries{fab}), "
        f"{_proof(evaluation)}; invariance under "
        f"{evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g} on "
        f"the worth of {images_behind(mean)} changed images, the per-model attack on that of "
        f"{mean['adversary_size']:.0f}, by {_judges(options)}, a proxy for people: {judge_line(evaluation, known)}"
    )


def _judges(options: AuditOptions) -> str:
    """Return how many judges there were, and what the intervals know of them."""
    if options.judges == 1:
        return "one judge, whose own error is in no interval"
    return f"the mean of {options.judges} judges, whose spread is in the intervals"


def front_lines(audit: Audit, found: Outcome) -> list[str]:
    """Return the fronts, and what became of the hypervolume, a line a step."""
    front, objectives = found.front, audit.plan.objectives
    rows = zip(("in all", *STEPS), (front.total, *front.steps), strict=True)
    return [
        f"Selected: {front_line(found, objectives, stage=0)}; audited: {front_line(found, objectives, stage=-1)}.",
        f"{'hypervolume':16}  {'change':>8}  {'95% interval':>18}",
        *(f"  {name:16}{value:>+8.4f}  {f'{low:+.4f} to {high:+.4f}':>20}" for name, (value, low, high) in rows),
        f"Finalists are the best of {len(audit.results.contenders)} on the same images, and so look better than they",
        "are (regression to the mean): that part stands at test split and fresh seeds.",
    ]


def _proof(evaluation: EvaluationConfig) -> str:
    """Return how robustness was proven, or why it was not."""
    if evaluation.eval_sensitivity_norm == "linf":
        return "certified at the same budget by intervals and CROWN's bounds"
    return "not certified (bounds are known for linf alone)"


def front_line(found: Outcome, objectives: Objectives, *, stage: int) -> str:
    """Return `front 003, 001, hypervolume 0.2345` of the finalists at a stage."""
    values = np.array([[each[name].values[stage] for name in objectives.names] for each in found.changes])
    on_front = front_mask(values, objectives)
    numbers = [f"{one.record.number:03d}" for one, member in zip(found.finalists, on_front, strict=True) if member]
    return f"front {', '.join(numbers)}, hypervolume {found.front.values[stage]:.4f}"


def finalist_lines(audit: Audit, found: Outcome) -> list[str]:
    """Return the table within 80 columns: per finalist its verdict and configuration, then a line for every number."""
    lines = [f"{'trial':5}  {'':21}  {'selected':>8}  {'audited':>14}  {'95% interval':>16}"]
    for one, changes, verdict in zip(found.finalists, found.changes, found.verdicts, strict=True):
        seeds = "" if len(one.runs) == audit.options.seeds else f" ({len(one.runs)} of {audit.options.seeds} seeds)"
        lines.append(f"  {one.record.number:03d}  {verdict}{seeds}")
        lines.append(f"       {trial_label(audit.plan.space, one.record.config)}")
        for name, heading in rows(audit.plan).items():
            lines += _row(one, name, heading, changes.get(name))
    return lines


def rows(plan: SweepPlan) -> dict[str, str]:
    """Return the numbers of a finalist's rows, and their headings."""
    certified = plan.space.evaluation.eval_sensitivity_norm == "linf"
    return accuracies(plan) | {name: heading for name, heading in ROWS.items() if certified or name != _CERTIFIED}


def _row(one: Finalist, name: str, heading: str, change: Change | None) -> list[str]:
    """Return a number as selected and as audited with the latter's interval; of an objective also what it lost by.

    Of a network of one's own nothing is certified.
    """
    if name not in one.mean:
        return [f"{'':5}  {heading:21}  {'':>8}  {'not computable':>14}"]
    selected = percent(one.selected[name]) if name in one.selected else ""
    audited = f"{percent(one.mean[name])} ± {100 * one.spread(name):4.1f}"
    interval = ""
    if change:
        interval = f"{percent(max(change.audited.low, 0))} to {percent(min(change.audited.high, 1))}"
    elif name in (*MEASURED, *COUNTS, _CERTIFIED):
        low, high = share_interval(name, one.mean, images=one.images)
        interval = f"{percent(low)} to {percent(high)}"
    line = f"{'':5}  {heading:21}  {selected:>8}  {audited:>14}  {interval:>16}"
    return [line, *_change_lines(change)] if change else [line]


def _change_lines(change: Change) -> list[str]:
    """Return by how many points a number changed in all and at each step, half an interval's width beside each."""
    total, parts = change.total, [f"{100 * s.value:+.1f} ±{50 * (s.high - s.low):.1f}" for s in change.steps]
    first, second, third, fourth = (f"{name} {part}" for name, part in zip(STEPS, parts, strict=True))
    return [
        f"{'':7}change {100 * total.value:+.1f} ({100 * total.low:+.1f} to {100 * total.high:+.1f}): {first},",
        f"{'':7}{second}, {third}, {fourth}",
    ]


def _audit_json(audit: Audit, found: Outcome) -> dict[str, Any]:
    """Return all that an audit found, in plain values."""
    steps = ("total", *STEPS)

    def plain(change: Change, p_value: float) -> dict[str, Any]:
        differences = zip(steps, (change.total, *change.steps), strict=True)
        return {
            "stages": list(change.values),
            "audited": change.audited._asdict(),
            "changes": {name: each._asdict() for name, each in differences},
            "holm_p_value": p_value,
        }

    return {
        "sweep": audit.plan.name,
        "options": dataclasses.asdict(audit.options),
        "hypervolume": {
            "stages": list(found.front.values),
            "changes": {
                name: dict(zip(("value", "low", "high"), each, strict=True))
                for name, each in zip(steps, (found.front.total, *found.front.steps), strict=True)
            },
        },
        "finalists": [
            {
                "trial": one.record.number,
                "config": one.record.config,
                "verdict": verdict,
                "objectives": {name: plain(change, p_values[name]) for name, change in changes.items()},
                "numbers": one.mean,
                "warnings": [warning for run in one.own for warning in run.warnings],
            }
            for one, changes, p_values, verdict in zip(
                found.finalists, found.changes, found.p_values, found.verdicts, strict=True
            )
        ],
    }


def _warnings(finalists: Sequence[Finalist]) -> list[str]:
    """Return every failed check against a meaningless attack, by trial and seed."""
    return [
        f"trial {one.record.number:03d}, seed {run.seed}: {warning}"
        for one in finalists
        for run in one.own
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
    show_agreement({f"trial {number:03d}": runs for number, runs in known.items()}, console)


def show_agreement(known: Mapping[str, Sequence[HumanAgreement]], console: Console) -> None:
    """Print how far the judge, and models by name, agree with people: a table per set of examples."""
    first = next(iter(known.values()))[0]
    console.print(f"Agreement with people, on the examples in {first.folder}\n", markup=False)
    for index, compared in enumerate(first.sets):
        table = plain_table(*HEADINGS, left=[0])
        table.title = compared.title
        for each in compared.agreements:
            if each.answerer != MODEL:
                table.add_row(*cells([each]))
        for name, runs in known.items():
            _, *shares = cells([run.sets[index].by(MODEL) for run in runs])
            table.add_row(name, *shares)
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
