"""The search: what comes next is a function of the history, and of nothing else."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from optuna.trial import FixedTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from search_spaces.reading import load_space
from search_spaces.space import Space
from search_spaces.swept import Choices, Swept
from sweep.engine.result_keys import FAILURE
from sweep.ledger.records import TrialRecord
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SAMPLERS
from sweep.search.samplers import mix
from tests.support.tuned_search import TunedSearch
from trainer.config import TrialConfig


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("digits")


def search(space: Space, sampler: str = "tpe", history: tuple[TrialRecord, ...] = (), seed: int = 7) -> TunedSearch:
    return TunedSearch(space, OBJECTIVES, sampler=sampler, seed=seed, epochs=3, history=history)


def search_after(space: Space, sampler: str, count: int) -> TunedSearch:
    found = search(space, sampler)
    run(found, count)
    return found


def outcome(config: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a made-up final report in which the knobs matter, so that TPE has something to learn."""
    robust = min(1.0, 2 * config["sensitivity_epsilon"])
    return {"report": {"final": True, "epoch": 3, "sensitivity_accuracy": robust, "invariance_accuracy": 1 - robust}}


def run(found: TunedSearch, count: int) -> list[TrialRecord]:
    """Return what a sweep with one slot would leave in its ledger; every fifth trial fails.

    Results come flat, as Ray Tune gives them.
    """
    records = []
    for _ in range(count):
        proposal = found.suggest("slot")
        number, config = proposal["number"], proposal["config"]
        failed = number % 5 == 4
        result: dict[str, Any] = {FAILURE: "on purpose"} if failed else outcome(config, number)
        found.on_trial_complete("slot", flatten_dict(result))
        record = TrialRecord(number, config, config["seed"], "failed" if failed else "finished")
        record.sampler_state = proposal["sampler_state"]
        if not failed:
            record.reports = [result["report"]]
        records.append(record)
    return records


def run_all(found: TunedSearch, count: int) -> list[TrialRecord]:
    """Return what `run` does, where nothing fails."""
    records = []
    for _ in range(count):
        proposal = found.suggest("slot")
        report = outcome(proposal["config"], proposal["number"])["report"]
        found.on_trial_complete("slot", flatten_dict({"report": report}))
        records.append(TrialRecord(proposal["number"], proposal["config"], reports=[report]))
    return records


def trial_values(knobs: Mapping[str, Swept], share: float) -> dict[str, Any]:
    """Return the value of every knob at a share of its range."""
    values = {}
    for name, swept in knobs.items():
        if isinstance(swept.domain, Choices):
            values[name] = swept.domain.options[int(share * len(swept.domain.options))]
        else:
            values[name] = swept.domain.low + share * (swept.domain.high - swept.domain.low)
    return values


def test_every_proposal_is_a_legal_configuration(space: Space) -> None:
    for record in run(search(space), 20):
        config = TrialConfig.from_mapping(record.config)
        assert (config.epochs, config.seed) == (3, 7)


def test_given_points_come_first(space: Space) -> None:
    records = run(search(space), len(space.points) + 1)
    for record, point in zip(records, space.points, strict=False):
        assert record.config == {**point, "epochs": 3, "seed": 7}


@pytest.fixture(scope="module", params=SAMPLERS)
def undisturbed(request: pytest.FixtureRequest, space: Space) -> tuple[str, list[TrialRecord]]:
    """Return a sampler with a sweep: under NSGA-II and III of several generations of the smallest population."""
    return request.param, run(search(space, request.param), 14 if request.param == "gp" else 40)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_a_search_rebuilt_from_the_ledger_goes_on_as_the_undisturbed_one(
    space: Space, undisturbed: tuple[str, list[TrialRecord]], share: float
) -> None:
    sampler, records = undisturbed
    cut = int(share * len(records))
    rebuilt = search(space, sampler, tuple(records[:cut]))
    assert run(rebuilt, len(records) - cut) == records[cut:]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_in_several_slots_too_a_killed_search_is_rebuilt_as_it_was(space: Space, sampler: str) -> None:
    """Run three trials at a time that end out of order, some of them after the last draw."""
    found, records, under_way = search(space, sampler), {}, []
    for step in range(45):
        while len(under_way) < 3:
            proposal = found.suggest(f"slot {len(records)}")
            config = proposal["config"]
            record = TrialRecord(proposal["number"], config, config["seed"], sampler_state=proposal["sampler_state"])
            records[record.number] = record
            under_way.append(record)
        if step % 9 == 8:
            history = [dataclasses.replace(record) for record in records.values()]
            rebuilt, again = search(space, sampler, tuple(history)), copy.deepcopy(found)
            assert [rebuilt.suggest(f"again {place}")["number"] for place in range(3)] == sorted(
                record.number for record in under_way
            )
            assert [rebuilt.suggest(f"new {place}") for place in range(2)] == [
                again.suggest(f"new {place}") for place in range(2)
            ]
        ended = under_way.pop(step * 7 % 3)
        ended.state, ended.reports = "finished", [outcome(ended.config, ended.number)["report"]]
        found.on_trial_complete(f"slot {ended.number}", flatten_dict({"report": ended.reports[0]}))


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3"])
def test_generations_learn_also_from_given_points(space: Space, sampler: str) -> None:
    """Check that children mix their parents' values: without conditions only mutations are left to chance."""
    knobs = {name: swept for name, swept in space.swept.items() if not swept.when}
    space = dataclasses.replace(space, swept=knobs)
    points = [space.sample(FixedTrial(trial_values(knobs, share))) for share in np.linspace(0.1, 0.9, 8)]
    found = search(dataclasses.replace(space, points=tuple(points)), sampler)
    configs = [record.config for record in run_all(found, 16)]
    inherited = [config[name] in [point[name] for point in points] for config in configs[8:] for name in knobs]
    assert np.mean(inherited) > 0.8


