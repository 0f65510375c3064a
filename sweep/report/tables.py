"""The front for people and programs: as a terminal table, Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
import json
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from search_spaces import Space
from sweep.plan import SweepPlan
from sweep.report.links import FRONT, view_key, view_link
from sweep.state import DataSummary, Replicates, SweepState
from trainer.config import DATASET_DEFAULTS, EvaluationConfig, TrialConfig
from trainer.human_agreement import ORACLE, HumanAgreement, Share
from trainer.report import collapse
from trainer.words import SHORT_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACIES = {
    "sensitivity_accuracy": "sensitivity",
    "invariance_accuracy": "invariance",
    "invariance_stuck": "stuck",
    "clean_accuracy": "clean",
}
"""Report fields of a front's row, and their headings."""


_NAMED = 8
"""Of all trials whose embeddings collapsed, how many a verdict names."""

_LONGEST_NOTE = 7_800
"""Bytes of a description: MLflow cuts it off at 8,000, silently."""


def trial_label(space: Space, config: Mapping[str, Any]) -> str:
    """What differs between the trials of a sweep, short: `R=ot_triplet ws=0.31 m=0.05`."""
    return " ".join(f"{SHORT_NAMES.get(name, name)}={brief(v)}" for name, v in space.active(config).items())


def brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    return f"{share:.1%}"


def front_rows(plan: SweepPlan, results: SweepState) -> list[dict[str, Any]]:
    """The front from its most sensitivity-robust point on; plain values, one dict per trial. With several seeds one per
    configuration: the number of its first trial, means, intervals, and its chance of being on the front."""
    # In this order: a trial that finishes meanwhile is in the later ones too.
    records, knee, replicates = results.front_records, results.knee, results.replicates()
    rows = []
    for record in records:
        assert record.result is not None
        rows.append(
            {
                "trial": record.number,
                **{name: record.result[name] for name in ACCURACIES},
                **(_replicate_columns(plan, replicates[record.number]) if replicates else {}),
                "epoch": record.result["epoch"],
                "knee": record.number == knee,
                **plan.space.point(record.config),
            }
        )
    return rows


def _replicate_columns(plan: SweepPlan, replicates: Replicates) -> dict[str, float]:
    """What a front's row has only with several seeds."""
    columns: dict[str, float] = {"seeds": plan.seeds, "p_front": replicates.chance}
    for name, interval in zip(plan.objectives.names, replicates.intervals, strict=True):
        columns |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return columns


def _headings(plan: SweepPlan) -> list[str]:
    """Of what `cells` tells."""
    return [*ACCURACIES.values(), *(["P(front)"] if plan.seeds > 1 else [])]


def cells(row: Mapping[str, Any]) -> list[str]:
    """The accuracies of a front's row, and what several seeds tell: `40.7±3.1%`, half of the 95% interval."""
    shares = []
    for name in ACCURACIES:
        half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2 if f"{name}_low" in row else None
        shares.append(percent(row[name]) if half is None else f"{percent(row[name])[:-1]}±{percent(half)}")
    return [*shares, *([percent(row["p_front"])] if "p_front" in row else [])]


def _name_of(row: Mapping[str, Any]) -> str:
    """A front's row by its trials: `003`, or `003-005`."""
    last = row["trial"] + row.get("seeds", 1) - 1
    return f"{row['trial']:03d}" if last == row["trial"] else f"{row['trial']:03d}-{last:03d}"


