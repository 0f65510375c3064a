"""A sweep that goes on under other versions than those that it began with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sweep.api.running import _compare_versions
from sweep.plan.plan import SweepPlan
from sweep.plan.version import code_version
from sweep.state.sweep_state import read_state
from tests.support.recorded_sweeps import recorded
from trainer.errors import InputError


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    """A sweep whose plan has two more trials than its ledger, begun by what is installed here."""
    found = recorded("digits24", tmp_path_factory.mktemp("versions"), trials=2)
    return dataclasses.replace(found, trials=4, code_version=code_version())


def begun_with(plan: SweepPlan, **versions: str) -> SweepPlan:
    return dataclasses.replace(plan, versions=plan.versions | versions)


def remark(plan: SweepPlan, *, allowed: bool = False) -> str:
    state = read_state(plan) if (plan.folder / "ledger").is_dir() else None
    return _compare_versions(plan, state, allowed=allowed)


def test_the_same_versions_are_nothing_to_say(plan: SweepPlan) -> None:
    assert remark(plan) == ""


@pytest.mark.parametrize("library", ["torch", "optuna"])
def test_another_version_of_what_decides_numbers_is_refused_unless_told(plan: SweepPlan, library: str) -> None:
    older = begun_with(plan, **{library: "1.0"})
    said = f"digits24 began with {library} 1.0, here {plan.versions[library]}: .* give --other-versions"
    with pytest.raises(InputError, match=said):
        remark(older)
    for allowed in (remark(older, allowed=True), remark(dataclasses.replace(older, trials=2))):
        assert f"began with other versions: {library} 1.0, here" in allowed


def test_other_versions_of_the_rest_are_said(plan: SweepPlan) -> None:
    older = dataclasses.replace(begun_with(plan, ray="2.1", mlflow="2.0"), code_version="v0")
    said = f"otsweep v0, here {code_version()}; ray 2.1, here {plan.versions['ray']}; mlflow 2.0, here"
    assert said in remark(older)


def test_a_sweep_without_a_trial_has_no_numbers_yet(plan: SweepPlan, tmp_path: Path) -> None:
    empty = dataclasses.replace(begun_with(plan, torch="1.0"), storage=str(tmp_path))
    assert "torch 1.0" in remark(empty)
    (empty.folder / "ledger").mkdir(parents=True)
    assert "torch 1.0" in remark(empty)
