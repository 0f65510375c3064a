"""The ledger on disk, and how it is read: the durable truth of a sweep.

A ledger is the folder `<sweep>/ledger/`. It holds every event of every trial, numbered without gaps:

    log.jsonl                           the newest events, one checked JSON line each, on disk before the writer returns
    part-<first>-<last>-<crc32>.parquet older events, immutable, in columns `sequence` and `event` (the same JSON)
    count                               how many events there are, checked; written over after each event
    lock                                held by the one process that writes, with its host and pid

An event that stands in the log and in a part (the writer died between the two) counts once, by its number. What is
damaged or missing is named in `warnings`, and the rest is used. The count tells what is missing at the end, where no
later number shows it. It may lag behind, never ahead: it is written once an event is on disk, and not forced there
itself, so that a writer that was killed, or a power cut, leaves it right or too low. Ledgers of earlier versions have
none. Floats are written in their shortest exact form and come back bit for bit.
"""

from __future__ import annotations

import itertools
import json
import re
import time as clock
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sweep.ledger.records import Ledger, TrialRecord
from trainer.errors import InputError

LOG_NAME = "log.jsonl"
COUNT_NAME = "count"
_PART_NAME = re.compile(r"part-(\d{12})-(\d{12})-([0-9a-f]{8})\.parquet")
_COUNT = re.compile(rb"(\d{12}) events, crc32 ([0-9a-f]{8})\n")
_LINE = re.compile(rb'\{"crc32":"([0-9a-f]{8})",(.*)\}', re.DOTALL)
_REREAD_SECONDS, _REREADS = 0.05, 3
_UNSEEN = "if the last ones were missing, nothing would tell"


def read_ledger(sweep: Path) -> Ledger:
    """Return everything that the ledger of the folder `sweep` holds; needs no lock, also while a writer appends.

    Raises:
        InputError: if there is no ledger, or it can't be read.
    """
    folder = sweep / "ledger"
    if not folder.is_dir():
        raise InputError(f"no results in {str(sweep)!r}: it has no folder 'ledger', so no sweep was started there")
    try:
        # The count before the log, which is written before it. The log before the parts: an event that a writer moves
        # from one to the other meanwhile is then read twice, and counted once by its number, but never missed.
        count = read_count(folder / COUNT_NAME)
        log, parts = read_log(folder / LOG_NAME, count=count.events), part_files(folder)
    except OSError as error:
        raise InputError(f"can't read the ledger in {str(sweep)!r}: {error.strerror}") from error
    warnings = [*count.warnings, *log.warnings]
    accounted = set(log.damaged)
    sources = itertools.chain(_read_parts(parts, warnings, accounted), [log.events])
    trials = _replay(_decode_once(sources, accounted), warnings)
    return Ledger(trials, warnings + _gaps(accounted, count.events))


class _Count(NamedTuple):
    """The number of events as found on disk."""

    events: int
    """Events that were acknowledged, at least; 0 where that is unknown."""

    warnings: list[str]


class _Log(NamedTuple):
    """The log as found on disk."""

    events: dict[int, str]
    """JSON by sequence number."""

    damaged: list[int]
    """Numbers that damaged lines most likely had."""

    size: int
    """Bytes up to the end of the last whole line."""

    warnings: list[str]


class _Part(NamedTuple):
    """A part, as its name describes it."""

    path: Path
    first: int
    last: int
    crc32: int


def count_line(events: int) -> bytes:
    """Return the content of the file that counts the events; always of the same length, so that it is overwritten."""
    digits = b"%012d" % events
    return b"%b events, crc32 %08x\n" % (digits, zlib.crc32(digits))


def read_count(path: Path) -> _Count:
    """Return how many events the ledger should hold at least."""
    for _ in range(_REREADS):
        if not path.exists():
            return _Count(0, ["has no count of its events (made by an earlier version, or lost): " + _UNSEEN])
        match = _COUNT.fullmatch(path.read_bytes())
        if match and zlib.crc32(match[1]) == int(match[2], 16):
            return _Count(int(match[1]), [])
        # A writer may be in the middle of it.
        clock.sleep(_REREAD_SECONDS)
    return _Count(0, [f"{path.name} is damaged: {_UNSEEN}"])


def checked_line(text: str) -> bytes:
    """Return an event's JSON with its checksum as first field: still one JSON line, and checked byte for byte."""
    body = text.encode()
    return b'{"crc32":"%08x",%b\n' % (zlib.crc32(body), body[1:])


