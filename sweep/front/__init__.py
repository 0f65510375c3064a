"""The Pareto front: arrays in, arrays out."""

from sweep.front.differences import Difference, detectable, difference, holm, seeds_needed
from sweep.front.draws import front_draws
from sweep.front.incremental import Front, Layers
from sweep.front.judged_trials import JudgedTrials, source_weights
from sweep.front.objectives import Objectives
from sweep.front.pareto import (
    constrained_ranks,
    contributions,
    epsilon_indicator,
    front_mask,
    hypervolume,
    improvements,
    knee,
    ranks,
)
from sweep.front.resampling import (
    excesses,
    mean_intervals,
    reflected_interval,
    resample_front,
    resample_seeds,
    resampled_hypervolumes,
)
