"""The front as one HTML page that needs nothing else: points show their configuration under the pointer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sweep.front import front_mask
from sweep.plan import SweepPlan
from sweep.report.audited import AUDITED, audited_columns, audited_finalists
from sweep.report.rows import accuracies
from sweep.report.spots import AXES, front_spots, in_units, staircase
from sweep.report.style import LOOKS, UNKNOWN_LOOK
from sweep.report.verdicts import verdict
from sweep.report.words import percent
from sweep.state import SweepState

_TEMPLATE = Path(__file__).with_suffix(".html")


def front_page(plan: SweepPlan, results: SweepState) -> str:
    """Return the page's text; at least one trial has finished."""
    return _TEMPLATE.read_text(encoding="utf-8").replace("{data}", as_script(_page_data(plan, results)))


def as_script(data: dict[str, Any]) -> str:
    """Return JSON that can stand inside a script element, whatever its texts hold."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _page_data(plan: SweepPlan, results: SweepState) -> dict[str, Any]:
    """Return what the page draws: the first two objectives of all finished trials, shares in percent."""
    finished = list(results.finished.values())
    plane, units = in_units(plan.objectives)
    points = results.points(finished)[:, :2] * units
    on_front, ranks, knee = front_mask(points, plane), results.ranks(), results.knee
    drawn, audited = results.uncertainty().configurations, audited_finalists(plan)
    shown, groups = accuracies(plan), [str(record.config.get("regularizer", "unknown")) for record in finished]
    marks = [
        {
            "trial": record.number,
            "x": x,
            "y": y,
            "front": front,
            "knee": record.number == knee,
            "rank": ranks[record.number],
            "group": group,
            "numbers": {
                heading: percent(record.result[name]) for name, heading in shown.items() if name in record.result
            }
            | {AUDITED[name]: percent(value) for name, value in audited_columns(audited, record.number).items()}
            | {"epoch": str(record.result["epoch"])}
            | ({"P(front)": percent(drawn[first].chance)} if first in drawn else {}),
            "config": plan.space.active(record.config),
        }
        for record, (x, y), front, group in zip(finished, points.tolist(), on_front.tolist(), groups, strict=True)
        for first in [record.number - record.number % plan.seeds]
        if record.result is not None
    ]
    return {
        "name": plan.name,
        "verdict": verdict(plan, results),
        "axes": [AXES.get(name, name) for name in plane.names],
        "maximise": list(plane.maximise),
        # Trials on the front are drawn last, over the others.
        "points": sorted(marks, key=lambda point: (point["front"], point["knee"])),
        "edge": staircase(front_spots(finished, points, on_front, None), plane).tolist(),
        "colours": {group: LOOKS.get(group, UNKNOWN_LOOK)[0] for group in sorted(set(groups))},
    }
