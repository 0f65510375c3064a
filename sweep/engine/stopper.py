"""The sweep's end as Ray Tune asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune


def _never() -> bool:
    return False


class SweepStopper(tune.Stopper):
    """Stops each trial at its next report once the budget is spent, and all at once on request.

    Args:
        spent: whether the budget is spent.
        requested: whether all trials are to stop now.
    """

    def __init__(self, *, spent: Callable[[], bool] = _never, requested: Callable[[], bool] = _never) -> None:
        self.spent, self.requested = spent, requested

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.spent()

    def stop_all(self) -> bool:
        return self.requested()

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its stopper for a restore of its own, which is never asked for.
        return SweepStopper, ()
