"""Stopping early: who stands where in a rung, who is stopped, and that a killed sweep decides as an undisturbed one."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.engine.scheduler import MultiObjectiveASHA
from sweep.front.objectives import Objectives
from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.ledger.writing import LedgerWriter
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SweepPlan
from sweep.plan.plan_file import read_plan
from sweep.report.replay import _reports_in_order, replay_sweep
from sweep.search.decision import CHANGES, Decision, RungPosition
from sweep.search.rung import Rung, farthest_first, group_key, lags
from sweep.search.rungs import Rungs, rung_levels
from sweep.state.sweep_state import SweepState
from tests.integration.test_sweep import run_words
from tests.support.commands import command, otsweep, start, wait_for
from tests.support.recorded_sweeps import recorded as recorded_sweep
from tests.support.recorded_sweeps import results_of
from tests.support.tuned_search import TunedSearch
from trainer.report import STRENGTH

MINIMISE = Objectives(("a", "b"), (False, False), (9.0, 9.0))
MIXED = Objectives(("a", "b"), (True, False), (0.0, 9.0))
THREE = Objectives(("a", "b", "c"), (True, True, True), (0.0, 0.0, 0.0))

# Few different values: duplicates, ties and long chains of domination come often.
numbers = st.integers(0, 6).map(float)


def rung_of(d: int, *, least: int = 1) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.tuples(*[numbers] * d), min_size=least, max_size=20).map(np.array)


@st.composite
def rungs(draw: st.DrawFn, *, least: int = 1) -> tuple[np.ndarray, Objectives]:
    objectives = draw(st.sampled_from([OBJECTIVES, MINIMISE, MIXED, THREE]))
    return draw(rung_of(len(objectives.names), least=least)), objectives


@given(st.integers(0, 1200), st.integers(1, 700))
def test_the_changes_that_came_last_are_in_order(added: int, count: int) -> None:
    changes = Rung(OBJECTIVES, ()).changes
    for number in range(added):
        changes.append((number, -number))
    kept = range(max(0, added - min(count, len(changes))), added)
    assert changes.last(count)[:, 0].tolist() == list(kept)
    assert sorted(changes.rows[:, 0]) == list(range(max(0, added - 500), added))


def positions(points: np.ndarray, objectives: Objectives) -> list[RungPosition]:
    """Return the positions of all points, once all have come."""
    rung = Rung(objectives, ())
    for number, point in enumerate(points):
        rung.add(str(number), number, point)
    return [rung.position(str(number)) for number in range(len(points))]


def layers_of(points: np.ndarray, objectives: Objectives) -> list[int]:
    return [position.layer for position in positions(points, objectives)]


def ranks_in(points: np.ndarray, objectives: Objectives) -> np.ndarray:
    return np.array([position.rank for position in positions(points, objectives)])


def stops(points: np.ndarray, objectives: Objectives, eta: int) -> list[bool]:
    """Return which points would be stopped if all of a rung were seen at once."""
    return [lags(position, eta=eta) for position in positions(points, objectives)]


def dominates(a: np.ndarray, b: np.ndarray, objectives: Objectives) -> bool:
    better = np.where(objectives.maximise, a > b, a < b)
    worse = np.where(objectives.maximise, a < b, a > b)
    return bool(better.any() and not worse.any())


# ---------------------------------------------------------------------------------------------------------------------
# Who stands where


def test_ranks_are_ranks_and_no_order_in_which_to_sort() -> None:
    """Try the case in which another library's scheduler reads a sorting order as ranks: [1, 2, 0]."""
    assert ranks_in(np.array([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]), MINIMISE).tolist() == [2, 0, 1]


@given(rungs())
def test_layers_are_those_of_the_reference(case: tuple[np.ndarray, Objectives]) -> None:
    points, objectives = case
    expected = moocore.pareto_rank(points, maximise=list(objectives.maximise))
    assert layers_of(points, objectives) == expected.tolist()


@given(rungs())
def test_who_dominates_stands_before(case: tuple[np.ndarray, Objectives]) -> None:
    points, objectives = case
    found = ranks_in(points, objectives)
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            if dominates(a, b, objectives):
                assert found[i] < found[j]


