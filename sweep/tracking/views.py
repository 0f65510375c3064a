"""Saved views of an experiment on MLflow's page, which a sweep's link opens: what each shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from sweep.plan import SweepPlan
from sweep.tracking.links import ALL, COST, FRONT, view_key, view_label
from sweep.tracking.mlflow_internals import PARENT_TAG, VIEW_TAG, pack_view, read_view

NAMES = (FRONT, ALL, COST)
MOST_SWEEPS = 10
"""Maximum number of sweeps whose views an experiment keeps, the latest ones: MLflow takes 40 views, and some of them
are the user's own."""

FRONT_COLOUR, KNEE_COLOUR, DOMINATED_COLOUR = "#0072B2", "#D55E00", "#B8BDC4"
"""Colours of runs on MLflow's page."""

_MOST_CHARTED = 1000
"""Most runs in a chart. The page loads 100 at a time, those with the lowest rank first."""
_EPOCH_METRICS = ("sensitivity_accuracy", "invariance_accuracy", "clean_accuracy")
_SELECTED = ("sel_sens", "sel_inv", "sel_clean")


_LONGEST_OLD_KEY = 24
"""Characters of a key that earlier versions made."""


def view_tags(plan: SweepPlan, parent: str, created: int) -> dict[str, str]:
    """Return the tags of a sweep's views.

    Args:
        parent: identifier of the sweep's own run.
        created: milliseconds.
    """
    label = view_label(plan.name, parent)
    states = {
        FRONT: _front_view(plan, parent),
        ALL: _all_trials_view(plan, parent),
        COST: _cost_view(plan, parent),
    }
    return {
        VIEW_TAG + view_key(view, label): pack_view(f"{view}: {label}", created, state)
        for view, state in states.items()
    }


def outdated(tags: Mapping[str, str]) -> list[str]:
    """Return the tags of views of the sweeps that came before the latest `MOST_SWEEPS`."""
    ours: dict[str, list[str]] = {}
    created: dict[str, float] = {}
    for tag, value in tags.items():
        view = read_view(value) if tag.startswith(VIEW_TAG) else {}
        name, _, sweep = str(view.get("name", "")).partition(": ")
        if name in NAMES and tag.startswith(VIEW_TAG + view_key(name, sweep)[:_LONGEST_OLD_KEY]):
            ours.setdefault(sweep, []).append(tag)
            created[sweep] = float(view.get("createdAt") or 0)
    latest_first = sorted(ours, key=lambda sweep: created[sweep], reverse=True)
    return [tag for sweep in latest_first[MOST_SWEEPS:] for tag in ours[sweep]]


def _front_view(plan: SweepPlan, parent: str) -> dict[str, Any]:
    """Show the two accuracies of all trials, the swept parameters, and the curves over the epochs."""
    scatter = _chart(
        plan,
        "SCATTER",
        "front",
        "Sensitivity and invariance accuracy: blue the front, orange its knee",
        xaxis=_axis("sel_sens"),
        yaxis=_axis("sel_inv"),
    )
    swept = list(plan.space.swept)
    parallel = _chart(
        plan,
        "PARALLEL",
        "front",
        "Swept parameters",
        selectedParams=swept,
        selectedMetrics=["sel_sens", "sel_inv"],
        showAllRuns=False,
    )
    curves = [_line(plan, metric, "curves") for metric in _EPOCH_METRICS]
    sections = [_section("front", "Front", columns=1), _section("curves", "Over the epochs", columns=2)]
    return _state(
        search=_trials_of(parent),
        order=_metric_column("pareto_rank"),
        columns=[*map(_metric_column, (*_SELECTED, "pareto_rank")), *map(_param_column, swept)],
        charts=[scatter, parallel, *curves],
        sections=sections,
    )


def _all_trials_view(plan: SweepPlan, parent: str) -> dict[str, Any]:
    """Show every trial as a row, with bars of the chosen checkpoint's numbers."""
    bars = [
        _chart(plan, "BAR", "selected", name, metricKey=name, displayName=name)
        for name in (*_SELECTED, "sel_epoch", "pareto_rank")
    ]
    tags = [_tag_column(name) for name in ("pareto.front", "pareto.rank", "otsweep.reason", "otsweep.cost")]
    params = [_param_column(name) for name in plan.space.swept]
    return _state(
        search=_trials_of(parent),
        order="attributes.start_time",
        columns=["attributes.`Duration`", *map(_metric_column, _SELECTED), *tags, *params],
        charts=bars,
        sections=[_section("selected", "Chosen checkpoints", columns=3)],
    )


def _cost_view(plan: SweepPlan, parent: str) -> dict[str, Any]:
    """Show what the front cost: the hypervolume over trials and over hours."""
    hours = "front_gpu_hours" if plan.gpus_per_trial else "front_cpu_hours"
    by_hours = {"xAxisKey": "metric", "selectedXAxisMetricKey": hours, "useGlobalXaxisKey": False}
    charts = [
        _line(plan, "front_hypervolume", "cost"),
        _line(plan, "front_hypervolume", "cost", name=f"front_hypervolume over {hours}", **by_hours),
        _line(plan, "front_size", "cost"),
    ]
    return _state(
        search=f"attributes.run_id = '{parent}'",
        order="attributes.start_time",
        columns=[_metric_column(name) for name in ("front_hypervolume", "front_size", hours)],
        charts=charts,
        sections=[_section("cost", "Hypervolume by finished trials and by cost", columns=3)],
    )


def _state(
    *, search: str, order: str, columns: list[str], charts: list[dict[str, Any]], sections: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a view's whole state, with every key that the page expects."""
    return {
        "searchFilter": search,
        "orderByKey": order,
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": ["attributes.`Run Name`", *columns],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOWALL",
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "viewMaximized": False,
        "runListHidden": False,
        # Otherwise the sections that the page makes itself come first.
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": False,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "compareRunCharts": charts,
        "compareRunSections": sections,
    }


def _trials_of(parent: str) -> str:
    return f'tags."{PARENT_TAG}" = "{parent}" and tags."otsweep.kind" = "trial"'


def _chart(plan: SweepPlan, kind: str, section: str, name: str, **given: Any) -> dict[str, Any]:
    return {
        "uuid": hashlib.sha256(f"{plan.name} {kind} {name}".encode()).hexdigest()[:16],
        "type": kind,
        "deleted": False,
        "isGenerated": False,
        "metricSectionId": section,
        "runsCountToCompare": _MOST_CHARTED,
        "displayName": name,
        **given,
    }


def _line(plan: SweepPlan, metric: str, section: str, *, name: str = "", **given: Any) -> dict[str, Any]:
    fields = {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "lineSmoothness": 0,
        "useGlobalXaxisKey": True,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
    }
    return _chart(plan, "LINE", section, name or metric, **fields | given)


def _section(uuid: str, name: str, *, columns: int) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": True, "isReordered": True, "columns": columns, "cardHeight": 420}


def _axis(metric: str) -> dict[str, str]:
    return {"key": metric, "type": "METRIC"}


def _metric_column(name: str) -> str:
    return f"metrics.`{name}`"


def _param_column(name: str) -> str:
    return f"params.`{name}`"


def _tag_column(name: str) -> str:
    return f"tags.`{name}`"
