"""Results as Arrow/Parquet: the durable truth of a sweep.

A ledger is the folder `<sweep>/ledger/`. It holds every event of every trial, numbered without gaps:

    log.jsonl                           the newest events, one checked JSON line each, on disk before `append` returns
    part-<first>-<last>-<crc32>.parquet older events, immutable, in columns `sequence` and `event` (the same JSON)
    lock                                held by the one process that writes, with its host and pid

An event that stands in the log and in a part (the writer died between the two) counts once, by its number. Whatever is
damaged is named in `warnings`, and the rest is used. Floats pass through their shortest exact form and come back
bit for bit.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import itertools
import json
import math
import os
import re
import socket
import sys
import time as clock
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from sweep.mirror import push, url_of
from trainer.config import InputError
from trainer.durable import sync_folder, write_whole

URL_PART_EVENTS = 256
"""The same in storage at a URL, where the whole log is written again with every event."""

PART_EVENTS = 4096
"""Events after which the log is rolled into a part: about 3 MB of log, and 30 parts for 10,000 trials of 10 reports."""

LOG_NAME = "log.jsonl"
PART_NAME = re.compile(r"part-(\d{12})-(\d{12})-([0-9a-f]{8})\.parquet")
LINE = re.compile(rb'\{"crc32":"([0-9a-f]{8})",(.*)\}', re.DOTALL)
REREAD_SECONDS = 0.05

TRIAL_TYPES = {
    "trial": pa.int64(),
    "seed": pa.int64(),
    "state": pa.string(),
    "reason": pa.string(),
    "host": pa.string(),
    "attempts": pa.int64(),
    "held": pa.float64(),
    "started": pa.float64(),
    "ended": pa.float64(),
}
REPORT_TYPES = {"epoch": pa.int64(), "final": pa.bool_()}

EndState = Literal["finished", "stopped", "failed"]
END_STATES = ("finished", "stopped", "failed")


@dataclass(slots=True)
class TrialRecord:
    """What a ledger knows of one trial."""

    number: int

    config: dict[str, Any] = field(default_factory=dict)
    """The trial's settings, plain scalars by name; empty where the start was lost."""

    seed: int | None = None

    state: str = "running"
    """`running` (begun and not ended, also when its driver died), `finished`, `stopped` or `failed`."""

    reason: str = ""
    """Why the trial ended as it did, for people."""

    started: float | None = None
    """Unix seconds at the first attempt's start."""

    ended: float | None = None
    """Unix seconds at the end; None while running."""

    host: str = ""
    """Where the latest attempt ran."""

    attempts: int = 0

    noted: str = ""
    """What the search noted of it when it was drawn, for itself: see `search`."""
    held: float = 0.0
    """Seconds that it has held its slot, all attempts together, by a clock that never jumps; what an attempt did after
    its last event is not in it."""

    ended_as: int = field(default=0, compare=False, repr=False)
    """The number of the event that ended it: orders trials by their ends, whatever the clock said."""

    reports: list[dict[str, Any]] = field(default_factory=list)
    """One flat dict per epoch, in order, then the final one; what a retry says again counts once, as said last."""

    decisions: list[dict[str, Any]] = field(default_factory=list)
    """What was decided about it at each rung and why, in order: see `scheduler.Decision`."""

    @property
    def result(self) -> dict[str, Any] | None:
        """The final report: the chosen checkpoint's numbers; None before it was made."""
        return self.reports[-1] if self.reports and self.reports[-1]["final"] else None

    def begin(
        self, config: Mapping[str, Any], *, seed: int, attempt: int, host: str, time: float, noted: str = ""
    ) -> None:
        """An attempt, counted from 1, starts at `time` in unix seconds."""
        self.config, self.seed, self.host, self.noted = dict(config), seed, host, noted
        self.attempts = max(self.attempts, attempt)
        self.started = time if self.started is None else self.started
        self.state, self.reason, self.ended = "running", "", None

    def say(self, report: dict[str, Any]) -> None:
        """One more report, in the place of an earlier one of the same epoch, or of an earlier final one."""
        place = bisect.bisect_left(self.reports, _order(report), key=_order)
        again = place < len(self.reports) and _order(self.reports[place]) == _order(report)
        # Each report that is unpickled or parsed has names of its own, which take more room than its numbers.
        self.reports[place : place + again] = [{sys.intern(name): value for name, value in report.items()}]

    def end(self, state: str, *, reason: str, time: float) -> None:
        self.state, self.reason, self.ended = state, reason, time

    def hold(self, seconds: float) -> None:
        """It has held its slot for so long by now."""
        self.held = max(self.held, seconds)


def _order(report: Mapping[str, Any]) -> float:
    """Where a report stands among its trial's: by epoch, the final one last."""
    return math.inf if report["final"] else report["epoch"]


