"""The stages of a sweep that was extended: what each planned, and which trials it began."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search_spaces import Located, Space, space_from_yaml
from trainer.config import EvaluationConfig
from trainer.errors import InputError

if TYPE_CHECKING:
    from sweep.plan.plan import SweepPlan


@dataclass(frozen=True)
class Stage:
    """An earlier stage of a sweep: its plan as far as an extension changed it."""

    until: int
    """Number of the first trial that it did not begin."""

    trials: int
    """Trials that it planned."""

    space: Space
    """The space that it drew from, after its points."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"until": self.until, "trials": self.trials, "space": self.space.to_dict()}


def read_stages(node: Located | None) -> tuple[Stage, ...]:
    """Return the stages that a plan's file tells, the first one first."""
    stages = []
    for item in [] if node is None else node.items("history"):
        entries = item.mapping("a stage", known=["until", "trials", "space"])
        if len(entries) < 3:
            raise item.error("is cut off or damaged")
        space = space_from_yaml(entries["space"], name="")
        stages.append(Stage(entries["until"].plain(), entries["trials"].plain(), space))
    return tuple(stages)


def extended(plan: SweepPlan, *, trials: int, space: Space | None, begun: int) -> SweepPlan:
    """Return the plan with more trials, or another space for those that have not begun.

    Args:
        trials: trials in all.
        space: what is drawn from now on; None for what was.
        begun: number of the first trial that has not begun.

    Raises:
        InputError: if fewer trials are wanted than have begun, or trials of the new space could not be compared.
    """
    if trials < begun:
        raise InputError(f"--trials {trials}: {begun} trials have begun already; give at least as many")
    if space is not None:
        _check_same_judging(plan, space)
        space = dataclasses.replace(space, evaluation=plan.space.evaluation, require=plan.space.require)
    if trials == plan.trials and space in (None, plan.space):
        return plan
    until = -(-begun // plan.seeds) * plan.seeds
    stage = Stage(until, plan.trials, plan.space)
    history = (*(each for each in plan.history if each.until < until), stage)
    return dataclasses.replace(plan, trials=trials, space=space or plan.space, history=history)


def _check_same_judging(plan: SweepPlan, space: Space) -> None:
    """Check that a space trains as long and is judged as a sweep's trials are; one that names no judging has theirs."""
    epochs = {each.complete(each.fixed)["epochs"] for each in (plan.space, space)}
    if plan.epochs is None and len(epochs) > 1:
        raise InputError(f"--space {space.name}: its epochs differ from the sweep's, {plan.epochs_per_trial}")
    mine, theirs = (
        plan.space.evaluation.to_dict(),
        space.evaluation.replace(crowd=plan.space.evaluation.crowd).to_dict(),
    )
    if space.evaluation != EvaluationConfig() and (different := [name for name in mine if mine[name] != theirs[name]]):
        raise InputError(f"--space {space.name}: would be judged otherwise than the sweep: {', '.join(different)}")
    if space.require and space.require != plan.space.require:
        raise InputError(f"--space {space.name}: its requirements differ from the sweep's")


def given_points(plan: SweepPlan) -> Mapping[int, dict[str, Any]]:
    """Return the points that are run without being drawn, by the number of their configuration.

    A stage's points come first in it; those that an earlier stage was to run already are not run again.
    """
    known: list[dict[str, Any]] = []
    given: dict[int, dict[str, Any]] = {}
    first = 0
    stages = [*((stage.space.points, stage.until // plan.seeds) for stage in plan.history), (plan.space.points, None)]
    for points, until in stages:
        fresh = [point for point in points if point not in known]
        numbers = range(first, first + len(fresh) if until is None else min(until, first + len(fresh)))
        given |= dict(zip(numbers, fresh, strict=False))
        known += fresh[: len(numbers)]
        first = until or 0
    return given


def space_changes(plan: SweepPlan) -> list[tuple[int, dict[str, Any]]]:
    """Return the other spaces that a sweep drew from, as plain values, each after the first trial that was not."""
    spaces = [*(stage.space for stage in plan.history), plan.space]
    pairs = zip(plan.history, spaces[1:], strict=True)
    return [(stage.until, stage.space.to_dict()) for stage, following in pairs if stage.space != following]


def trials_at_first(plan: SweepPlan) -> int:
    """Return how many trials were planned when the sweep began."""
    return plan.history[0].trials if plan.history else plan.trials
