"""A judgement as one HTML page that needs nothing else: pictures in it, tables, every number of each model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from sweep.judge.figures import budget_figure, leaderboard_figure
from sweep.judge.report import evidence_line, heading, number_rows
from sweep.judge.result import JudgedModel, JudgedModels
from sweep.report import house_style, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .15em .9em .15em 0; text-align: right }
th:first-child, td:first-child { text-align: left } th { border-bottom: 1px solid #888 } td + td { white-space: nowrap }
svg { max-width: 100%; height: auto } .alarm { color: #B03A00 } code { overflow-wrap: anywhere }
"""


def judgement_page(judgement: JudgedModels) -> str:
    """Return the page's text; nothing in it comes from elsewhere, and no script runs."""
    dataset = escape(judgement.plan.space.evaluation.dataset)
    models = "".join(_section(judgement, position, model) for position, model in enumerate(judgement.models))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Models judged on {dataset}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>Models judged on {dataset}</h1>\n"
        f"<p>{'<br>'.join(map(escape, heading(judgement)))}</p>\n{_leaderboard(judgement)}\n"
        f"{_svg(leaderboard_figure(judgement))}\n{_svg(budget_figure(judgement))}\n{models}</body></html>\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(each)}</th>' for each in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(each)}</td>' for each in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _leaderboard(judgement: JudgedModels) -> str:
    names = judgement.plan.objectives.names
    standing = judgement.standing
    return _table(
        ["model", "front", "P(front)", "sensitivity", "invariance", "clean"],
        (
            [
                model.file.name,
                "yes" if front else "",
                percent(chance),
                *(percent(model.measured.numbers[name]) for name in (*names, "clean_accuracy")),
            ]
            for model, front, chance in zip(judgement.models, standing.on_front, standing.chances, strict=True)
        ),
    )


def _section(judgement: JudgedModels, position: int, model: JudgedModel) -> str:
    """Return the part of the page about one model."""
    broken = sorted(model.measured.broken_by.items(), key=lambda each: -each[1])
    alarms = "".join(f'<li class="alarm">{escape(warning)}</li>' for warning in model.measured.warnings)
    return (
        f"<h2>{escape(model.file.name)}</h2>\n"
        f"<p>{escape(model.kind)}, <code>{escape(str(model.file.path))}</code>, sha256 "
        f"<code>{model.file.digest[:16]}</code></p>\n"
        f"{_table(['number', 'value', '95% interval'], number_rows(judgement, position))}\n"
        f"<p>First broken by: {escape(', '.join(f'{name} {count}' for name, count in broken))}.<br>"
        f"Accuracy {escape(evidence_line(model))}.</p>\n"
        f"<ul>{alarms or '<li>no alarm: the attack means something by every check</li>'}</ul>\n"
    )


def _svg(figure: Figure) -> str:
    """Return a picture as an element of a page, the same text every time."""
    text = io.StringIO()
    with house_style():
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
