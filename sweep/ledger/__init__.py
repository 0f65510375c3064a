"""The durable record of a sweep: events on disk, written one by one and read back as trials."""

from sweep.ledger.reading import read_ledger
from sweep.ledger.records import END_STATES, EndState, Event, Ledger, TrialRecord
from sweep.ledger.table import arrow_column, keys_in_order, parquet_bytes
from sweep.ledger.writing import LedgerWriter
