"""A ledger damaged in a thousand ways: none may break a report, and none may change a front without a word.

The ledger is that of the recorded sweep `digits24`, written by today's writer: some parts, and a log that its writer
left in the middle. Each time one thing is done to one file, as disks, editors and copies do it. Then the front is read
and shown. Beside what must not be, a traceback or another front without a warning, the table counts how often damage
was told, and how often the front was the same all the same.

    python -m tests.benchmarks.ledger_damage [TIMES]
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sweep.ledger.reading import read_ledger
from sweep.ledger.writing import LedgerWriter
from sweep.plan.plan import SweepPlan
from sweep.plan.plan_file import read_plan
from sweep.report.formats import front_csv
from sweep.report.verdicts import verdict
from sweep.state.sweep_state import read_state
from tests.benchmarks.common import print_machine, print_result
from tests.support.recorded_sweeps import RECORDED, write_records
from trainer.errors import InputError

TIMES, PART_EVENTS = 1000, 70
Damage = Callable[[bytes, random.Random], bytes]


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def cut_between_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[: draw.randrange(len(lines))])


def lose_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    start = draw.randrange(len(lines))
    return b"".join(lines[:start] + lines[start + draw.randint(1, 5) :])


def swap_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


def repeat_a_line(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.insert(draw.randrange(len(lines)), draw.choice(lines))
    return b"".join(lines)


def change_a_digit(data: bytes, draw: random.Random) -> bytes:
    digits = [i for i, byte in enumerate(data) if byte in b"0123456789"]
    where = draw.choice(digits)
    return data[:where] + draw.choice([b"%d" % n for n in range(10) if ord("0") + n != data[where]]) + data[where + 1 :]


def flip_a_bit(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def zero_a_block(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    size = min(512, len(data) - start)
    return data[:start] + bytes(size) + data[start + size :]


def insert_bytes(data: bytes, draw: random.Random) -> bytes:
    where = draw.randrange(len(data))
    return data[:where] + draw.randbytes(draw.randint(1, 9)) + data[where:]


DAMAGES: tuple[Damage, ...] = (
    *(cut, cut_between_lines, lose_lines, swap_lines, repeat_a_line, change_a_digit, flip_a_bit, zero_a_block),
    insert_bytes,
)


def damage(ledger: Path, draw: random.Random) -> str:
    """Do one thing to one file; return what."""
    path = draw.choice(sorted(ledger.iterdir()))
    kind = draw.choice(["removed", "emptied", "given another's content", *DAMAGES])
    if kind == "removed":
        path.unlink()
    elif kind == "emptied":
        path.write_bytes(b"")
    elif isinstance(kind, str):
        path.write_bytes(draw.choice(sorted(ledger.iterdir())).read_bytes())
    else:
        path.write_bytes(kind(path.read_bytes(), draw))
    return kind if isinstance(kind, str) else kind.__name__.replace("_", " ")


def sound(storage: Path) -> SweepPlan:
    """The sweep, undamaged."""
    folder = storage / "digits24"
    folder.mkdir()
    for name in ("plan.yaml", "prepared.json"):
        shutil.copy(RECORDED / "digits24" / name, folder)
    with LedgerWriter(folder, part_events=PART_EVENTS) as ledger:
        write_records(ledger, read_ledger(RECORDED / "digits24").trials.values())
        ledger._pending.clear()  # so that its end stays in the log, as after kill -9
    (folder / "ledger" / "lock").unlink(missing_ok=True)
    return read_plan("digits24", storage=str(storage))


def shown(plan: SweepPlan) -> tuple[str, list[str]]:
    """What is shown of the front, and the warnings."""
    state = read_state(plan)
    verdict(plan, state)
    return front_csv(plan, state), state.warnings


def outcome(plan: SweepPlan, front: str) -> str:
    try:
        found, warnings = shown(plan)
    except InputError:
        return "refused"
    except Exception:  # noqa: BLE001 - that is what is counted
        traceback.print_exc()
        return "traceback"
    changed = "another front" if found != front else "same front"
    return f"{changed}, {'told' if warnings else 'not told'}"


def trial_by_fire(times: int) -> dict[str, Counter[str]]:
    """Return how often each damage had which outcome."""
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        storage = Path(scratch)
        plan = sound(storage)
        front, warnings = shown(plan)
        assert not warnings, warnings
        ledger, kept = plan.folder / "ledger", storage / "kept"
        shutil.copytree(ledger, kept)
        for number in range(times):
            shutil.rmtree(ledger)
            shutil.copytree(kept, ledger)
            kind = damage(ledger, random.Random(number))
            found.setdefault(kind, Counter())[outcome(plan, front)] += 1
    return found


OUTCOMES = ("same front, told", "same front, not told", "another front, told", "another front, not told", "refused")


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else TIMES
    print_machine("pyarrow")
    found = trial_by_fire(times)
    headings = (*OUTCOMES, "traceback")
    print(f"{'damage':26}" + "".join(f"{heading:>25}" for heading in headings))
    for kind, outcomes in sorted(found.items()):
        print(f"{kind:26}" + "".join(f"{outcomes[heading]:25}" for heading in headings))
    total = sum(found.values(), Counter())
    print_result("ledger_damage", total["another front, not told"] + total["traceback"])


if __name__ == "__main__":
    main()
