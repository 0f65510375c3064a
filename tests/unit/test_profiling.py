"""The cost of a trial, measured on a little of it: in the right order and bytes, and with nothing left behind."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch

from trainer.config import EvaluationConfig, TrialConfig
from trainer.cost import Cost
from trainer.errors import InputError
from trainer.files.cache import NotPrepared, ReadOnlyCache
from trainer.files.checkpoints import FolderStore
from trainer.invariance.preparation import PreparationPipeline, Prepared
from trainer.training.loop import run_trial
from trainer.training.model_file import MODEL_FILE
from trainer.training.profiling import Timer

FEW = EvaluationConfig(train_size=200, validation_size=60, eval_sensitivity_steps=5)


@pytest.fixture(scope="module")
def timer(prepared: Prepared, cache_dir: Path) -> Timer:
    """Return a timer for few digits, whose preparation is in the cache."""
    return Timer(prepared.evaluation, data_dir=None, cache_dir=cache_dir)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def config(**changes: object) -> TrialConfig:
    return TrialConfig.from_mapping({"batch_size": 50, "epochs": 4, **changes})


def test_a_step_costs_what_is_in_it(timer: Timer, store: FolderStore) -> None:
    """Compare medians of three by the core's own clock, which other work on the machine does not affect."""

    def step(**changes: object) -> float:
        return sorted(timer.cost(config(**changes), store).step for _ in range(3))[1]

    clean, five = step(), step(clean_ce_weight=0.0, sensitivity_ce_weight=1.0, sensitivity_steps=5)
    twenty = step(clean_ce_weight=0.0, sensitivity_ce_weight=1.0, sensitivity_steps=20)
    assert clean < five < twenty
    assert 2 < twenty / five < 6, "an attack of 20 steps and an update, against one of 5"


def test_the_end_of_the_ramp_ends_the_cost_of_crown(timer: Timer, store: FolderStore) -> None:
    """Time the steps of certified training by the ramp's share of it, with medians as above."""
    certified = {"certified_ce_weight": 0.5, "architecture": "mlp"}

    def step(**changes: object) -> float:
        return sorted(timer.cost(config(**certified, **changes), store).step for _ in range(5))[2]

    intervals = step()
    half, whole = (step(certified_method="crown-ibp", certified_ramp=ramp) for ramp in (0.5, 1.0))
    assert intervals < half < whole
    assert half == pytest.approx((intervals + whole) / 2, rel=0.3)


def test_judging_costs_most_where_the_model_withstands(timer: Timer, store: FolderStore) -> None:
    cost = timer.cost(config(), store)
    assert 2 * cost.judging_low < cost.judging_high
    assert cost.epoch(0.0) < cost.epoch(0.25) < cost.epoch(1.0)


def test_an_epoch_is_estimated_from_a_few_steps(prepared: Prepared, cache_dir: Path, store: FolderStore) -> None:
    """Compare with a real trial, loosely: on a busy machine the two are timed at different moments."""
    config_ = config(clean_ce_weight=0.0, sensitivity_ce_weight=1.0, sensitivity_steps=10, epochs=3)
    cost = Timer(prepared.evaluation, data_dir=None, cache_dir=cache_dir).cost(config_, store)
    begun = time.process_time()
    reports = list(run_trial(config_, prepared.evaluation, prepared, last=False))
    spent = (time.process_time() - begun) / config_.epochs
    assert not reports[0].final
    assert cost.steps == 4
    assert cost.epoch(0.0) / 2.5 < spent < cost.epoch(1.0) * 2.5


def test_bytes_are_those_of_a_trial(timer: Timer, prepared: Prepared, store: FolderStore, tmp_path: Path) -> None:
    cost = timer.cost(config(epochs=2), store)
    real = FolderStore(tmp_path / "real")
    list(run_trial(config(epochs=2), prepared.evaluation, prepared, store=real))
    sizes = {name: len(real.read(name)) for name in real.names()}
    assert cost.model_bytes == pytest.approx(sizes.pop(MODEL_FILE), rel=0.01)
    assert cost.checkpoint_bytes == pytest.approx(max(sizes.values()), rel=0.01)
    assert store.names() == [], "what was written to be timed is deleted"


def test_what_is_reported_is_what_trials_report(timer: Timer, prepared: Prepared, store: FolderStore) -> None:
    regularised = config(regularizer="ot_triplet", sensitivity_weight=1.0, invariance_weight=1.0, epochs=1)
    report, *_ = run_trial(regularised, prepared.evaluation, prepared)
    assert timer.cost(regularised, store).report.keys() == report.to_dict().keys()


def test_slowed_leaves_bytes_alone(timer: Timer, store: FolderStore) -> None:
    cost = timer.cost(config(), store)
    twice = cost.slowed(2.0)
    assert twice.step == 2 * cost.step
    assert twice.judging_high == 2 * cost.judging_high
    assert (twice.checkpoint_bytes, twice.steps, twice.saving) == (cost.checkpoint_bytes, cost.steps, cost.saving)


def test_a_batch_too_large_is_refused(timer: Timer, store: FolderStore) -> None:
    with pytest.raises(InputError, match="batch_size = 500: must be at most 200"):
        timer.cost(config(batch_size=500), store)


def test_what_is_prepared_is_used(timer: Timer, prepared: Prepared, store: FolderStore) -> None:
    timer.cost(config(clean_ce_weight=0.0, invariance_ce_weight=1.0, invariance_epsilon=0.3), store)
    used, _ = timer.perturbations["linf"]
    assert torch.equal(used.images, prepared.perturbations("linf").at(0.3).images)
    assert torch.equal(timer.judging.images, prepared.judging.images)
    assert timer.missing(("linf",)) == []


def test_stand_ins_until_it_is(tmp_path: Path, store: FolderStore) -> None:
    """Check that stand-ins are used, and that neither timing nor the question prepares anything."""
    timer = Timer(FEW, data_dir=None, cache_dir=tmp_path)
    cost = timer.cost(
        config(clean_ce_weight=0.0, invariance_ce_weight=1.0, regularizer="triplet", invariance_weight=1.0), store
    )
    assert isinstance(cost, Cost)
    images = timer.perturbations["linf"][0].images
    assert images.shape == timer.train.images.shape
    assert 0 <= images.min() <= images.max() <= 1
    assert len(timer.judging.images) == 60
    assert timer.missing(("linf",)) == ["judging set", "linf perturbations"]
    assert not (tmp_path / "prepared").exists()


def test_a_cache_that_is_only_read_makes_nothing(tmp_path: Path, prepared: Prepared) -> None:
    pipeline = PreparationPipeline(
        prepared.data, FEW, ReadOnlyCache(tmp_path / "none"), lambda stage, done, total: None
    )
    with pytest.raises(NotPrepared, match="judge"):
        pipeline.judge()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("regularizer", ["none", "ot_triplet"])
def test_a_pack_is_timed_beside_its_trials(timer: Timer, regularizer: str) -> None:
    """Check that both can be run and leave the timer as it was; the gain itself depends on the machine."""
    weights = {"regularizer": regularizer, "sensitivity_weight": 1.0, "invariance_weight": 1.0}
    assert 0 < timer.pack_gain(config(**weights), 2) < math.inf
    assert timer.pack_gain(config(**weights), 3) > 0


def test_what_cannot_be_packed_is_not_timed(timer: Timer) -> None:
    with pytest.raises(InputError, match="resnet18"):
        timer.pack_gain(config(architecture="resnet18"), 2)
