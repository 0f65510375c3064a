"""A plan extended by a resume: more trials or epochs, or another space for the trials that have not begun."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from search_spaces import Space
from sweep.plan.plan import SweepPlan
from sweep.plan.stages import Stage, points_by_number
from trainer.config import EvaluationConfig
from trainer.errors import InputError

EXTENDING = ("trials", "budget_epochs")
"""Options that decide the numbers, and that `resume` may change all the same: the plan keeps what they were."""


def extended(
    plan: SweepPlan,
    *,
    trials: int,
    space: Space | None,
    begun: int,
    budget_epochs: int | None = None,
    trained: int = 0,
) -> SweepPlan:
    """Return the plan with more trials, another budget of epochs, or another space for those that have not begun.

    Args:
        trials: trials in all.
        space: what is drawn from now on; None for what was.
        begun: number of the first trial that has not begun.
        budget_epochs: epochs of all trials, 0 for no limit; None for what it was.
        trained: epochs that all trials have trained.

    Raises:
        InputError: if less is wanted than was done, the sweep has no budget of epochs, or trials of the new space
            could not be compared.
    """
    if trials < begun:
        raise InputError(f"--trials {trials}: {begun} trials have begun already; give at least as many")
    budget_epochs = plan.budget_epochs if budget_epochs is None else budget_epochs
    if budget_epochs and not plan.budget_epochs:
        raise InputError(f"--budget-epochs {budget_epochs}: {plan.name} began without a budget of epochs")
    if 0 < budget_epochs < trained:
        raise InputError(f"--budget-epochs {budget_epochs}: {trained} were trained already; give at least as many")
    if space is not None:
        _check_same_judging(plan, space)
        space = dataclasses.replace(space, evaluation=plan.space.evaluation, require=plan.space.require)
    if (trials, budget_epochs) == (plan.trials, plan.budget_epochs) and space in (None, plan.space):
        return plan
    until = -(-begun // plan.seeds) * plan.seeds
    stage = Stage(until, plan.trials, plan.space, plan.budget_epochs)
    history = (*(each for each in plan.history if each.until < until), stage)
    return dataclasses.replace(
        plan, trials=trials, budget_epochs=budget_epochs, space=space or plan.space, history=history
    )


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
    """Return the points of a plan that are run without being drawn, by the number of their configuration."""
    return points_by_number(plan.history, plan.space, seeds=plan.seeds)


def space_changes(plan: SweepPlan) -> list[tuple[int, dict[str, Any]]]:
    """Return the other spaces that a sweep drew from, as plain values, each after the first trial that was not."""
    spaces = [*(stage.space for stage in plan.history), plan.space]
    pairs = zip(plan.history, spaces[1:], strict=True)
    return [(stage.until, stage.space.to_dict()) for stage, following in pairs if stage.space != following]


def trials_at_first(plan: SweepPlan) -> int:
    """Return how many trials were planned when the sweep began."""
    return plan.history[0].trials if plan.history else plan.trials
