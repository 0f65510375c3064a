"""A search as Ray Tune sees it, with the search's own attributes at hand."""

from __future__ import annotations

from typing import Any

from sweep.engine.searcher import TuneSearcher
from sweep.search.search import ParetoSearch


class TunedSearch(TuneSearcher):
    """`TuneSearcher(ParetoSearch(...))`; what the one lacks, the other has."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(ParetoSearch(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        if name == "search":  # while it is copied it has none yet
            raise AttributeError(name)
        return getattr(self.search, name)