def _read_line(line: bytes) -> str | None:
    """Return the JSON inside a checked line; None if the line is not what was written."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    body = b"{%b}" % match[2]
    return body.decode() if zlib.crc32(body) == int(match[1], 16) else None


def read_log(path: Path, *, after: int = 0, count: int = 0) -> _Log:
    """Return the log's events.

    Args:
        after: the last number before it, where that is known.
        count: number of events that were acknowledged; 0 where that is unknown.
    """
    before, data = None, path.read_bytes() if path.exists() else b""
    while data and not data.endswith(b"\n") and data != before:
        # A writer may be in the middle of this very line: it is torn only if nothing follows.
        clock.sleep(_REREAD_SECONDS)
        before, data = data, path.read_bytes()
    *lines, tail = data.split(b"\n")
    events: dict[int, str] = {}
    damaged: list[int] = []
    warnings: list[str] = []
    number = after
    for i, line in enumerate(lines, start=1):
        text = _read_line(line)
        number = number + 1 if text is None else json.loads(text)["sequence"]
        if text is None:
            damaged.append(number)
            warnings.append(f"{path.name}: line {i} is damaged and left out")
        elif events.setdefault(number, text) != text:
            warnings.append(f"{path.name}: line {i} is another event {number} than one before it, and left out")
    if list(events) != sorted(events):
        warnings.append(f"{path.name}: lines stand in another order than they were written in; their numbers count")
        events = dict(sorted(events.items()))
    if tail:
        never = ", never acknowledged" if 0 < count <= max([after, *events, *damaged]) else ""
        warnings.append(f"{path.name}: the last line is torn ({len(tail)} bytes{never}) and cut off")
    return _Log(events, damaged, len(data) - len(tail), warnings)


def part_files(folder: Path) -> list[_Part]:
    matches = [(path, _PART_NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [_Part(path, int(match[1]), int(match[2]), int(match[3], 16)) for path, match in matches if match]


def _read_parts(parts: Iterable[_Part], warnings: list[str], accounted: set[int]) -> Iterator[dict[int, str]]:
    """Yield the events of one part after another; a damaged one adds to `warnings`, and its numbers to `accounted`."""
    for part in parts:
        try:
            data, trouble = part.path.read_bytes(), "is damaged"
        except OSError as error:
            data, trouble = b"", f"can't be read ({error.strerror})"
        # The whole file is checked before any of it is decoded.
        if zlib.crc32(data) != part.crc32:
            warnings.append(f"{part.path.name} {trouble}: events {part.first} to {part.last} are left out")
            accounted.update(range(part.first, part.last + 1))
            continue
        # Not `read_table`, which imports pandas.
        # Without threads: one of Arrow's that still holds the bytes while Python ends would end in a stack trace.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        yield dict(zip(table["sequence"].to_pylist(), table["event"].to_pylist(), strict=True))


def _decode_once(sources: Iterable[dict[int, str]], accounted: set[int]) -> Iterator[dict[str, Any]]:
    """Yield every event of the sources once, in their order; its number joins `accounted`."""
    seen: set[int] = set()
    for source in sources:
        fresh = [text for number, text in source.items() if number not in seen]
        seen.update(source)
        # One call for many events: the decoder then shares the keys between them.
        yield from json.loads(f"[{','.join(fresh)}]")
    accounted.update(seen)


def _replay(events: Iterable[dict[str, Any]], warnings: list[str]) -> dict[int, TrialRecord]:
    trials: dict[int, TrialRecord] = {}
    for event in events:
        number = event["trial"]
        if number not in trials:
            trials[number] = TrialRecord(number)
        trials[number].take(event)
    for number in sorted(number for number, trial in trials.items() if trial.started is None):
        del trials[number]
        warnings.append(
            f"trial {number} is left out: the event of its start is lost, and with it its configuration; "
            "`otsweep resume` runs it again"
        )
    return dict(sorted(trials.items()))


def _gaps(numbers: set[int], count: int) -> list[str]:
    """Return a warning for each run of numbers, up to the largest or to the count, that no file accounts for."""
    warnings, expected = [], 1
    for number in [*sorted(numbers), *([count + 1] if count > max(numbers, default=0) else [])]:
        if number > expected:
            warnings.append(f"events {expected} to {number - 1} are missing")
        expected = number + 1
    return warnings