def front_table(plan: SweepPlan, results: SweepState) -> Table:
    """For a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial" if plan.seeds == 1 else "trials", justify="right", no_wrap=True)
    for heading in _headings(plan):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    for row in front_rows(plan, results):
        mark = "  <- knee" if row["knee"] else ""
        table.add_row(_name_of(row), *cells(row), trial_label(plan.space, results.trials[row["trial"]].config) + mark)
    return table


def front_markdown(plan: SweepPlan, results: SweepState, experiment: str, parent: str, runs: Mapping[int, str]) -> str:
    """For the description of an MLflow run: the verdict, the picture, the front with links, how to run a point again.

    What does not fit into a description is left out at the end, and said to be.

    Args:
        experiment: identifier of the runs' experiment.
        parent: of the run that is described.
        runs: of the trials' runs, as far as they are known.
    """
    rows, columns = front_rows(plan, results), ["trial", *_headings(plan), "configuration"]
    files = f"#/experiments/{experiment}/runs/{parent}/artifacts/front"
    links = {"charts": view_link(experiment, view_key(FRONT, plan.name)).lstrip("/")}
    links |= {"interactive picture": f"{files}/front.html", "all trials as a table": f"{files}/trials.json"}
    head = f"""{_short_verdict(plan, results)}

Open: {", ".join(f"[{name}]({link})" for name, link in links.items())}

![The front](get-artifact?path=front%2Ffront.png&run_uuid={parent})

{verdict(plan, results)}

| {" | ".join(map(_spaced, columns))} |
|{"---:|" * (len(columns) - 1)}:---|"""
    lines = [_markdown_row(plan, results, row, experiment, runs) for row in rows]
    commands = [
        f"\n# {row['trial']:03d}\n{folded_command(run_again(plan, results.trials[row['trial']].config))}"
        for row in rows
    ]
    room = _LONGEST_NOTE - len(head.encode()) - 200
    table, room = _fitting(lines, room, "|" + " |" * (len(columns) - 1) + " and {} more: see front/front.csv |")
    again, _ = _fitting(commands, room, "# and {} more: each trial's own description has its command")
    return "\n".join([head, *table, "", "Run a point again:", "", "```", *again, "```"]).replace("```\n\n#", "```\n#")


def _spaced(heading: str) -> str:
    """MLflow's page sets columns edge to edge; no-break spaces in the headings keep them apart."""
    return f"\N{NO-BREAK SPACE}{heading}\N{NO-BREAK SPACE}"


def folded_command(command: str) -> str:
    """A command over several lines, as a shell takes it."""
    whole = command.replace("--set ", "--set\0")
    lines = textwrap.wrap(whole, 76, break_long_words=False, break_on_hyphens=False, subsequent_indent="  ")
    return " \\\n".join(lines).replace("\0", " ")


def _short_verdict(plan: SweepPlan, results: SweepState) -> str:
    """One short line, as the head of a page."""
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


def _markdown_row(
    plan: SweepPlan, results: SweepState, row: Mapping[str, Any], experiment: str, runs: Mapping[int, str]
) -> str:
    number = row["trial"]
    name = _name_of(row)
    name = f"[{name}](#/experiments/{experiment}/runs/{runs[number]})" if number in runs else name
    shares = " | ".join(cells(row))
    mark = " **knee**" if row["knee"] else ""
    return f"| {name} | {shares} | `{trial_label(plan.space, results.trials[number].config)}`{mark} |"


def _fitting(lines: list[str], room: int, more: str) -> tuple[list[str], int]:
    """As many lines as fit into so many bytes, and how many bytes are left; `more` says how many are missing."""
    kept = []
    for line in lines:
        room -= len(line.encode()) + 1
        if room < 0:
            return [*kept, more.format(len(lines) - len(kept))], room
        kept.append(line)
    return kept, room


def run_again(plan: SweepPlan, config: Mapping[str, Any]) -> str:
    """The command that trains and judges a configuration as the sweep did."""
    evaluation = plan.space.evaluation.to_dict()
    usual = TrialConfig().to_dict() | EvaluationConfig().to_dict() | DATASET_DEFAULTS[evaluation["dataset"]]
    usual["dataset"] = evaluation["dataset"]
    given = {**config, **evaluation}
    words = ["otsweep trial", f"--dataset {shlex.quote(evaluation['dataset'])}"]
    for name, value in given.items():
        if value != usual.get(name):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words.append(f"--set {shlex.quote(f'{name}={text}')}")
    words += [f"--cpus-per-trial {int(plan.cpus_per_trial)}"] if plan.cpus_per_trial > 1 else []
    return " ".join(words)


