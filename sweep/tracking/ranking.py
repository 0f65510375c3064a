"""Ranks of trials as MLflow has them: the front, its knee, and how ranks changed over the sweep."""

from __future__ import annotations

from collections.abc import Mapping

from sweep.plan import SweepPlan
from sweep.state import RankTracker, SweepState
from sweep.tracking.metrics import MetricRow, milliseconds, rank_metric
from sweep.tracking.mlflow_internals import COLOUR_TAG
from sweep.tracking.views import DOMINATED_COLOUR, FRONT_COLOUR, KNEE_COLOUR

_RANKED_TAG = "otsweep.ranked"
"""Number of configurations that had finished when the run's latest rank was written."""


class Ranking:
    """The front and all ranks, as of the latest `refresh`."""

    def __init__(self, plan: SweepPlan) -> None:
        self.tracker = RankTracker(plan.objectives, seeds=plan.seeds)
        self.front: frozenset[int] = frozenset()
        """Trials whose configuration is on the front."""
        self.knee: int | None = None

    def refresh(self, state: SweepState, *, over: bool) -> None:
        """Take in the trials that finished since; once the sweep is over, everyone's last rank."""
        if self.tracker.finished == len(state.course) and not over:
            return
        on_front = (state.members(record.number) for record in state.front_records)
        self.front = frozenset(each.number for members in on_front for each in members)
        self.knee = state.knee
        self.tracker.refresh(state, over=over)

    def front_tags(self, number: int) -> dict[str, str]:
        """Return the tags, the run's colour among them, that tell whether a trial is on the front, and its knee."""
        on_front, is_knee = number in self.front, number == self.knee
        colour = KNEE_COLOUR if is_knee else FRONT_COLOUR if on_front else DOMINATED_COLOUR
        return {"pareto.front": str(on_front).lower(), "pareto.knee": str(is_knee).lower(), COLOUR_TAG: colour}

    def changes(
        self, number: int, state: SweepState, written: Mapping[str, str], *, over: bool
    ) -> tuple[list[MetricRow], dict[str, str]]:
        """Return the metrics and tags of a trial's rank that its run lacks.

        Args:
            written: the run's tags.
        """
        tags = {key: value for key, value in self.front_tags(number).items() if written.get(key) != value}
        tracked = self.tracker.ranks_of(number, after=int(written.get(_RANKED_TAG, 0)))
        metrics = [rank_metric(each) for each in tracked]
        if tracked:
            tags |= {"pareto.rank": str(tracked[-1].rank), _RANKED_TAG: str(tracked[-1].finished)}
            if over:
                timestamp = milliseconds(tracked[-1].time)
                shared = state.configuration_metrics(number)
                metrics += [MetricRow(key, value, timestamp, 0) for key, value in shared.items()]
        return metrics, tags
