"""What a sweep requires: read, told to the sampler, ahead of every objective, and on no front where it is broken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from ray.tune.utils import flatten_dict

from search_spaces.reading import load_space, space_from_yaml
from search_spaces.requirement import Requirement, violation
from search_spaces.yaml_file import dump_yaml, parse_yaml
from sweep.audit.finalists import choose_finalists
from sweep.cli.commands import main
from sweep.ledger.records import TrialRecord
from sweep.ledger.writing import LedgerWriter
from sweep.plan.from_options import make_plan
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SweepPlan
from sweep.plan.plan_file import parse_plan, plan_text, write_plan
from sweep.report.formats import front_content
from sweep.report.front_figure import front_picture
from sweep.report.replay import replay_sweep
from sweep.report.verdicts import verdict
from sweep.search.decision import Decision
from sweep.search.points import read_space
from sweep.search.rungs import Rungs
from sweep.state.sweep_state import SweepState, state_of_trials
from tests.support.recorded_sweeps import write_records
from tests.support.tuned_search import TunedSearch
from trainer.errors import InputError

CLEAN = Requirement("clean_accuracy", True, 0.9)

# (sensitivity, invariance, clean): 1 is best and breaks the requirement, 3 breaks it a little, 2 is dominated.
FOUND = [(0.5, 0.5, 0.95), (0.9, 0.9, 0.45), (0.4, 0.4, 0.9), (0.8, 0.1, 0.81), (0.3, 0.6, 0.99)]


def record(number: int, found: tuple[float, float, float]) -> TrialRecord:
    numbers = dict(zip((*OBJECTIVES.names, "clean_accuracy"), found, strict=True))
    numbers |= {"invariance_stuck": 0.1, "invariance_effective_size": 40, "time": float(number)}
    numbers |= {"train_seconds": 1.0, "evaluation_seconds": 1.0}
    reports = [{"epoch": 1, "final": final, **numbers} for final in (False, True)]
    config = {**load_space("digits").points[0], "margin": 0.1 + number / 10, "seed": 0}
    return TrialRecord(number, config, 0, "finished", started=0.0, ended=float(number), reports=reports)


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    space = load_space("digits").requiring(["clean_accuracy >= 0.9"])
    return make_plan(space, name="bounded", storage=str(tmp_path), trials=len(FOUND), epochs=2)


@pytest.fixture
def results(plan: SweepPlan) -> SweepState:
    return state_of_trials(plan, {number: record(number, found) for number, found in enumerate(FOUND)})


def test_a_requirement_that_nothing_fulfils_is_said_with_the_nearest(
    plan: SweepPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = dataclasses.replace(plan, space=load_space("digits").requiring(["clean_accuracy >= 0.995"]))
    write_plan(plan)
    with LedgerWriter(plan.folder) as ledger:
        write_records(ledger, [record(number, found) for number, found in enumerate(FOUND)])
    said = "none of its 5 finished configurations fulfils clean_accuracy >= 0.995; the nearest is trial 004 with "
    said += "clean_accuracy = 0.99"
    for form in ("table", "csv", "json"):
        assert main(["front", plan.name, "--format", form, "--storage", plan.storage]) == 0
        printed = capsys.readouterr()
        assert f"bounded has no front yet: {said}" in (printed.out if form == "table" else printed.err)
        assert form != "csv" or printed.out.startswith("trial,sensitivity_accuracy,")
    with pytest.raises(InputError, match=f"--from bounded: has no front yet: {said}"):
        read_space(plan.space, {"from_": plan.name}, storage=plan.storage)


# ---------------------------------------------------------------------------------------------------------------------
# Read


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("clean_accuracy >= 0.9", CLEAN),
        ("clean_accuracy>=.9", CLEAN),
        (" invariance_stuck <= 5e-1 ", Requirement("invariance_stuck", False, 0.5)),
    ],
)
def test_a_requirement_is_read_and_written(text: str, meant: Requirement) -> None:
    assert Requirement.parse(text, source="require") == meant
    assert Requirement.parse(str(meant), source="require") == meant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clean_acuracy >= 0.9", "no report carries 'clean_acuracy': did you mean 'clean_accuracy'"),
        ("margin >= 0.9", "no report carries 'margin'"),
        ("clean_accuracy > 0.9", "must read NAME >= NUMBER or NAME <= NUMBER"),
        ("clean_accuracy >= most", "'most' is not a finite number"),
        ("clean_accuracy >= nan", "'nan' is not a finite number"),
        ("epoch >= 3", "no report carries 'epoch'"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        Requirement.parse(text, source="require")
    assert f"require {text!r}: {message}" in str(caught.value)
    assert main(["run", "--require", text, "--storage", str(tmp_path / "none")]) == 2
    assert f"otsweep: --require {text!r}: {message}" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"a\.yaml, line 2: require"):
        space_from_yaml(parse_yaml(f"trials: 3\nrequire: {text}\nspace: {{margin: 1}}".encode(), "a.yaml"), name="a")


def test_a_space_and_a_plan_keep_it(plan: SweepPlan) -> None:
    space = space_from_yaml(parse_yaml(dump_yaml(plan.space.to_dict()).encode(), "a.yaml"), name="digits")
    assert space.require == (CLEAN,)
    assert parse_plan(parse_yaml(plan_text(plan).encode(), "plan.yaml")).space.require == (CLEAN,)
    assert plan.hash != dataclasses.replace(plan, space=dataclasses.replace(plan.space, require=())).hash
    assert "require" not in load_space("digits").to_dict()
    assert plan.space.requiring(["clean_accuracy >= 0.90"]).require == (CLEAN,)


def test_an_excess_is_a_share_of_the_bound() -> None:
    most = Requirement("invariance_stuck", False, 0.0)
    assert CLEAN.excess(0.45) == pytest.approx(0.5)
    assert CLEAN.excess(0.9) == 0.0
    assert most.excess(0.25) == 0.25
    numbers = {"clean_accuracy": 0.45, "invariance_stuck": 0.25}
    assert violation([CLEAN, most], numbers) == pytest.approx(0.75)
    assert violation([CLEAN, most], {"clean_accuracy": 1.0, "invariance_stuck": 0.25}) == 0.25


# ---------------------------------------------------------------------------------------------------------------------
# On no front


def test_who_breaks_it_is_on_no_front(plan: SweepPlan, results: SweepState) -> None:
    assert [each.number for each in results.front_records] == [0, 4]
    assert results.front.size == 2
    assert results.hypervolume == pytest.approx(0.28)
    assert sorted(results.infeasible) == [1, 3]
    assert results.ranks() == {0: 0, 4: 0, 2: 1, 3: 2, 1: 3}
    assert results.configuration_metrics(1) == {"violation": pytest.approx(0.5)}
    assert [each.number for each in choose_finalists(results, images=10**6)] == [0, 4]


def test_where_all_break_it_there_is_no_front(plan: SweepPlan) -> None:
    results = state_of_trials(plan, {0: record(0, FOUND[1]), 1: record(1, FOUND[3])})
    assert (results.front_records, results.knee, results.hypervolume) == ([], None, 0.0)
    assert results.ranks() == {1: 1, 0: 2}
    assert "front of 0 among 2 finished trials, 2 of which break clean_accuracy >= 0.9," in verdict(plan, results)


def test_table_picture_and_json_say_how_many(plan: SweepPlan, results: SweepState) -> None:
    assert "front of 2 among 5 finished trials, 2 of which break clean_accuracy >= 0.9," in verdict(plan, results)
    told = front_content(plan, results)
    assert (told["infeasible"], told["require"]) == (2, ["clean_accuracy >= 0.9"])
    [axes] = front_picture(plan, results).axes
    drawn = {each.get_gid(): len(each.get_offsets()) for each in axes.collections if each.get_gid()}  # type: ignore[arg-type]
    assert (drawn["infeasible"], drawn["front"], drawn["dominated"]) == (2, 2, 1)
    assert "hypervolume 0.2800; 5 finished trials, 2 on the front, 2 not as required" in axes.texts[0].get_text()


def test_a_replay_loses_only_what_counts(plan: SweepPlan, results: SweepState) -> None:
    """Were clean accuracy ignored, the infeasible 1 would stop 4, which stands on the front."""
    bounded = replay_sweep(plan, results, etas=[2], grace_epochs=1, stop_chance=1.0)[0]
    assert (bounded.stopped, bounded.lost) == ((1, 3), ())
    free = dataclasses.replace(plan, space=dataclasses.replace(plan.space, require=()))
    unbounded = state_of_trials(free, results.trials)
    assert replay_sweep(free, unbounded, etas=[2], grace_epochs=1, stop_chance=1.0)[0].stopped == (2, 4)


def test_the_front_command_counts_what_the_ledger_holds(
    plan: SweepPlan, results: SweepState, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(plan)
    with LedgerWriter(plan.folder) as ledger:
        for number, each in results.trials.items():
            ledger.started(number, config=each.config, seed=0, attempt=1, host="", time=0.0)
            ledger.reported(number, each.reports[-1], time=1.0)
            ledger.ended(number, state="finished", time=float(number))
    assert main(["front", "bounded", "--format", "json", "--storage", plan.storage]) == 0
    assert [row["trial"] for row in json.loads(capsys.readouterr().out)["front"]] == [0, 4]


# ---------------------------------------------------------------------------------------------------------------------
# Told to the sampler and to the scheduler


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3"])
def test_the_sampler_is_told_and_a_rebuilt_one_too(sampler: str) -> None:
    space = load_space("digits")
    options = {"sampler": sampler, "seed": 3, "require": (CLEAN,)}

    def run(found: TunedSearch, count: int) -> list[TrialRecord]:
        records = []
        for _ in range(count):
            proposal = found.suggest("slot")
            epsilon = proposal["config"]["sensitivity_epsilon"]
            numbers = {"sensitivity_accuracy": epsilon, "invariance_accuracy": epsilon, "clean_accuracy": 1 - epsilon}
            report = {"epoch": 1, "final": True, **numbers}
            found.on_trial_complete("slot", flatten_dict({"report": report}))
            config, drawn = proposal["config"], proposal["sampler_state"]
            records.append(
                TrialRecord(proposal["number"], config, 3, "finished", sampler_state=drawn, reports=[report])
            )
        return records

    undisturbed = TunedSearch(space, OBJECTIVES, **options)
    records = run(undisturbed, 60)
    for each in records:
        told = undisturbed.window.get_trial(each.number)
        assert told.state == TrialState.COMPLETE
        [excess] = told.constraints.values()
        assert excess == CLEAN.excess(1 - each.config["sensitivity_epsilon"])
    rebuilt = TunedSearch(space, OBJECTIVES, **options, history=records[:45])
    assert run(rebuilt, 15) == records[45:]
    late = [each.config["sensitivity_epsilon"] for each in records[30:]]
    blind = run(TunedSearch(space, OBJECTIVES, **{**options, "require": ()}), 60)[30:]
    kept, kept_blind = (
        sum(each <= 0.1 for each in part) for part in (late, [b.config["sensitivity_epsilon"] for b in blind])
    )
    assert kept > kept_blind, "blind to the bound it goes where both objectives are best, and all break it"


def decided(require: tuple[Requirement, ...], *told: tuple[float, float, float]) -> list[Decision]:
    rungs = Rungs(OBJECTIVES, levels=[1], eta=2, require=require)
    decisions = []
    for number, each in enumerate(told):
        report = {"epoch": 1, **dict(zip((*OBJECTIVES.names, "clean_accuracy"), each, strict=True))}
        decisions.append(rungs.observe(number, {"knob": number}, report))
    return [each for each in decisions if each is not None]


def test_in_a_rung_feasible_stand_before_infeasible() -> None:
    *_, last = decided((CLEAN,), *FOUND[:2])
    assert (last.layer, last.rank, last.dominated_by, last.stop) == (1, 1, (0,), True)
    assert last.reason == (
        "stopped after epoch 1: place 2 of 2 at epoch 1, not clean_accuracy >= 0.9, dominated by 000"
    )
    assert Decision.from_dict(last.to_dict(OBJECTIVES), OBJECTIVES) == last
    assert last.to_dict(OBJECTIVES)["required.clean_accuracy"] == 0.45


def test_who_may_come_to_fulfil_what_is_required_goes_on() -> None:
    """All gain 0.3 in clean accuracy; so 0.62 may be enough, and 0.5 is not."""
    rungs = Rungs(OBJECTIVES, levels=[1], eta=2, require=(CLEAN,), stop_chance=0.0)

    def told(clean: float, value: float = 0.5) -> dict[str, Any]:
        return {"epoch": 1, **dict.fromkeys(OBJECTIVES.names, value), "clean_accuracy": clean}

    for number in range(5):
        rungs.observe(number, {"knob": number}, told(0.65))
    for number in range(4):
        rungs.finish(number, {"knob": number}, told(0.95))
    ends = [
        rungs.observe(5 + number, {"knob": 5 + number}, told(clean, 0.6)) for number, clean in enumerate((0.62, 0.5))
    ]
    assert [(each.chance, each.stop) for each in ends if each] == [(1.0, False), (0.0, True)]


def test_while_nobody_finished_fulfils_it_whoever_may_come_as_near_goes_on() -> None:
    rungs = Rungs(OBJECTIVES, levels=[1], eta=2, require=(CLEAN,), stop_chance=0.0)

    def told(clean: float) -> dict[str, Any]:
        return {"epoch": 1, **dict.fromkeys(OBJECTIVES.names, 0.5), "clean_accuracy": clean}

    for number in range(5):
        rungs.observe(number, {"knob": number}, told(0.5 + number / 100))
    for number in range(4):
        rungs.finish(number, {"knob": number}, told(0.6 + 2 * number / 100))
    ends = [rungs.observe(5 + number, {"knob": 5 + number}, told(clean)) for number, clean in enumerate((0.53, 0.505))]
    assert [(each.chance, each.stop) for each in ends if each] == [(0.25, False), (0.0, True)]


def test_while_none_is_feasible_the_nearest_is_the_front() -> None:
    far, near = decided((CLEAN,), FOUND[1], FOUND[3])
    assert (near.layer, near.stop, near.violated) == (0, False, "clean_accuracy >= 0.9")
    *_, behind = decided((CLEAN,), FOUND[3], FOUND[1])
    assert (behind.layer, behind.stop) == (1, True)
    *_, equal = decided((CLEAN,), FOUND[3], (0.1, 0.1, FOUND[3][2]))
    assert (equal.layer, equal.rank, equal.stop) == (0, 0, False), "equally far ties, whatever else it has"


@given(st.lists(st.tuples(*[st.integers(0, 10).map(lambda number: number / 10)] * 3), min_size=1, max_size=12))
def test_nobody_feasible_is_stopped_by_an_infeasible_one(told: list[tuple[float, float, float]]) -> None:
    """It stands where it would, were there only the feasible."""
    for until in range(1, len(told) + 1):
        *_, last = decided((CLEAN,), *told[:until])
        if told[until - 1][2] >= 0.9:
            *_, alone = decided((), *(each for each in told[:until] if each[2] >= 0.9))
            assert last.layer == alone.layer
            assert last.rank == alone.rank or last.layer > 0
            assert not last.stop or alone.layer > 0
