"""The state of a sweep, built from the events of its ledger; snapshots for whoever only looks."""

from sweep.state.data_summary import DATA_SUMMARY, DataSummary, read_data_summary
from sweep.state.findings import Milestone
from sweep.state.judged import JUDGED_IMAGES, JudgedImages, judged_images, read_judged_images
from sweep.state.no_front import why_no_front
from sweep.state.rank_tracker import RankTracker, TrackedRank
from sweep.state.sweep_state import SweepState, read_state, seconds_of, state_of_trials
from sweep.state.uncertainty import ConfigurationDraws, judged_trials
