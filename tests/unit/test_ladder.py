"""The attack-strength ladder: cheap attacks early, the whole one for all that may be chosen, and an alarm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search_spaces.reading import load_space
from search_spaces.yaml_file import locate
from sweep.ledger.reading import read_ledger
from sweep.ledger.records import TrialRecord
from sweep.plan.from_options import make_plan
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan_file import plan_from_tree, read_plan
from sweep.report.replay import agreement_alarms, agreements_of
from sweep.search.agreement import agreements
from sweep.state.sweep_state import state_of_trials
from tests.integration.test_sweep import run_words
from tests.support.commands import otsweep
from trainer.config import EvaluationConfig, TrialConfig
from trainer.errors import InputError
from trainer.files.checkpoints import FolderStore
from trainer.invariance.preparation import Prepared
from trainer.report import STRENGTH
from trainer.training.evaluation import on_ladder
from trainer.training.loop import run_trial

WALL = ("train_seconds", "evaluation_seconds")


@pytest.mark.parametrize(
    ("ladder", "steps"),
    [
        (3, [3, 3, 5, 5, 10, 10, 10, 10, *[40] * 8]),
        (10, [10] * 8 + [40] * 8),
        (0, [40] * 16),
    ],
)
def test_halving_the_epoch_halves_the_steps_and_the_second_half_is_judged_whole(ladder: int, steps: list[int]) -> None:
    evaluation = EvaluationConfig(eval_sensitivity_steps=20, eval_sensitivity_restarts=2)
    judges = [on_ladder(evaluation, epoch=epoch, epochs=16, ladder=ladder) for epoch in range(1, 17)]
    assert [each.eval_sensitivity_steps * each.eval_sensitivity_restarts for each in judges] == steps
    assert judges[8:] == [evaluation] * 8


@pytest.mark.parametrize("epochs", [1, 2, 3, 5])
def test_whatever_may_be_chosen_is_judged_whole(epochs: int) -> None:
    evaluation = EvaluationConfig()
    for epoch in range(epochs // 2 + 1, epochs + 1):
        assert on_ladder(evaluation, epoch=epoch, epochs=epochs, ladder=1) is evaluation


CONFIG = TrialConfig(
    architecture="mlp", batch_size=50, epochs=5, clean_ce_weight=0.0, sensitivity_ce_weight=1.0, sensitivity_steps=1
)


def said(prepared: Prepared, *, ladder: int, store: FolderStore | None = None) -> list[dict[str, Any]]:
    reports = run_trial(CONFIG, prepared.evaluation, prepared, ladder=ladder, store=store)
    return [{key: value for key, value in report.to_dict().items() if key not in WALL} for report in reports]


def test_the_second_half_is_bit_for_bit_that_of_a_trial_without_a_ladder(prepared: Prepared) -> None:
    plain, laddered = said(prepared, ladder=0), said(prepared, ladder=1)
    assert [report[STRENGTH] for report in laddered] == [2, 3, 5, 5, 5, 5]
    assert all(STRENGTH not in report for report in plain)
    for before, after in zip(plain, laddered, strict=True):
        unlike = {key for key in before if before[key] != after[key]}
        assert unlike <= ({"sensitivity_accuracy"} if after[STRENGTH] < 5 else set())
    weak, whole = laddered[0]["sensitivity_accuracy"], plain[0]["sensitivity_accuracy"]
    assert weak >= whole


def test_a_trial_on_a_ladder_is_resumed_bit_for_bit(prepared: Prepared, tmp_path: Path) -> None:
    whole = said(prepared, ladder=1)
    for epoch in range(1, 5):
        store = FolderStore(tmp_path / str(epoch))
        reports = run_trial(CONFIG, prepared.evaluation, prepared, ladder=1, store=store)
        for _ in range(epoch):
            next(reports)
        reports.close()
        assert said(prepared, ladder=1, store=store) == whole[epoch - 1 :]
    with pytest.raises(InputError, match="ladder = 1"):
        next(run_trial(CONFIG, prepared.evaluation, prepared, ladder=2, store=FolderStore(tmp_path / "1")))


# ---------------------------------------------------------------------------------------------------------------------
# Rank correlation


def trial(number: int, curve: list[float], *, strengths: list[int] | None = None) -> TrialRecord:
    reports = [
        {"epoch": epoch, "final": False, "sensitivity_accuracy": value, "invariance_accuracy": -value}
        | ({STRENGTH: strengths[epoch - 1]} if strengths else {})
        for epoch, value in enumerate(curve, start=1)
    ]
    return TrialRecord(number, {"seed": 0}, reports=[*reports, {**reports[-1], "final": True}])


def test_the_order_between_rungs_is_kendalls() -> None:
    generator = np.random.default_rng(0)
    start = generator.permutation(20).astype(float)
    kept, lost = start**3, generator.permutation(20).astype(float)
    records = [trial(number, list(curve)) for number, curve in enumerate(np.stack([start, kept, lost]).T)]
    found = agreements(records, OBJECTIVES, levels=[1, 2], epochs=3)
    assert [(each.lower, each.upper, each.objective, each.trials) for each in found] == [
        (1, 2, "sensitivity_accuracy", 20),
        (1, 2, "invariance_accuracy", 20),
        (2, 3, "sensitivity_accuracy", 20),
        (2, 3, "invariance_accuracy", 20),
    ]
    assert [each.correlation for each in found[:2]] == [1.0, 1.0]
    # By definition: pairs in the same order less pairs in the other, over all.
    pairs = [(i, j) for i in range(20) for j in range(i)]
    same = sum(np.sign((kept[i] - kept[j]) * (lost[i] - lost[j])) for i, j in pairs)
    assert found[2].correlation == pytest.approx(same / len(pairs))
    assert [each.low for each in found] == [False, False, True, True]
    assert [line.split(" at ")[0] for line in agreement_alarms(found)] == [
        "alarm: the order in sensitivity",
        "alarm: the order in invariance",
    ]


def test_few_trials_are_no_alarm_and_equal_ones_have_no_order() -> None:
    few = [trial(number, [number, -number]) for number in range(9)]
    found = agreements(few, OBJECTIVES, levels=[1], epochs=2)
    assert [(each.correlation, each.low) for each in found] == [(-1.0, False)] * 2
    assert agreements([trial(number, [0.5, number]) for number in range(12)], OBJECTIVES, levels=[1], epochs=2) == []
    assert agreements([], OBJECTIVES, levels=[1], epochs=2) == []


def test_what_rungs_were_judged_with_is_told() -> None:
    records = [trial(number, [number, number], strengths=[5, 20]) for number in range(3)]
    assert {each.strengths for each in agreements(records, OBJECTIVES, levels=[1], epochs=2)} == {("5", "20")}


# ---------------------------------------------------------------------------------------------------------------------
# Plan and sweep


def test_a_plan_without_a_ladder_keeps_its_digest(tmp_path: Path) -> None:
    plan = make_plan(load_space("digits"), name="a", storage=str(tmp_path))
    before = {key: value for key, value in plan.to_dict().items() if key != "ladder"}
    assert plan_from_tree(locate(before, "plan")).hash == plan.hash
    assert dataclasses.replace(plan, ladder=5).hash != plan.hash
    with pytest.raises(InputError, match="--ladder 21: must be at most 20"):
        dataclasses.replace(plan, ladder=21)


SPACE = """
trials: 12
evaluation: {dataset: digits, train_size: 300, validation_size: 100, eval_sensitivity_steps: 4}
space:
  architecture: mlp
  batch_size: 50
  epochs: 4
  sensitivity_steps: 1
  cross_entropy_on: sensitivity
  sensitivity_epsilon: {low: 0.05, high: 0.3}
  learning_rate: {low: 0.0001, high: 0.01, log: true}
