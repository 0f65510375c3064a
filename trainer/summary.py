"""TODO one line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.config import TrialConfig
from trainer.human_agreement import HEADINGS, LEGEND, HumanAgreement, cells, unknown_agreement
from trainer.report import collapse

if TYPE_CHECKING:
    from trainer.invariance import Prepared
    from trainer.report import EpochReport

BAR_WIDTH = 12
_COLUMNS = 80


def summary(report: EpochReport, config: TrialConfig, prepared: Prepared) -> str:
    """What a person wants to know at the end: what was measured, and how surely."""
    images, changed = len(prepared.data.validation.labels), report.invariance_changed_size
    evaluation, oracle = prepared.evaluation, prepared.judge_quality
    unchanged = int(prepared.judging.unchanged.sum())
    attack = f"PGD-{evaluation.eval_sensitivity_steps}, {evaluation.eval_sensitivity_norm}"
    perturbed = f"{evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g}"
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
                f"{changed} changed by {perturbed}: new label given",
                size=changed,
            ),
            _row("  stuck", report.invariance_stuck, "those right before: old label given"),
            _row(
                "  unchanged",
                report.invariance_unchanged,
                f"{unchanged} not changed by it: old label given",
                size=unchanged,
            ),
            "What is changed, and to which label, says an oracle, a proxy for people. It",
            f"answers {oracle.coverage:.1%} of the images as they are, and {oracle.accuracy:.1%} of these right.",
            *([f"Of this trial, {alarm}."] if (alarm := collapse(report.to_dict())) else []),
        ]
    )


def people_lines(people: HumanAgreement | None, dataset: str) -> list[str]:
    """A table per set of examples, as wide as a terminal."""
    if people is None:
        return textwrap.wrap(unknown_agreement(dataset), _COLUMNS)
    lines = ["", f"Agreement with people, on the examples in {people.folder}", ""]
    for each in people.sets:
        lines += [each.title, *_columns([HEADINGS, *(cells([agreement]) for agreement in each.agreements)]), ""]
    return [*lines, *textwrap.wrap(LEGEND, _COLUMNS)]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells one below the other; the first row holds headings of two lines."""
    lines = [*zip(*(heading.split("\n") for heading in rows[0]), strict=True), *rows[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]


def _row(name: str, share: float, meaning: str, *, size: int | None = None) -> str:
    """A line of the summary, with Wilson's interval where the share is one of `size` images."""
    from trainer.intervals import wilson_interval

    interval = ""
    if size:
        low, high = wilson_interval(round(share * size), size)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
    return f"  {name:<12}{share:7.1%}   {interval:<14}{meaning}"


def bar(share: float) -> str:
    """A share as a bar and in percent."""
    filled = int(BAR_WIDTH * share)
    return f"{'━' * filled}{'╌' * (BAR_WIDTH - filled)} {share:4.0%}"
