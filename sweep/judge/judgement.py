"""The outcome of judging models, with its pictures, page and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.judge.figures import budget_figure, leaderboard_figure
from sweep.judge.page import judgement_page
from sweep.judge.report import PICTURE
from sweep.judge.result import JudgedModels
from sweep.report import save_figure
from trainer.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_JSON, _PAGE, _CURVES = "judge.json", "judge.html", "curves.png"
"""Files of a judgement, beside the picture."""


class Judgement(JudgedModels):
    """Models that were judged alike, and what is made of that."""

    def figure(self) -> Figure:
        """Return the picture of the models between the two axes."""
        return leaderboard_figure(self)

    def html(self) -> str:
        """Return a page that needs nothing else: pictures, table, and every number of each model."""
        return judgement_page(self)

    def write(self, folder: Path) -> list[Path]:
        """Write JSON, page and pictures into a folder; return the page and the picture."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / _JSON, (json.dumps(self.to_dict(), indent=2) + "\n").encode())
        write_whole(folder / _PAGE, self.html().encode())
        save_figure(self.figure(), folder / PICTURE)
        save_figure(budget_figure(self), folder / _CURVES)
        return [folder / _PAGE, folder / PICTURE]
