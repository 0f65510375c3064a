"""The front for people and programs: as a terminal table, Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from search_spaces import Space
from sweep.plan import SweepPlan
from sweep.results import Facts, Replicates, Results
from trainer.config import SHORT_NAMES
from trainer.people import ORACLE, People, Share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACIES = {
    "sensitivity_accuracy": "sensitivity",
    "invariance_accuracy": "invariance",
    "invariance_stuck": "stuck",
    "clean_accuracy": "clean",
}
"""Report fields of a front's row, and their headings."""


def label(space: Space, config: Mapping[str, Any]) -> str:
    """What differs between the trials of a sweep, short: `R=ot_triplet ws=0.31 m=0.05`."""
    return " ".join(f"{SHORT_NAMES.get(name, name)}={brief(v)}" for name, v in space.active(config).items())


def brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    return f"{share:.1%}"


def front_rows(plan: SweepPlan, results: Results) -> list[dict[str, Any]]:
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
                **(replicate_columns(plan, replicates[record.number]) if replicates else {}),
                "epoch": record.result["epoch"],
                "knee": record.number == knee,
                **plan.space.point(record.config),
            }
        )
    return rows


def replicate_columns(plan: SweepPlan, replicates: Replicates) -> dict[str, float]:
    """What a front's row has only with several seeds."""
    columns: dict[str, float] = {"seeds": plan.seeds, "p_front": replicates.chance}
    for name, interval in zip(plan.objectives.names, replicates.intervals, strict=True):
        columns |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return columns


def headings(plan: SweepPlan) -> list[str]:
    """Of what `cells` tells."""
    return [*ACCURACIES.values(), *(["P(front)"] if plan.seeds > 1 else [])]


def cells(row: Mapping[str, Any]) -> list[str]:
    """The accuracies of a front's row, and what several seeds tell: `40.7±3.1%`, half of the 95% interval."""
    shares = []
    for name in ACCURACIES:
        half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2 if f"{name}_low" in row else None
        shares.append(percent(row[name]) if half is None else f"{percent(row[name])[:-1]}±{percent(half)}")
    return [*shares, *([percent(row["p_front"])] if "p_front" in row else [])]


def name_of(row: Mapping[str, Any]) -> str:
    """A front's row by its trials: `003`, or `003-005`."""
    last = row["trial"] + row.get("seeds", 1) - 1
    return f"{row['trial']:03d}" if last == row["trial"] else f"{row['trial']:03d}-{last:03d}"


def front_table(plan: SweepPlan, results: Results) -> Table:
    """For a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial" if plan.seeds == 1 else "trials", justify="right", no_wrap=True)
    for heading in headings(plan):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    for row in front_rows(plan, results):
        mark = "  <- knee" if row["knee"] else ""
        table.add_row(name_of(row), *cells(row), label(plan.space, results.trials[row["trial"]].config) + mark)
    return table


def front_markdown(plan: SweepPlan, results: Results, run_ids: Mapping[int, str]) -> str:
    """For the description of an MLflow run, trials linked where their runs are known."""
    columns = ["trial", *headings(plan), "configuration"]
    lines = [verdict(plan, results), "", f"| {' | '.join(columns)} |", f"|{'---:|' * (len(columns) - 1)}:---|"]
    for row in front_rows(plan, results):
        number = row["trial"]
        name = f"[{name_of(row)}](#/runs/{run_ids[number]})" if number in run_ids else name_of(row)
        shares = " | ".join(cells(row))
        mark = " **knee**" if row["knee"] else ""
        lines.append(f"| {name} | {shares} | `{label(plan.space, results.trials[number].config)}`{mark} |")
    return "\n".join(lines)


def verdict(plan: SweepPlan, results: Results) -> str:
    """One line: how far the sweep is and what its front holds."""
    evaluation = plan.space.evaluation
    units = "trials" if plan.seeds == 1 else f"configurations of {plan.seeds} seeds"
    stopped = f" ({len(results.stopped)} more stopped early)" if results.stopped else ""
    broken = f", {len(results.infeasible)} of which break {required(plan)}" if results.infeasible else ""
    return (
        f"{evaluation.dataset}: front of {len(results.front_records)} among {len(results.configurations)} finished "
        f"{units}{broken}{stopped}, "
        f"hypervolume {results.hypervolume:.4f} of 1. Sensitivity under {evaluation.eval_sensitivity_norm} "
        f"{evaluation.eval_sensitivity_epsilon:.3g} (PGD-{evaluation.eval_sensitivity_steps}); invariance under "
        f"{evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g}, a proxy: {judge(results.facts)}"
    )


def required(plan: SweepPlan) -> str:
    """What the sweep requires, in a line."""
    return " and ".join(map(str, plan.space.require))


def judge(facts: Facts) -> str:
    """Who says which label a perturbed image has, and what is known of him."""
    if not facts:
        return "judged by the oracle, not by people."
    return (
        f"judged by the oracle, not by people (it labels {percent(facts['oracle_coverage'])} of the clean images, "
        f"{percent(facts['oracle_accuracy'])} of those rightly; it sees {facts['changed_images']} of "
        f"{facts['judged_images']} perturbed ones as changed).{''.join(people_agree(facts))}"
    )


def people_agree(facts: Facts) -> Iterator[str]:
    """How far people agree with the oracle, a sentence for every set of images that they labelled."""
    for each in People.from_plain(facts["people"]).sets if facts.get("people") else ():
        oracle = each.by(ORACLE)
        yield (
            f" On {each.name} it answers {oracle.covered.hits} of {each.images} images, and people agree with it on "
            f"{of(oracle.changed)} that changed for them, {of(oracle.unchanged)} that did not, and "
            f"{of(oracle.called_changed)} that it calls changed."
        )


def of(share: Share) -> str:
    return f"{share.hits} of {share.size}"


def front_csv(plan: SweepPlan, results: Results) -> str:
    """For programs; a knob that a trial does not use is empty."""
    rows = front_rows(plan, results)
    header = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def front_json(plan: SweepPlan, results: Results) -> str:
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


def front_picture(plan: SweepPlan, results: Results) -> Figure:
    """The picture of all finished trials, or configurations, and their front."""
    from sweep.figures import front_figure

    return front_figure(
        list(results.configurations.values()),
        infeasible=results.infeasible.keys(),
        replicates=results.replicates(),
        name=plan.name,
        objectives=plan.objectives,
        evaluation=plan.space.evaluation,
        validation_images=results.facts.get("validation_images"),
    )
