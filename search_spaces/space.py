"""TODO one line."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from search_spaces.requirement import Requirement
from trainer.config import EvaluationConfig, TrialConfig
from trainer.fields import knob

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

MOST_STEPS = 1_000_000

NOT_SWEPT = {"epochs": "a trial would win by training longer; give one number, or --epochs for all trials"}
NOT_GIVEN = {"seed": "the sweep gives it (--seed)"}

TRIAL_FIELDS = TrialConfig.fields()
_TRIAL_DEFAULTS = TrialConfig().to_dict()


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
        """The values that are legal only if all between them are."""
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
        """The values that are legal only if all of them are."""
        return self.options if isinstance(self.options[0], str) else (min(self.options), max(self.options))

    def to_dict(self) -> dict[str, Any]:
        return {"choices": list(self.options)}


@dataclass(frozen=True)
class Swept:
    """A knob that is swept, and when: each key of `when` must be on and have one of its values."""

    domain: Range | Choices
    when: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    def is_on(self, present: Mapping[str, Any]) -> bool:
        """Whether the conditions hold, given the fixed values and the knobs that are on."""
        return all(parent in present and present[parent] in values for parent, values in self.when.items())

    def to_dict(self) -> dict[str, Any]:
        when = {parent: list(values) for parent, values in self.when.items()}
        return {**self.domain.to_dict(), **({"when": when} if when else {})}


@dataclass(frozen=True)
class Space:
    """A checked search space. A *configuration* is a dict of all of TrialConfig's fields but the seed."""

    name: str
    """The name that it was loaded by; a file's name without its suffix."""

    description: str
    """What it is for."""

    evaluation: EvaluationConfig
    """What every trial is judged by."""

    fixed: dict[str, Any]
    """Values that all drawn trials share."""

    swept: dict[str, Swept]
    """What is drawn, a condition's key before the knob that depends on it."""

    points: tuple[dict[str, Any], ...] = ()
    """Configurations that run first; they may lie outside of what is drawn."""

    trials: int = knob(24, low=1, high=100_000)
    """Trials of a sweep unless the command line says otherwise."""

    require: tuple[Requirement, ...] = ()
    """What a trial must reach to count."""

    def sample(self, trial: BaseTrial) -> dict[str, Any]:
        """A configuration drawn define-by-run: `trial` is asked for the knobs that are on, in a fixed order."""
        return self._complete(self._walk(lambda name, swept: swept.domain.suggest(trial, name)))

    def grid(self, knobs: Collection[str]) -> Iterator[dict[str, Any]]:
        """Configurations with each of some swept knobs at an end of what is drawn, in all combinations; the other swept
        knobs are at their first."""
        corners = [dict(self.fixed)]
        for name, swept in self.swept.items():
            ends = swept.domain.corners() if name in knobs else swept.domain.corners()[:1]
            corners = [
                corner
                for present in corners
                for corner in ([{**present, name: end} for end in ends] if swept.is_on(present) else [present])
            ]
        return map(self._complete, corners)

    def active(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The swept knobs that are on in a configuration, with their values: what a drawn trial was asked for."""
        values = {**_TRIAL_DEFAULTS, **config}
        present = self._walk(lambda name, _: values[name])
        return {name: present[name] for name in self.swept if name in present}

    def distributions(self, config: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Optuna's distributions of the knobs in `active(config)`."""
        return {name: self.swept[name].domain.distribution() for name in self.active(config)}

    def point(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration as a point of this space: the knobs of `active`, and what differs from the fixed values."""
        base = self._complete(self.fixed)
        different = {name: config[name] for name in base if name not in NOT_SWEPT and config[name] != base[name]}
        return {**self.active(config), **different}

    def beginning_with(self, given: Iterable[dict[str, Any]]) -> Self:
        """Return the same space with points before its own; of equal ones the first stays."""
        points: list[dict[str, Any]] = []
        for point in (*given, *self.points):
            if point not in points:
                points.append(point)
        return dataclasses.replace(self, points=tuple(points), trials=self.trials if self.swept else len(points))

    def requiring(self, texts: Sequence[str]) -> Self:
        """The same space with more requirements.

        Raises:
            InputError: quoting the one that is wrong.
        """
        given = (Requirement.parse(text, said="--require") for text in texts)
        return dataclasses.replace(self, require=tuple(dict.fromkeys((*self.require, *given))))

    def corners(self) -> Iterator[TrialConfig]:
        """Every given point, and of what is drawn the ends, one by one and in pairs: what each of them is allowed is
        taken to be allowed to all that can run."""
        drawn = corner_configurations(self.fixed, self.swept) if self.swept else ()
        for values in (*self.points, *drawn):
            yield TrialConfig.from_mapping(values)

    def values_of(self, name: str) -> tuple[Any, ...]:
        """Every value that a field of words takes in this space, points included."""
        values = [point[name] for point in self.points]
        each = self.swept.get(name)
        if each is None or each.when:
            values.append({**_TRIAL_DEFAULTS, **self.fixed}[name])
        if each is not None:
            values.extend(each.domain.corners())
        return tuple(sorted(set(values)))

    def _walk(self, value_of: Callable[[str, Swept], Any]) -> dict[str, Any]:
        """The fixed values and those of the swept knobs that are on."""
        present = dict(self.fixed)
        for name, swept in self.swept.items():
            if swept.is_on(present):
                present[name] = value_of(name, swept)
        return present

    def _complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return without_seed(TrialConfig.from_mapping(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the form of a YAML file, all presets resolved."""
        base = self._complete(self.fixed)
        return {
            "name": self.name,
            "description": self.description,
            "trials": self.trials,
            "evaluation": self.evaluation.to_dict(),
            "space": {**self.fixed, **{name: swept.to_dict() for name, swept in self.swept.items()}},
            "points": [{key: v for key, v in point.items() if v != base[key]} for point in self.points],
            # Left out where there is none: plans that were written before there were any keep their digest.
            **({"require": [str(each) for each in self.require]} if self.require else {}),
        }


def without_seed(config: TrialConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in NOT_GIVEN}


def corner_configurations(fixed: Mapping[str, Any], swept: Mapping[str, Swept]) -> Iterator[dict[str, Any]]:
    """The fixed values: as they are, with each end of each knob, and with each pair of ends that may meet."""
    yield dict(fixed)
    for name, each in swept.items():
        for value in each.domain.corners():
            yield {**fixed, name: value}
    for (a, swept_a), (b, swept_b) in itertools.combinations(swept.items(), 2):
        for pair in itertools.product(swept_a.domain.corners(), swept_b.domain.corners()):
            values = dict(zip((a, b), pair, strict=True))
            if _compatible(swept_a, values) and _compatible(swept_b, values):
                yield {**fixed, **values}


def _compatible(swept: Swept, values: Mapping[str, Any]) -> bool:
    """Whether the values break no condition; those on other keys may hold."""
    return all(values[parent] in options for parent, options in swept.when.items() if parent in values)