points:
  - preset: baseline
"""


@pytest.mark.slow
def test_no_trial_of_a_sweep_is_on_the_front_by_a_cheap_number(new_storage: Callable[[str], Path]) -> None:
    storage = new_storage("ladder")
    (storage / "tiny.yaml").write_text(SPACE)
    words = run_words(storage, "laddered")
    done = otsweep(storage, *words, "--stopper", "asha", "--grace-epochs", "1", "--ladder", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    plan, trials = read_plan("laddered", storage=str(storage)), read_ledger(storage / "laddered").trials
    assert plan.ladder == 1
    for record in trials.values():
        epochs = {report["epoch"]: report[STRENGTH] for report in record.reports if not report["final"]}
        assert epochs == {epoch: {1: 1, 2: 2, 3: 4, 4: 4}[epoch] for epoch in epochs}
        assert record.result is None or record.result[STRENGTH] == 4
        assert [each["strength"] for each in record.decisions] == ["1", "2"][: len(record.decisions)]
    assert any(record.state == "stopped" for record in trials.values())
    found = agreements_of(plan, state_of_trials(plan, trials))
    assert {each.strengths for each in found} == {("1", "2"), ("2", "4")}
    assert "Order kept from rung to rung" in done.stdout
    shown = otsweep(storage, "replay", "laddered").stdout
    assert f"{found[0].correlation:.2f}" in shown
    from sweep.tracking.store import connect

    client = connect(plan.mlflow_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    [parent] = client.search_runs([experiment.experiment_id], "tags.`otsweep.kind` = 'sweep'")
    last = max(found, key=lambda each: (each.objective == "sensitivity_accuracy", each.upper))
    [*_, logged] = client.get_metric_history(parent.info.run_id, "rank_correlation/sensitivity_accuracy")
    assert (logged.step, logged.value) == (last.upper, pytest.approx(last.correlation))
