"""One `apply` for live events and for replay: whatever happened, all ways to a sweep's state lead to the same one."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.requirement import Requirement
from sweep.front.objectives import Objectives
from sweep.ledger.reading import read_ledger
from sweep.ledger.writing import LedgerWriter
from sweep.state.sweep_state import SweepState
from tests.support import events

OBJECTIVES = Objectives(("sensitivity_accuracy", "invariance_accuracy"), (True, True), (0.0, 0.0))
REQUIRE = (Requirement.parse("clean_accuracy >= 0.5", source="require"),)
EPOCHS = 3


@st.composite
def courses(draw: st.DrawFn) -> tuple[int, list[tuple[str, int, dict[str, Any]]]]:
    """Draw a number of seeds, and legal calls of a ledger's writer, in any order.

    Trials begin, report, are decided on, end, lose their worker and begin again, and begin again after their end.
    """
    seeds = draw(st.integers(1, 2))
    running: dict[int, int] = {}
    attempts: dict[int, int] = {}
    calls: list[tuple[str, int, dict[str, Any]]] = []
    for time in range(draw(st.integers(0, 30))):
        number = draw(st.integers(0, 5))
        if number not in running:
            attempts[number] = attempts.get(number, 0) + 1
            running[number] = 0
            config = {"seed": number % seeds, "epochs": EPOCHS}
            begun = {"config": config, "seed": number % seeds, "attempt": attempts[number], "host": "here"}
            calls.append(
                ("started", number, {**begun, "time": float(time), "sampler_state": draw(st.sampled_from(["", "x"]))})
            )
            continue
        kind = draw(st.sampled_from(["reported", "reported", "decided", "ended", "lost", "silent"]))
        timed = {"time": float(time), "slot_seconds": float(time)}
        if kind == "reported" and running[number] < EPOCHS:
            running[number] += 1
            calls.append((kind, number, {"report": report(draw, running[number], final=False), **timed}))
        elif kind == "decided" and running[number]:
            calls.append((kind, number, {"decision": {"epoch": running[number], "chance": 0.5}, "time": float(time)}))
        elif kind == "silent":
            calls.append((kind, number, {"reason": "no word", "ended": draw(st.booleans()), "time": float(time)}))
        elif kind == "ended" and running[number]:
            state = draw(st.sampled_from(["finished", "finished", "stopped", "failed"]))
            if state == "finished":
                calls.append(("reported", number, {"report": report(draw, running[number], final=True), **timed}))
            calls.append((kind, number, {"state": state, "reason": state, **timed}))
            del running[number]
        elif kind == "lost":
            del running[number]
    return seeds, calls


def report(draw: st.DrawFn, epoch: int, *, final: bool) -> dict[str, Any]:
    """Draw a report whose numbers often tie."""
    names = (*OBJECTIVES.names, "clean_accuracy")
    accuracies = {name: draw(st.integers(0, 4)) / 4 for name in names}
    return {"epoch": epoch, "final": final, **accuracies, "train_seconds": 0.5, "evaluation_seconds": 0.25}


def empty(seeds: int) -> SweepState:
    return SweepState(OBJECTIVES, {}, total=6, seeds=seeds, require=REQUIRE)


def write(ledger: LedgerWriter, call: tuple[str, int, dict[str, Any]]) -> Any:
    kind, number, options = call
    if kind == "reported":
        return ledger.reported(number, options["report"], time=options["time"], slot_seconds=options["slot_seconds"])
    if kind == "decided":
        return ledger.decided(number, options["decision"], time=options["time"])
    return getattr(ledger, kind)(number, **options)


def fields(state: SweepState) -> dict[str, Any]:
    """Return everything that a state knows, in comparable values."""
    known = {name: value for name, value in vars(state).items() if name not in ("_changing", "front", "found_last")}
    front = [record.number for record in state.front_records]
    points = np.asarray(state.front.points).tolist()
    return {**known, "front": (points, state.front.size, state.hypervolume, front, state.knee), "ranks": state.ranks()}


@settings(max_examples=60)
@given(course=courses(), data=st.data())
def test_live_replayed_and_resumed_states_are_equal_field_by_field(course: Any, data: st.DataObject) -> None:
    seeds, calls = course
    cut = data.draw(st.integers(0, len(calls)), label="cut")
    with tempfile.TemporaryDirectory() as folder:
        live = empty(seeds)
        with LedgerWriter(Path(folder), part_events=7) as ledger:
            for call in calls[:cut]:
                live.apply(write(ledger, call))
            # Read while the writer has it open, as after kill -9.
            recorded = read_ledger(Path(folder)).trials
        resumed = SweepState(OBJECTIVES, recorded, total=6, seeds=seeds, require=REQUIRE)
        assert fields(resumed) == fields(live)
        with LedgerWriter(Path(folder), part_events=7) as ledger:
            for call in calls[cut:]:
                event = write(ledger, call)
                assert resumed.apply(event) == live.apply(event)
        assert fields(resumed) == fields(live)
        replayed = SweepState(OBJECTIVES, read_ledger(Path(folder)).trials, total=6, seeds=seeds, require=REQUIRE)
        assert fields(replayed) == fields(live)


@settings(max_examples=30)
@given(course=courses())
def test_a_snapshot_is_what_was_and_stays(course: Any) -> None:
    seeds, calls = course
    state, seen = empty(seeds), []
    with tempfile.TemporaryDirectory() as folder, LedgerWriter(Path(folder)) as ledger:
        for call in calls:
            state.apply(write(ledger, call))
            snapshot = state.snapshot()
            seen.append((snapshot, fields(snapshot)))
            assert fields(snapshot) == fields(state)
    assert all(fields(snapshot) == before for snapshot, before in seen)


def test_snapshots_of_another_thread_are_never_between_two_states() -> None:
    """Compare the ended trials of each snapshot with the counted ones, while trials end."""
    state, wrong, over = empty(1), [], threading.Event()
    state.total = 500

    def look() -> None:
        while not over.is_set():
            seen = state.snapshot()
            ended = [record for record in seen.trials.values() if record.state == "finished"]
            if len(ended) != len(seen.volumes) or seen.states().total() != len(seen.trials):
                wrong.append((len(ended), len(seen.volumes), seen.states(), len(seen.trials)))

    thread = threading.Thread(target=look)
    thread.start()
    last = {name: 0.5 for name in (*OBJECTIVES.names, "clean_accuracy")}
    for number in range(500):
        state.apply(events.started(number, {}))
        state.apply(events.reported(number, {"epoch": 1, "final": False, "train_seconds": 1, "evaluation_seconds": 1}))
        state.apply(events.reported(number, {"epoch": 1, "final": True, **last}))
        state.apply(events.ended(number, "finished"))
    over.set()
    thread.join()
    assert wrong == []
