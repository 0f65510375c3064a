"""The measurements of a profile, and constants that were measured once for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.cost import Cost

if TYPE_CHECKING:
    from sweep.engine import Footprint, Node

STANDING = (0.0, 0.25, 1.0)
"""Share of judging's range, low, expected and high: 0 for models that fail at once, 1 for models that never do.
It was 0.22 in the recorded sweep of the digits (tests/recorded/digits24), whose models withstood 0.14 on average."""

REPORT_SECONDS = 0.015
"""Time from the end of an epoch to the next one's begin, beside the checkpoint: through Ray to the driver, into the
ledger, and back. Measured in that recorded sweep, as is the next."""

BETWEEN_SECONDS = 0.05
"""Time of a trial's end, and from there to the next one's first epoch on the same worker."""

ENDING_SECONDS = 15.0
"""Time after the last trial: MLflow is completed, and the front's models, galleries and pictures are made. Measured on
the digits, on 2 cores."""


class Candidate(NamedTuple):
    """A configuration that is to be timed."""

    config: dict[str, Any]
    point: int | None = None
    """Its index among the given points; None where it may be drawn."""
    drawn: bool = False
    """True for a random draw, so that others like it are to be expected; false for a corner or a point."""


class TimedConfiguration(NamedTuple):
    """A configuration, and what a trial of it takes."""

    candidate: Candidate
    cost: Cost


class ProfileResult(NamedTuple):
    """The measurements of a profile."""

    timed: list[TimedConfiguration]
    failed: list[str]
    """Reasons why other configurations could not be timed."""
    slots: int
    """Number of trials that run at once."""
    nodes: list[Node]
    ray_seconds: float
    """Time until Ray ran."""
    worker_seconds: float
    """Time until the slots' workers had torch and the data."""
    preparation: list[str]
    """Parts of the preparation that the cache lacks."""
    footprint: Footprint
    """Memory of the largest trial."""
    pack_gain: float = 1.0
    """Speed of the steps of a pack over that of one trial after the other."""

    @property
    def slowness(self) -> float:
        """Factor by which all takes longer than on an idle machine; 1 where that is not known."""
        return max(1.0, sum(each.cost.wall for each in self.timed) / sum(each.cost.timed for each in self.timed))
