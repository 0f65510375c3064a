"""Swept knobs: the values that each is drawn from, and when it is on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both of them included: floats, or integers where the field is one."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def suggest(self, trial: BaseTrial, name: str) -> float:
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, int(self.high), log=self.log, step=int(self.step or 1))
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int):
            return IntDistribution(self.low, int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def corners(self) -> tuple[float, float]:
        """Return the ends: if TrialConfig accepts both, it accepts all values between them."""
        return self.low, self.high

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"low": self.low, "high": self.high}
        if self.log:
            plain["log"] = True
        if self.step is not None:
            plain["step"] = self.step
        return plain


@dataclass(frozen=True)
class Choices:
    """One of several values."""

    options: tuple[Any, ...]

    def suggest(self, trial: BaseTrial, name: str) -> Any:
        return trial.suggest_categorical(name, self.options)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.options)

    def corners(self) -> tuple[Any, ...]:
        """Return values that stand for all choices: every word, or the least and the largest number."""
        return self.options if isinstance(self.options[0], str) else (min(self.options), max(self.options))

    def to_dict(self) -> dict[str, Any]:
        return {"choices": list(self.options)}


@dataclass(frozen=True)
class Swept:
    """A knob that is swept, and when: each key of `when` must be on and have one of its values."""

    domain: Range | Choices
    when: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def is_on(self, present: Mapping[str, Any]) -> bool:
        """Return whether the conditions hold, given the fixed values and the knobs that are on."""
        return all(parent in present and present[parent] in values for parent, values in self.when.items())

    def to_dict(self) -> dict[str, Any]:
        when = {parent: list(values) for parent, values in self.when.items()}
        return {**self.domain.to_dict(), **({"when": when} if when else {})}