def verdict(plan: SweepPlan, results: SweepState) -> str:
    """One line: how far the sweep is and what its front holds."""
    evaluation = plan.space.evaluation
    units = "trials" if plan.seeds == 1 else f"configurations of {plan.seeds} seeds"
    stopped = f" ({len(results.stopped)} more stopped early)" if results.stopped else ""
    broken = f", {len(results.infeasible)} of which break {requirements_text(plan)}" if results.infeasible else ""
    return (
        f"{evaluation.dataset}: front of {len(results.front_records)} among {len(results.configurations)} finished "
        f"{units}{broken}{stopped}, "
        f"hypervolume {results.hypervolume:.4f} of 1. Sensitivity under {evaluation.eval_sensitivity_norm} "
        f"{evaluation.eval_sensitivity_epsilon:.3g} (PGD-{evaluation.eval_sensitivity_steps}); invariance under "
        f"{evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g}, a proxy: {_judge(results.facts)}"
        f"{_collapsed_trials(results)}"
    )


def _collapsed_trials(results: SweepState) -> str:
    """A sentence on those whose embeddings fell into a point or onto a line; empty where none did."""
    numbers = [f"{number:03d}" for number, record in results.finished.items() if collapse(record.result or {})]
    if not numbers:
        return ""
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    trials = "trial" if len(numbers) == 1 else "trials"
    return f" The embeddings of {len(numbers)} finished {trials} have collapsed: {' '.join(numbers[:_NAMED])}{more}."


def requirements_text(plan: SweepPlan) -> str:
    """What the sweep requires, in a line."""
    return " and ".join(map(str, plan.space.require))


def _judge(facts: DataSummary) -> str:
    """Who says which label a perturbed image has, and what is known of him."""
    if not facts:
        return "judged by the oracle, not by people."
    return (
        f"judged by the oracle, not by people (it labels {percent(facts['oracle_coverage'])} of the clean images, "
        f"{percent(facts['oracle_accuracy'])} of those rightly; it sees {facts['changed_images']} of "
        f"{facts['judged_images']} perturbed ones as changed).{''.join(_people_agree(facts))}"
    )


def _people_agree(facts: DataSummary) -> Iterator[str]:
    """How far people agree with the oracle, a sentence for every set of images that they labelled."""
    for each in HumanAgreement.from_plain(facts["people"]).sets if facts.get("people") else ():
        oracle = each.by(ORACLE)
        yield (
            f" On {each.name} it answers {oracle.covered.hits} of {each.images} images, and people agree with it on "
            f"{_of(oracle.changed)} that changed for them, {_of(oracle.unchanged)} that did not, and "
            f"{_of(oracle.called_changed)} that it calls changed."
        )


def _of(share: Share) -> str:
    return f"{share.hits} of {share.size}"


def front_csv(plan: SweepPlan, results: SweepState) -> str:
    """For programs; a knob that a trial does not use is empty."""
    rows = front_rows(plan, results)
    header = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def front_json(plan: SweepPlan, results: SweepState) -> str:
    """For programs, with what the numbers mean."""
    content = {
        "sweep": plan.name,
        "evaluation": plan.space.evaluation.to_dict(),
        "hypervolume": results.hypervolume,
        "reference": list(plan.objectives.reference),
        "seeds": plan.seeds,
        "require": [str(each) for each in plan.space.require],
        "finished": len(results.finished),
        "infeasible": len(results.infeasible),
        "stopped": len(results.stopped),
        "front": front_rows(plan, results),
    }
    return json.dumps(content, indent=2)


def front_picture(plan: SweepPlan, results: SweepState) -> Figure:
    """The picture of all finished trials, or configurations, and their front."""
    from sweep.report.figures import front_figure

    return front_figure(
        list(results.configurations.values()),
        infeasible=results.infeasible.keys(),
        replicates=results.replicates(),
        name=plan.name,
        objectives=plan.objectives,
        evaluation=plan.space.evaluation,
        validation_images=results.facts.get("validation_images"),
    )
