"""A search space: what is fixed, what is drawn by Optuna, and what runs first."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from search_spaces.prior import Prior
from search_spaces.requirement import Requirement
from search_spaces.swept import Swept
from trainer.config import (
    CROSS_ENTROPY_ON,
    OLDER_FIELDS,
    EvaluationConfig,
    TrialConfig,
    view_of_cross_entropy,
    with_weights,
)
from trainer.fields import knob

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

NOT_SWEPT = {"epochs": "a trial would win by training longer; give one number, or --epochs for all trials"}
NOT_GIVEN = {"seed": "the sweep gives it (--seed)"}

TRIAL_FIELDS = TrialConfig.fields() | OLDER_FIELDS
"""Every setting of a trial that a space may name."""
_TRIAL_DEFAULTS = {name: spec.default for name, spec in TRIAL_FIELDS.items()}


@dataclass(frozen=True)
class Space:
    """A checked search space. A *configuration* is a dict of all of TrialConfig's fields but the seed."""

    name: str
    """The name that it was loaded by; a file's name without its suffix."""

    description: str
    """Purpose of the space, in a sentence or two."""

    evaluation: EvaluationConfig
    """Evaluation that every trial is judged by."""

    fixed: dict[str, Any]
    """Values that all drawn trials share."""

    swept: dict[str, Swept]
    """Knobs that are drawn, each after those that its conditions read."""

    points: tuple[dict[str, Any], ...] = ()
    """Configurations that run first; they may lie outside of what is drawn."""

    trials: int = knob(24, low=1, high=100_000)
    """Trials of a sweep unless the command line says otherwise."""

    require: tuple[Requirement, ...] = ()
    """Requirements; a trial that violates one is infeasible, and on no front."""

    prior: Prior = Prior()
    """Beliefs about the best configurations; no draw follows an empty one."""

    def sample(self, trial: BaseTrial) -> dict[str, Any]:
        """Draw a configuration define-by-run: `trial` is asked for the knobs that are on, in a fixed order."""
        return self.complete(self._walk(lambda name, swept: swept.domain.suggest(trial, name)))

    def believed(self, *, draws: int, seed: int) -> dict[str, Any] | None:
        """Return a configuration near what is believed to be the best, or None where the sampler is to draw.

        Args:
            draws: draws before this one.
            seed: decides all of it.
        """
        if not self.prior.beliefs:
            return None
        values = self.prior.draw(self.swept, self.fixed, draws=draws, generator=random.Random(seed))
        return None if values is None else self.complete(values)

    def believing(self, best: Mapping[str, Sequence[Mapping[str, Any]]]) -> Self:
        """Return the same space with the prior that an earlier sweep's best configurations give, if it has none.

        Args:
            best: the best configurations by objective.
        """
        if self.prior.beliefs:
            return self
        known = {objective: [self.active(config) for config in configs] for objective, configs in best.items()}
        return dataclasses.replace(self, prior=Prior.of_best(self.swept, known))

    def grid(self, knobs: Collection[str]) -> Iterator[dict[str, Any]]:
        """Yield configurations with the named knobs at their ends, in all combinations; other swept knobs are at their
        first end."""
        corners = [dict(self.fixed)]
        for name, swept in self.swept.items():
            ends = swept.domain.corners() if name in knobs else swept.domain.corners()[:1]
            corners = [
                corner
                for present in corners
                for corner in ([{**present, name: end} for end in ends] if swept.is_on(present) else [present])
            ]
        return map(self.complete, corners)

    def active(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the swept knobs that are on in a configuration, with their values: what a draw asked for."""
        values = {**_TRIAL_DEFAULTS, **config}
        present = self._walk(lambda name, _: values[name])
        return {name: present[name] for name in self.swept if name in present}

    def distributions(self, config: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Return Optuna's distributions of the knobs in `active(config)`."""
        return {name: self.swept[name].domain.distribution() for name in self.active(config)}

    def point(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration as a point: the knobs of `active`, and what differs from the fixed values."""
        base = self.complete(self.fixed)
        different = _difference({**_TRIAL_DEFAULTS, **config}, base)
        return {**self.active(config), **{name: value for name, value in different.items() if name not in NOT_SWEPT}}

    def beginning_with(self, given: Iterable[dict[str, Any]]) -> Self:
        """Return the same space with points before its own; of equal ones the first stays."""
        points: list[dict[str, Any]] = []
        for point in (*map(self.complete, given), *self.points):
            if point not in points:
                points.append(point)
        return dataclasses.replace(self, points=tuple(points), trials=self.trials if self.swept else len(points))

    def judged_by(self, crowd: str | None) -> Self:
        """Return the same space with another crowd, by name or by value, if one is given."""
        return self if crowd is None else dataclasses.replace(self, evaluation=self.evaluation.replace(crowd=crowd))

    def requiring(self, texts: Sequence[str]) -> Self:
        """Return the same space with more requirements.

        Raises:
            InputError: quoting the one that is wrong.
        """
        given = (Requirement.parse(text, source="--require") for text in texts)
        return dataclasses.replace(self, require=tuple(dict.fromkeys((*self.require, *given))))

    def corners(self) -> Iterator[TrialConfig]:
        """Yield every given point, and configurations with the ends of what is drawn, one by one and in pairs: what
        holds for all of them is taken to hold for all that can run."""
        drawn = corner_configurations(self.fixed, self.swept) if self.swept else ()
        for values in (*self.points, *drawn):
            yield TrialConfig.from_mapping(values)

    def values_of(self, name: str) -> tuple[Any, ...]:
        """Return every value that a field of words takes in this space, points included."""
        values = [point[name] for point in self.points]
        each = self.swept.get(name)
        if each is None or each.when:
            values.append({**_TRIAL_DEFAULTS, **self.fixed}[name])
        if each is not None:
            values.extend(each.domain.corners())
        return tuple(sorted(set(values)))

    def _walk(self, value_of: Callable[[str, Swept], Any]) -> dict[str, Any]:
        """Return the fixed values and those of the swept knobs that are on."""
        present = dict(self.fixed)
        for name, swept in self.swept.items():
            if swept.is_on(present):
                present[name] = value_of(name, swept)
        return present

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of some values; a space with an older knob has it in every configuration."""
        config = without_seed(TrialConfig.from_mapping(values))
        older = CROSS_ENTROPY_ON in self.fixed or CROSS_ENTROPY_ON in self.swept
        return config | {CROSS_ENTROPY_ON: view_of_cross_entropy(config)} if older else config

    def to_dict(self) -> dict[str, Any]:
        """Return plain values in the form of a YAML file, all presets resolved."""
        base = self.complete(self.fixed)
        return {
            "name": self.name,
            "description": self.description,
            "trials": self.trials,
            "evaluation": self.evaluation.written(),
            "space": {**self.fixed, **{name: swept.to_dict() for name, swept in self.swept.items()}},
            "points": [_difference(point, base) for point in self.points],
            # Left out where there is none, so that plans written before requirements existed keep their digest.
            **({"require": [str(each) for each in self.require]} if self.require else {}),
            **({"prior": self.prior.to_dict()} if self.prior.beliefs else {}),
        }


def _difference(config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from the base, without the weights that an older knob among them stands for."""
    different = {name: config[name] for name in base if config[name] != base[name]}
    implied = with_weights({name: different[name] for name in different if name in OLDER_FIELDS})
    return {k: v for k, v in different.items() if k in OLDER_FIELDS or implied.get(k) != v}


def without_seed(config: TrialConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if name not in NOT_GIVEN}


def corner_configurations(fixed: Mapping[str, Any], swept: Mapping[str, Swept]) -> Iterator[dict[str, Any]]:
    """Yield the fixed values as they are, with each end of each knob, and with each pair of ends that may meet.

    A knob with a condition is set together with values of other knobs that it accepts.
    """
    yield dict(fixed)
    for names in (*((name,) for name in swept), *itertools.combinations(swept, 2)):
        for ends in itertools.product(*(swept[name].domain.corners() for name in names)):
            corner = _under_conditions(fixed, swept, dict(zip(names, ends, strict=True)))
            if corner is not None:
                yield corner


def can_be_on(name: str, fixed: Mapping[str, Any], swept: Mapping[str, Swept]) -> bool:
    """Return whether the conditions of a swept knob hold for some values of the others."""
    return _under_conditions(fixed, swept, {name: swept[name].domain.corners()[0]}) is not None


def _under_conditions(
    fixed: Mapping[str, Any], swept: Mapping[str, Swept], chosen: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return a configuration with the chosen values in which all their conditions hold; None if there is none."""
    options: dict[str, tuple[Any, ...]] = {}
    waiting = list(chosen)
    while waiting:
        for parent, accepted in swept[waiting.pop()].when.items():
            if parent in swept and parent not in chosen and parent not in options:
                waiting.append(parent)
                options[parent] = accepted
            elif parent in options:
                options[parent] += accepted
    for values in itertools.product(*options.values()):
        corner = {**fixed, **dict(zip(options, values, strict=True)), **chosen}
        if all(swept[name].is_on(corner) for name in (*options, *chosen)):
            return corner
    return None
