"""Beliefs about the best configurations, read from the section `prior` of a YAML tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.prior import Belief, Prior
from search_spaces.requirement import MEASURES
from search_spaces.space import TRIAL_FIELDS
from search_spaces.swept import Choices, Swept
from search_spaces.yaml_file import Located
from trainer.fields import check_value, knob, read_value
from trainer.words import did_you_mean

_RATES = {"share": knob(Prior.share, low=0, high=1), "forget": knob(Prior.forget, low=0, high=1)}
_SURE = knob(0.5, above=0, high=0.999)
for _spec in (*_RATES.values(), _SURE):
    _spec.type = "float"


def read_prior(node: Located | None, swept: Mapping[str, Swept]) -> Prior:
    """Return what a section believes of swept knobs; nothing where there is no section.

    Raises:
        InputError: with file and line, for an objective or knob that is not there, or a value that can't be drawn.
    """
    if node is None:
        return Prior()
    entries = node.mapping("prior")
    rates = {}
    for name in _RATES.keys() & entries.keys():
        with entries[name].error_context():
            rates[name] = check_value(f"prior.{name}", entries[name].plain(), _RATES[name])
    beliefs = {}
    for objective, item in entries.items():
        if objective in _RATES:
            continue
        if objective not in MEASURES:
            known = (*MEASURES, *_RATES)
            raise item.error(f"unknown objective {objective!r} in prior: {did_you_mean(objective, known)}")
        believed = item.mapping(f"prior: {objective}")
        beliefs[objective] = {name: _read_belief(name, each, swept) for name, each in believed.items()}
    if not any(beliefs.values()):
        raise node.error("prior: believes nothing; name an objective, and under it knobs with a value")
    return Prior({objective: believed for objective, believed in beliefs.items() if believed}, **rates)


def _read_belief(name: str, node: Located, swept: Mapping[str, Swept]) -> Belief:
    """Return a belief: `{value: 0.3, sure: 0.8}`, or the value alone."""
    if name not in swept:
        raise node.error(f"prior: {name!r} is not swept in this space: {did_you_mean(name, swept)}")
    entries = {"value": node}
    if isinstance(node.value, dict):
        entries = node.mapping(f"prior: {name}", known=["value", "sure"])
    if "value" not in entries:
        raise node.error(f"prior: {name} needs a value that is believed to be the best")
    value = _read_value(name, entries["value"], swept[name])
    if "sure" not in entries:
        return Belief(value, _SURE.default)
    with entries["sure"].error_context():
        return Belief(value, check_value(f"{name}: sure", entries["sure"].plain(), _SURE))


def _read_value(name: str, node: Located, swept: Swept) -> Any:
    """Return a value that a swept knob can have."""
    with node.error_context():
        value, domain = read_value(name, node.plain(), TRIAL_FIELDS[name]), swept.domain
    if isinstance(domain, Choices):
        if value not in domain.options:
            choices = ", ".join(map(str, domain.options))
            raise node.error(f"prior: {name} = {value!r}: is never drawn, must be one of {choices}")
    elif not domain.low <= value <= domain.high:
        raise node.error(f"prior: {name} = {value!r}: must be from {domain.low!r} to {domain.high!r}, its range")
    return value
