"""Options of an audit: the effort that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sweep.plan.options import check_typed, option, options_of


@dataclass(frozen=True)
class AuditOptions:
    """The effort of an audit. Each field is an option of the same name."""

    seeds: int = option(3, "fresh seeds that every finalist is trained on", low=1, high=1000)
    finalists: int = option(8, "most trials that are audited, the front's first", low=1, high=100_000)
    test_size: int = option(1000, "test images that are attacked; 0 takes all", low=0, high=1_000_000)
    """They are drawn by the split's seed, for clean and sensitivity accuracy and the evidence. Invariance starts from
    as many test images as the plan takes of the validation split."""
    steps: int = option(100, "gradient steps of every round of the attacks", low=1, high=10_000)
    queries: int = option(5000, "queries to the model by the Square attack", low=1, high=1_000_000)
    fab: int = option(0, "steps of FAB towards each class beside them; 0 leaves it out", low=0, high=10_000)
    judges: int = option(3, "judges of the invariance images, trained apart", low=1, high=100)
    margin: float = option(0.1, "loss of accuracy that 'held' must exclude", low=0, high=1)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return options as typed, by name; what is None or left out keeps its default.

        Raises:
            InputError: naming the option, the value and what would be right.
        """
        typed = {name: given[name] for name in AUDIT_OPTIONS if given.get(name) is not None}
        return cls(**{name: check_typed(name, value, AUDIT_OPTIONS) for name, value in typed.items()})


AUDIT_OPTIONS = options_of(AuditOptions)
"""The fields by name."""

JUDGE_OPTIONS = {name: AUDIT_OPTIONS[name] for name in ("test_size", "steps", "queries", "fab", "judges")}
"""Those that say how hard a model is attacked, and by how many it is judged."""
