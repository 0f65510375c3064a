"""The durable record of a sweep: events on disk, read and written."""

from sweep.ledger.reading import read_ledger
from sweep.ledger.records import EndState, Ledger, TrialRecord
from sweep.ledger.writing import LedgerWriter

__all__ = [
    "EndState",
    "Ledger",
    "LedgerWriter",
    "read_ledger",
    "TrialRecord",
]
