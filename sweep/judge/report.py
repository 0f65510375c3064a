"""A judgement for people: the table, every number of each model, and its files."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from sweep.audit import ROWS, show_agreement
from sweep.judge.result import JudgedModel, JudgedModels
from sweep.report import accuracies, percent, plain_table
from trainer.crowds import crowd_for, crowd_line
from trainer.human_agreement import HumanAgreement, unknown_agreement

PICTURE = "judge.png"
"""File of the picture of a judgement."""


def show_judgement(judgement: JudgedModels, console: Console) -> None:
    """Print the table of all models, every number of each, and how far they agree with people."""
    console.print(*heading(judgement), "", sep="\n", markup=False)
    if len(judgement.models) > 1:
        console.print(leaderboard(judgement), "")
    for position, model in enumerate(judgement.models):
        console.print(*_model_lines(judgement, position, model), "", sep="\n", markup=False)
    known = {each.file.name: [HumanAgreement.from_plain(each.people)] for each in judgement.models if each.people}
    if known:
        show_agreement(known, console)
    else:
        console.print(unknown_agreement(judgement.plan.space.evaluation.dataset), markup=False)


def heading(judgement: JudgedModels) -> Iterator[str]:
    """Yield what the models were judged by, in sentences."""
    evaluation, options = judgement.plan.space.evaluation, judgement.options
    fab = f"; FAB, {options.fab} steps" if options.fab else ""
    count = len(judgement.models)
    yield f"{evaluation.dataset}: {count} model{'s' if count > 1 else ''}, judged on {judgement.images} test images."
    yield (
        f"Sensitivity under {evaluation.eval_sensitivity_norm} {evaluation.eval_sensitivity_epsilon:.3g} (APGD-CE, "
        f"APGD-T and the embedding's, {options.steps} steps; "
        f"Square, {options.queries} queries{fab})."
    )
    yield (
        f"Invariance under {evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g}, by "
        f"{options.judges} judge{'s' if options.judges > 1 else ''}, a proxy for people; "
        f"{crowd_line(crowd_for(evaluation.dataset, evaluation.crowd))}."
    )
    if judgement.ceiling:
        yield "The invariance budget lies within the sensitivity budget, so no classifier can have both in full."


def leaderboard(judgement: JudgedModels) -> Table:
    """Return the table of all models, the best first."""
    table = plain_table(
        *("model", "front", "P(front)", "sensitivity", "95%", "invariance", "95%", "clean", "certified", "alarms"),
        left=[0],
    )
    names = judgement.plan.objectives.names
    for position, model in enumerate(judgement.models):
        numbers = model.measured.numbers
        shown = [
            text
            for name in names
            for text in (percent(numbers[name]), _shown(judgement.interval(position, name)).strip())
        ]
        table.add_row(
            model.file.name,
            "yes" if judgement.standing.on_front[position] else "",
            percent(judgement.standing.chances[position]),
            *shown,
            percent(numbers["clean_accuracy"]),
            percent(numbers["certified_accuracy"]) if "certified_accuracy" in numbers else "-",
            str(len(model.measured.warnings) or ""),
        )
    return table


def _shown(interval: tuple[float, float] | None) -> str:
    return f"{percent(interval[0])} to {percent(interval[1])}" if interval else ""


def number_rows(judgement: JudgedModels, position: int) -> Iterator[tuple[str, str, str]]:
    """Yield heading, value and interval of every number of a model that is shown to people."""
    model = judgement.models[position]
    for name, title in {**accuracies(judgement.plan), **ROWS}.items():
        if name in model.measured.numbers:
            value = model.measured.numbers[name]
            yield title, percent(value), _shown(judgement.interval(position, name))
        elif name == "certified_accuracy":
            yield title, "not computable", model.uncertified


def _model_lines(judgement: JudgedModels, position: int, model: JudgedModel) -> Iterator[str]:
    """Yield a model's name, its numbers and its alarms, a line each."""
    yield f"{model.file.name}  ({model.kind}, {model.file.path}, sha256 {model.file.digest[:12]})"
    for title, value, interval in number_rows(judgement, position):
        yield f"  {title:22}{value:>14}  {interval}"
    yield f"  {evidence_line(model)}"
    for warning in model.measured.warnings or ["no alarm: the attack means something by every check"]:
        yield f"  {warning}"


def evidence_line(model: JudgedModel) -> str:
    """Return in a line what the checks of the attack found."""
    evidence = model.measured.evidence
    shown = {
        "white-box": "white_box_accuracy",
        "twice the steps": "doubled_accuracy",
        "Square": "square_accuracy",
        "noise": "noise_accuracy",
        "unbounded": "large_epsilon_accuracy",
    }
    return "left by " + ", ".join(f"{what} {percent(evidence[name] or 0.0)}" for what, name in shown.items())


def judgement_metrics(judgement: JudgedModels) -> dict[str, float]:
    """Return every number of every model, for MLflow: `<model>/<number>`."""
    return {
        f"{''.join(c if c.isalnum() or c in '_-. /' else '_' for c in model.file.name)}/{name}": value
        for model in judgement.models
        for name, value in model.measured.numbers.items()
    }


def judgement_note(judgement: JudgedModels, run: str) -> str:
    """Return the description of a judgement's run in MLflow.

    Args:
        run: identifier of the run, where the picture lies.
    """
    rows = [
        f"| {model.file.name} | {'yes' if front else ''} | "
        + " | ".join(percent(model.measured.numbers[name]) for name in judgement.plan.objectives.names)
        + f" | {percent(model.measured.numbers['clean_accuracy'])} |"
        for model, front in zip(judgement.models, judgement.standing.on_front, strict=True)
    ]
    return "\n".join(
        [
            *heading(judgement),
            "",
            "| model | front | sensitivity | invariance | clean |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"![models](get-artifact?path=judge%2F{PICTURE}&run_uuid={run})",
        ]
    )
