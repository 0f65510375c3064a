"""Sentences on how far a sweep is, what its front holds, and how good the judge behind it is."""

from __future__ import annotations

from collections.abc import Iterator

from sweep.plan import SweepPlan
from sweep.report.audited import audited_words
from sweep.report.rows import ACCURACIES
from sweep.report.words import attack_words, percent
from sweep.state import DataSummary, SweepState
from trainer.config import UNANIMOUS, EvaluationConfig
from trainer.crowds import crowd_for, crowd_line
from trainer.human_agreement import JUDGE, HumanAgreement, Share

_NAMED = 8
"""Number of trials with collapsed embeddings that a verdict names; of more it gives the count."""


def verdict(plan: SweepPlan, results: SweepState) -> str:
    """Return one line: how far the sweep is and what its front holds."""
    evaluation = plan.space.evaluation
    units = "trials" if plan.seeds == 1 else f"configurations of {plan.seeds} seeds"
    stopped = f" ({len(results.stopped)} more stopped early)" if results.stopped else ""
    violated = f", {len(results.infeasible)} of which break {requirements_text(plan)}" if results.infeasible else ""
    return (
        f"{evaluation.dataset}: front of {len(results.front_records)} among {len(results.configurations)} finished "
        f"{units}{violated}{stopped}, "
        f"hypervolume {results.hypervolume:.4f} of 1{_interval(results)}. "
        f"Sensitivity under {evaluation.eval_sensitivity_norm} {evaluation.eval_sensitivity_epsilon:.3g} "
        f"({attack_words(evaluation)}); invariance under "
        f"{evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g}, a proxy: "
        f"{judge_line(evaluation, results.data_summary)}{''.join(_human_agreement(results.data_summary))}"
        f"{_collapsed_trials(results)}{audited_words(plan)}"
    )


def _interval(results: SweepState) -> str:
    """Return the interval of the hypervolume in words, or that it is not known."""
    interval = results.uncertainty().hypervolume
    if interval is None:
        return "" if not results.configurations else " (no interval: made before answers were kept)"
    return f" ({interval.low:.4f} to {interval.high:.4f}, images resampled jointly)"


def short_verdict(plan: SweepPlan, results: SweepState) -> str:
    """Return the verdict in one short line, in Markdown, as the head of a page."""
    kind = "trials" if plan.seeds == 1 else "configurations"
    count = f"**Front of {len(results.front_records)} among {len(results.configurations)} finished {kind}**"
    done = "" if len(results.ended) >= plan.trials else f" ({len(results.ended)} of {plan.trials} done)"
    knee = results.knee
    if knee is None:
        return f"{count}{done}, hypervolume {results.hypervolume:.4f}"
    result = results.configurations[knee].result
    assert result is not None
    shares = ", ".join(f"{ACCURACIES[name]} {percent(result[name])}" for name in list(ACCURACIES)[:2])
    return f"{count}{done}, hypervolume {results.hypervolume:.4f}; at its knee, trial {knee:03d}: {shares}"


def requirements_text(plan: SweepPlan) -> str:
    """Return what the sweep requires, in a line."""
    return " and ".join(map(str, plan.space.require))


def _collapsed_trials(results: SweepState) -> str:
    """Return a sentence on trials whose embeddings fell into a point or onto a line; empty where none did."""
    numbers = [f"{number:03d}" for number, record in results.finished.items() if (record.result or {}).get("collapsed")]
    if not numbers:
        return ""
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    trials = "trial" if len(numbers) == 1 else "trials"
    return f" The embeddings of {len(numbers)} finished {trials} have collapsed: {' '.join(numbers[:_NAMED])}{more}."


def judge_line(evaluation: EvaluationConfig, summary: DataSummary) -> str:
    """Return whose answers the invariance axis goes by, and how well the judge is known to predict them."""
    if evaluation.crowd == UNANIMOUS:
        return _unanimous_line(summary)
    line = crowd_line(crowd_for(evaluation.dataset, evaluation.crowd))
    if summary:
        mass, judged = summary["changed_mass"], summary["judged_images"]
        line += (
            f"; it reads {percent(summary['judge_accuracy'])} of the clean images rightly, and of the answers to "
            f"{judged} perturbed ones {percent(mass / judged)}{_width(summary)} see a change"
        )
        if "attainable_accuracy" in summary:
            line += f", and no model can give more than {percent(summary['attainable_accuracy'])} of these"
    return f"{line}."


def _width(summary: DataSummary) -> str:
    """Return the changed share's interval, and the effective size with its own; empty in earlier versions' sweeps."""
    if "effective_size" not in summary:
        return ""
    (low, high), (fewest, most) = summary["changed_share_interval"], summary["effective_size_interval"]
    return (
        f" ({percent(low)} to {percent(high)}; the weight of {int(summary['effective_size'])}, {int(fewest)} to "
        f"{int(most)}, whole images)"
    )


def _unanimous_line(summary: DataSummary) -> str:
    """Return what is known of the judge of earlier versions, which gave one label or none."""
    if not summary:
        return "labelled by the judge of an earlier version, not by people."
    return (
        "labelled by the judge of an earlier version, not by people (it labels "
        f"{percent(summary['oracle_coverage'])} of the clean images, {percent(summary['oracle_accuracy'])} of those "
        f"rightly; it sees {summary['changed_images']} of {summary['judged_images']} perturbed ones as changed)."
    )


def _human_agreement(summary: DataSummary) -> Iterator[str]:
    """Yield how far people agree with the judge, a sentence for every set of images that they labelled."""
    for each in HumanAgreement.from_plain(summary["people"]).sets if summary.get("people") else ():
        judge = each.by(JUDGE)
        yield (
            f" On {each.name} it answers {judge.covered.hits} of {each.images} images, and people agree with it on "
            f"{_ratio(judge.changed)} that changed for them, {_ratio(judge.unchanged)} that did not, and "
            f"{_ratio(judge.called_changed)} that it calls changed."
        )


def _ratio(share: Share) -> str:
    return f"{share.hits} of {share.size}"
