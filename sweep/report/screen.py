"""The display of a running sweep: a live screen on a terminal, a plain line per ended trial elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.report.rows import trial_label
from sweep.report.words import duration, percent
from sweep.state import SweepState
from trainer.progress import ProgressLine

_FRONT_SHOWN = 6
_BAR_WIDTH = 80
_LEAST_COLUMNS = 60
"""Width of the narrowest terminal on which trials are shown live: elsewhere numbers would be cut."""


class Screen:
    """Shows a `SweepState` while it changes; a context that is open while trials run. Its own state is the clock.

    Lines are printed by the thread that changes the state. What is live is drawn by another one, from snapshots.
    """

    def __init__(self, console: Console, plan: SweepPlan, results: SweepState) -> None:
        self.console, self.plan, self.results = console, plan, results
        self.begun, self.share_before = 0.0, 0.0
        self.line = ProgressLine(console.file)
        """Shows how far it is before the first trial and after the last one."""
        self.living = console.is_terminal and console.width >= _LEAST_COLUMNS
        """True if trials are shown live; else a line tells of each that ended."""
        self.live = contextlib.ExitStack()

    def open(self, *, resumed: bool, remarks: Iterable[str]) -> None:
        """Print what is going to be done, and remarks on it."""
        plan = self.plan
        work = f"{plan.name}: {plan.trials} trials"
        if resumed:
            left = plan.trials - len(self.results.ended)
            work = f"Resuming {plan.name}: {left} of {plan.trials} trials to go"
        if plan.seeds > 1:
            work += f" ({plan.configurations} configurations on {plan.seeds} seeds each)"
        if plan.pack > 1:
            work += f", in packs of {plan.pack},"
        self.log(f"{work} of {plan.epochs_per_trial} epochs on {plan.space.evaluation.dataset}, seed {plan.seed}")
        for remark in remarks:
            self.log(remark)
        if self.line.living:
            self.line.begin("Starting Ray ...")

    def prepare(self, stage: str, done: int, total: int) -> None:
        """Show the preparation before the first trial."""
        self.line.show(f"preparing: {stage}", done, total)

    def __enter__(self) -> Screen:
        self.line.clear()
        self.begun, self.share_before = time.monotonic(), self.results.share_done(self.plan.epochs_per_trial)
        if self.living:
            self.live.enter_context(
                Live(get_renderable=self.render, console=self.console, refresh_per_second=4, transient=True)
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything that moves."""
        self.line.clear()
        self.live.close()

    def log(self, message: str) -> None:
        """Print a line that stays, above the live part."""
        self.line.clear()
        self.console.print(message, markup=False)

    def trial_changed(self, number: int) -> None:
        """Print a line for a trial that failed and, where nothing is live, for every trial that ended."""
        record = self.results.trials[number]
        if record.state == "failed":
            self.log(f"trial {number:03d} failed: {record.reason}")
        elif record.state != "running" and not self.living:
            how = f" {record.reason}" if record.state in ("stopped", "paused") else ""
            counts, outlook = self.counts(self.results), self.outlook(self.results)
            self.log(f"{counts}; trial {number:03d}{how}: {_accuracies(record.reports[-1])}; {outlook}")

    def render(self) -> Group:
        """Return what is live: counts, a bar, the running trials, the front."""
        state, epochs = self.results.snapshot(), self.plan.epochs_per_trial
        done, total = state.epochs_done(epochs), self.plan.trials * epochs
        return Group(
            Text(f"{self.counts(state)}; {self.outlook(state)}"),
            Columns([ProgressBar(total=total, completed=done, width=_BAR_WIDTH)]),
            self.trials_table("running", sorted(state.running.values(), key=lambda record: record.number)),
            self.trials_table("front", state.front_records[:_FRONT_SHOWN]),
        )

    def counts(self, state: SweepState) -> str:
        """Return how many trials are done, running, paused, stopped and failed."""
        states = state.states()
        counts = [f"{states.total() - states['running'] - states['paused']}/{state.total} done"]
        named = {"running": "running", "paused": "paused", "stopped": "stopped early", "failed": "failed"}
        counts += [f"{states[each]} {name}" for each, name in named.items() if states[each]]
        return ", ".join(counts)

    def outlook(self, state: SweepState) -> str:
        """Return the front so far, and the time left at the pace of this run."""
        gone, share = time.monotonic() - self.begun, state.share_done(self.plan.epochs_per_trial)
        front = f"front {state.front.size}, hypervolume {state.hypervolume:.4f}"
        pace = (share - self.share_before) / gone
        left = f", about {duration((1 - share) / pace)} left" if pace > 0 and share < 1 else ""
        return f"{front}; {duration(gone)} gone{left}"

    def trials_table(self, heading: str, records: list[TrialRecord]) -> Table:
        """Return a row per trial: number, epoch, accuracies, configuration."""
        table = Table.grid(padding=(0, 2))
        for position, record in enumerate(records):
            last = record.reports[-1] if record.reports else None
            epoch = f"{last['epoch'] if last else 0:3g}/{self.plan.epochs_per_trial}"
            table.add_row(
                heading if position == 0 else "",
                f"{record.number:03d}",
                epoch,
                _accuracies(last) if last else "",
                Text(trial_label(self.plan.space, record.config), overflow="ellipsis", no_wrap=True),
            )
        return table


class LineScreen(Screen):
    """The screen of a notebook: one line that is written over again, below messages that stay."""

    def trial_changed(self, number: int) -> None:
        """Write the line over again; print a line for a trial that failed."""
        record = self.results.trials[number]
        if record.state == "failed":
            self.log(f"trial {number:03d} failed: {record.reason}")
        self.line.update(f"{self.plan.name}: {self.counts(self.results)}; {self.outlook(self.results)}", now=True)


def _accuracies(report: Mapping[str, Any]) -> str:
    shares = {"sensitivity": "sensitivity_accuracy", "invariance": "invariance_accuracy", "clean": "clean_accuracy"}
    return "  ".join(f"{name} {percent(report[field]):>6}" for name, field in shares.items())
