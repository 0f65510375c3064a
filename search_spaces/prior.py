"""Beliefs about where a space's best configurations lie, for one objective or another, and draws that follow them.

They are mixed with the sampler's draws, and forgotten: the share of the draws that follow them falls with every draw
(as in PriMO, arXiv 2511.08371). So a belief that is right pays at once, and a wrong one costs about five trials.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from search_spaces.swept import Choices, Range, Swept

_EVEN_VARIANCE = 1 / 12
"""Variance of an even draw from 0 to 1."""


@dataclass(frozen=True)
class Belief:
    """The value of a knob that is believed to be the best."""

    value: Any

    sure: float
    """The degree of belief, above 0 and below 1: among choices the probability of the value itself, beside its even
    share of the rest; of a range the normal distribution around it deviates by (1 - sure) / 2 of the range."""

    def draw(self, domain: Range | Choices, generator: random.Random) -> Any:
        """Return a value of a knob's domain, near the believed one."""
        if isinstance(domain, Choices):
            return self.value if generator.random() < self.sure else _evenly(domain, generator)
        low, high = _ends(domain)
        middle = math.log(self.value) if domain.log else float(self.value)
        while True:
            drawn = generator.gauss(middle, (1 - self.sure) / 2 * (high - low))
            if low <= drawn <= high:
                return _value_at(domain, drawn)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as in YAML."""
        return {"value": self.value, "sure": self.sure}


@dataclass(frozen=True)
class Prior:
    """Beliefs about a space's best configurations."""

    beliefs: Mapping[str, Mapping[str, Belief]] = field(default_factory=dict)
    """Beliefs by objective and knob. A knob without one is drawn evenly."""

    share: float = 0.5
    """Probability with which the first draw follows a belief, in [0, 1]."""

    forget: float = 0.1
    """Share of that probability which is lost at every draw, in [0, 1]."""

    def draw(
        self, swept: Mapping[str, Swept], fixed: Mapping[str, Any], *, draws: int, generator: random.Random
    ) -> dict[str, Any] | None:
        """Return values of a configuration near the believed best of one objective, or None to leave it to the sampler.

        Args:
            swept: the space's swept knobs, each after those that its conditions read.
            fixed: values that all drawn configurations share.
            draws: draws before this one.
            generator: decides all of it.
        """
        if not self.beliefs or generator.random() >= self.share * (1 - self.forget) ** draws:
            return None
        objective = generator.choice(sorted(self.beliefs))
        believed, values = self.beliefs[objective], dict(fixed)
        for name, each in swept.items():
            if each.is_on(values):
                belief = believed.get(name)
                values[name] = belief.draw(each.domain, generator) if belief else _evenly(each.domain, generator)
        return values

    @classmethod
    def of_best(cls, swept: Mapping[str, Swept], best: Mapping[str, Sequence[Mapping[str, Any]]]) -> Prior:
        """Return what the best configurations of an earlier sweep let one believe.

        Args:
            swept: the space's swept knobs.
            best: by objective, the swept knobs that are on in each of its best configurations, with their values.
        """
        beliefs: dict[str, dict[str, Belief]] = {}
        for objective, configurations in best.items():
            for name, each in swept.items():
                values = [values[name] for values in configurations if name in values]
                if belief := _belief_of(each.domain, values):
                    beliefs.setdefault(objective, {})[name] = belief
        return cls(beliefs)

    def without(self, knobs: Collection[str]) -> Prior:
        """Return the same beliefs but for those about some knobs."""
        kept = {
            objective: {name: belief for name, belief in believed.items() if name not in knobs}
            for objective, believed in self.beliefs.items()
        }
        return Prior({objective: believed for objective, believed in kept.items() if believed}, self.share, self.forget)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as in YAML."""
        beliefs = {
            objective: {name: belief.to_dict() for name, belief in believed.items()}
            for objective, believed in self.beliefs.items()
        }
        return {"share": self.share, "forget": self.forget, **beliefs}


def _belief_of(domain: Range | Choices, values: Sequence[Any]) -> Belief | None:
    """Return what the values of a knob in the best configurations let one believe; None if that is nothing.

    As if one more value had been seen, anywhere in the domain: so a few values make nobody sure.
    """
    if isinstance(domain, Choices):
        counts = [values.count(option) for option in domain.options]
        sure = max(counts) / (len(values) + 1)
        return Belief(domain.options[counts.index(max(counts))], sure) if sure > 1 / len(counts) else None
    (low, high), inside = _ends(domain), [value for value in values if domain.low <= value <= domain.high]
    if not inside:
        return None
    places = [((math.log(value) if domain.log else value) - low) / (high - low) for value in inside]
    middle = median(places)
    variance = (sum((place - middle) ** 2 for place in places) + _EVEN_VARIANCE) / (len(places) + 1)
    if variance >= _EVEN_VARIANCE:
        return None
    return Belief(_value_at(domain, low + middle * (high - low)), 1 - 2 * math.sqrt(variance))


def _evenly(domain: Range | Choices, generator: random.Random) -> Any:
    """Return a value of a domain, each as likely as the others, of a logarithmic range by its logarithm."""
    if isinstance(domain, Choices):
        return generator.choice(domain.options)
    return _value_at(domain, generator.uniform(*_ends(domain)))


def _ends(domain: Range) -> tuple[float, float]:
    """Return the ends of a range, of a logarithmic one their logarithms."""
    return (math.log(domain.low), math.log(domain.high)) if domain.log else (domain.low, domain.high)


def _value_at(domain: Range, drawn: float) -> float:
    """Return the value of a range that is nearest to a number between its `_ends`."""
    value = math.exp(drawn) if domain.log else drawn
    step = domain.step or (1 if isinstance(domain.low, int) else None)
    if step:
        value = domain.low + round((value - domain.low) / step) * step
    value = min(max(value, domain.low), domain.high)
    return int(value) if isinstance(domain.low, int) else float(value)
