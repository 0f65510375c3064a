"""Descriptions of runs in MLflow: the front of a sweep, and the commands that run a point again."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from typing import Any

from sweep.plan import SweepPlan
from sweep.report import cells, front_rows, headings, row_name, short_verdict, trial_label, verdict
from sweep.state import SweepState
from sweep.tracking.links import FRONT, view_key, view_label, view_link
from trainer.config import EvaluationConfig, TrialConfig, usual_settings

_SILENCES = 8
"""Most silent workers that a description names."""

_PARAGRAPH = "\n\n"

_LONGEST_NOTE = 7_800
"""Bytes of a description: MLflow cuts it off at 8,000, silently."""


def front_markdown(plan: SweepPlan, results: SweepState, experiment: str, parent: str, runs: Mapping[int, str]) -> str:
    """Return the verdict, the picture, the front with links, and how to run a point again.

    What does not fit into a description is left out at the end, with a line that says so.

    Args:
        experiment: identifier of the runs' experiment.
        parent: identifier of the run that is described.
        runs: identifiers of the trials' runs, as far as they are known.
    """
    rows = front_rows(plan, results)
    columns = ["trial", *headings(plan, rows), "configuration"]
    files = f"#/experiments/{experiment}/runs/{parent}/artifacts/front"
    links = {"charts": view_link(experiment, view_key(FRONT, view_label(plan.name, parent))).lstrip("/")}
    links |= {"interactive picture": f"{files}/front.html", "all trials as a table": f"{files}/trials.json"}
    paragraphs = [*results.silences()[:_SILENCES], short_verdict(plan, results)]
    head = f"""{_PARAGRAPH.join(paragraphs)}

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
    """Return a heading between no-break spaces: MLflow's page sets columns edge to edge, and these keep them apart."""
    return f"\N{NO-BREAK SPACE}{heading}\N{NO-BREAK SPACE}"


def _markdown_row(
    plan: SweepPlan, results: SweepState, row: Mapping[str, Any], experiment: str, runs: Mapping[int, str]
) -> str:
    """Return a row of the front, with a link to its trial's run where that is known."""
    number, name = row["trial"], row_name(row)
    name = f"[{name}](#/experiments/{experiment}/runs/{runs[number]})" if number in runs else name
    mark = " **knee**" if row["knee"] else ""
    label = trial_label(plan.space, results.trials[number].config)
    return f"| {name} | {' | '.join(cells(plan, row))} | `{label}`{mark} |"


def _fitting(lines: list[str], room: int, more: str) -> tuple[list[str], int]:
    """Return as many lines as fit into so many bytes, and how many bytes are left.

    Args:
        more: the last line where some are missing; its `{}` is their number.
    """
    kept = []
    for line in lines:
        room -= len(line.encode()) + 1
        if room < 0:
            return [*kept, more.format(len(lines) - len(kept))], room
        kept.append(line)
    return kept, room


def run_again(plan: SweepPlan, config: Mapping[str, Any]) -> str:
    """Return the command that trains and judges a configuration as the sweep did."""
    evaluation = plan.space.evaluation.to_dict()
    usual = TrialConfig().to_dict() | EvaluationConfig().to_dict() | usual_settings(evaluation["dataset"])
    usual["dataset"] = evaluation["dataset"]
    words = ["otsweep trial", f"--dataset {shlex.quote(evaluation['dataset'])}"]
    for name, value in {**TrialConfig.from_mapping(config).to_dict(), **evaluation}.items():
        if value != usual.get(name):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words.append(f"--set {shlex.quote(f'{name}={text}')}")
    words += [f"--cpus-per-trial {int(plan.cpus_per_trial)}"] if plan.cpus_per_trial > 1 else []
    return " ".join(words)


def folded_command(command: str) -> str:
    """Return a command over several lines, as a shell takes it."""
    whole = command.replace("--set ", "--set\0")
    lines = textwrap.wrap(whole, 76, break_long_words=False, break_on_hyphens=False, subsequent_indent="  ")
    return " \\\n".join(lines).replace("\0", " ")
