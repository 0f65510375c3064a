"""Which configuration comes next and which trial stops: sampler, rungs, budgets, points to begin with. No Ray."""

from sweep.search.agreement import ALIKE, Agreement, agreements
from sweep.search.budget import Budget
from sweep.search.decision import CHANGES
from sweep.search.points import with_given_points
from sweep.search.rungs import Rungs, rung_levels
from sweep.search.search import ParetoSearch, remarks

__all__ = [
    "Agreement",
    "agreements",
    "ALIKE",
    "Budget",
    "CHANGES",
    "ParetoSearch",
    "remarks",
    "rung_levels",
    "Rungs",
    "with_given_points",
]