@dataclass
class Ledger:
    """A sweep as read from its ledger."""

    trials: dict[int, TrialRecord]
    """By number, in ascending order."""

    warnings: list[str]
    """What was damaged or missing and so is not in `trials`, by file and line."""

    def to_go_on_from(self) -> dict[int, TrialRecord]:
        """The trials as a resume takes them up: one whose start was lost is to be begun anew, one whose result was lost
        to be gone on with."""
        known = {number: trial for number, trial in self.trials.items() if trial.started is not None}
        for trial in known.values():
            if trial.state == "finished" and trial.result is None:
                trial.state = "running"
        return known

    def to_table(self, metadata: Mapping[str, str] | None = None) -> pa.Table:
        """One row per report and one, with nulls, for a trial without any; `metadata` goes into the schema.

        Columns: `trial`, `seed`, `state`, `reason`, `host`, `attempts`, `held` (seconds), `started` and `ended` (unix
        seconds), then
        `config.<field>` for every setting, then `epoch`, `final` and every metric, and where a scheduler compared
        trials `decision.<field>` in the row of the report that it looked at.
        """
        rows = [
            (trial, _with_decision(trial, report)) for trial in self.trials.values() for report in trial.reports or [{}]
        ]
        settings = _keys(trial.config for trial in self.trials.values())
        metrics = _keys(report for _, report in rows)
        attributes = {name: "number" if name == "trial" else name for name in TRIAL_TYPES}
        columns = {name: [getattr(trial, attribute) for trial, _ in rows] for name, attribute in attributes.items()}
        columns |= {f"config.{key}": [trial.config.get(key) for trial, _ in rows] for key in settings}
        columns |= {key: [report.get(key) for _, report in rows] for key in metrics | REPORT_TYPES}
        table = pa.table({name: _column(name, values) for name, values in columns.items()})
        return table.replace_schema_metadata(dict(metadata or {}))

    def write_parquet(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write `to_table` as one file, whole or not at all."""
        write_whole(path, _parquet_bytes(self.to_table(metadata)))


def read_ledger(sweep: Path) -> Ledger:
    """Everything the ledger of the folder `sweep` holds; needs no lock, also while a writer appends.

    Raises:
        InputError: if there is no ledger, or it can't be read.
    """
    folder = sweep / "ledger"
    if not folder.is_dir():
        raise InputError(f"no results in {str(sweep)!r}: it has no folder 'ledger', so no sweep was started there")
    try:
        # The log before the parts: what a writer moves from one to the other meanwhile is then seen twice, by number
        # once, and never not at all.
        log, parts = _read_log(folder / LOG_NAME), _list_parts(folder)
    except OSError as error:
        raise InputError(f"can't read the ledger in {str(sweep)!r}: {error.strerror}") from error
    warnings = list(log.warnings)
    accounted = set(log.damaged)
    sources = itertools.chain(_read_parts(parts, warnings, accounted), [log.events])
    trials = _replay(_decode_once(sources, accounted), warnings)
    return Ledger(trials, warnings + _gaps(accounted))


class LedgerWriter:
    """The one writer of a sweep's ledger; for one thread. An event is on disk when its method returns.

    Cost per event and memory are constant: nothing older than the log is held or read.

    Raises:
        InputError: if another process writes this ledger, or the folder can't be written or locked.
    """

    def __init__(self, sweep: Path, *, part_events: int = PART_EVENTS) -> None:
        self.folder = sweep / "ledger"
        self.warnings: list[str] = []
        """What was found damaged at the opening, and what the storage refused since without loss."""
        self._part_events = URL_PART_EVENTS if url_of(sweep) else part_events
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as undo:
                self._lock = undo.enter_context(
                    take_lock(self.folder / "lock", f"sweep {sweep.name!r} is already being run")
                )
                self._recover()
                undo.pop_all()
        except OSError as error:
            raise InputError(f"can't write the ledger in {str(sweep)!r}: {error.strerror}") from error

    def started(
        self,
        number: int,
        *,
        config: Mapping[str, Any],
        seed: int,
        attempt: int,
        host: str,
        time: float,
        noted: str = "",
    ) -> None:
        """Trial `number` begins its `attempt`, counted from 1, at `time` in unix seconds."""
        facts = {"config": _plain(config), "seed": seed, "attempt": attempt, "host": host}
        facts |= {"noted": noted} if noted else {}
        self._append("started", number, time, facts)

    def reported(self, number: int, report: Mapping[str, Any], *, time: float, held: float = 0.0) -> None:
        """Trial `number` said `report`, as made by `EpochReport.to_dict`, after `held` seconds in its slots."""
        if not {"epoch", "final"} <= report.keys():
            raise ValueError(f"report {dict(report)!r}: must name its epoch and whether it is final")
        if taken := report.keys() & TRIAL_TYPES.keys():
            raise ValueError(f"metric {min(taken)!r}: a column of the ledger has this name")
        self._append("reported", number, time, {"report": _plain(report), "held": float(held)})

    def decided(self, number: int, decision: Mapping[str, Any], *, time: float) -> None:
        """At a rung it was decided whether trial `number` goes on; as made by `Decision.to_dict`."""
        self._append("decided", number, time, {"decision": _plain(decision)})

    def ended(self, number: int, *, state: EndState, reason: str = "", time: float, held: float = 0.0) -> None:
        """Trial `number` ended after `held` seconds in its slots; a later `started` makes it running again."""
        if state not in END_STATES:
            raise ValueError(f"state {state!r}: must be one of {', '.join(END_STATES)}")
        self._append("ended", number, time, {"state": state, "reason": reason, "held": float(held)})

    def close(self) -> None:
        """Roll the log into a part and let go of the lock; a second time does nothing."""
        if self._pending and not self._log.closed:
            self._roll()
        self._log.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recover(self) -> None:
        """Take up where the last writer stopped, be it at its close or in the middle of anything."""
        for leftover in self.folder.glob(".*.unfinished"):
            leftover.unlink()
        rolled = max((part.last for part in _list_parts(self.folder)), default=0)
        log = _read_log(self.folder / LOG_NAME, after=rolled)
        self.warnings += log.warnings
        self._pending = {number: text for number, text in log.events.items() if number > rolled}
        self._next = max([rolled, *log.events, *log.damaged]) + 1
        self._log = _open_in_place(self.folder / LOG_NAME)
        self._end = log.size
        os.ftruncate(self._log.fileno(), self._end)
        os.fsync(self._log.fileno())
        sync_folder(self.folder)

    def _append(self, kind: str, number: int, time: float, facts: Mapping[str, Any]) -> None:
        event = {"sequence": self._next, "event": kind, "trial": number, "time": float(time), **facts}
        text = json.dumps(event, allow_nan=False, separators=(",", ":"))
        self._write_line(_checked_line(text))
        self._push(self.folder / LOG_NAME)
        self._pending[self._next] = text
        self._next += 1
        if len(self._pending) % self._part_events == 0:
            self._roll()

    def _write_line(self, line: bytes) -> None:
        """Put the line on disk, or leave the log as it was and raise."""
        log, written = self._log.fileno(), 0
        try:
            # Positioned, not appended: a failed line that could not be cut off is overwritten by the next.
            while written < len(line):
                written += os.pwrite(log, line[written:], self._end + written)
            os.fsync(log)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(log, self._end)
            raise
        self._end += len(line)

    def _push(self, path: Path) -> None:
        """To where the folder follows; what does not go through goes with the next event, and is said once."""
        try:
            push(path)
        except InputError as error:
            if str(error) not in self.warnings:
                self.warnings.append(str(error))

    def _roll(self) -> None:
        """Move the log's events into a part. If the storage refuses, they stay in the log until the next time."""
        try:
            self._push(_write_part(self.folder, self._pending))
            # A new log takes the old one's place instead of being emptied: a reader in the middle keeps the old one.
            temporary = self.folder / f".{LOG_NAME}.unfinished"
            with contextlib.ExitStack() as undo:
                log = undo.enter_context(_open_in_place(temporary))
                os.replace(temporary, self.folder / LOG_NAME)
                undo.pop_all()
            self._log.close()
            self._log, self._end, self._pending = log, 0, {}
            self._push(self.folder / LOG_NAME)
            sync_folder(self.folder)
        except OSError as error:
            self.warnings.append(f"{LOG_NAME} could not be rolled into a part ({error.strerror}); nothing is lost")


class _Log(NamedTuple):
    """The log as found."""

    events: dict[int, str]
    """JSON by sequence number."""

    damaged: list[int]
    """The numbers that damaged lines most likely had."""

    size: int
    """Bytes up to the end of the last whole line."""

    warnings: list[str]


class _Part(NamedTuple):
    """A part as its name tells."""

    path: Path
    first: int
    last: int
    crc32: int


def _checked_line(text: str) -> bytes:
    """An event's JSON with its checksum as first field: still one JSON line, and checked byte for byte."""
    body = text.encode()
    return b'{"crc32":"%08x",%b\n' % (zlib.crc32(body), body[1:])


def _read_line(line: bytes) -> str | None:
    """The JSON inside a checked line; None if the line is not what was written."""
    match = LINE.fullmatch(line)
    if match is None:
        return None
    body = b"{%b}" % match[2]
    return body.decode() if zlib.crc32(body) == int(match[1], 16) else None


def _read_log(path: Path, *, after: int = 0) -> _Log:
    """The log's events; `after` is the last number before it, where that is known."""
    before, data = None, path.read_bytes() if path.exists() else b""
    while data and not data.endswith(b"\n") and data != before:
        # A writer may be in the middle of this very line: it is torn only if nothing follows.
        clock.sleep(REREAD_SECONDS)
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
        else:
            events[number] = text
    if tail:
        warnings.append(f"{path.name}: the last line is torn ({len(tail)} bytes, never acknowledged) and cut off")
    return _Log(events, damaged, len(data) - len(tail), warnings)


def _list_parts(folder: Path) -> list[_Part]:
    matches = [(path, PART_NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [_Part(path, int(match[1]), int(match[2]), int(match[3], 16)) for path, match in matches if match]


def _write_part(folder: Path, events: Mapping[int, str]) -> Path:
    data = _parquet_bytes(pa.table({"sequence": list(events), "event": list(events.values())}))
    name = f"part-{min(events):012d}-{max(events):012d}-{zlib.crc32(data):08x}.parquet"
    write_whole(folder / name, data)
    return folder / name


def _read_parts(parts: Iterable[_Part], warnings: list[str], accounted: set[int]) -> Iterator[dict[int, str]]:
    """The events of one part after another; a damaged one is told in `warnings`, and its numbers in `accounted`."""
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
        table = pq.read_table(pa.BufferReader(data))
        yield dict(zip(table["sequence"].to_pylist(), table["event"].to_pylist(), strict=True))


def _decode_once(sources: Iterable[dict[int, str]], accounted: set[int]) -> Iterator[dict[str, Any]]:
    """Every event of the sources once, in their order; its number joins `accounted`."""
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
        trial = trials.setdefault(event["trial"], TrialRecord(event["trial"]))
        if event["event"] == "reported":
            trial.say(event["report"])
        elif event["event"] == "decided":
            trial.decisions.append(event["decision"])
        elif event["event"] == "started":
            attempt = {key: event[key] for key in ("seed", "attempt", "host", "time")}
            trial.begin(event["config"], **attempt, noted=event.get("noted", ""))
        else:
            trial.end(event["state"], reason=event["reason"], time=event["time"])
            trial.ended_as = event["sequence"]
        trial.hold(event.get("held", 0.0))
    for number, trial in trials.items():
        if trial.started is None:
            warnings.append(f"trial {number}: the event of its start is lost, and with it its configuration")
    return dict(sorted(trials.items()))


def _with_decision(trial: TrialRecord, report: dict[str, Any]) -> dict[str, Any]:
    """A report with what was decided on it; what both say stands once."""
    made = [each for each in trial.decisions if each["epoch"] == report.get("epoch") and not report["final"]]
    return report | {f"decision.{key}": made[0][key] for key in made[0] if key not in report} if made else report


def _gaps(numbers: set[int]) -> list[str]:
    """A warning per run of numbers below the largest that no file accounts for."""
    warnings, expected = [], 1
    for number in sorted(numbers):
        if number > expected:
            warnings.append(f"events {expected} to {number - 1} are missing")
        expected = number + 1
    return warnings


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, after a check that each can be read back exactly and stands in a column."""
    for name, value in values.items():
        if not isinstance(value, bool | int | float | str):
            raise TypeError(f"{name} = {value!r}: must be true or false, a number or a text")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} = {value!r}: must be finite")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} = {value!r}: must fit in 64 bits")
    return dict(values)


def _keys(mappings: Iterable[Mapping[str, Any]]) -> dict[str, None]:
    """All keys in the order of their first appearance."""
    return dict.fromkeys(key for mapping in mappings for key in mapping)


def _column(name: str, values: list[Any]) -> pa.Array:
    """A typed column; whole numbers stay whole where it has nothing else, and a mixture becomes text."""
    kinds = {type(value) for value in values} - {type(None)}
    if name in TRIAL_TYPES | REPORT_TYPES:
        kind = (TRIAL_TYPES | REPORT_TYPES)[name]
    elif kinds <= {bool}:
        kind = pa.bool_()
    elif kinds <= {int}:
        kind = pa.int64()
    else:
        kind = pa.float64() if kinds <= {int, float} else pa.string()
    convert = {pa.float64(): float, pa.string(): _text}.get(kind, lambda value: value)
    return pa.array([None if value is None else convert(value) for value in values], kind)


def _text(value: Any) -> str:
    """Text that Arrow takes: a message may quote a file name that is not Unicode."""
    return str(value).encode(errors="replace").decode()


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _open_in_place(path: Path) -> FileIO:
    """The file for reading and writing, made if need be, never emptied, unbuffered."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")


def take_lock(path: Path, taken: str) -> FileIO:
    """The lock, held until it is closed or this process ends, however it ends.

    Raises:
        InputError: saying what is `taken`, and by whom.
    """
    lock = _open_in_place(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            holder = lock.read(1000).decode(errors="replace") or "another process"
        raise InputError(f"{taken} by {holder}") from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on host {socket.gethostname()}".encode())
    return lock
