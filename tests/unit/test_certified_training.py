"""Certified training: the ramp and its ends, what it costs where it is off, and what is proven of trained models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.test_training import CPU, a_batch, a_model, seeded, step_of
from trainer.attacks import worst_case
from trainer.attacks.apgd import apgd_attack
from trainer.attacks.gradient import pgd_attack
from trainer.config import TrialConfig
from trainer.data import Data
from trainer.models import Classifier, build_model
from trainer.objective.bounds import worst_margins
from trainer.objective.certificates import certified, certified_images
from trainer.objective.crown import crown_margins
from trainer.objective.terms import Knobs, total_loss
from trainer.presets import preset
from trainer.training import step as step_module
from trainer.training.execution import Execution
from trainer.training.loop import train_epoch
from trainer.training.schedules import config_of_epoch
from trainer.training.step import forward, make_optimizer
from trainer.training.trial import TrialState

CERTIFIED: dict[str, Any] = {"clean_ce_weight": 0.25, "certified_ce_weight": 0.5, "certified_epsilon": 0.1}
both_methods = pytest.mark.parametrize("method", ["ibp", "crown-ibp"])


def loss_at(done: float, config: TrialConfig, architecture: str = "mlp") -> tuple[Tensor, nn.Module]:
    """Return the loss of a step before which that share of the training was done, and the model, with gradients."""
    model, knobs = a_model(architecture), Knobs.of(config, CPU).at(torch.tensor(done))
    loss = total_loss(forward(model, a_batch(), config, knobs, seeded()).terms, knobs)
    loss.backward()
    return loss.detach(), model


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


# ------------------------------------------------------------------------------------------------------------- the ramp


def test_weight_and_budget_grow_linearly_and_what_is_missing_lies_on_the_clean_images() -> None:
    knobs = Knobs.of(TrialConfig(**CERTIFIED, certified_ramp=0.8), CPU)
    expected = {0.0: 0.0, 0.2: 0.25, 0.4: 0.5, 0.8: 1.0, 0.9: 1.0}
    for done, share in expected.items():
        at = knobs.at(torch.tensor(done))
        assert at.certified_share.item() == pytest.approx(share)
        assert at.certified_epsilon.item() == pytest.approx(0.1 * share)
        assert at.certified_ce_weight.item() == pytest.approx(0.5 * share)
        assert at.clean_ce_weight.item() == pytest.approx(0.25 + 0.5 * (1 - share))
    at = knobs._replace(certified_ramp=torch.tensor([0.0, 0.5])).at(torch.tensor([0.0, 0.25]))
    assert at.certified_share.tolist() == [1.0, 0.5]


@both_methods
@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_at_the_ramps_begin_a_step_is_the_baselines_to_the_bit(method: str, architecture: str) -> None:
    loss, model = loss_at(0.0, TrialConfig(**CERTIFIED, certified_method=method), architecture)
    expected, baseline = loss_at(0.0, TrialConfig(clean_ce_weight=0.75), architecture)
    assert torch.equal(loss, expected)
    assert all(torch.equal(*pair) for pair in zip(gradients(model), gradients(baseline), strict=True))


@both_methods
def test_at_the_ramps_end_it_is_the_whole_objective(method: str) -> None:
    """Check too that CROWN, which `config_of_epoch` then leaves out, counts for nothing."""
    config = TrialConfig(**CERTIFIED, certified_method=method)
    loss, model = loss_at(0.5, config)
    plain, batch = a_model(), a_batch()
    assert isinstance(plain, Classifier)
    worst = F.cross_entropy(-worst_margins(plain, batch.images, batch.labels, 0.1), batch.labels)
    expected = 0.25 * F.cross_entropy(plain(batch.images).logits, batch.labels) + 0.5 * worst
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients(model), gradients(plain))
    without_crown, other = loss_at(0.5, config.replace(certified_method="ibp"))
    assert torch.equal(loss, without_crown)
    assert all(torch.equal(*pair) for pair in zip(gradients(model), gradients(other), strict=True))


def test_in_between_crown_passes_into_intervals() -> None:
    config, batch, model = TrialConfig(**CERTIFIED, certified_method="crown-ibp"), a_batch(), a_model()
    assert isinstance(model, Classifier)
    knobs = Knobs.of(config, CPU).at(torch.tensor(0.125))
    found = forward(model, batch, config, knobs, seeded()).terms.certified_ce
    interval = worst_margins(model, batch.images, batch.labels, 0.025)
    crown = crown_margins(model, batch.images, batch.labels, 0.025, refined=False)
    assert (crown >= interval - 1e-5).float().mean() > 0.9, "CROWN's last bound is the tighter one"
    torch.testing.assert_close(found, F.cross_entropy(-(0.75 * crown + 0.25 * interval), batch.labels))


def test_crown_is_left_out_of_the_epochs_after_the_ramp() -> None:
    config = TrialConfig(**CERTIFIED, certified_method="crown-ibp", certified_ramp=0.5, epochs=4)
    assert [config_of_epoch(config, epoch).certified_method for epoch in (1, 2, 3, 4)] == [
        *["crown-ibp"] * 2,
        "ibp",
        "ibp",
    ]


def test_without_a_weight_no_bound_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a bound was computed at weight 0")

    monkeypatch.setattr(step_module, "certified_cross_entropy", fail)
    step, _ = step_of(a_model(), TrialConfig(certified_epsilon=0.3, certified_method="crown-ibp"), a_batch())
    assert step.terms.certified_ce is None


def test_it_draws_no_random_number() -> None:
    config, drawn = TrialConfig(sensitivity_ce_weight=1.0, sensitivity_steps=2), []
    for changes in ({}, {"certified_ce_weight": 0.5}):
        generator = seeded()
        forward(a_model(), a_batch(), config.replace(**changes), Knobs.of(config, CPU), generator)
        drawn.append(generator.get_state())
    assert torch.equal(*drawn)


# ------------------------------------------------------------------------------------------------------- trained models

EPSILON, IMAGES = 0.1, 120
SHARED: dict[str, Any] = {
    **{"architecture": "mlp", "epochs": 12, "batch_size": 50, "learning_rate": 2e-3},
    **{"sensitivity_epsilon": EPSILON, "certified_epsilon": EPSILON},
}
TRAINED: dict[str, dict[str, Any]] = {
    "clean": {},
    "pgd-at": {**preset("pgd-at"), "sensitivity_steps": 5},
    "ibp": preset("ibp"),
    "crown-ibp": preset("crown-ibp"),
}


@pytest.fixture(scope="module")
def models(digits: Data) -> dict[str, Classifier]:
    return {name: trained(TrialConfig(**SHARED, **settings), digits) for name, settings in TRAINED.items()}


def trained(config: TrialConfig, digits: Data) -> Classifier:
    """Train as a trial does, without its evaluation."""
    images = digits.train.images
    model = build_model(
        config.architecture,
        shape=digits.shape,
        classes=digits.classes,
        embedding_size=config.embedding_size,
        mean=images.mean((0, 2, 3)),
        std=images.std((0, 2, 3)),
        seed=config.seed,
    )
    state = TrialState(model, make_optimizer(model, config), Execution(config, CPU, print))
    for _ in range(config.epochs):
        train_epoch(state, digits.train, None, config, Knobs.of(config, CPU), lambda *step: None)
        state.epoch += 1
    return model.eval()


@pytest.mark.parametrize("name", TRAINED)
def test_no_image_is_proven_robust_that_an_attack_breaks(
    name: str, models: dict[str, Classifier], digits: Data
) -> None:
    model, (images, labels) = models[name], (part[:IMAGES] for part in digits.test)
    for epsilon in (0.02, EPSILON, 0.2):
        attacks = [
            pgd_attack(norm="linf", epsilon=epsilon, steps=20, restarts=2),
            apgd_attack(norm="linf", epsilon=epsilon, steps=20),
        ]
        found = worst_case(lambda batch: model(batch).logits, images, labels, attacks, generator=seeded())
        proven = certified_images(model, images, labels, epsilon)
        assert not (proven & ~found.survived).any()
        by_interval = certified(model, images, labels, epsilon)
        assert not (by_interval & ~proven).any()
        assert epsilon > 0.02 or proven.any()


def test_interval_training_is_certified_where_pgd_training_is_not(models: dict[str, Classifier], digits: Data) -> None:
    images, labels = (part[:IMAGES] for part in digits.test)
    shares = {
        name: (certified(model, images, labels, EPSILON), certified_images(model, images, labels, EPSILON))
        for name, model in models.items()
    }
    interval, tighter = ({name: pair[index].float().mean().item() for name, pair in shares.items()} for index in (0, 1))
    assert interval["pgd-at"] == interval["clean"] == 0
    assert tighter["pgd-at"] < 0.1
    assert tighter["clean"] < 0.02
    assert interval["ibp"] > 0.3
    assert interval["crown-ibp"] > 0.3
    assert tighter["ibp"] >= interval["ibp"]


def test_proofs_end_with_the_first_batch_without_any(models: dict[str, Classifier], digits: Data) -> None:
    """Check on a model that intervals say nothing about: what CROWN did not look at is not proven."""
    model, (images, labels) = models["pgd-at"], (part[:IMAGES] for part in digits.test)
    whole = certified(model, images, labels, 0.05, method="crown")
    found = certified_images(model, images, labels, 0.05, batch_size=IMAGES)
    assert torch.equal(found, whole)
    assert 0 < certified_images(model, images, labels, 0.05, batch_size=8).sum() <= whole.sum()
