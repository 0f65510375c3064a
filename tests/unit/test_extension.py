"""Extended sweeps: more trials, another space; the plan keeps its history, and a rebuilt search draws the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from search_spaces.reading import fix_knobs, space_from_dict
from search_spaces.space import Space
from sweep.api.running import resumed_plan
from sweep.cli.commands import main
from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.plan.extension import extended, given_points, space_changes, trials_at_first
from sweep.plan.from_options import make_plan
from sweep.plan.plan import SAMPLERS, SweepPlan
from sweep.plan.plan_file import read_plan, rewrite_plan, write_plan
from sweep.report.sides import read_side
from sweep.search.search import ParetoSearch
from tests.support.recorded_sweeps import recorded
from trainer.errors import InputError

SPACE: dict[str, Any] = {
    "name": "wide",
    "trials": 12,
    "space": {
        "epochs": 3,
        "sensitivity_epsilon": {"low": 0.0, "high": 0.4},
        "learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    },
    "points": [{"sensitivity_epsilon": 0.1}, {"sensitivity_epsilon": 0.2}],
}


def changed(**knobs: Any) -> Space:
    return space_from_dict({**SPACE, "space": {**SPACE["space"], **knobs}})


pytestmark = pytest.mark.filterwarnings("ignore:.*has no count of its events")


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return write_plan(make_plan(space_from_dict(SPACE), storage=str(tmp_path), name="a"))


def search(plan: SweepPlan, sampler: str, history: list[TrialRecord]) -> ParetoSearch:
    """Return the search as the driver makes it."""
    return ParetoSearch(
        plan.space,
        plan.objectives,
        sampler=sampler,
        seed=3,
        configurations=trials_at_first(plan),
        points=given_points(plan),
        other_space=max((until for until, _ in space_changes(plan)), default=0),
        history=history,
    )


def run(found: ParetoSearch, count: int) -> list[TrialRecord]:
    """Return what a sweep with one slot would leave in its ledger."""
    records = []
    for _ in range(count):
        proposal = found.suggest()
        assert proposal is not None
        robust = min(1.0, 2 * proposal.config["sensitivity_epsilon"])
        report = {"final": True, "epoch": 3, "sensitivity_accuracy": robust, "invariance_accuracy": 1 - robust**2}
        found.end(proposal.number, "finished", report)
        records.append(
            TrialRecord(
                proposal.number,
                proposal.config,
                proposal.config["seed"],
                "finished",
                sampler_state=proposal.sampler_state,
                reports=[report],
            )
        )
    return records


@pytest.mark.parametrize(
    "sampler", [each for each in SAMPLERS if each != "gp"] + [pytest.param("gp", marks=pytest.mark.slow)]
)
def test_a_killed_extension_draws_what_an_undisturbed_one_would(plan: SweepPlan, sampler: str) -> None:
    before = run(search(plan, sampler, []), 12)
    longer = extended(plan, trials=20, space=changed(sensitivity_epsilon={"low": 0.1, "high": 0.3}), begun=12)
    undisturbed = run(search(longer, sampler, before), 8)
    first = run(search(longer, sampler, before), 3)
    rest = run(search(longer, sampler, [*before, *first]), 5)
    assert [each.config for each in [*first, *rest]] == [each.config for each in undisturbed]
    assert all(0.1 <= each.config["sensitivity_epsilon"] <= 0.3 for each in undisturbed)


def test_more_trials_alone_go_on_as_if_so_many_had_been_planned(plan: SweepPlan) -> None:
    before = run(search(plan, "tpe", []), 12)
    longer = extended(plan, trials=16, space=None, begun=12)
    whole = run(search(dataclasses.replace(plan, trials=16), "tpe", []), 16)
    assert [each.config for each in run(search(longer, "tpe", before), 4)] == [each.config for each in whole[12:]]


def test_the_sampler_knows_the_old_trials_that_lie_inside(plan: SweepPlan) -> None:
    before = run(search(plan, "random", []), 12)
    narrow = extended(plan, trials=20, space=changed(sensitivity_epsilon={"low": 0.1, "high": 0.3}), begun=12)
    inside = [0.1 <= each.config["sensitivity_epsilon"] <= 0.3 for each in before]
    seen = search(narrow, "random", before).window
    assert [seen.get_trial(number).state == TrialState.COMPLETE for number in range(12)] == inside
    wide = extended(plan, trials=20, space=changed(sensitivity_epsilon={"low": 0.0, "high": 0.5}), begun=12)
    window = search(wide, "random", before).window
    assert all(window.get_trial(number).state == TrialState.COMPLETE for number in range(12))
    assert window.get_trial(5).distributions["sensitivity_epsilon"].high == 0.5  # type: ignore[attr-defined]
    fixed = extended(plan, trials=20, space=fix_knobs(plan.space, ["learning_rate=0.005"]), begun=12)
    window = search(fixed, "random", before).window
    assert {window.get_trial(number).state for number in range(2, 12)} == {TrialState.FAIL}


def test_points_of_the_new_space_run_next_and_none_twice(plan: SweepPlan) -> None:
    more = space_from_dict({**SPACE, "points": [{"sensitivity_epsilon": 0.2}, {"sensitivity_epsilon": 0.3}]})
    longer = extended(plan, trials=20, space=more, begun=12)
    given = {number: point["sensitivity_epsilon"] for number, point in given_points(longer).items()}
    assert given == {0: 0.1, 1: 0.2, 12: 0.3}
    early = extended(plan, trials=20, space=more, begun=1)
    assert {number: point["sensitivity_epsilon"] for number, point in given_points(early).items()} == {
        0: 0.1,
        1: 0.2,
        2: 0.3,
    }


def test_a_budget_of_epochs_may_become_more_or_less(plan: SweepPlan) -> None:
    limited = dataclasses.replace(plan, budget_epochs=30)
    more = extended(limited, trials=12, space=None, begun=9, budget_epochs=60, trained=27)
    rewrite_plan(more)
    known = read_plan("a", storage=plan.storage)
    assert known == more
    assert (known.budget_epochs, known.history[0].budget_epochs, known.trials) == (60, 30, 12)
    assert len({each.hash for each in (plan, limited, more)}) == 3
    less = extended(more, trials=12, space=None, begun=9, budget_epochs=27, trained=27)
    assert [each.budget_epochs for each in (less, *less.history)] == [27, 60]
    assert extended(limited, trials=20, space=None, begun=9).budget_epochs == 30
    assert extended(limited, trials=12, space=None, begun=9, budget_epochs=0, trained=27).budget_epochs == 0


def test_a_plan_keeps_its_history_through_its_file(plan: SweepPlan) -> None:
    once = extended(plan, trials=20, space=None, begun=12)
    twice = extended(once, trials=30, space=changed(learning_rate=0.005), begun=20)
    rewrite_plan(once)
    assert read_plan("a", storage=plan.storage) == once
    rewrite_plan(dataclasses.replace(twice, max_concurrent=7))
    again = read_plan("a", storage=plan.storage)
    assert again == twice, "what a resume changes for itself alone is not kept"
    assert [(stage.until, stage.trials) for stage in again.history] == [(12, 12), (20, 20)]
    assert [until for until, _ in space_changes(again)] == [20]
    assert len({plan.hash, once.hash, twice.hash}) == 3
    assert extended(plan, trials=12, space=plan.space, begun=12) == plan


WRONG: dict[str, tuple[Callable[[SweepPlan], object], str]] = {
    "fewer than begun": (lambda plan: extended(plan, trials=5, space=None, begun=9), "9 trials have begun already"),
    "less than trained": (
        lambda plan: extended(
            dataclasses.replace(plan, budget_epochs=30), trials=12, space=None, begun=9, budget_epochs=20, trained=27
        ),
        "--budget-epochs 20: 27 were trained already",
    ),
    "a budget where none was": (
        lambda plan: extended(plan, trials=12, space=None, begun=9, budget_epochs=20),
        "--budget-epochs 20: a began without a budget of epochs",
    ),
    "other epochs": (lambda plan: extended(plan, trials=20, space=changed(epochs=4), begun=9), "its epochs differ"),
    "judged otherwise": (
        lambda plan: extended(
            plan,
            trials=20,
            space=space_from_dict({**SPACE, "evaluation": {"eval_sensitivity_epsilon": 0.1}}),
            begun=9,
        ),
        "would be judged otherwise than the sweep: eval_sensitivity_epsilon",
    ),
    "other requirements": (
        lambda plan: extended(
            plan, trials=20, space=space_from_dict({**SPACE, "require": ["clean_accuracy >= 0.5"]}), begun=9
        ),
        "its requirements differ",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_could_not_be_compared_is_refused(
    plan: SweepPlan, call: Callable[[SweepPlan], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(plan)


def test_a_recorded_sweep_is_extended_and_shown(
    new_storage: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    begun = recorded("digits24", new_storage("extended"))
    options: Mapping[str, Any] = {"storage": begun.storage, "trials": "30"}
    plan, _ = resumed_plan(begun.name, options, other_versions=True)
    assert (plan.trials, plan.history[0].until, plan.history[0].trials) == (
        30,
        len(read_ledger(plan.folder).trials),
        24,
    )
    rewrite_plan(plan)
    assert main(["front", begun.name, "--storage", begun.storage]) == 0
    assert "among 24 finished trials" in capsys.readouterr().out
    assert main(["replay", begun.name, "--storage", begun.storage]) == 0
    assert read_side(begun.name, storage=begun.storage).sweeps[0].plan == read_plan(begun.name, storage=begun.storage)
