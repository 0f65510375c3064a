"""The stages of a sweep that was extended: what each planned, and which trials it began."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces import Located, Space, space_from_yaml
from trainer.config import OF_EARLIER_VERSIONS, UNANIMOUS


@dataclass(frozen=True)
class Stage:
    """An earlier stage of a sweep: its plan as far as an extension changed it."""

    until: int
    """Number of the first trial that it did not begin."""

    trials: int
    """Trials that it planned."""

    space: Space
    """The space that it drew from, after its points."""

    budget_epochs: int = 0
    """Its limit of all trials' epochs; 0 for none."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        written = {"until": self.until, "trials": self.trials, "space": self.space.to_dict()}
        # Left out where there is none, so that plans extended before the budget could change keep their digest.
        return written | ({"budget_epochs": self.budget_epochs} if self.budget_epochs else {})


def read_stages(node: Located | None) -> tuple[Stage, ...]:
    """Return the stages that a plan's file tells, the first one first."""
    stages = []
    for item in [] if node is None else node.items("history"):
        entries = item.mapping("a stage", known=["until", "trials", "space", "budget_epochs"])
        if len({"until", "trials", "space"} & entries.keys()) < 3:
            raise item.error("is cut off or damaged")
        space = read_written_space(entries["space"])
        budget = entries["budget_epochs"].plain() if "budget_epochs" in entries else 0
        stages.append(Stage(entries["until"].plain(), entries["trials"].plain(), space, budget))
    return tuple(stages)


def read_written_space(node: Located) -> Space:
    """Return the space of a plan's file, judged as by the version that wrote it."""
    space = space_from_yaml(node, name="")
    section = node.mapping("a space").get("evaluation")
    if section is None:
        return space
    written = section.mapping("evaluation")
    earlier = {name: value for name, value in OF_EARLIER_VERSIONS.items() if name not in written}
    if "crowd" not in written:
        earlier |= {"crowd": UNANIMOUS, "eval_final_steps": 0}
    return dataclasses.replace(space, evaluation=space.evaluation.replace(**earlier))


def points_by_number(history: Sequence[Stage], space: Space, *, seeds: int) -> Mapping[int, dict[str, Any]]:
    """Return the points that are run without being drawn, by the number of their configuration.

    A stage's points come first in it; those that an earlier stage was to run already are not run again.

    Args:
        history: the earlier stages.
        space: that of the last stage.
        seeds: trials of each configuration.
    """
    known: list[dict[str, Any]] = []
    given: dict[int, dict[str, Any]] = {}
    first = 0
    stages = [*((stage.space.points, stage.until // seeds) for stage in history), (space.points, None)]
    for points, until in stages:
        fresh = [point for point in points if point not in known]
        numbers = range(first, first + len(fresh) if until is None else min(until, first + len(fresh)))
        given |= dict(zip(numbers, fresh, strict=False))
        known += fresh[: len(numbers)]
        first = until or 0
    return given
