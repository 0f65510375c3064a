"""Decisions made at rungs: whether a trial continues, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sweep.front import Objectives

CHANGES = 4
"""Finished trials that must have passed a rung before any trial is stopped in it."""

NEW = -1
"""Stands for a trial that is to begin, where trials are named by their numbers."""

_REQUIRED = "required."
"""Begin of the ledger's keys of numbers that requirements name."""

_LEDGER_KEYS = {"rank": "place", "violated": "broken"}
"""Keys in the ledger of fields that have another name here."""


class RungPosition(NamedTuple):
    """Position of a group of trials among all groups that reached a rung."""

    layer: int
    """Non-dominated rank: 0 on the rung's front."""

    rank: int
    """Number of groups ahead of it."""

    competitors: int
    """Number of groups that were compared, with its own."""

    dominated_by: tuple[int, ...]
    """Some trials that dominate it, ascending."""

    violated: str = ""
    """Requirements that it does not fulfil."""


class Decision(NamedTuple):
    """A decision about a trial that reached a rung, and the reason for it."""

    rung: int
    """Epochs of the rung."""

    epoch: int
    """Epoch of the report that was compared; later than the rung's if the trial did not report there."""

    layer: int
    rank: int
    competitors: int
    dominated_by: tuple[int, ...]
    """The same as in `RungPosition`, like the two before it."""

    stop: bool

    strength: str
    """Attack that all of them were judged with, as `trainer.report.STRENGTH` names it; empty if all evaluations are
    equal."""

    values: tuple[float, ...]
    """Objectives that the trial brought to the rung, in their own units: see `Rungs.observe`."""

    violated: str = ""
    """The same as in `RungPosition`."""

    required: tuple[tuple[str, float], ...] = ()
    """Numbers that requirements name, as the trial brought them."""

    followed: int = -1
    """The trial of its group that was stopped before it, and whose position this is; -1 for none."""

    chance: float = 1.0
    """Share of the changes below that would carry it to the front of the finished trials, or if trials pause let it add
    to that front; 1 if they are too few."""

    changes: int = 0
    """Number of finished trials whose change since the rung is known."""

    pause: bool | None = None
    """True if it pauses here, False if it goes on; None where trials are stopped instead, like what follows."""

    gain: float | None = None
    """Hypervolume that it is expected to add per epoch; None while too few have finished to forecast that."""

    instead: int | None = None
    """The trial that has its slot, or would have had it next: a number, or `NEW`; None for none."""

    instead_gain: float | None = None
    """The `gain` of that trial."""

    @property
    def reason(self) -> str:
        """The reason for a stop or pause, for people."""
        if self.pause is not None:
            what = "paused after" if self.pause else "goes on after"
            return f"{what} epoch {self.epoch}: {describe_gains(self.gain, self.instead, self.instead_gain)}"
        if self.followed >= 0:
            return f"stopped after epoch {self.epoch}: as trial {self.followed:03d} of its configuration was"
        others = " and ".join(f"{number:03d}" for number in self.dominated_by)
        return (
            f"stopped after epoch {self.epoch}: place {self.rank + 1} of {self.competitors} at epoch {self.rung}"
            f"{', not ' + self.violated if self.violated else ''}{', dominated by ' + others if others else ''}"
            f"{self._outlook}"
        )

    @property
    def _outlook(self) -> str:
        """Clause about what finished trials tell of its end; empty while they are too few."""
        if self.changes < CHANGES:
            return ""
        return f"; {round(self.chance * self.changes)} of {self.changes} finished trials rose enough to save it"

    def to_dict(self, objectives: Objectives) -> dict[str, Any]:
        """Return the decision as the ledger takes it: plain scalars by the ledger's keys."""
        plain = {_LEDGER_KEYS.get(name, name): value for name, value in self._asdict().items() if value is not None}
        plain |= {} if self.pause is None else {"reason": self.reason}
        plain |= {"dominated_by": " ".join(map(str, self.dominated_by))}
        plain |= {_REQUIRED + name: value for name, value in plain.pop("required")}
        return plain | dict(zip(objectives.names, plain.pop("values"), strict=True))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], objectives: Objectives) -> Decision:
        """Read what `to_dict` returned."""
        keys = {name: _LEDGER_KEYS.get(name, name) for name in cls._fields}
        fields = {name: plain[key] for name, key in keys.items() if key in plain}
        fields["dominated_by"] = tuple(map(int, plain["dominated_by"].split()))
        required = [key for key in plain if key.startswith(_REQUIRED)]
        fields["required"] = tuple((key.removeprefix(_REQUIRED), plain[key]) for key in required)
        return cls(**fields, values=tuple(plain[name] for name in objectives.names))


def describe_gains(gain: float | None, other: int | None, other_gain: float | None) -> str:
    """Return in words what a trial is expected to bring, beside another one or `NEW`; None is what is not known."""
    if gain is None:
        return "too few trials have finished to forecast its end"
    told = f"expected to add {gain:.2g} of hypervolume per epoch"
    if other is None or other_gain is None:
        return told
    return f"{told}, {'a new trial' if other == NEW else f'trial {other:03d}'} {other_gain:.2g}"
