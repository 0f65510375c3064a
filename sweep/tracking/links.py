"""Links to a sweep's saved views on MLflow's page."""

from __future__ import annotations

import hashlib

FRONT, ALL, COST = "Pareto front", "All trials", "Hypervolume and cost"


def view_key(view: str, sweep: str) -> str:
    """Return the key of a sweep's view among those of its experiment."""
    return hashlib.sha256(f"{view} {sweep}".encode()).hexdigest()[:24]


def view_link(experiment: str, key: str) -> str:
    """Return what follows the server's address; the chart mode is not part of a view."""
    return (
        f"/#/experiments/{experiment}/runs?viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    )
