"""The text that a trial's command prints: an epoch in one line, the end in a table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.config import TrialConfig
from trainer.crowds import crowd_line
from trainer.human_agreement import HEADINGS, LEGEND, HumanAgreement, cells, unknown_agreement
from trainer.intervals import wilson_interval
from trainer.report import alarms

if TYPE_CHECKING:
    from trainer.invariance import Prepared
    from trainer.report import EpochReport

_COLUMNS = 80


def brief(report: EpochReport | None) -> str:
    """Return the three accuracies of an epoch in short; an empty text if there is none yet."""
    if report is None:
        return ""
    clean, sensitivity, invariance = report.clean_accuracy, report.sensitivity_accuracy, report.invariance_accuracy
    return f"clean {clean:.1%}  sens {sensitivity:.1%}  inv {invariance:.1%}"


def summary(report: EpochReport, config: TrialConfig, prepared: Prepared) -> str:
    """Return what was measured in the end, with the intervals that tell how surely."""
    from trainer.invariance import changed_mass  # torch comes with it

    images = len(prepared.data.validation.labels)
    evaluation, judge = prepared.evaluation, prepared.judge_quality
    attack = f"PGD-{evaluation.eval_sensitivity_steps}, {evaluation.eval_sensitivity_norm}"
    perturbed = f"{evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g}"
    counted, judged = int(report.invariance_effective_size), len(prepared.judging.images)
    seen = changed_mass(prepared.judging)
    (low, high), (fewest, most) = seen.share_interval, seen.effective_interval
    return "\n".join(
        [
            f"{evaluation.dataset}: epoch {report.epoch} of {config.epochs} chosen",
            "                        95% interval  share of",
            _row("clean", report.clean_accuracy, f"{images} validation images: right", size=images),
            _row(
                "sensitivity",
                report.sensitivity_accuracy,
                f"them: right, also under {attack} {evaluation.eval_sensitivity_epsilon:.3g}",
                size=images,
            ),
            _row(
                "invariance",
                report.invariance_accuracy,
                f"people who see {perturbed} change it: agrees",
                size=counted,
            ),
            _row("  stuck", report.invariance_stuck, "them, where right before: old label given"),
            _row("  unchanged", report.invariance_unchanged, "people who see no change: agrees"),
            *(
                _row(f"  {name.split('/')[0]}", value, "the other crowd who see a change: agrees")
                for name, value in report.terms.items()
                if name.endswith("/invariance_accuracy")
            ),
            *textwrap.wrap(
                f"{seen.share:.1%} ({low:.1%} to {high:.1%}) of the answers to {judged} perturbed images see a change; "
                f"they weigh as {counted} ({int(fewest)} to {int(most)}) images would. What people see says a judge: "
                f"{crowd_line(prepared.crowd)}. It reads {judge.accuracy:.1%} of the unperturbed images rightly.",
                _COLUMNS,
            ),
            *(line for alarm in alarms(report.to_dict()) for line in textwrap.wrap(f"Warning: {alarm}.", _COLUMNS)),
        ]
    )


def agreement_lines(agreement: HumanAgreement | None, dataset: str) -> list[str]:
    """Return a table for each set of examples that people labelled, as wide as a terminal."""
    if agreement is None:
        return textwrap.wrap(unknown_agreement(dataset), _COLUMNS)
    lines = ["", f"Agreement with people, on the examples in {agreement.folder}", ""]
    for each in agreement.sets:
        lines += [each.title, *_columns([HEADINGS, *(cells([one]) for one in each.agreements)]), ""]
    return [*lines, *textwrap.wrap(LEGEND, _COLUMNS)]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as aligned lines; the first row holds headings of two lines."""
    lines = [*zip(*(heading.split("\n") for heading in rows[0]), strict=True), *rows[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]


def _row(name: str, share: float, meaning: str, *, size: int | None = None) -> str:
    """Return a line of the summary, with Wilson's interval if the share is one of `size` images."""
    interval = ""
    if size:
        low, high = wilson_interval(round(share * size), size)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
    return f"  {name:<14}{share:7.1%} {interval:<14}{meaning}"