@given(rungs())
def test_duplicates_tie_and_others_do_not(case: tuple[np.ndarray, Objectives]) -> None:
    points, objectives = case
    found = ranks_in(points, objectives)
    for i in range(len(points)):
        for j in range(len(points)):
            assert (found[i] == found[j]) == (points[i] == points[j]).all()


@given(rungs())
def test_a_place_counts_who_stands_before(case: tuple[np.ndarray, Objectives]) -> None:
    found = ranks_in(*case)
    assert found.tolist() == [(found < rank).sum() for rank in found]


@given(rungs(), st.randoms(use_true_random=False), st.integers(2, 5))
def test_whoever_came_first_the_same_are_stopped(case: tuple[np.ndarray, Objectives], random: Any, eta: int) -> None:
    points, objectives = case
    order = list(range(len(points)))
    random.shuffle(order)
    assert ranks_in(points[order], objectives).tolist() == ranks_in(points, objectives)[order].tolist()
    before = stops(points, objectives, eta)
    assert stops(points[order], objectives, eta) == [before[i] for i in order]


@given(rungs(), st.lists(st.tuples(st.integers(1, 50), st.integers(-50, 50)), min_size=3, max_size=3))
def test_units_do_not_matter(case: tuple[np.ndarray, Objectives], units: list[tuple[int, int]]) -> None:
    points, objectives = case
    scale, offset = np.array(units[: points.shape[1]], dtype=float).T
    assert ranks_in(points * scale + offset, objectives).tolist() == ranks_in(points, objectives).tolist()


@given(rungs(), st.lists(st.booleans(), min_size=3, max_size=3))
def test_directions_do_not_matter(case: tuple[np.ndarray, Objectives], flips: list[bool]) -> None:
    points, objectives = case
    flip = np.array(flips[: points.shape[1]])
    turned = Objectives(objectives.names, tuple((np.array(objectives.maximise) ^ flip).tolist()), objectives.reference)
    assert ranks_in(np.where(flip, -points, points), turned).tolist() == ranks_in(points, objectives).tolist()


@given(rungs(), st.integers(2, 5))
def test_nobody_on_the_front_is_stopped_and_few_are_compared_with_few(
    case: tuple[np.ndarray, Objectives], eta: int
) -> None:
    points, objectives = case
    stopped = stops(points, objectives, eta)
    for i, point in enumerate(points):
        if not any(dominates(other, point, objectives) for other in points):
            assert not stopped[i]
    if len(points) < eta:
        assert not any(stopped)


