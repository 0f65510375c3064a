"""What a sweep has found so far, built from the events of its ledger."""

from sweep.state.rank_tracker import RankTracker, TrackedRank
from sweep.state.sweep_state import (
    DATA_SUMMARY,
    DataSummary,
    Milestone,
    Replicates,
    SweepState,
    read_data_summary,
    seconds_of,
    state_of_trials,
)

__all__ = [
    "DATA_SUMMARY",
    "DataSummary",
    "Milestone",
    "RankTracker",
    "read_data_summary",
    "Replicates",
    "seconds_of",
    "state_of_trials",
    "SweepState",
    "TrackedRank",
]
