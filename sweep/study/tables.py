"""A study's findings for people: table, page, description in MLflow, files."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sweep.report import plain_table, save_figure
from sweep.study.figure import study_figure
from sweep.study.result import ArmDifference, StudyResult
from sweep.study.verdict import sentences
from trainer.files import write_whole

PICTURE, PAGE = "study.png", "study.html"
_PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>'
    "body{{font:14px sans-serif;max-width:72em;margin:2em auto;padding:0 1em}}td,th{{padding:2px 8px;text-align:right}}"
    "td:first-child,th:first-child{{text-align:left}}</style></head><body>{body}</body></html>\n"
)
_HEADINGS = ("arm", "hypervolume", "± sd", "minus control", "95% interval", "p", "Holm")


def study_tables(result: StudyResult) -> list[Table]:
    """Return a table per crowd, a row per arm, within 80 columns."""
    tables = []
    for crowd in result.crowds:
        table = plain_table(*_HEADINGS, left=[0])
        if len(result.crowds) > 1:
            table.title = f"Invariance by the {crowd} crowd"
        for row in _rows(result, crowd):
            table.add_row(*row)
        tables.append(table)
    return tables


def _rows(result: StudyResult, crowd: str) -> list[tuple[str, ...]]:
    """Return the cells of a crowd's table."""
    against = {each.arm: each for each in result.under(crowd)}
    rows = []
    for arm in result.arms:
        volumes = result.hypervolumes(arm, crowd)
        spread = f"{volumes.std(ddof=1):.4f}" if len(volumes) > 1 else "-"
        compared = _difference_cells(against[arm]) if arm in against else ("control", "", "", "")
        rows.append((arm, f"{volumes.mean():.4f}", spread, *compared))
    return rows


def _difference_cells(one: ArmDifference) -> tuple[str, str, str, str]:
    span = "-" if one.low is None or one.high is None else f"{one.low:+.4f} to {one.high:+.4f}"
    p, adjusted = ("-" if each is None else f"{each:.2g}" for each in (one.p_value, one.adjusted))
    return f"{one.estimate:+.4f}", span, p, adjusted


def notes(result: StudyResult) -> list[str]:
    """Return what the numbers are, for below a table."""
    parts = [
        f"  {one.arm}: {_spread_text(one)}" for one in result.under(result.crowds[0]) if one.parts and one.deviation
    ]
    seeds = len(result.seeds)
    lines = [
        "hypervolume: share of the square of both accuracies (0 to 1) that the audited finalists dominate, against "
        f"{_point(result)}; mean of the seeds, ± sd over them. Audited: {result.audited}.",
        "minus control: arm minus control on the same seed, mean of the seeds; above 0 the arm is better.",
    ]
    if seeds > 1:
        crowds = ", under each crowd alone" if len(result.crowds) > 1 else ""
        lines += [
            f"95% interval, p: each arm alone, by Student's t over {seeds} paired seeds, two-sided. Each seed has its "
            "own split, judges, search and training seeds; what test images add that two splits share is not counted.",
            f"Holm: p corrected for {len(result.arms) - 1} arms{crowds}; a difference is shown where it is below 0.05.",
        ]
    if parts:
        lines += [
            "Standard deviation of one seed's difference, and what is estimated to come from where (squares add up):",
            *parts,
        ]
    return lines


def _spread_text(one: ArmDifference) -> str:
    """Return where the spread between seeds comes from; what is left is the search, and the split."""
    assert one.deviation is not None
    known = ", ".join(f"{part} {value:.4f}" for part, value in one.parts.items())
    left = one.deviation**2 - sum(value**2 for value in one.parts.values())
    rest = f"{math.sqrt(left):.4f}" if left > 0 else "nothing that so few seeds tell"
    return f"{one.deviation:.4f}; {known}; search and split: {rest}"


def _point(result: StudyResult) -> str:
    return f"({', '.join(f'{each:g}' for each in result.reference)})"


def study_markdown(result: StudyResult, run: str) -> str:
    """Return the description of the study's run in MLflow."""
    lines = [f"**{html.escape(result.question)}**", ""] if result.question else []
    lines += [
        *(f"{each}\n" for each in sentences(result)),
        f"![Study](get-artifact?path=study%2F{PICTURE}&run_uuid={run})",
    ]
    for crowd in result.crowds:
        lines += [
            "",
            f"Invariance by the {crowd} crowd:",
            "",
            f"| {' | '.join(_HEADINGS)} |",
            "|:---" + "|---:" * 6 + "|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in _rows(result, crowd)]
    return "\n".join([*lines, "", *notes(result)])


def study_metrics(result: StudyResult) -> dict[str, float]:
    """Return the numbers of the study's run in MLflow."""
    metrics: dict[str, float] = {"seeds": float(len(result.seeds))}
    for arm in result.arms:
        for crowd in result.crowds:
            metrics[f"hypervolume/{arm}/{crowd}"] = float(result.hypervolumes(arm, crowd).mean())
    for one in result.differences:
        known = {"difference": one.estimate, "low": one.low, "high": one.high, "p_holm": one.adjusted}
        metrics |= {f"{name}/{one.arm}/{one.crowd}": value for name, value in known.items() if value is not None}
    return metrics


def write_study_files(result: StudyResult, folder: Path) -> None:
    """Write result, picture and page into a folder; the latter two once a seed is done."""
    result.write(folder)
    if result.seeds:
        save_figure(study_figure(result), folder / PICTURE, dpi=100)
        write_whole(folder / PAGE, _study_page(result, (folder / PICTURE).read_bytes()).encode())


def _study_page(result: StudyResult, picture: bytes) -> str:
    """Return a page that needs nothing else: question, verdict, picture, tables, finalists."""
    image = base64.b64encode(picture).decode()
    parts = [f"<h1>{_text(result.name)}</h1>", f"<p><em>{_text(result.question)}</em></p>"]
    parts += [f"<p>{_text(each)}</p>" for each in sentences(result)]
    parts.append(f'<img src="data:image/png;base64,{image}" alt="Study" style="max-width:100%">')
    for crowd in result.crowds:
        parts += [f"<h2>Invariance by the {_text(crowd)} crowd</h2>", _html_table(_HEADINGS, _rows(result, crowd))]
    parts += [f"<p>{_text(each)}</p>" for each in notes(result)]
    names = list(dict.fromkeys(name for sweep in result.sweeps for point in sweep.points for name in point))
    finalists = [
        (sweep.arm, str(sweep.seed), *(_cell(point.get(name)) for name in names))
        for sweep in result.sweeps
        for point in sweep.points
    ]
    parts += ["<h2>Audited finalists</h2>", _html_table(("arm", "seed", *names), finalists)]
    return _PAGE.format(title=_text(result.name), body="\n".join(parts))


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(each)}</th>" for each in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


_text = html.escape
