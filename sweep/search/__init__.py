"""The choice of configurations and the stopping of trials: sampler, rungs, budgets, given points. No Ray."""

from sweep.search.agreement import ALIKE, Agreement, agreements
from sweep.search.budget import Budget
from sweep.search.decision import CHANGES
from sweep.search.freeze_thaw import FreezeThaw
from sweep.search.optuna_export import write_optuna_study
from sweep.search.points import read_space
from sweep.search.rungs import Rungs, rung_levels
from sweep.search.search import ParetoSearch, remarks