def test_what_lies_outside_of_the_space_is_no_parent(space: Space) -> None:
    """Give points with a budget that can't be drawn: drawing from such parents would fail."""
    beyond = ({**space.points[0], "sensitivity_epsilon": 0.5 + number / 10} for number in range(4))
    space = dataclasses.replace(space, points=tuple(beyond))
    found = search(space, "nsga2")
    run(found, 30)
    shown = {trial.number for trial in found.study.get_trials(deepcopy=False)}
    assert not shown & {0, 1, 2, 3}
    assert {trial.number for trial in search_after(space, "tpe", 12).study.get_trials(deepcopy=False)} >= {0, 1, 2, 3}


def test_quasi_random_draws_cover_each_knob_evenly(space: Space) -> None:
    """Check that each 1/2^k of a knob's range has one of 2^k points of a Sobol sequence, conditions or not."""
    space = dataclasses.replace(space, points=())
    drawn = np.array([record.config["sensitivity_epsilon"] for record in run(search(space, "qmc"), 32)]) / 0.3
    assert sorted((drawn * 32).astype(int)) == list(range(32))
    again, other = (run(search(space, "qmc", seed=seed), 8) for seed in (7, 8))
    assert [record.config for record in again] != [{**record.config, "seed": 7} for record in other]


def test_a_sampler_is_shown_the_front_and_the_newest_however_long_the_sweep(space: Space) -> None:
    space = dataclasses.replace(space, points=())
    found = search(space, "random")
    found.window.newest = 20
    for number in range(60):
        found.suggest("slot")
        value = 1.0 if number == 5 else (number % 7) / 10
        report = {"final": True, "epoch": 3, "sensitivity_accuracy": value, "invariance_accuracy": value}
        found.on_trial_complete("slot", {FAILURE: "on purpose"} if number == 58 else flatten_dict({"report": report}))
    found.suggest("slot")
    shown = [trial.number for trial in found.study.get_trials(deepcopy=False)]
    assert shown == [5, *range(40, 58), 59, 60]


def test_interrupted_trials_are_proposed_again_before_anything_new(space: Space) -> None:
    history = run(search(space), 8)
    history[5].state, history[5].reports = "running", []
    rebuilt = search(space, history=tuple(history))
    assert rebuilt.suggest("a") == {"number": 5, "config": history[5].config, "sampler_state": ""}
    assert rebuilt.suggest("b")["number"] == 8


def test_a_trial_that_never_reached_the_ledger_is_proposed_again_under_its_number(space: Space) -> None:
    history = run(search(space), 8)
    rebuilt = search(space, history=(*history[:2], *history[3:]))
    assert rebuilt.suggest("a") == {"number": 2, "config": history[2].config, "sampler_state": ""}


def test_the_sampler_knows_what_failed_and_what_was_stopped(space: Space) -> None:
    found = search(space)
    for slot in "abc":
        found.suggest(slot)
    found.on_trial_complete("a", {FAILURE: "on purpose"})
    unfinished = {"report": {"final": False, "sensitivity_accuracy": 0.9, "invariance_accuracy": 0.9}}
    found.on_trial_complete("b", flatten_dict(unfinished))
    found.on_trial_complete("c", error=True)
    told = [found.window.get_trial(number) for number in range(3)]
    assert [trial.state for trial in told] == [TrialState.FAIL, TrialState.PRUNED, TrialState.FAIL]
    assert all(trial.values is None for trial in told)


def test_the_sampler_is_told_the_objectives_of_what_finished(space: Space) -> None:
    found = search(space)
    records = run(found, 4)
    told = [(trial.state, trial.values) for trial in found.study.trials]
    values = [[record.result[name] for name in OBJECTIVES.names] for record in records if record.result]
    assert told == [(TrialState.COMPLETE, each) for each in values]


def test_once_it_is_enough_only_what_was_begun_goes_on(space: Space) -> None:
    history = run(search(space), 6)
    history[4].state, history[4].reports = "running", []
    found = TunedSearch(space, OBJECTIVES, sampler="tpe", seed=7, epochs=3, history=history, enough=lambda: True)
    assert found.suggest("a") == {"number": 4, "config": history[4].config, "sampler_state": ""}
    assert found.suggest("b") == Searcher.FINISHED


def test_seeds_and_numbers_decide_the_draw(space: Space) -> None:
    first, again, other = (run(search(space, "random", seed=seed), 10) for seed in (1, 1, 2))
    drawn = [
        [{**record.config, "seed": 0} for record in records[len(space.points) :]] for records in (first, again, other)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({mix(seed, number) for seed in range(20) for number in range(20)}) == 400


def test_random_draws_do_not_depend_on_results(space: Space) -> None:
    alone = search(space, "random")
    proposals = [alone.suggest(str(slot))["config"] for slot in range(12)]
    assert proposals == [record.config for record in run(search(space, "random"), 12)]


def test_tpe_learns(space: Space) -> None:
    """Let only training budgets near 0.25 count: TPE proposes more of them than chance does."""

    def near(sampler: str) -> float:
        found, hits = search(space, sampler), 0
        for number in range(60):
            config = found.suggest("slot")["config"]
            distance = abs(config["sensitivity_epsilon"] - 0.25)
            hits += number >= 30 and distance < 0.03
            score = max(0.0, 1 - 5 * distance)
            report = {"final": True, "sensitivity_accuracy": score, "invariance_accuracy": score}
            found.on_trial_complete("slot", flatten_dict({"report": report}))
        return hits / 30

    assert near("tpe") > near("random") + 0.15
