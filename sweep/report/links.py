"""TODO one line."""

from __future__ import annotations

import hashlib

FRONT, ALL, COST = "Pareto front", "All trials", "Hypervolume and cost"


def view_key(view: str, sweep: str) -> str:
    """Of a sweep's view among those of its experiment."""
    return hashlib.sha256(f"{view} {sweep}".encode()).hexdigest()[:24]


def view_link(experiment: str, key: str) -> str:
    """Behind the address of MLflow's page; the chart mode is no part of a view."""
    return (
        f"/#/experiments/{experiment}/runs?viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    )