@given(st.integers(1, 60), st.integers(2, 5))
def test_of_a_chain_the_best_share_goes_on(count: int, eta: int) -> None:
    chain = np.repeat(np.arange(count, dtype=float)[:, None], 2, axis=1)
    going = [not stop for stop in stops(chain, OBJECTIVES, eta)]
    kept = -(-count // eta) if count >= eta else count
    assert going == [False] * (count - kept) + [True] * kept


@given(rungs(), st.integers(0, 4), st.sampled_from([np.nan, np.inf, -np.inf]), st.randoms(use_true_random=False))
def test_what_is_no_number_stands_last(
    case: tuple[np.ndarray, Objectives], count: int, bad: float, random: Any
) -> None:
    points, objectives = case
    broken = np.array([[bad, *[0.0] * (points.shape[1] - 1)]] * count).reshape(-1, points.shape[1])
    found = ranks_in(np.vstack([points, broken]), objectives)
    assert found[: len(points)].tolist() == ranks_in(points, objectives).tolist()
    assert found[len(points) :].tolist() == [len(points)] * count


def test_the_net_takes_what_is_far_from_all_it_has() -> None:
    line = np.array([[0.0, 1.0], [0.1, 0.9], [0.45, 0.55], [0.5, 0.52], [1.0, 0.0]])
    assert farthest_first(line).tolist() == [3, 4, 0, 1, 2]


@given(rung_of(3))
def test_every_beginning_of_the_net_covers_its_rest(points: np.ndarray) -> None:
    """Check that none left is farther from those taken than the one taken last was (Gonzalez 1985)."""
    shares = np.unique(points / 6, axis=0)
    order = farthest_first(shares)
    assert sorted(order) == list(range(len(shares)))
    gaps = np.linalg.norm(shares[:, None] - shares[None], axis=2)
    radii = [gaps[order[:taken]].min(axis=0)[order[taken]] for taken in range(1, len(order))]
    assert radii == sorted(radii, reverse=True)
    for taken in range(1, len(order)):
        assert gaps[order[:taken]].min(axis=0).max() <= radii[taken - 1] + 1e-12


# ---------------------------------------------------------------------------------------------------------------------
# Rungs


def fresh(levels: list[int] | None = None, eta: int = 2) -> Rungs:
    return Rungs(OBJECTIVES, levels=levels or [1, 3, 9], eta=eta)


def test_rungs_stand_below_the_end() -> None:
    assert rung_levels(grace_epochs=1, eta=3, epochs=27) == [1, 3, 9]
    assert rung_levels(grace_epochs=2, eta=2, epochs=10) == [2, 4, 8]
    assert rung_levels(grace_epochs=10, eta=3, epochs=10) == []


def test_a_trial_is_compared_once_in_each_rung() -> None:
    found = fresh()
    made = [found.decide(0, "a", epoch, (0.5, 0.5)) for epoch in (1, 1, 2, 3, 1, 2, 3, 4, 9, 10)]
    assert [decision and decision.rung for decision in made] == [1, None, None, 3, None, None, None, None, 9, None]
    assert [len(members) for rung in found.rungs.values() for members in rung.trials.values()] == [1, 1, 1]


def test_what_is_said_again_changes_nothing() -> None:
    """Report an epoch twice, as a trial that was brought back does; on a GPU its numbers may differ a little."""
    found = fresh()
    found.decide(0, "a", 1, (0.5, 0.5))
    assert found.decide(0, "a", 1, (0.9, 0.9)) is None
    decision = found.decide(1, "b", 1, (0.6, 0.6))
    assert decision is not None
    assert (decision.layer, decision.rank) == (0, 0)


def test_a_late_report_stands_in_the_highest_rung_that_it_has_reached() -> None:
    found = fresh()
    late = found.decide(0, "a", 5, (0.5, 0.5))
    assert late is not None
    assert (late.rung, late.epoch) == (3, 5)
    assert list(found.rungs) == [(3, "")]
    assert found.decide(0, "a", 6, (0.5, 0.5)) is None
    earlier = found.decide(0, "a", 2, (0.4, 0.4))
    assert earlier is not None
    assert earlier.rung == 1


def test_a_stopped_trial_stays_stopped() -> None:
    found = fresh()
    found.decide(0, "a", 1, (0.5, 0.5))
    behind_it = found.decide(1, "b", 1, (0.4, 0.4))
    assert behind_it is not None
    assert behind_it.stop
    assert behind_it.reason == "stopped after epoch 1: place 2 of 2 at epoch 1, dominated by 000"
    found.decide(1, "b", 3, (0.9, 0.9))
    assert found.stopped(1)
    assert not found.stopped(0)


def told(objectives: Objectives, point: Sequence[float]) -> dict[str, float]:
    """Return objectives as a report has them."""
    return dict(zip(objectives.names, map(float, point), strict=True))


def knob(number: int) -> dict[str, Any]:
    return {"knob": number, "seed": 0}


def met(finished: Sequence[Sequence[Sequence[float]]], objectives: Objectives, *, stop_chance: float = 0.0) -> Rungs:
    """Return rungs through whose epoch 1 some trials came, each with what it brought and what it finished with."""
    found = Rungs(objectives, levels=[1], eta=10**6, stop_chance=stop_chance)
    for number, (brought, _) in enumerate(finished):
        found.decide(number, group_key(knob(number)), 1, brought)
    for number, (_, came) in enumerate(finished):
        found.finish(number, knob(number), told(objectives, came))
    found.eta = 2
    return found


@st.composite
def finishes(draw: st.DrawFn, *, least: int = 0) -> tuple[list[list[list[float]]], Objectives]:
    objectives = draw(st.sampled_from([OBJECTIVES, MINIMISE, MIXED, THREE]))
    point = st.lists(numbers, min_size=len(objectives.names), max_size=len(objectives.names))
    return draw(st.lists(st.lists(point, min_size=2, max_size=2), min_size=least, max_size=12)), objectives


def chance_of(found: Rungs, brought: Sequence[float]) -> float:
    decision = found.decide(99, group_key(knob(99)), 1, brought)
    assert decision is not None
    assert decision.stop == (decision.layer > 0 and lags(decision, eta=2) and decision.chance <= found.stop_chance)
    return decision.chance


@given(finishes(), st.data(), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_the_chance_is_the_share_of_changes_that_lead_to_the_front(case: Any, data: st.DataObject, most: float) -> None:
    finished, objectives = case
    brought = data.draw(st.lists(numbers, min_size=len(objectives.names), max_size=len(objectives.names)))
    found = met(finished, objectives, stop_chance=most)
    ends = [np.add(brought, np.subtract(came, at)) for at, came in finished]
    saved = [not any(dominates(np.array(came), end, objectives) for _, came in finished) for end in ends]
    assert chance_of(found, brought) == (np.mean(saved) if len(finished) >= CHANGES else 1.0)


@given(finishes(least=CHANGES), st.data(), st.randoms(use_true_random=False))
def test_the_chance_hangs_on_no_order_no_unit_and_only_grows_with_what_is_brought(
    case: Any, data: st.DataObject, random: Any
) -> None:
    finished, objectives = case
    d = len(objectives.names)
    brought, more = (np.array(data.draw(st.lists(numbers, min_size=d, max_size=d))) for _ in range(2))
    chance = chance_of(met(finished, objectives), brought)
    assert chance_of(met(random.sample(finished, len(finished)), objectives), brought) == chance
    scale = np.array(data.draw(st.lists(st.integers(1, 50), min_size=d, max_size=d)))
    scaled = [[(np.array(at) * scale).tolist(), (np.array(came) * scale).tolist()] for at, came in finished]
    assert chance_of(met(scaled, objectives), brought * scale) == chance
    better = brought + np.where(objectives.maximise, more, -more)
    assert chance_of(met(finished, objectives), better) >= chance


def test_who_is_behind_goes_on_until_enough_have_finished_and_while_they_say_it_may_catch_up() -> None:
    """Let all rise by 0.1, and one of them by 0.5."""
    finished = [[[0.3, 0.3], [0.4, 0.4]]] * 3 + [[[0.3, 0.3], [0.8, 0.8]]]
    assert chance_of(met(finished[:3], OBJECTIVES), (0.1, 0.1)) == 1.0
    assert chance_of(met(finished, OBJECTIVES), (0.1, 0.1)) == 0.0
    assert chance_of(met(finished, OBJECTIVES), (0.31, 0.29)) == 0.25
    decision = met(finished, OBJECTIVES).decide(9, "new", 1, (0.1, 0.1))
    assert decision is not None
    assert decision.stop
    assert decision.reason == (
        "stopped after epoch 1: place 5 of 5 at epoch 1, dominated by 000 and 001 and 002"
        "; 0 of 4 finished trials rose enough to save it"
    )
    assert not met(finished[:3], OBJECTIVES).decide(9, "new", 1, (0.1, 0.1)).stop  # type: ignore[union-attr]


def test_what_finished_on_the_front_is_not_stopped_on_another_seed() -> None:
    found = met([[[0.3, 0.3], [0.4, 0.4]]] * 3 + [[[0.3, 0.3], [0.9, 0.9]]], OBJECTIVES)
    again = found.decide(9, group_key(knob(3)), 1, (0.0, 0.0))
    assert again is not None
    assert (again.layer, again.chance, again.stop) == (1, 1.0, False)


def test_a_change_that_is_no_number_tells_nothing() -> None:
    found = met([[[0.3, 0.3], [0.4, 0.4]]] * 3 + [[[0.3, math.nan], [0.9, 0.9]]], OBJECTIVES)
    assert len(found.rungs[1, ""].changes) == 3
    assert chance_of(met([[[0.3, 0.3], [0.4, 0.4]]] * 4, OBJECTIVES), (math.nan, 0.9)) == 0.0


def test_seeds_of_one_configuration_stand_together() -> None:
    found = fresh()
    for trial, group, values in [(0, "a", (0.6, 0.6)), (1, "b", (0.9, 0.9)), (2, "a", (0.2, 0.2))]:
        decision = found.decide(trial, group, 1, values)
    assert decision is not None
    assert (decision.competitors, decision.layer, decision.stop) == (2, 1, True)
    second = found.decide(3, "b", 1, (0.0, 0.0))
    assert second is not None
    assert (second.competitors, second.layer, second.stop) == (2, 0, False), "0.45 on the mean, above 0.4"
    third = found.decide(4, "b", 1, (0.0, 0.0))
    assert third is not None
    assert (third.competitors, third.layer, third.stop) == (2, 1, True), "0.3 on the mean, below 0.4"


def test_the_group_is_the_configuration_without_its_seed() -> None:
    config = {"learning_rate": 0.1, "regularizer": "none", "seed": 1}
    assert group_key(config) == group_key({**dict(reversed(config.items())), "seed": 2})
    assert group_key(config) != group_key({**config, "learning_rate": 0.2})


def test_only_equal_evaluations_are_compared() -> None:
    found = fresh()
    found.decide(0, "a", 1, (0.9, 0.9), strength="weak")
    decision = found.decide(1, "b", 1, (0.1, 0.1), strength="strong")
    assert decision is not None
    assert decision.competitors == 1


def heard(found: Rungs, trial: int, epoch: int, value: float, **more: Any) -> Decision | None:
    report = {"epoch": epoch, "sensitivity_accuracy": value, "invariance_accuracy": value, **more}
    return found.observe(trial, {"knob": trial, "seed": 0}, report)


def test_a_trial_brings_its_mean_over_the_second_half_of_its_epochs() -> None:
    found = fresh([4])
    values = {1: 0.9, 2: 0.9, 3: 0.2, 4: 0.4}
    *early, decision = [heard(found, 0, epoch, value) for epoch, value in values.items()]
    assert early == [None] * 3
    assert decision is not None
    assert decision.values == pytest.approx((0.3, 0.3))
    assert set(found.observations[0]) == {3, 4}
    found.forget(0)
    assert not found.observations


def test_an_epoch_said_twice_counts_once_as_said_last() -> None:
    found = fresh([4])
    for epoch, value in [(2, 0.1), (3, 0.9), (3, 0.2), (4, 0.4)]:
        decision = heard(found, 0, epoch, value)
    assert decision is not None
    assert decision.values == pytest.approx((0.3, 0.3))


def test_the_mean_is_of_what_was_judged_alike() -> None:
    found = fresh([4])
    heard(found, 0, 3, 0.9, **{STRENGTH: 5})
    decision = heard(found, 0, 4, 0.4, **{STRENGTH: 20})
    assert decision is not None
    assert (decision.values, decision.strength) == ((0.4, 0.4), "20")


@given(st.lists(st.floats(0, 1), min_size=9, max_size=9), st.integers(0, 9))
def test_what_was_heard_is_rebuilt_from_the_ledger(values: list[float], cut: int) -> None:
    config, undisturbed, rebuilt = {"knob": 0, "seed": 0}, fresh([2, 4, 8]), fresh([2, 4, 8])
    reports = [
        {"epoch": epoch, "final": False, "sensitivity_accuracy": value, "invariance_accuracy": 1 - value}
        for epoch, value in enumerate(values, start=1)
    ]
    made = [undisturbed.observe(0, config, report) for report in reports]
    record = TrialRecord(0, config, reports=reports[:cut])
    record.decisions = [each.to_dict(OBJECTIVES) for each in made[:cut] if each]
    rebuilt.restore([record])
    # A resumed trial says its last epoch once more.
    for report in reports[max(0, cut - 1) :]:
        rebuilt.observe(0, config, report)
    assert rebuilt.decisions[0] == undisturbed.decisions[0]


curves = st.lists(st.tuples(st.integers(0, 15), st.integers(1, 10), numbers, numbers), max_size=80)


@given(curves, st.integers(0, 80), st.integers(2, 4), st.sampled_from([0.0, 0.3, 1.0]))
def test_rebuilt_from_the_ledger_it_decides_as_if_never_gone(
    reports: list, cut: int, eta: int, stop_chance: float
) -> None:
    """Let trials report out of order, and finish with their tenth epoch."""
    configs = {number: {"knob": number // 2, "seed": number} for number in range(16)}

    def tell(found: Rungs, part: list) -> None:
        for trial, epoch, *values in part:
            if found.stopped(trial) or trial in found.end.trials.get(group_key(configs[trial]), ()):
                continue
            if epoch == 10:
                found.finish(trial, configs[trial], told(OBJECTIVES, values))
            else:
                found.decide(trial, group_key(configs[trial]), epoch, values)

    undisturbed, before, rebuilt = (
        Rungs(OBJECTIVES, levels=[1, 3, 9], eta=eta, stop_chance=stop_chance) for _ in range(3)
    )
    tell(undisturbed, reports)
    tell(before, reports[:cut])
    records = [TrialRecord(number, configs[number]) for number in configs]
    for record in records:
        came = before.end.trials.get(group_key(record.config), {}).get(record.number)
        if came is not None:
            record.reports = [{"epoch": 10, "final": True, **told(OBJECTIVES, came)}]
            record.state, record.ended = "finished", 0.0
        decisions = [each.to_dict(OBJECTIVES) for each in before.decisions.get(record.number, [])]
        record.decisions = json.loads(json.dumps(decisions))
    rebuilt.restore(records)
    tell(rebuilt, reports[cut:])
    for number in configs:
        assert rebuilt.decisions.get(number, []) == undisturbed.decisions.get(number, [])


def test_decisions_stand_in_the_ledger_and_in_its_table(tmp_path: Path) -> None:
    decision = Decision(1, 1, 2, 5, 9, (0, 3), True, "", (0.25, 0.5))
    report = {"epoch": 1, "final": False, "sensitivity_accuracy": 0.25, "invariance_accuracy": 0.5}
    with LedgerWriter(tmp_path) as writer:
        writer.started(0, config={"seed": 1}, seed=1, attempt=1, host="", time=0.0)
        writer.reported(0, report, time=1.0)
        writer.decided(0, decision.to_dict(OBJECTIVES), time=1.0)
        writer.reported(0, {**report, "epoch": 2}, time=2.0)
    ledger = read_ledger(tmp_path)
    [plain] = ledger.trials[0].decisions
    assert Decision.from_dict(plain, OBJECTIVES) == decision
    rows = ledger.to_table().to_pylist()
    assert [(row["decision.rung"], row["decision.stop"], row["decision.dominated_by"]) for row in rows] == [
        (1, True, "0 3"),
        (None, None, None),
    ]


class FakeTrial:
    def __init__(self, number: int) -> None:
        self.config = {"number": number, "config": {"knob": number, "seed": 0}}


def test_ray_is_told_to_stop_also_when_a_stopped_trial_comes_back() -> None:
    scheduler = MultiObjectiveASHA(fresh())
    assert scheduler.set_search_properties(None, None)

    def told(number: int, epoch: int, value: float, **more: Any) -> str:
        report = {"epoch": epoch, "sensitivity_accuracy": value, "invariance_accuracy": value, **more}
        return scheduler.on_trial_result(None, FakeTrial(number), {f"report/{key}": report[key] for key in report})  # type: ignore[arg-type]

    assert told(0, 1, 0.5) == "CONTINUE"
    assert told(1, 1, 0.4) == "STOP"
    assert told(1, 1, 0.4) == "STOP"
    assert told(2, 1, 0.3, **{STRENGTH: "strong"}) == "CONTINUE"


# ---------------------------------------------------------------------------------------------------------------------
# Whole sweeps, with real Ray

SPACE = """
trials: 14
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 3}
space:
  architecture: mlp
  batch_size: 50
  epochs: 5
  sensitivity_steps: 1
  regularizer: {choices: [none, triplet]}
  cross_entropy_on: {choices: [clean, sensitivity]}
  sensitivity_epsilon: {low: 0.05, high: 0.3}
  learning_rate: {low: 0.0001, high: 0.01, log: true}
points:
  - preset: baseline
"""


@pytest.fixture(scope="module")
def storage(new_storage: Callable[[str], Path]) -> Path:
    folder = new_storage("stopping")
    (folder / "tiny.yaml").write_text(SPACE)
    return folder


def stopping_words(storage: Path, name: str) -> tuple[str, ...]:
    """Return a sweep whose draws differ so much that some fall behind at once, on any machine."""
    return (*run_words(storage, name), "--seed", "0", "--stopper", "asha", "--eta", "2", "--grace-epochs", "1")


@pytest.fixture(scope="module")
def undisturbed(storage: Path) -> subprocess.CompletedProcess[str]:
    done = otsweep(storage, *stopping_words(storage, "undisturbed"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def recorded(storage: Path, name: str) -> tuple[SweepPlan, dict[int, TrialRecord]]:
    ledger = read_ledger(storage / name)
    assert ledger.warnings == []
    return read_plan(name, storage=str(storage)), ledger.trials


def facts(storage: Path, name: str) -> dict[int, tuple[Any, ...]]:
    """Return everything that must agree between two sweeps."""
    told = ("epoch", "final", "sensitivity_accuracy", "invariance_accuracy")
    return {
        number: (
            record.state,
            record.reason,
            record.config,
            record.decisions,
            [tuple(report[key] for key in told) for report in record.reports],
        )
        for number, record in recorded(storage, name)[1].items()
    }


def test_a_sweep_stops_trials_early_and_says_why(storage: Path, undisturbed: subprocess.CompletedProcess[str]) -> None:
    plan, trials = recorded(storage, "undisturbed")
    assert (plan.stopper, plan.eta, plan.grace_epochs) == ("asha", 2, 1)
    stopped = [record for record in trials.values() if record.state == "stopped"]
    assert len(stopped) >= 3
    assert len(stopped) + sum(record.state == "finished" for record in trials.values()) == 14
    for record in trials.values():
        *passed, last = [each["stop"] for each in record.decisions]
        assert not any(passed)
        assert last == (record.state == "stopped")
        assert record.attempts == 1
    for record in stopped:
        assert [report["epoch"] for report in record.reports] == list(range(1, record.decisions[-1]["epoch"] + 1))
        assert record.result is None
        assert f"trial {record.number:03d} {record.reason}" in undisturbed.stdout
    assert f"finished trials ({len(stopped)} more stopped early), hypervolume" in undisturbed.stdout


def test_the_front_holds_no_trial_that_was_stopped(
    storage: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    plan, trials = recorded(storage, "undisturbed")
    shown = json.loads(otsweep(storage, "front", "undisturbed", "--format", "json").stdout)
    assert {trials[row["trial"]].state for row in shown["front"]} == {"finished"}
    results = SweepState(plan.objectives, trials, total=plan.trials)
    assert shown["hypervolume"] == results.hypervolume
    assert shown["stopped"] == len(results.stopped)


def test_mlflow_tells_the_stopped_from_the_finished(
    storage: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    from sweep.tracking.store import connect

    client = connect(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    _, trials = recorded(storage, "undisturbed")
    runs = client.search_runs([experiment.experiment_id], "tags.`otsweep.kind` = 'trial'")
    assert len(runs) == 14
    for run in runs:
        record = trials[int(run.data.tags["otsweep.trial"])]
        assert run.info.status == {"finished": "FINISHED", "stopped": "KILLED"}[record.state]
        assert run.data.tags.get("otsweep.reason", "") == record.reason
        assert ("pareto.rank" in run.data.tags) == (record.state == "finished")


def test_what_a_sweep_proposed_is_what_a_search_rebuilt_from_its_ledger_proposes(
    storage: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    """Rebuild each draw: the sampler got trials as the ledger has them, stopped ones as such, finished with numbers."""
    plan, trials = recorded(storage, "undisturbed")
    for number in range(1, 14):
        rebuilt = TunedSearch(
            plan.space,
            plan.objectives,
            sampler=plan.sampler,
            seed=plan.seed,
            epochs=plan.epochs,
            history=[trials[earlier] for earlier in range(number)],
        )
        assert rebuilt.suggest("slot") == {
            "number": number,
            "config": trials[number].config,
            "sampler_state": trials[number].sampler_state,
        }


def explained(plan: SweepPlan, results: SweepState, *, eta: int, stop_chance: float | None = None) -> Rungs:
    """Return the rungs of a replay whose decisions tell why."""
    rungs = Rungs(
        plan.objectives,
        levels=rung_levels(grace_epochs=plan.grace_epochs, eta=eta, epochs=plan.epochs_per_trial),
        eta=eta,
        require=plan.space.require,
        stop_chance=plan.stop_chance if stop_chance is None else stop_chance,
    )
    for number, report in _reports_in_order(results):
        if not rungs.stopped(number):
            (rungs.finish if report["final"] else rungs.observe)(number, results.trials[number].config, report)
    return rungs


@pytest.mark.parametrize("stop_chance", [0.05, 1.0])
@pytest.mark.parametrize("eta", [2, 3])
def test_a_replay_stops_whom_rungs_that_tell_why_stop(eta: int, stop_chance: float, tmp_path: Path) -> None:
    plan = dataclasses.replace(recorded_sweep("digits24", tmp_path), grace_epochs=1)
    results = results_of(plan)
    rungs = explained(plan, results, eta=eta, stop_chance=stop_chance)
    (replay,) = replay_sweep(plan, results, etas=[eta], grace_epochs=1, stop_chance=stop_chance)
    assert replay.stopped == tuple(number for number in results.trials if rungs.stopped(number))
    assert replay.stopped


@given(rungs(), st.integers(2, 5))
def test_whether_a_group_lags_is_known_without_its_position(case: tuple[np.ndarray, Objectives], eta: int) -> None:
    points, objectives = case
    rung = Rung(objectives, ())
    for number, point in enumerate(points):
        rung.add(str(number), number, point)
    known = [rung.lags(str(number), eta=eta) for number in range(len(points))]
    assert known == stops(points, objectives, eta)


def test_a_replay_with_a_sweeps_own_settings_decides_as_it_did(
    storage: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    plan, trials = recorded(storage, "undisturbed")
    results = SweepState(plan.objectives, trials, total=plan.trials)
    rule = {"grace_epochs": plan.grace_epochs, "stop_chance": plan.stop_chance}
    (again,) = replay_sweep(plan, results, etas=[plan.eta], **rule)
    rungs = explained(plan, results, eta=plan.eta)
    for number, record in trials.items():
        assert [each.to_dict(plan.objectives) for each in rungs.decisions[number]] == record.decisions
    assert (again.saved, again.lost, set(again.stopped)) == (0.0, (), set(results.stopped))
    assert again.hypervolume == results.hypervolume
    said = otsweep(storage, "replay", "undisturbed", "--eta", "14").stdout
    assert "how they would have ended is not known" in said


@pytest.mark.slow
@pytest.mark.parametrize("reports", [4, 40])
def test_a_killed_sweep_decides_as_the_undisturbed_one(
    storage: Path, undisturbed: subprocess.CompletedProcess[str], reports: int
) -> None:
    name = f"killed-{reports}"
    log = storage / name / "ledger" / "log.jsonl"
    driver = start(command(storage, *stopping_words(storage, name)), stdout=subprocess.DEVNULL)
    wait_for(lambda: log.exists() and log.read_bytes().count(b'"reported"') >= reports, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert any(record.state != "finished" for record in recorded(storage, name)[1].values())
    resumed = otsweep(storage, "resume", name)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert facts(storage, name) == facts(storage, "undisturbed")
