"""The importance of the swept parameters, for each objective and for a trial's contribution to the front.

It is estimated by PED-ANOVA (Watanabe et al. 2023) on an Optuna study that is rebuilt from the ledger: how far the
better trials' values of a parameter differ from all trials'. A parameter that not every trial uses is assessed on the
trials that use it.
"""

from __future__ import annotations

import contextlib
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sweep.front import contributions
from sweep.front import ranks as ranks_of
from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.report.rows import ACCURACIES
from sweep.report.style import AREA_COLOUR, DPI, GRID, INK, house_style
from sweep.report.tables import csv_text
from sweep.state import SweepState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTRIBUTION = "hypervolume contribution"
_FEWEST = 8
"""Minimum number of finished trials that use a parameter for its importance to be estimated."""
_TOO_FEW = 50
"""Number of finished trials below which the picture says that it is only a hint."""


class _Importance(NamedTuple):
    """The importance of a parameter for a target; the shares of a target sum to 1 over its parameters."""

    parameter: str
    target: str
    share: float
    trials: int
    """Number of trials that used the parameter."""


def importances(plan: SweepPlan, results: SweepState) -> list[_Importance]:
    """Return the importances by target, the most important parameter first; none where there are too few trials."""
    finished = list(results.finished.values())
    if len(finished) < _FEWEST:
        return []
    points, objectives = results.points(finished), plan.objectives
    targets = {ACCURACIES.get(name, name): points[:, axis] for axis, name in enumerate(objectives.names)}
    best = dict(zip(targets, objectives.maximise, strict=True))
    # A trial off the front adds nothing, and how far off it is matters then.
    ranks = ranks_of(points, objectives)
    added = contributions(points, objectives)
    targets[CONTRIBUTION] = np.where(ranks == 0, added, -ranks.astype(float))
    best[CONTRIBUTION] = True
    found = []
    for target, values in targets.items():
        found += sorted(_importances_for(plan, finished, target, values, best[target]), key=lambda each: -each.share)
    return found


def _importances_for(
    plan: SweepPlan, finished: Sequence[TrialRecord], target: str, values: np.ndarray, maximise: bool
) -> list[_Importance]:
    """Return the importances for one target with a value (n,) per trial."""
    raw: dict[str, tuple[float, int]] = {}
    for name in plan.space.swept:
        chosen = [index for index, record in enumerate(finished) if name in plan.space.active(record.config)]
        if len(chosen) >= _FEWEST and len({finished[index].config[name] for index in chosen}) > 1:
            records = [finished[index] for index in chosen]
            raw[name] = (_distance(plan, name, records, values[chosen], maximise), len(chosen))
    total = sum(size for size, _ in raw.values()) or 1.0
    return [_Importance(name, target, size / total, trials) for name, (size, trials) in raw.items()]


def _distance(plan: SweepPlan, name: str, records: Sequence[TrialRecord], values: np.ndarray, maximise: bool) -> float:
    """Return PED-ANOVA's divergence of the better quarter's values of a parameter from all trials', unnormalised."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if maximise else "minimize")
    swept = plan.space.swept[name].domain.distribution()
    for record, value in zip(records, values.tolist(), strict=True):
        # A given point may lie outside the swept range.
        with contextlib.suppress(ValueError):
            params = {name: record.config[name]}
            study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions={name: swept}))
    if len(study.get_trials(deepcopy=False)) < _FEWEST:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25, region_quantile=1.0)
        return float(get_param_importances(study, evaluator=evaluator, normalize=False).get(name, 0.0))


def note(results: SweepState) -> str:
    """Return a caution: what the numbers do not show."""
    count = len(results.finished)
    few = f" {count} trials are few: take it as a hint, not as a ranking." if count < _TOO_FEW else ""
    return (
        f"From {count} finished trials (PED-ANOVA). It shows where the better trials lie, not why; it says nothing of "
        f"parameters acting together, and depends on where the sampler looked.{few}"
    )


def importance_csv(found: Sequence[_Importance]) -> str:
    """Return the importances as CSV."""
    return csv_text(_Importance._fields, found)


def importance_figure(plan: SweepPlan, results: SweepState, found: Sequence[_Importance]) -> Figure:
    """Draw the importances as bars, a panel per target."""
    from matplotlib.figure import Figure

    targets = list(dict.fromkeys(each.target for each in found))
    names = [name for name in plan.space.swept if any(each.parameter == name for each in found)]
    with house_style():
        figure = Figure(figsize=(9.0, 1.7 + 0.32 * len(names)), dpi=DPI, layout="constrained")
        panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
        for axes, target in zip(panels, targets, strict=True):
            shares = {each.parameter: each.share for each in found if each.target == target}
            axes.barh(names[::-1], [100 * shares.get(name, 0.0) for name in names[::-1]], color=AREA_COLOUR)
            axes.set_title(target, fontsize=9, color=INK)
            axes.set_xlabel("share (%)")
            axes.grid(axis="x", **GRID)
            axes.set_axisbelow(True)
        figure.suptitle(
            f"{plan.name}: what mattered\n" + textwrap.fill(note(results), 130), x=0.01, ha="left", fontsize=8
        )
    return figure
