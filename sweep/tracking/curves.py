"""An audited trial's numbers and its accuracy over epsilon, for its run in MLflow."""

from __future__ import annotations

import hashlib
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from sweep.plan import AuditOptions, SweepPlan
from sweep.report import AUDIT_FOLDER, audited_finalists, save_figure
from sweep.state import SweepState

if TYPE_CHECKING:
    from sweep.audit import AuditResult


def audited_numbers(plan: SweepPlan, number: int) -> dict[str, float]:
    """Return every number of a trial's audits, mean over their fresh seeds, as `audit/<name>`, and what it lost since
    its selection as `audit/change_<name>`; none if there is no audit."""
    runs = [run for run in _runs(plan, number) if not run.own]
    names = runs[0].numbers if runs else {}
    return {f"audit/{name}": fmean(run.numbers[name] for run in runs) for name in names} | _changes(plan, number)


def _changes(plan: SweepPlan, number: int) -> dict[str, float]:
    """Return what the audit says that a finalist has lost, in all and by step."""
    objectives = audited_finalists(plan).get(number, {}).get("objectives", {})
    return {
        f"audit/change_{name}{'' if step == 'total' else '/' + step.replace(' ', '_')}": change["value"]
        for name, objective in objectives.items()
        for step, change in objective["changes"].items()
    }


def _runs(plan: SweepPlan, number: int) -> list[AuditResult]:
    """Return the audits of a trial that compare."""
    from sweep.audit import read_audited

    found = [read_audited(path) for path in sorted((plan.folder / AUDIT_FOLDER).glob(f"{number:04d}-*.json"))]
    known = [audited for audited in found if audited is not None]
    return [audited for audited in known if audited.judged_by == known[-1].judged_by]


def write_curves(plan: SweepPlan, state: SweepState, number: int, folder: Path) -> str:
    """Write a trial's accuracy over epsilon, as its audits measured it, as picture and table.

    Args:
        folder: is created, unless the trial was never audited.

    Returns:
        A digest of what is shown; empty for a trial that was never audited.
    """
    from sweep.audit import Audit, Finalist, curves_figure

    runs = [run for run in _runs(plan, number) if run.own]
    if not runs:
        return ""
    options = {name: value for name, value in runs[0].judged_by.items() if name != "format"}
    audit = Audit(plan, state, AuditOptions(**options), None)
    folder.mkdir()
    trial = state.trials[number]
    figure = curves_figure(audit, [Finalist(trial, (trial,), tuple(runs), tuple(runs))])
    save_figure(figure, folder / "curve.png", dpi=100)
    rows = [
        (run.seed, epsilon, accuracy)
        for run in runs
        for epsilon, accuracy in zip(run.curve["epsilons"], run.curve["accuracies"], strict=True)
    ]
    text = "".join(f"{seed},{epsilon},{accuracy}\n" for seed, epsilon, accuracy in rows)
    (folder / "curve.csv").write_text("seed,epsilon,accuracy\n" + text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
