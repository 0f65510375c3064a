"""The published configurations beside their results here, in a table that says what either side measured.

Published figures are those of Ovalle, Czyzycki and Hsieh (arXiv 2211.02468): means and standard deviations of 3 runs,
in percent, each at the epoch of its best invariance accuracy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.table import Table

from sweep.ledger import TrialRecord
from sweep.plan import SweepPlan
from sweep.state import SweepState
from trainer.config import TrialConfig
from trainer.presets import PRESETS

PREFIX = "paper/"


class _PublishedResult(NamedTuple):
    """A published row: mean and standard deviation over 3 runs, in percent."""

    clean: tuple[float, float]
    sensitivity: tuple[float, float]
    """Accuracy under FGSM of 0.01 in normalised units, clamped to [0,1] after normalisation: about 0.003 in pixels."""
    invariance: tuple[float, float]
    """Accuracy by the label before the attack, which a person would often no longer give."""


PUBLISHED = {
    "clean-nll": _PublishedResult((98.97, 0.12), (97.97, 0.89), (86.35, 2.76)),
    "clean-nll-norm": _PublishedResult((98.28, 0.96), (96.79, 1.80), (83.75, 4.13)),
    "nll-sensitivity": _PublishedResult((98.84, 0.09), (98.76, 0.03), (87.82, 1.07)),
    "nll-sensitivity-norm": _PublishedResult((98.72, 0.25), (98.63, 0.32), (88.18, 1.10)),
    "nll-sensitivity-norm-invar": _PublishedResult((98.83, 0.15), (98.69, 0.22), (86.68, 3.32)),
    "nll-invariance": _PublishedResult((98.96, 0.05), (96.83, 2.29), (95.83, 0.27)),
    "nll-ml-sensitivity": _PublishedResult((98.98, 0.21), (98.81, 0.35), (87.67, 3.63)),
    "nll-ml-invariance": _PublishedResult((78.4, 18.6), (77.7, 19.2), (31.4, 10.4)),
}
"""Published results by name of the configuration; `nll-ml-sens-invar` was described and never logged."""

_MEASURED = (
    "clean_accuracy",
    "sensitivity_accuracy",
    "invariance_original_label",
    "invariance_accuracy",
    "invariance_stuck",
)
"""Report fields behind the columns."""

RELATED = ("pgd-at", "trades", "tla", "sat", "feature-scattering")
"""Methods that stand beside the published configurations, trained at the budget that all are judged by."""


def published_trials(plan: SweepPlan, results: SweepState) -> dict[str, TrialRecord]:
    """Return, by name, the finished trials that ran a published configuration or, beside one, a related method."""
    shared = {**TrialConfig().to_dict(), **plan.space.fixed, "epochs": plan.epochs_per_trial, "seed": plan.seed}
    budget = {"sensitivity_epsilon": plan.space.evaluation.eval_sensitivity_epsilon}

    def trials(wanted: dict[str, dict[str, Any]]) -> dict[str, TrialRecord]:
        by_name = {
            name: next((record for record in results.configurations.values() if record.config == shared | config), None)
            for name, config in wanted.items()
        }
        return {name: record for name, record in by_name.items() if record is not None}

    published = trials({name.removeprefix(PREFIX): dict(PRESETS[name]) for name in PRESETS if name.startswith(PREFIX)})
    return published and published | trials({name: {**PRESETS[name], **budget} for name in RELATED})


def paper_table(plan: SweepPlan, trials: dict[str, TrialRecord]) -> Table:
    """Return theirs and ours, column by column; the caption says what either measured."""
    evaluation = plan.space.evaluation
    table = Table(
        title="The published configurations, and related methods, in percent",
        caption=(
            "theirs (arXiv 2211.02468, 200 epochs, 3 runs, best epoch by invariance accuracy): sensitivity under FGSM "
            "0.01 in normalised units, clamped to [0,1] after normalisation (about 0.003 of the pixel range); "
            "invariance by the label before the attack.\n"
            f"here ({plan.epochs_per_trial} epochs, validation split): sensitivity under "
            f"PGD-{evaluation.eval_sensitivity_steps}, {evaluation.eval_sensitivity_norm} "
            f"{evaluation.eval_sensitivity_epsilon:g} of the pixel range; invariance by label: agreement with the "
            "label before the attack, what theirs measured; by judge: the new label, on images whose label changed; "
            "*: its embeddings have collapsed."
        ),
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    table.add_column("\nconfiguration", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading in ("\nclean", "sensi-\ntivity", "by\nlabel", "by\njudge", "\nstuck"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, record in trials.items():
        assert record.result is not None
        ours, theirs = record.result, PUBLISHED.get(name)
        if theirs is not None:
            table.add_row(name, "theirs", *(f"{mean:.1f}±{deviation:.1f}" for mean, deviation in theirs))
        numbers = [f"{100 * ours[key]:.1f}" for key in _MEASURED]
        mark = " *" if ours.get("collapsed") else ""
        table.add_row("" if theirs else name, f"here{mark}", *numbers, end_section=True)
    return table
