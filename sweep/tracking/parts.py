"""Parts of what a store holds of a sweep: one may fail while all others are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sweep.tracking.mlflow_internals import explain_error
from sweep.tracking.store import Store

_NAMED = 3
"""Most parts with the same reason that are named."""


class Parts:
    """The parts that failed, by name, with their reasons."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.reasons: dict[str, str] = {}

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Let a part fail without the rest, whatever its storage, its library or the server's version raises.

        Raises:
            Exception: one of `store_errors`, if the store as a whole does not answer either.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - an artifact store raises errors of its own library
            self.store.client.get_experiment(self.store.experiment)
            self.reasons[name] = explain_error(error)
        else:
            self.reasons.pop(name, None)

    def missing(self) -> str:
        """Return what is missing, why, and what writes it later, in one line; empty if nothing is."""
        if not self.reasons:
            return ""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            by_reason.setdefault(reason, []).append(name)
        clauses = [f"{_enumerate(names)} ({reason})" for reason, names in by_reason.items()]
        return f"MLflow lacks {'; '.join(clauses)}: `otsweep sync {self.store.plan.name}` writes it once that is mended"


def _enumerate(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
