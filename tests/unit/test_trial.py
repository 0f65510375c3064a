"""A trial as a generator: resumed bit for bit, repeatable, finite or failed, with the chosen model as reported."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.answers import Answers
from trainer.attacks import Attack, worst_case
from trainer.config import EvaluationConfig, TrialConfig
from trainer.errors import InputError, StorageFailed, TrialFailed
from trainer.files.checkpoints import FolderStore, from_bytes, load_checkpoint, save_checkpoint
from trainer.invariance.perturbations import JudgingSet
from trainer.invariance.preparation import Prepared
from trainer.objective import regularizers
from trainer.objective.terms import Knobs, LossTerms
from trainer.objective.transport import cosine_cost
from trainer.report import OF_EPOCH, EpochReport
from trainer.training import loop
from trainer.training import trial as trial_module
from trainer.training.batches import training_perturbation
from trainer.training.choice import ALL, FIRST, SECOND, Halves
from trainer.training.evaluation import (
    Evaluation,
    evaluation_attacks,
    final_attacks,
    judging_generator,
    predict_labels,
)
from trainer.training.execution import Execution
from trainer.training.loop import run_trial, train_epoch
from trainer.training.model_file import MODEL_FILE, load_model
from trainer.training.step import summarise
from trainer.training.trial import TrialState, advance, initial_state

EPOCHS = 3
SHORT: dict[str, Any] = {"architecture": "mlp", "epochs": EPOCHS, "batch_size": 50, "sensitivity_steps": 2}

TRIALS: dict[str, dict[str, Any]] = {
    "baseline": {"architecture": "cnn"},
    "pgd": {"architecture": "cnn", "clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0, "weight_decay": 0.1},
    "trades": {"trades_weight": 2.0, "sensitivity_objective": "kl"},
    "triplet": {"architecture": "cnn", "regularizer": "triplet", "sensitivity_weight": 0.5, "norm_weight": 1e-3},
    "sinkhorn": {
        "regularizer": "sinkhorn",
        "invariance_weight": 1.0,
        "clean_ce_weight": 0.0,
        "sensitivity_ce_weight": 1.0,
    },
    "ot_triplet": {"regularizer": "ot_triplet", "sensitivity_weight": 0.5, "invariance_weight": 0.5},
    "sgd": {
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "learning_rate_schedule": "one_cycle",
        "weight_decay": 5e-4,
        "augmentation": "crop_flip",
        "invariance_ce_weight": 0.5,
        "label_smoothing": 0.1,
    },
    "bfloat16": {
        "precision": "bfloat16",
        "sensitivity_ce_weight": 0.5,
        "regularizer": "ot_triplet",
        "invariance_weight": 0.5,
    },
    # Stopped after the first epoch the ramp is half done, and CROWN is left out in the last.
    "certified": {"certified_ce_weight": 0.5, "certified_method": "crown-ibp", "certified_ramp": 0.6},
}


def state_of(parameter: torch.Tensor) -> TrialState:
    execution = Execution(TrialConfig(), torch.device("cpu"), print)
    return TrialState(nn.Linear(1, 1), torch.optim.SGD([parameter]), execution)


def config_of(name: str, **changes: Any) -> TrialConfig:
    return TrialConfig(**{**SHORT, **TRIALS[name], **changes})


def start(config: TrialConfig, prepared: Prepared, **kwargs: Any) -> Iterator[EpochReport]:
    return run_trial(config, prepared.evaluation, prepared, **kwargs)


def numbers(reports: list[EpochReport]) -> list[dict[str, Any]]:
    """Return all numbers but times; these must be equal bit for bit."""
    return [{k: v for k, v in report.to_dict().items() if not k.endswith("_seconds")} for report in reports]


def run(config: TrialConfig, prepared: Prepared, **kwargs: Any) -> list[dict[str, Any]]:
    return numbers(list(start(config, prepared, **kwargs)))


def model_of(store: FolderStore) -> dict[str, Any]:
    return from_bytes(store.read(MODEL_FILE))


def assert_same_models(left: FolderStore, right: FolderStore) -> None:
    one, other = model_of(left), model_of(right)
    torch.testing.assert_close(one.pop("weights"), other.pop("weights"), rtol=0, atol=0)
    assert one == other


def stop_after(epoch: int, config: TrialConfig, prepared: Prepared, store: FolderStore) -> None:
    """Stop as a crash right after a report would."""
    reports = start(config, prepared, store=store)
    assert [report.epoch for report in itertools.islice(reports, epoch)] == list(range(1, epoch + 1))
    reports.close()  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("name", TRIALS)
def test_stopped_after_any_epoch_it_goes_on_as_if_never_stopped(name: str, prepared: Prepared, tmp_path: Path) -> None:
    config, whole = config_of(name), FolderStore(tmp_path / "whole")
    undisturbed = run(config, prepared, store=whole)
    assert [(report["epoch"], report["final"]) for report in undisturbed[:-1]] == [
        (epoch, False) for epoch in range(1, EPOCHS + 1)
    ]
    for epoch in range(1, EPOCHS + 1):
        store = FolderStore(tmp_path / str(epoch))
        stop_after(epoch, config, prepared, store)
        assert run(config, prepared, store=store) == undisturbed[epoch - 1 :]
        assert_same_models(store, whole)


def test_stopped_after_every_epoch_it_ends_the_same(prepared: Prepared, tmp_path: Path) -> None:
    config, store = config_of("triplet"), FolderStore(tmp_path)
    received: list[EpochReport] = []
    while not received or not received[-1].final:
        reports = start(config, prepared, store=store)
        received += itertools.islice(reports, 2)  # the one it resumes from, and one more
        reports.close()  # type: ignore[attr-defined]
    once = {(report["final"], report["epoch"]): report for report in numbers(received)}
    assert list(once.values()) == run(config, prepared)


def test_an_epoch_reports_the_learning_rate_at_its_end(prepared: Prepared) -> None:
    config = config_of("sgd", learning_rate_schedule="piecewise", learning_rate=0.1, epochs=4, batch_size=100)
    rates = [report["learning_rate"] for report in run(config, prepared)[:-1]]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_a_report_is_delivered_at_least_once(prepared: Prepared, tmp_path: Path) -> None:
    """Check that a resumed trial repeats its report: a checkpoint is written before its report is delivered."""
    config, store = config_of("sinkhorn"), FolderStore(tmp_path)
    stop_after(2, config, prepared, store)
    for _ in range(2):
        assert next(start(config, prepared, store=store)).epoch == 2
    whole = run(config, prepared, store=store)
    assert run(config, prepared, store=store) == whole[-2:]


@pytest.mark.slow
def test_running_statistics_are_resumed_too(prepared: Prepared, tmp_path: Path) -> None:
    config = config_of("baseline", architecture="resnet18", epochs=2, batch_size=100)
    undisturbed = run(config, prepared, store=FolderStore(tmp_path / "whole"))
    stop_after(1, config, prepared, FolderStore(tmp_path / "stopped"))
    assert run(config, prepared, store=FolderStore(tmp_path / "stopped")) == undisturbed
    assert_same_models(FolderStore(tmp_path / "stopped"), FolderStore(tmp_path / "whole"))


def damage(store: FolderStore, epoch: int) -> str:
    name = f"checkpoint-{epoch:06d}.pt"
    content = bytearray(store.read(name))
    content[len(content) // 2] ^= 1
    store.write(name, bytes(content))
    return name


def test_a_damaged_checkpoint_costs_one_epoch(prepared: Prepared, tmp_path: Path) -> None:
    config, store, warnings = config_of("triplet"), FolderStore(tmp_path), []
    stop_after(3, config, prepared, store)
    name = damage(store, 3)
    assert run(config, prepared, store=store, warn=warnings.append) == run(config, prepared)[1:]
    assert warnings == [f"{name} is damaged (its checksum does not fit) and passed over"]


def test_with_every_checkpoint_damaged_it_starts_over(prepared: Prepared, tmp_path: Path) -> None:
    config, store, warnings = config_of("triplet"), FolderStore(tmp_path), []
    stop_after(3, config, prepared, store)
    for epoch in (2, 3):
        damage(store, epoch)
    reports = start(config, prepared, store=store, warn=warnings.append)
    assert next(reports).epoch == 1
    assert len(warnings) == 2
    assert store.names() == ["checkpoint-000001.pt"], "what is damaged must not crowd out what is whole"
    assert numbers(list(reports)) == run(config, prepared)[1:]


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "knob": ({"margin": 0.1}, {}, "other", "margin = 0.05 (not 0.1), data = "),
    "seed": ({"seed": 7}, {}, "", "seed = 0 (not 7): "),
    "judge": ({}, {"eval_sensitivity_steps": 6}, "", "eval_sensitivity_steps = 5 (not 6): "),
    "data": ({}, {}, "other", "(not 'other'): "),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_store_of_another_configuration_is_refused(case: str, prepared: Prepared, tmp_path: Path) -> None:
    knobs, judge, fingerprint, message = OTHERS[case]
    store = FolderStore(tmp_path)
    stop_after(1, config_of("baseline", architecture="mlp"), prepared, store)
    before = {name: store.read(name) for name in store.names()}
    data = dataclasses.replace(prepared.data, fingerprint=fingerprint or prepared.data.fingerprint)
    other = dataclasses.replace(prepared, data=data, evaluation=prepared.evaluation.replace(**judge))
    with pytest.raises(InputError, match="a checkpoint of another configuration, with ") as error:
        run(config_of("baseline", architecture="mlp", **knobs), other, store=store)
    assert message in str(error.value)
    assert {name: store.read(name) for name in store.names()} == before


def as_of_before_the_weights(store: FolderStore, view: str) -> None:
    """Rewrite the newest checkpoint as one that knows `cross_entropy_on`, and not `negative_share`."""
    saved, _ = load_checkpoint(store)
    assert saved is not None
    newer = ("clean_ce_weight", "sensitivity_ce_weight", "invariance_ce_weight", "negative_share")
    identity = {name: value for name, value in saved["identity"].items() if name not in newer}
    save_checkpoint(store, saved["last"]["epoch"], {**saved, "identity": {**identity, "cross_entropy_on": view}})


def test_a_checkpoint_that_names_cross_entropy_on_is_resumed(prepared: Prepared, tmp_path: Path) -> None:
    config, store = config_of("pgd"), FolderStore(tmp_path)
    stop_after(1, config, prepared, store)
    as_of_before_the_weights(store, "sensitivity")
    reports = list(start(config, prepared, store=store))
    assert reports[0].epoch == 1
    assert numbers(reports) == run(config, prepared)


@pytest.mark.parametrize("regularizer", ["ot_triplet", "sinkhorn"])
def test_a_trial_of_an_earlier_regularizer_begins_anew(regularizer: str, prepared: Prepared, tmp_path: Path) -> None:
    config = config_of("baseline", architecture="mlp", regularizer=regularizer, invariance_weight=0.5)
    store, warnings = FolderStore(tmp_path), []
    stop_after(2, config, prepared, store)
    as_of_before_the_weights(store, "clean")
    reports = list(start(config, prepared, store=store, warn=warnings.append))
    assert warnings == [f"the checkpoint was trained with an earlier {regularizer}, so training begins anew"]
    assert numbers(reports) == run(config, prepared)


# ----------------------------------------------------------------------------------------------- the same, or not


@pytest.mark.parametrize("name", ["pgd", "ot_triplet"])
def test_the_same_configuration_gives_the_same_numbers(name: str, prepared: Prepared, tmp_path: Path) -> None:
    first = run(config_of(name), prepared, store=FolderStore(tmp_path / "first"))
    torch.rand(5)  # the global state must not matter
    before = torch.get_rng_state()
    assert run(config_of(name), prepared, store=FolderStore(tmp_path / "second")) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_models(FolderStore(tmp_path / "first"), FolderStore(tmp_path / "second"))


def test_another_seed_gives_other_numbers(prepared: Prepared) -> None:
    def losses(seed: int) -> list[float]:
        return [report["loss/sensitivity_ce"] for report in run(config_of("pgd", seed=seed), prepared)]

    first, second = losses(0), losses(1)
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_trials_share_nothing(prepared: Prepared) -> None:
    """Check that two trials that take turns give what each gives alone: neither writes to the prepared data."""
    pair = [config_of("ot_triplet"), config_of("pgd", seed=3)]
    turns = [list(each) for each in zip(*(start(config, prepared) for config in pair), strict=True)]
    for config, reports in zip(pair, zip(*turns, strict=True), strict=True):
        assert numbers(list(reports)) == run(config, prepared)


UNUSED: dict[str, dict[str, Any]] = {
    "triplet": {"regularizer": "triplet", "margin": 3.0, "mining": "semihard", "ground_metric": "euclidean"},
    "sinkhorn": {"regularizer": "sinkhorn", "entropy": 2.0, "label_cost": 9.0, "regularizer_on": "logits"},
    "ot_triplet": {"regularizer": "ot_triplet", "margin": 3.0, "entropy": 2.0},
    "attacks": {"sensitivity_epsilon": 0.9, "sensitivity_steps": 40, "invariance_epsilon": 0.7},
    "weights without a regularizer": {"sensitivity_weight": 3.0, "invariance_weight": 2.0},
    "an attack's aim": {"sensitivity_objective": "kl", "sensitivity_norm": "l2", "invariance_norm": "l0"},
}


@pytest.mark.parametrize("case", UNUSED)
def test_with_every_weight_at_zero_it_is_the_baseline(case: str, prepared: Prepared, tmp_path: Path) -> None:
    stores = [FolderStore(tmp_path / which) for which in ("baseline", "other")]
    zero = config_of("baseline", **UNUSED[case])
    assert run(zero, prepared, store=stores[1]) == run(config_of("baseline"), prepared, store=stores[0])
    left, right = (model_of(store) for store in stores)
    torch.testing.assert_close(left["weights"], right["weights"], rtol=0, atol=0)


def spied(
    monkeypatch: pytest.MonkeyPatch, config: TrialConfig, prepared: Prepared
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the batches that a trial trains on, and the attack's random state at each."""
    orders, states = [], []
    forward = loop.forward

    def spy(
        model: nn.Module, batch: Any, config: TrialConfig, knobs: Any, generator: torch.Generator, **rest: Any
    ) -> Any:
        orders.append(batch.images)
        states.append(generator.get_state())
        return forward(model, batch, config, knobs, generator, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "forward", spy)
        run(config, prepared)
    return orders, states


