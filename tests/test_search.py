"""The search: what comes next is a function of the history, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from search_spaces import Space, load_space
from sweep.ledger import TrialRecord
from sweep.plan import OBJECTIVES, SAMPLERS
from sweep.search import ParetoSearch, mix
from sweep.trainable import FAILURE
from trainer.config import TrialConfig


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("digits")


def search(space: Space, sampler: str = "tpe", history: tuple[TrialRecord, ...] = (), seed: int = 7) -> ParetoSearch:
    return ParetoSearch(space, OBJECTIVES, sampler=sampler, seed=seed, epochs=3, history=history)


def outcome(config: dict[str, Any], number: int) -> dict[str, Any]:
    """A made-up final report in which the knobs matter, so that TPE has something to learn."""
    robust = min(1.0, 2 * config["sensitivity_epsilon"])
    return {"report": {"final": True, "epoch": 3, "sensitivity_accuracy": robust, "invariance_accuracy": 1 - robust}}


def run(found: ParetoSearch, count: int) -> list[TrialRecord]:
    """What a sweep with one slot would leave in its ledger; every fifth trial fails. Results come as Ray Tune gives
    them: flat."""
    records = []
    for _ in range(count):
        proposal = found.suggest("slot")
        number, config = proposal["number"], proposal["config"]
        failed = number % 5 == 4
        result: dict[str, Any] = {FAILURE: "on purpose"} if failed else outcome(config, number)
        found.on_trial_complete("slot", flatten_dict(result))
        record = TrialRecord(number, config, config["seed"], "failed" if failed else "finished")
        if not failed:
            record.reports = [result["report"]]
        records.append(record)
    return records


def test_every_proposal_is_a_legal_configuration(space: Space) -> None:
    for record in run(search(space), 20):
        config = TrialConfig.from_mapping(record.config)
        assert (config.epochs, config.seed) == (3, 7)


def test_given_points_come_first(space: Space) -> None:
    records = run(search(space), len(space.points) + 1)
    for record, point in zip(records, space.points, strict=False):
        assert record.config == {**point, "epochs": 3, "seed": 7}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cut", [0, 3, 12, 17])
def test_a_search_rebuilt_from_the_ledger_goes_on_as_the_undisturbed_one(space: Space, sampler: str, cut: int) -> None:
    undisturbed = run(search(space, sampler), 24)
    rebuilt = search(space, sampler, tuple(undisturbed[:cut]))
    assert [record.config for record in run(rebuilt, 24 - cut)] == [record.config for record in undisturbed[cut:]]


def test_interrupted_trials_are_proposed_again_before_anything_new(space: Space) -> None:
    history = run(search(space), 8)
    history[5].state, history[5].reports = "running", []
    rebuilt = search(space, history=tuple(history))
    assert rebuilt.suggest("a") == {"number": 5, "config": history[5].config}
    assert rebuilt.suggest("b")["number"] == 8


def test_a_trial_that_never_reached_the_ledger_is_proposed_again_under_its_number(space: Space) -> None:
    history = run(search(space), 8)
    rebuilt = search(space, history=(*history[:2], *history[3:]))
    assert rebuilt.suggest("a") == {"number": 2, "config": history[2].config}


def test_the_sampler_knows_what_failed_and_what_was_stopped(space: Space) -> None:
    found = search(space)
    for slot in "abc":
        found.suggest(slot)
    found.on_trial_complete("a", {FAILURE: "on purpose"})
    unfinished = {"report": {"final": False, "sensitivity_accuracy": 0.9, "invariance_accuracy": 0.9}}
    found.on_trial_complete("b", flatten_dict(unfinished))
    found.on_trial_complete("c", error=True)
    assert [trial.state for trial in found.study.trials] == [TrialState.FAIL, TrialState.PRUNED, TrialState.FAIL]
    assert all(trial.values is None for trial in found.study.trials)


def test_the_sampler_is_told_the_objectives_of_what_finished(space: Space) -> None:
    found = search(space)
    records = run(found, 4)
    told = [(trial.state, trial.values) for trial in found.study.trials]
    values = [[record.result[name] for name in OBJECTIVES.names] for record in records if record.result]
    assert told == [(TrialState.COMPLETE, each) for each in values]


def test_once_it_is_enough_only_what_was_begun_goes_on(space: Space) -> None:
    history = run(search(space), 6)
    history[4].state, history[4].reports = "running", []
    found = ParetoSearch(space, OBJECTIVES, sampler="tpe", seed=7, epochs=3, history=history, enough=lambda: True)
    assert found.suggest("a") == {"number": 4, "config": history[4].config}
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
    """Told that only training budgets near 0.25 count, it proposes more of them than chance does."""

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
