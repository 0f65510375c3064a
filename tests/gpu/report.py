"""The report of a run on a GPU: stages one after the other while time is left, each kept as soon as it has ended."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
"""A line of a stage's table: plain values by column."""


class Stage(NamedTuple):
    """A part of the run."""

    name: str
    seconds: float
    """Time that it takes on the GPU that it was written for; it is left out if less is left."""
    run: Callable[[], Iterator[Row]]


class Report:
    """What the stages have found so far, on the screen and in `gpu.json` and `gpu.md`.

    Args:
        folder: where both files are written.
        seconds: time of all stages together.
    """

    def __init__(self, folder: Path, *, seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._end = folder, time.monotonic() + seconds
        self.stages: dict[str, dict[str, Any]] = {}

    def run(self, stage: Stage) -> None:
        """Run a stage and keep its rows, also those that came before it failed; or say that no time was left."""
        begun = time.monotonic()
        kept = self.stages[stage.name] = {"rows": [], "seconds": 0.0, "left out": ""}
        print(f"\n{stage.name}", flush=True)
        if begun + stage.seconds > self._end:
            kept["left out"] = f"takes {stage.seconds:.0f} s, and {max(0, self._end - begun):.0f} s were left"
        else:
            try:
                for row in stage.run():
                    kept["rows"].append(row)
                    print("  " + "  ".join(f"{name} {_text(value)}" for name, value in row.items()), flush=True)
            except Exception as error:  # noqa: BLE001 - the next stage may work
                traceback.print_exc()
                kept["left out"] = f"{type(error).__name__}: {error}".splitlines()[0]
        if kept["left out"]:
            print(f"  not done: {kept['left out']}", flush=True)
        kept["seconds"] = time.monotonic() - begun
        self._write()

    def _write(self) -> None:
        (self._folder / "gpu.json").write_text(json.dumps(self.stages, indent=2))
        (self._folder / "gpu.md").write_text("\n".join(map(_markdown, self.stages, self.stages.values())))


def _markdown(name: str, stage: dict[str, Any]) -> str:
    """Return a stage as a section with one table for each set of columns."""
    lines, columns = [f"## {name} ({stage['seconds']:.0f} s)"], ()
    for row in stage["rows"]:
        if columns != (columns := tuple(row)):
            lines += ["", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines.append("| " + " | ".join(map(_text, row.values())) + " |")
    lines += ["", f"Not done: {stage['left out']}"] if stage["left out"] else []
    return "\n".join([*lines, ""])


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