def test_an_attack_left_unused_changes_no_other_stream(monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> None:
    both = {"regularizer": "triplet", "sensitivity_weight": 1.0, "invariance_weight": 1.0}
    orders, states = spied(monkeypatch, config_of("baseline", architecture="mlp", **both), prepared)
    for unused in ("sensitivity_weight", "invariance_weight"):
        fewer = config_of("baseline", architecture="mlp", **{**both, unused: 0.0})
        other_orders, other_states = spied(monkeypatch, fewer, prepared)
        torch.testing.assert_close(other_orders, orders, rtol=0, atol=0)
        if fewer.uses_sensitivity:
            assert all(torch.equal(a, b) for a, b in zip(states, other_states, strict=True))
    assert len({tuple(order.flatten().tolist()) for order in orders}) == len(orders), "every epoch has its own order"


def test_the_attack_starts_alike_in_every_epoch_of_every_trial(
    monkeypatch: pytest.MonkeyPatch, prepared: Prepared
) -> None:
    """Check that random starts are the same in every evaluation, so that they cancel in comparisons."""
    states, evaluate = [], loop.evaluate

    def spy(*args: Any, generator: torch.Generator) -> Evaluation:
        states.append(tuple(generator.get_state().tolist()))
        return evaluate(*args, generator=generator)

    monkeypatch.setattr(loop, "evaluate", spy)
    for seed in (0, 1):
        run(config_of("trades", seed=seed), prepared)
    assert len(states) == 2 * EPOCHS
    assert len(set(states)) == 1


# --------------------------------------------------------------------------------------------- finite, or failed

DIVERGING = {"learning_rate": 10.0, "weight_decay": 10.0}


def test_a_trial_that_diverges_fails_with_its_reason(prepared: Prepared, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with pytest.raises(TrialFailed, match=r"not finite in epoch 1: loss/sensitivity_ce = (nan|inf)"):
        next(start(config_of("pgd", **DIVERGING, epochs=20), prepared, store=store))
    assert store.names() == []


def test_a_nan_in_the_model_fails_the_trial(monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> None:
    initial_state = trial_module.initial_state

    def poisoned(*args: Any) -> TrialState:
        state = initial_state(*args)
        with torch.no_grad():
            state.model.get_parameter("head.weight")[0, 0] = torch.nan
        return state

    monkeypatch.setattr(trial_module, "initial_state", poisoned)
    with pytest.raises(TrialFailed, match="not finite in epoch 1: loss/clean_ce = nan"):
        next(start(config_of("baseline"), prepared))


def test_a_nan_of_the_last_step_fails_the_trial(monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> None:
    """Check that the evaluation finds it, as no loss shows it any more."""

    def poison(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].fill_(torch.nan)

    monkeypatch.setattr(loop, "update", poison)
    with pytest.raises(TrialFailed, match="not finite"):
        next(start(config_of("baseline", batch_size=200), prepared))


GOOD = EpochReport(
    epoch=3,
    final=False,
    clean_accuracy=0.9,
    sensitivity_accuracy=0.5,
    invariance_accuracy=0.4,
    invariance_stuck=0.3,
    invariance_unchanged=0.8,
    invariance_changed_mass=20.5,
    invariance_effective_size=18.25,
    invariance_original_label=0.7,
    learning_rate=1e-3,
    train_seconds=1.0,
    evaluation_seconds=2.0,
    terms={"loss/clean_ce": 0.1},
)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(EpochReport) if f.type == "float"])
def test_a_report_names_what_is_not_finite(name: str, value: float) -> None:
    with pytest.raises(TrialFailed, match=rf"not finite in epoch 3: {name} = {value}$"):
        dataclasses.replace(GOOD, **{name: value})
    with pytest.raises(TrialFailed, match=rf"loss/sensitivity = {value}$"):
        dataclasses.replace(GOOD, terms={**GOOD.terms, "loss/sensitivity": value})


def test_terms_are_means_over_the_epoch_and_the_error_is_its_largest() -> None:
    def terms(value: float) -> LossTerms:
        return LossTerms(torch.tensor(value), invariance=torch.tensor(2 * value), marginal_error=torch.tensor(-value))

    found = summarise([terms(1.0), terms(2.0), terms(6.0)])
    assert found == {"loss/clean_ce": 3.0, "loss/invariance": 6.0, "marginal_error": -1.0}


# ------------------------------------------------------------------------------------------------ the chosen epoch

thirds = st.integers(0, 3).map(lambda k: k / 3)
_PIXEL, _ZERO = torch.zeros(1, 1, 1, 1), torch.tensor([0])
ONE_IMAGE = Halves(JudgingSet(_PIXEL, _PIXEL, _ZERO, _ZERO, {"all": torch.eye(2)[:1]}), images=1, seed=0)
WRONG = Answers(np.array([False]), np.array([False]), np.array([0], dtype=np.uint8), np.array([False]))


@given(st.lists(st.tuples(thirds, thirds, thirds), min_size=1, max_size=9))
def test_the_best_epoch_of_the_second_half_is_chosen(accuracies: list[tuple[float, float, float]]) -> None:
    config = TrialConfig(epochs=len(accuracies))
    state = state_of(torch.zeros(1))
    for epoch, (clean, sensitivity, invariance) in enumerate(accuracies, start=1):
        with torch.no_grad():
            state.model.get_parameter("bias").fill_(epoch)
        report = dataclasses.replace(
            GOOD,
            epoch=epoch,
            clean_accuracy=clean,
            sensitivity_accuracy=sensitivity,
            invariance_accuracy=invariance,
        )
        advance(state, report, config, WRONG, ONE_IMAGE)

    def merit(epoch: int) -> tuple[float, float, float]:
        clean, sensitivity, invariance = accuracies[epoch - 1]
        return sensitivity * invariance, sensitivity + invariance, clean

    second_half = range(len(accuracies) // 2 + 1, len(accuracies) + 1)
    expected = max(second_half, key=merit)  # the first of equal ones
    assert state.epoch == len(accuracies)
    assert state.chosen[ALL].report.epoch == expected == state.chosen[ALL].weights["bias"].item()
    assert state.chosen[FIRST].report.epoch == state.chosen[SECOND].report.epoch == second_half[0]


@pytest.mark.parametrize("name", ["pgd", "ot_triplet"])
def test_the_model_is_that_of_the_chosen_epoch(name: str, prepared: Prepared, tmp_path: Path) -> None:
    config, store = config_of(name), FolderStore(tmp_path)
    *epochs, final = start(config, prepared, store=store)
    chosen = epochs[final.epoch - 1]
    assert final.learning_rate == chosen.learning_rate
    assert final.terms["loss/clean_ce" if name == "ot_triplet" else "loss/sensitivity_ce"] in chosen.terms.values()
    assert 2 * final.epoch > EPOCHS
    assert model_of(store)["epoch"] == final.epoch
    model = load_model(store.folder / MODEL_FILE)
    images, labels = prepared.data.validation
    assert not model.training
    assert (predict_labels(model, images, batch_size=len(labels)) == labels).double().mean() == chosen.clean_accuracy


@pytest.mark.parametrize("steps", [0, 5])
def test_each_half_is_answered_by_the_epoch_that_the_other_chose(
    steps: int, prepared: Prepared, tmp_path: Path
) -> None:
    """Choose by hand among the models that the checkpoints hold, and judge and attack them image by image."""
    evaluation = prepared.evaluation.replace(eval_final_steps=steps)
    prepared = dataclasses.replace(prepared, evaluation=evaluation)
    config, store = config_of("pgd", epochs=8, sensitivity_epsilon=0.2, learning_rate=1e-2), FolderStore(tmp_path)
    models: dict[int, nn.Module] = {}
    final = GOOD
    for report in start(config, prepared, store=store):
        if report.final:
            final = report
        else:
            saved, _ = load_checkpoint(store)
            assert saved is not None
            models[report.epoch] = initial_state(config, prepared, torch.device("cpu")).model.eval()
            models[report.epoch].load_state_dict(saved["model"])
    validation, judging = prepared.data.validation, prepared.judging
    count = len(validation.labels)
    in_first = np.zeros(count, dtype=bool)
    in_first[np.random.default_rng(evaluation.split_seed).permutation(count)[: count // 2]] = True

    def answers(epoch: int, attacks: list[Attack], rows: np.ndarray) -> Answers:
        """Return an epoch's answers, with `robust` of some images only."""
        model, robust = models[epoch], np.zeros(count, dtype=bool)
        part = [each[torch.from_numpy(rows)] for each in validation]
        generator = judging_generator(evaluation)
        survived = worst_case(lambda x: model(x).logits, part[0], part[1], attacks, generator=generator).survived
        robust[rows] = survived.numpy()
        right = predict_labels(model, validation.images, batch_size=count) == validation.labels
        perturbed = predict_labels(model, judging.images, batch_size=256).numpy().astype(np.uint8)
        return Answers(right.numpy(), robust, perturbed, right.numpy()[judging.source_index])

    def merit(given: Answers, half: np.ndarray) -> float:
        rows = torch.from_numpy(half)[judging.source_index]
        kept = torch.from_numpy(given.perturbed).long() == judging.source_labels
        agreeing = judging.crowd.double()[range(len(kept)), torch.from_numpy(given.perturbed).long()] * ~kept
        return given.robust[half].mean() * float(agreeing[rows].sum() / judging.changed.double()[rows].sum())

    whole, candidates = np.ones(count, dtype=bool), range(5, 9)
    cheap = {epoch: answers(epoch, evaluation_attacks(evaluation), whole) for epoch in candidates}
    by_first, by_second = (max(candidates, key=lambda e: merit(cheap[e], half)) for half in (in_first, ~in_first))
    assert by_first != by_second, "else this says nothing"
    found = Answers.decode(final.answers)
    attacks = final_attacks(evaluation, classes=10) if steps else evaluation_attacks(evaluation)
    for half, epoch in ((in_first, by_second), (~in_first, by_first)):
        expected = answers(epoch, attacks, half).robust & cheap[epoch].robust if steps else cheap[epoch].robust
        assert found.robust[half].tolist() == expected[half].tolist()
        assert found.right[half].tolist() == cheap[epoch].right[half].tolist()
        rows = half[judging.source_index]
        assert found.perturbed[rows].tolist() == cheap[epoch].perturbed[rows].tolist()
    assert final.sensitivity_accuracy == found.robust.mean()
    if steps:
        of_epoch = np.where(in_first, cheap[by_second].robust, cheap[by_first].robust).mean()
        assert 0 < final.sensitivity_accuracy < final.terms[OF_EPOCH] == of_epoch


def test_epochs_that_are_all_as_good_leave_no_excess() -> None:
    """Give epochs the same chance on each image: the number of the best one is too high, the joint one is not."""
    generator, images, excess = np.random.default_rng(0), 300, np.zeros(2)
    source = torch.arange(images)
    shares = torch.rand(images, 2, generator=torch.Generator().manual_seed(0))
    shares /= shares.sum(1, keepdim=True)
    pixels = torch.zeros(images, 1, 1, 1)
    halves = Halves(JudgingSet(pixels, pixels, 0 * source, source, {"all": shares}), images=images, seed=0)
    changed = shares[:, 1].double().numpy()
    for _ in range(200):
        chance, state = generator.random((2, images)), state_of(_PIXEL)
        truth = chance[0].mean() * (chance[1] * changed).sum() / changed.sum()
        for epoch in range(1, 11):
            robust, seen = generator.random((2, images)) < chance
            answers = Answers(np.ones_like(robust), robust, seen.astype(np.uint8), np.ones_like(robust))
            numbers = {
                "sensitivity_accuracy": robust.mean(),
                "invariance_accuracy": changed[seen].sum() / changed.sum(),
            }
            report = dataclasses.replace(GOOD, epoch=epoch, **numbers)
            advance(state, report, TrialConfig(epochs=10), answers, halves)
        best = state.chosen[ALL].report
        joined = halves.join(state.chosen[SECOND].answers, state.chosen[FIRST].answers)
        joint = joined.robust.mean() * changed[joined.perturbed == 1].sum() / changed.sum()
        excess += np.array([best.sensitivity_accuracy * best.invariance_accuracy, joint]) - truth
    plain, cross_fitted = excess / 200
    assert plain > 0.015
    assert abs(cross_fitted) < 0.003


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    torch.save({"weights": {}}, tmp_path / "other.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for name in ("evil.pt", "other.pt", "junk.pt", "missing.pt"):
        with pytest.raises(InputError, match=f"cannot read a model from '.*{name}'"):
            load_model(tmp_path / name)
    assert not (tmp_path / "owned").exists()


# ------------------------------------------------------------------------------------------------------- and the rest


def test_progress_counts_every_step(prepared: Prepared) -> None:
    received = []
    run(config_of("baseline", batch_size=60), prepared, progress=lambda *step: received.append(step))
    assert received == [(epoch, done, 3) for epoch in range(1, EPOCHS + 1) for done in (1, 2, 3)]


def test_what_can_not_work_is_refused_at_once(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch_size = 201: must be at most 200"):
        run(config_of("baseline", batch_size=201), prepared)
    with pytest.raises(ValueError, match="what the data was prepared for"):
        next(run_trial(config_of("baseline"), EvaluationConfig(), prepared))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageFailed, match="cannot write '.*/file/checkpoint-000001.pt': "):
        run(config_of("baseline"), prepared, store=FolderStore(tmp_path / "file"))


# ------------------------------------------------------------------------------- what a regulariser does to the classes


def distance_between_classes(prepared: Prepared, **changes: Any) -> float:
    """Return the mean cosine distance between the classes' mean embeddings of clean images, after 30 epochs."""
    config = config_of("baseline", architecture="mlp", epochs=30, learning_rate=2e-3, **changes)
    state = initial_state(config, prepared, torch.device("cpu"))
    perturbation = training_perturbation(config, prepared, torch.device("cpu"))
    knobs = Knobs.of(config, torch.device("cpu"))
    for _ in range(config.epochs):
        train_epoch(state, prepared.data.train, perturbation, config, knobs, lambda *step: None)
        state.epoch += 1
    split = prepared.data.validation
    with torch.no_grad():
        embedding = F.normalize(state.model.eval()(split.images).embedding, dim=1)
    means = torch.stack([embedding[split.labels == c].mean(0) for c in split.labels.unique()])
    distance = cosine_cost(means, means)
    return distance[~torch.eye(len(means), dtype=torch.bool)].mean().item()


def test_sinkhorn_over_changed_images_draws_classes_together_no_more_than_over_matched_ones(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with the same term where the labels on both sides agree, and with one blind to class masses."""
    plain = distance_between_classes(prepared)
    matched = distance_between_classes(prepared, regularizer="sinkhorn", sensitivity_weight=1.0)
    changed = {"regularizer": "sinkhorn", "invariance_weight": 1.0, "invariance_ce_weight": 0.5}
    ours = distance_between_classes(prepared, **changed)
    monkeypatch.setattr(regularizers, "_of_same_class", lambda side, other: torch.ones_like(side.labels))
    blind = distance_between_classes(prepared, **changed)
    assert blind < 0.85 * matched < matched < plain
    assert ours > 0.95 * matched


# --------------------------------------------------------------------------------------- the chosen epoch, judged again


def test_the_final_attacks_are_stronger(prepared: Prepared) -> None:
    assert [attack.name for attack in final_attacks(prepared.evaluation, classes=10)] == [
        *("pgd", "apgd-ce", "pgd-t", "apgd-t")
    ]
    earlier = prepared.evaluation.replace(eval_targeted_steps=0)
    assert [attack.name for attack in final_attacks(earlier, classes=10)] == ["pgd", "apgd-ce", "apgd-t"]
    rounds = [[attack.rounds for attack in final_attacks(each, classes=10)] for each in (prepared.evaluation, earlier)]
    assert rounds == [[1, 1, 4, 4], [1, 1, 9]], "sweeps of earlier versions go on as they began"


def test_few_classes_are_attacked_without_targets() -> None:
    assert [attack.name for attack in final_attacks(EvaluationConfig(), classes=3)] == ["pgd", "apgd-ce"]
