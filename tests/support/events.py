"""Events as a ledger holds them, made one after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from sweep.ledger.records import Event

_NUMBERS: Iterator[int] = itertools.count(1)


def started(number: int, config: Mapping[str, Any], *, time: float = 0.0, attempt: int = 1, seed: int = 0) -> Event:
    begun = {"config": dict(config), "seed": seed, "attempt": attempt, "host": ""}
    return {"sequence": next(_NUMBERS), "event": "started", "trial": number, "time": time, **begun}


def reported(number: int, report: Mapping[str, Any], *, time: float = 0.0, held: float = 0.0) -> Event:
    said = {"report": dict(report), "held": held}
    return {"sequence": next(_NUMBERS), "event": "reported", "trial": number, "time": time, **said}


def decided(number: int, decision: Mapping[str, Any], *, time: float = 0.0) -> Event:
    return {"sequence": next(_NUMBERS), "event": "decided", "trial": number, "time": time, "decision": dict(decision)}


def ended(number: int, state: str, *, reason: str = "", time: float = 0.0, held: float = 0.0) -> Event:
    over = {"state": state, "reason": reason, "held": held}
    return {"sequence": next(_NUMBERS), "event": "ended", "trial": number, "time": time, **over}
