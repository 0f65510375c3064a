"""Links to a sweep's saved views on MLflow's page."""

from __future__ import annotations

import hashlib

FRONT, ALL, COST = "Pareto front", "All trials", "Hypervolume and cost"


def view_label(sweep: str, parent: str) -> str:
    """Return what a sweep's views are called by: its name, which others may have too, and how its run begins."""
    return f"{sweep} ({parent[:8]})"


def view_key(view: str, label: str) -> str:
    """Return the key of a sweep's view among those of its experiment."""
    return hashlib.sha256(f"{view} {label}".encode()).hexdigest()[:32]


def view_link(experiment: str, key: str) -> str:
    """Return what follows the server's address; the chart mode is not part of a view."""
    return (
        f"/#/experiments/{experiment}/runs?viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    )
