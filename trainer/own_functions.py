"""Regularisers and attacks of one's own alike: the knobs that they declare, and calls that repeat.

README.md has an example of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.config import OWN_KNOBS, TrialConfig
from trainer.errors import InputError
from trainer.plugins import is_plugin, load_plugin

_DECLARING = ("regularizer", "sensitivity_attack")
"""Knobs whose functions may declare the range of further knobs, by their attribute `knobs`."""


def check_own_knobs(config: TrialConfig) -> None:
    """Check the knobs of `OWN_KNOBS` against the ranges that the configuration's own functions declare for them.

    Raises:
        InputError: for a declaration of another form, a knob that two functions declare, one outside its range, or one
            that is given and not declared.
    """
    functions = {knob: value for knob in _DECLARING if is_plugin(value := getattr(config, knob))}
    ranges: dict[str, tuple[float, float]] = {}
    owners: dict[str, str] = {}
    for knob, value in functions.items():
        for name, limits in _declared(knob, value).items():
            if name in owners:
                raise InputError(f"{name}: {owners[name]} and {value} both declare it, must be declared by one of them")
            ranges[name], owners[name] = limits, value
    for name in OWN_KNOBS:
        value, (low, high) = getattr(config, name), ranges.get(name, (0.0, 0.0))
        if functions and not low <= value <= high:
            who = owners.get(name) or " and ".join(functions.values())
            allowed = f"at least {low:g} and at most {high:g}" if name in ranges else "0, as no such knob is declared"
            raise InputError(f"{name} = {value:g}: for {who} it must be {allowed}")


def _declared(knob: str, value: str) -> dict[str, tuple[float, float]]:
    """Return the ranges that a function of one's own declares, by the name of the knob."""
    declared = getattr(load_plugin(knob, value), "knobs", {})
    try:
        ranges = {name: (float(low), float(high)) for name, (low, high) in declared.items()}
        in_order = all(low <= high for low, high in ranges.values())  # false for NaN too
    except (AttributeError, TypeError, ValueError):
        ranges, in_order = {}, False
    if not in_order:
        raise InputError(
            f"{knob} = {value!r}: its knobs are {declared!r}, must be a dict such as {{{OWN_KNOBS[0]!r}: (0.0, 2.0)}}"
        )
    for name in ranges:
        if name not in OWN_KNOBS:
            raise InputError(f"{knob} = {value!r}: declares {name!r}, must be one of {', '.join(OWN_KNOBS)}")
    return ranges


def fault_of_calls(call: Callable[[], Tensor], inputs: Sequence[Tensor | None]) -> str:
    """Return why a call is no function of its inputs alone, in words; an empty text if it is.

    Args:
        call: called twice.
        inputs: tensors that it reads, and may not change.
    """
    given = [each for each in inputs if each is not None]
    before, state = [each.clone() for each in given], torch.get_rng_state()
    first, again = call(), call()
    checks = {
        "gives something else for the same batch": torch.equal(first, again),
        "draws from the global random generator": torch.equal(state, torch.get_rng_state()),
        "changes its inputs": all(torch.equal(*pair) for pair in zip(before, given, strict=True)),
    }
    return next((fault for fault, holds in checks.items() if not holds), "")
