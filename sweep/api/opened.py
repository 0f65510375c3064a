"""A sweep to look at: its front, trials and reports as tables, its picture as a figure."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sweep.plan import SweepPlan, read_plan
from sweep.report import front_arrow, front_content, front_picture, ledger_arrow, verdict
from sweep.state import SweepState, read_state, why_no_front

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from matplotlib.figure import Figure


class Sweep:
    """A sweep as its ledger told it when it was opened or when it ended; `refresh` reads it again.

    Args:
        plan: its plan.
        state: what its ledger tells.
        link: makes the link to its front at an address of MLflow, after a run.
    """

    def __init__(self, plan: SweepPlan, state: SweepState, *, link: Callable[[str], str] | None = None) -> None:
        self.plan, self.state, self.link = plan, state, link

    def __repr__(self) -> str:
        ended, front = len(self.state.ended), len(self.state.front_records)
        return f"<Sweep {self.name!r}: {ended} of {self.plan.trials} trials ended, {front} on the front>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the verdict above the front."""
        from html import escape

        table = self.front.to_html(index=False, float_format="{:.3f}".format) if len(self.front) else ""
        return f"<p>{escape(self.verdict)}</p>{table}"

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def folder(self) -> Path:
        """The sweep's folder: plan, ledger, front, picture, checkpoints."""
        return self.plan.folder

    @property
    def complete(self) -> bool:
        """True once all trials have ended."""
        return len(self.state.ended) >= self.plan.trials

    @property
    def hypervolume(self) -> float:
        """Area that the front dominates, against the stored reference; 0 without a front."""
        return self.state.hypervolume

    @property
    def hypervolume_interval(self) -> tuple[float, float] | None:
        """The 95% interval of the hypervolume over other images (and seeds); None where answers were not kept."""
        interval = self.state.uncertainty().hypervolume
        return None if interval is None else (interval.low, interval.high)

    @property
    def verdict(self) -> str:
        """The front in a few sentences; without a front, the reason."""
        if self.state.finished:
            return verdict(self.plan, self.state)
        return f"{self.name} has no front yet: {why_no_front(self.state)}"

    @property
    def front(self) -> pandas.DataFrame:
        """The front, a row a configuration, the best in the first objective first: columns as in `--format csv`."""
        return self.arrow("front").to_pandas()

    @property
    def trials(self) -> pandas.DataFrame:
        """A row per trial: its state, its settings (`config.<knob>`) and its last report, final once it finished."""
        return self.arrow("trials").to_pandas()

    @property
    def reports(self) -> pandas.DataFrame:
        """A row per report: each epoch of each trial, and the final one."""
        return self.arrow("reports").to_pandas()

    def arrow(self, table: Literal["front", "trials", "reports"]) -> pyarrow.Table:
        """Return a table in Arrow's form; fields of trials and reports carry `description` and `unit`."""
        if table == "front":
            return front_arrow(self.plan, self.state)
        return ledger_arrow(self.plan, self.state, last_only=table == "trials")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, those of `otsweep front --format json`."""
        return front_content(self.plan, self.state)

    def figure(self) -> Figure:
        """Return the picture of the front; `figure.savefig` writes it."""
        return front_picture(self.plan, self.state)

    def refresh(self) -> Sweep:
        """Return the sweep as its ledger tells it now; works while another process runs it."""
        return open_sweep(self.name, storage=self.plan.storage)


def open_sweep(name: str, *, storage: str | Path | None = None, warn: Callable[[str], object] = warnings.warn) -> Sweep:
    """Return a sweep of the storage, finished or running.

    Args:
        storage: folder or URL of all sweeps; None for `OTSWEEP_STORAGE`, else `~/otsweep`.
        warn: called with a message for each part of the ledger that is damaged and left out.

    Raises:
        InputError: for a name that no sweep has, or one that was never started.
    """
    plan = read_plan(name, storage=None if storage is None else str(storage))
    state = read_state(plan)
    for message in state.warnings:
        warn(message)
    return Sweep(plan, state)
