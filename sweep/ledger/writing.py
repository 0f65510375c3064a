"""The one writer of a ledger: every event is on disk before its method returns."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from sweep.ledger.reading import (
    COUNT_NAME,
    LOG_NAME,
    checked_line,
    count_line,
    part_files,
    read_count,
    read_log,
)
from sweep.ledger.records import END_STATES, EndState, Event
from sweep.ledger.table import TRIAL_TYPES, checked_values, parquet_bytes
from sweep.plan import push_remote, url_of
from trainer.errors import InputError
from trainer.files import UNFINISHED, open_anew, sync_folder, take_lock, write_whole

_PART_EVENTS = 4096
"""Events after which the log is rolled into a part: about 3 MB of log, and 30 parts for 10,000 trials of 10 reports."""

_URL_PART_EVENTS = 256
"""The same in storage at a URL, where the whole log is written again with every event."""


class LedgerWriter:
    """The one writer of a sweep's ledger; for one thread. A method returns its event once that is on disk.

    Cost per event and memory are constant: nothing older than the log is held or read.

    Raises:
        InputError: if another process writes this ledger, or the folder can't be written or locked.
    """

    def __init__(self, sweep: Path, *, part_events: int = _PART_EVENTS) -> None:
        self.folder = sweep / "ledger"
        self.warnings: list[str] = []
        """Descriptions of what was found damaged at the opening, and of what the storage refused since without loss."""
        self._part_events = _URL_PART_EVENTS if url_of(sweep) else part_events
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as undo:
                self._lock = take_lock(self.folder / "lock", f"sweep {sweep.name!r} is already being run")
                undo.callback(self._lock.release)
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
        sampler_state: str = "",
    ) -> Event:
        """Record that trial `number` begins its `attempt`, counted from 1, at `time` in unix seconds."""
        fields = {"config": checked_values(config), "seed": seed, "attempt": attempt, "host": host}
        fields |= {"noted": sampler_state} if sampler_state else {}
        return self._append("started", number, time, fields)

    def reported(self, number: int, report: Mapping[str, Any], *, time: float, slot_seconds: float = 0.0) -> Event:
        """Record a report of trial `number`, as made by `EpochReport.to_dict`, after `slot_seconds` in its slots."""
        if not {"epoch", "final"} <= report.keys():
            raise ValueError(f"report {dict(report)!r}: must name its epoch and whether it is final")
        if taken := report.keys() & TRIAL_TYPES.keys():
            raise ValueError(f"metric {min(taken)!r}: a column of the ledger has this name")
        return self._append("reported", number, time, {"report": checked_values(report), "held": float(slot_seconds)})

    def decided(self, number: int, decision: Mapping[str, Any], *, time: float) -> Event:
        """Record the decision at a rung whether trial `number` goes on, as made by `Decision.to_dict`."""
        return self._append("decided", number, time, {"decision": checked_values(decision)})

    def silent(self, number: int, reason: str, *, ended: bool, time: float) -> Event:
        """Record why trial `number` is spoken of as silent, and whether its worker is ended for it."""
        return self._append("silent", number, time, {"reason": reason, "ended": ended})

    def ended(
        self,
        number: int,
        *,
        state: EndState,
        reason: str = "",
        environment: bool | None = None,
        time: float,
        slot_seconds: float = 0.0,
    ) -> Event:
        """Record the end of trial `number` after `slot_seconds` in its slots; a later `started` reopens it.

        Args:
            environment: whether it failed for want of its environment, so that again it may not; None if unknown.
        """
        if state not in END_STATES:
            raise ValueError(f"state {state!r}: must be one of {', '.join(END_STATES)}")
        fields = {"state": state, "reason": reason, "held": float(slot_seconds)}
        fields |= {} if environment is None else {"environment": environment}
        return self._append("ended", number, time, fields)

    def close(self) -> None:
        """Roll the log into a part and release the lock; a second call does nothing."""
        if self._pending and not self._log.closed:
            self._roll()
        self._log.close()
        self._count.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recover(self) -> None:
        """Continue where the last writer stopped, at its close or in the middle of anything."""
        for leftover in self.folder.glob(f".*{UNFINISHED}"):
            leftover.unlink()
        rolled = max((part.last for part in part_files(self.folder)), default=0)
        is_new = not rolled and not (self.folder / LOG_NAME).exists()
        count = read_count(self.folder / COUNT_NAME)
        log = read_log(self.folder / LOG_NAME, after=rolled, count=count.events)
        self.warnings += log.warnings + ([] if is_new else count.warnings)
        self._pending = {number: text for number, text in log.events.items() if number > rolled}
        # No number of a lost event is given again, so that the gap shows for ever.
        self._next = max([rolled, count.events, *log.events, *log.damaged]) + 1
        write_whole(self.folder / COUNT_NAME, count_line(self._next - 1))
        self._push(self.folder / COUNT_NAME)
        self._count = _open_in_place(self.folder / COUNT_NAME)
        self._log = _open_in_place(self.folder / LOG_NAME)
        self._end = log.size
        os.ftruncate(self._log.fileno(), self._end)
        os.fsync(self._log.fileno())
        sync_folder(self.folder)

    def _append(self, kind: str, number: int, time: float, fields: Mapping[str, Any]) -> Event:
        event = {"sequence": self._next, "event": kind, "trial": number, "time": float(time), **fields}
        text = json.dumps(event, allow_nan=False, separators=(",", ":"))
        self._write_line(checked_line(text))
        with contextlib.suppress(OSError):  # the event is on disk, and the next one counts it too
            os.pwrite(self._count.fileno(), count_line(self._next), 0)
        self._push(self.folder / LOG_NAME)
        self._pending[self._next] = text
        self._next += 1
        if len(self._pending) % self._part_events == 0:
            self._roll()
        return event

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
        """Copy a file to the URL that the folder follows; after a failure, warned of once, the next event copies it."""
        try:
            push_remote(path)
        except InputError as error:
            if str(error) not in self.warnings:
                self.warnings.append(str(error))

    def _roll(self) -> None:
        """Move the log's events into a part. If the storage refuses, they stay in the log until the next time."""
        try:
            self._push(_write_part(self.folder, self._pending))
            # A new log takes the old one's place instead of being emptied: a reader in the middle keeps the old one.
            log = open_anew(self.folder / LOG_NAME)
            self._log.close()
            self._log, self._end, self._pending = log, 0, {}
            self._push(self.folder / LOG_NAME)
            # With each event it would be a second request; where it lags behind, less is told, and never too much.
            self._push(self.folder / COUNT_NAME)
            sync_folder(self.folder)
        except OSError as error:
            self.warnings.append(f"{LOG_NAME} could not be rolled into a part ({error.strerror}); nothing is lost")


def _write_part(folder: Path, events: Mapping[int, str]) -> Path:
    data = parquet_bytes(pa.table({"sequence": list(events), "event": list(events.values())}))
    name = f"part-{min(events):012d}-{max(events):012d}-{zlib.crc32(data):08x}.parquet"
    write_whole(folder / name, data)
    return folder / name


def _open_in_place(path: Path) -> FileIO:
    """Open a file for reading and writing, unbuffered; create it if missing, and never empty it."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
