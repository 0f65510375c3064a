"""TODO one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.cost import Cost

if TYPE_CHECKING:
    from sweep.engine import Footprint, Node


STANDING = (0.0, 0.25, 1.0)
"""How far the judging of a trial's epochs lies between that of models that fall at once and of models that never do.
Expected: 0.22 in the recorded sweep of the digits (tests/recorded/digits24), whose models withstood 0.14 on average."""

REPORT_SECONDS = 0.015
"""From the end of an epoch to the next one's begin, beside the checkpoint: through Ray to the driver, into the ledger,
and back."""

BETWEEN_SECONDS = 0.05
"""Of a trial's end, and from there to the next one's first epoch on the same worker. Both as in that recorded sweep."""

ENDING_SECONDS = 15.0
"""After the last trial: what MLflow lacks is written, and the front's models, galleries and pictures are made. On the
digits, on 2 cores."""


class Candidate(NamedTuple):
    """A configuration that is to be timed."""

    config: dict[str, Any]
    point: int | None = None
    """Its place among the given points; None where it may be drawn."""
    drawn: bool = False
    """Whether it was drawn at random, so that others like it are to be expected; else it is a corner or a point."""


class TimedConfiguration(NamedTuple):
    """A configuration, and what a trial of it takes."""

    candidate: Candidate
    cost: Cost


class Packing(NamedTuple):
    """What trials gain from a pack."""

    lanes: int
    """How many were tried in one: the plan's, else a few."""
    gain: float
    """How many times faster their steps are than one after the other."""


class ProfileResult(NamedTuple):
    """What was measured."""

    timed: list[TimedConfiguration]
    failed: list[str]
    """Why others could not be timed."""
    slots: int
    """How many trials run at once."""
    nodes: list[Node]
    ray_seconds: float
    """Until Ray ran."""
    worker_seconds: float
    """Until the slots' workers had torch and the data."""
    preparation: dict[str, float]
    """Seconds of a core that its missing stages would take; empty where all is in the cache."""
    footprint: Footprint
    """Of the largest trial."""
    pack: Packing | None = None
    """None where a configuration can't be packed."""

    @property
    def slowness(self) -> float:
        """How many times as long all takes as on a machine where nothing else runs; 1 where that is not known."""
        return max(1.0, sum(each.cost.wall for each in self.timed) / sum(each.cost.timed for each in self.timed))
