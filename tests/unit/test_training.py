"""The training step: what it draws, what it perturbs, what passes through the model, what it leaves behind."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer import models
from trainer.attacks import NORMS, cross_entropy_loss, pgd, uniform
from trainer.config import TrialConfig
from trainer.data.datasets import Split
from trainer.errors import InputError
from trainer.invariance.perturbations import TrainingPerturbation
from trainer.models import Prediction, build_model, move_to_device, transposed_convolution
from trainer.objective.terms import Knobs, LossTerms, loss_terms, total_loss
from trainer.presets import preset
from trainer.training.batches import PURPOSES, Batch, batch_at, check_batch_size, random_stream, shuffled_rows
from trainer.training.step import LARGEST_SHARE, diagnose, forward, make_optimizer, update
from trainer.training.views import CleanPass, batch_views, clean_pass, predict_views, sensitivity_images

CPU = torch.device("cpu")
CLASSES = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def split_of(count: int, *, side: int = 8) -> Split:
    generator = seeded(count)
    return Split(
        torch.rand(count, 1, side, side, generator=generator), torch.randint(CLASSES, (count,), generator=generator)
    )


def perturbation_of(split: Split) -> TrainingPerturbation:
    """Return a perturbation that can be recognised: inverted images, the next label, every fifth left out."""
    keep = torch.arange(len(split.labels)) % 5 != 0
    return TrainingPerturbation(1 - split.images, (split.labels + 1) % CLASSES, keep)


def a_batch(count: int = 16) -> Batch:
    split = split_of(count)
    return Batch(split.images, split.labels, perturbation_of(split))


def a_model(architecture: str = "mlp") -> nn.Module:
    return build_model(
        architecture,
        shape=(1, 8, 8),
        classes=CLASSES,
        embedding_size=6,
        mean=torch.tensor([0.4]),
        std=torch.tensor([0.3]),
        seed=0,
    )


def passes(model: nn.Module) -> list[int]:
    """Return a list that will hold the number of images of each further call of the model."""
    passed: list[int] = []
    model.register_forward_pre_hook(lambda module, images: passed.append(len(images[0])))
    return passed


def step_of(model: nn.Module, config: TrialConfig, batch: Batch, seed: int = 0) -> tuple[Any, Knobs]:
    knobs = Knobs.of(config, CPU)
    return forward(model, batch, config, knobs, seeded(seed)), knobs


# ------------------------------------------------------------------------------------------------ random streams


def test_streams_differ_by_seed_purpose_and_epoch() -> None:
    first = {
        (seed, purpose, epoch): tuple(torch.rand(4, generator=random_stream(seed, purpose, epoch)).tolist())
        for seed in (0, 1, 2**31 - 1)
        for purpose in PURPOSES
        for epoch in (1, 2, 100_000)
    }
    assert len(set(first.values())) == len(first)


def test_a_stream_depends_on_nothing_else() -> None:
    before = random_stream(3, "attack", 2).get_state()
    torch.rand(3, generator=random_stream(3, "order", 2))
    assert torch.equal(random_stream(3, "attack", 2).get_state(), before)


def test_a_stream_gives_the_numbers_that_it_always_gave() -> None:
    """Check against numbers written down in November 2026: trials of then are resumed as they began."""
    images = torch.zeros(3, 1, 4, 4)
    drawn = {
        "order": shuffled_rows(50, batch_size=20, generator=random_stream(7, "order", 2)),
        "linf": NORMS["linf"].random_start(images, 0.5, random_stream(7, "attack", 2)),
        "stacked": uniform((4, 3), images, [random_stream(seed, "augment", 1) for seed in (0, 1)]),
    }
    digests = {name: hashlib.sha256(values.numpy().tobytes()).hexdigest()[:12] for name, values in drawn.items()}
    assert digests == {"order": "196c8884861e", "linf": "9c89d61eb2bb", "stacked": "f53fb984e4d7"}


# ------------------------------------------------------------------------------------------------------- batches


@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 3))
def test_batches_are_of_one_size_and_hold_no_image_twice(count: int, batch_size: int, seed: int) -> None:
    batch_size = min(batch_size, count)
    split = Split(torch.zeros(count, 1, 1, 1), torch.arange(count))
    seen = [
        batch.labels
        for batch in (
            batch_at(split, None, rows)
            for rows in shuffled_rows(len(split.labels), batch_size=batch_size, generator=seeded(seed))
        )
    ]
    assert [len(labels) for labels in seen] == [batch_size] * (count // batch_size)
    drawn = torch.cat(seen).tolist()
    assert len(set(drawn)) == len(drawn)


def test_rows_of_a_batch_belong_together() -> None:
    split = split_of(30)
    perturbation = perturbation_of(split)
    for batch in (
        batch_at(split, perturbation, rows)
        for rows in shuffled_rows(len(split.labels), batch_size=10, generator=seeded())
    ):
        assert batch.invariance is not None
        assert torch.equal(batch.invariance.images, 1 - batch.images)
        assert torch.equal(batch.invariance.labels, (batch.labels + 1) % CLASSES)
        rows = [int((split.images == image).flatten(1).all(1).nonzero()) for image in batch.images]
        assert torch.equal(batch.invariance.keep, perturbation.keep[rows])


def test_order_is_the_generators() -> None:
    def order(seed: int) -> list[int]:
        split = Split(torch.zeros(40, 1, 1, 1), torch.arange(40))
        return torch.cat(
            [
                b.labels
                for b in (
                    batch_at(split, None, rows)
                    for rows in shuffled_rows(len(split.labels), batch_size=8, generator=seeded(seed))
                )
            ]
        ).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(0)) == list(range(40)) != order(0)


def test_a_batch_must_fit_the_data() -> None:
    check_batch_size(30, 30)
    with pytest.raises(InputError, match="batch_size = 31: must be at most 30, the number of training images"):
        check_batch_size(31, 30)
    with pytest.raises(InputError, match="batch_size = 31"):
        shuffled_rows(30, batch_size=31, generator=seeded())


# --------------------------------------------------------------------------------------- views of the objective

USED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing but cross-entropy": ({}, {"clean"}),
    "a regularizer without weights": ({"regularizer": "triplet"}, {"clean"}),
    "PGD training": ({"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0}, {"sensitivity"}),
    "training on invariance images": ({"clean_ce_weight": 0.0, "invariance_ce_weight": 1.0}, {"invariance"}),
    "norms of all embeddings": (
        {"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0, "norm_weight": 1e-3},
        {"clean", "sensitivity"},
    ),
    "TRADES": ({"trades_weight": 6.0, "sensitivity_objective": "kl"}, {"clean", "sensitivity"}),
    "TRADES on PGD images": (
        {"trades_weight": 1.0, "clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0},
        {"clean", "sensitivity"},
    ),
    "a regularizer over PGD images": (
        {"regularizer": "triplet", "sensitivity_weight": 1.0, "clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0},
        {"clean", "sensitivity"},
    ),
    "a regularizer over invariance images": (
        {"regularizer": "sinkhorn", "invariance_weight": 1.0},
        {"clean", "invariance"},
    ),
    "clean, perturbed and changed images": (
        {"sensitivity_ce_weight": 0.5, "invariance_ce_weight": 0.25},
        {"clean", "sensitivity", "invariance"},
    ),
    "everything": (
        {"regularizer": "ot_triplet", "sensitivity_weight": 1.0, "invariance_weight": 1.0},
        {"clean", "sensitivity", "invariance"},
    ),
}


@pytest.mark.parametrize("case", USED)
def test_only_views_that_the_objective_uses_pass_through_the_model(case: str) -> None:
    settings, names = USED[case]
    config, batch, model = TrialConfig(**settings, sensitivity_steps=2), a_batch(), a_model()
    seen = batch_views(model, batch, config, Knobs.of(config, CPU), seeded())
    assert set(seen) == names
    assert config.uses_clean == ("clean" in names)
    passed = passes(model)
    step, knobs = step_of(model, config, batch)
    assert sum(passed) == (len(names) + 2 * config.uses_sensitivity) * len(batch.labels)  # two steps of the attack
    assert torch.isfinite(total_loss(step.terms, knobs))


def mean_over_kept(logits: Tensor, invariance: TrainingPerturbation) -> Tensor:
    return F.cross_entropy(logits[invariance.keep], invariance.labels[invariance.keep])


@pytest.mark.parametrize("case", USED)
def test_the_step_predicts_what_the_model_does(case: str) -> None:
    config, batch, model = TrialConfig(**USED[case][0], sensitivity_steps=2), a_batch(), a_model("cnn")
    seen = batch_views(model, batch, config, Knobs.of(config, CPU), seeded())
    step, _ = step_of(model, config, batch)
    alone: dict[str, Prediction] = {name: model(images) for name, images in seen.items()}
    assert batch.invariance is not None
    expected = {
        "clean": lambda seen: F.cross_entropy(seen.logits, batch.labels),
        "sensitivity": lambda seen: F.cross_entropy(seen.logits, batch.labels),
        "invariance": lambda seen: mean_over_kept(seen.logits, batch.invariance),
    }
    views = config.cross_entropy_views
    torch.testing.assert_close(step.embedding, alone[views[0]].embedding)
    for name in views:
        torch.testing.assert_close(getattr(step.terms, f"{name}_ce"), expected[name](alone[name]))
    if step.terms.norm is not None:
        norms = torch.cat([prediction.embedding for prediction in alone.values()]).norm(dim=1)
        torch.testing.assert_close(step.terms.norm, norms.mean())
    if step.terms.trades is not None:
        clean, other = (alone[name].logits.softmax(1) for name in ("clean", "sensitivity"))
        torch.testing.assert_close(step.terms.trades, (clean * (clean / other).log()).sum(1).mean())


class Normalised(nn.Module):
    """One batch normalisation between the images and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, momentum=1.0)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Prediction:
        embedding = self.norm(images).flatten(1)
        return Prediction(self.head(embedding), embedding)


def test_batch_normalisation_sees_clean_and_perturbed_images_together() -> None:
    config = TrialConfig(trades_weight=1.0, sensitivity_steps=2, sensitivity_epsilon=0.3)
    model, batch = Normalised().train(), a_batch()
    seen = torch.cat(list(batch_views(model, batch, config, Knobs.of(config, CPU), seeded()).values()))
    torch.testing.assert_close(model.norm.running_mean, torch.zeros(1))  # the attack does not count
    step_of(model, config, batch)
    torch.testing.assert_close(model.norm.running_mean, seen.mean().reshape(1))
    torch.testing.assert_close(model.norm.running_var, seen.var().reshape(1))


# -------------------------------------------------------------------------- the step against its plain formulation

FGSM: dict[str, Any] = {"sensitivity_steps": 1, "sensitivity_epsilon": 0.05}
SHARING: dict[str, dict[str, Any]] = {
    "fgsm": {
        **FGSM,
        "regularizer": "triplet",
        "sensitivity_weight": 0.5,
        "invariance_weight": 0.5,
        "norm_weight": 0.01,
    },
    "fgsm, l2": {**FGSM, "trades_weight": 2.0, "sensitivity_norm": "l2"},
    "fgsm under the cross-entropy": {**FGSM, "clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0, "norm_weight": 0.01},
    "kl": {"trades_weight": 2.0, "sensitivity_objective": "kl", "sensitivity_steps": 2},
    "transport": {"trades_weight": 2.0, "sensitivity_objective": "transport", "sensitivity_steps": 2},
}


def plain_step(model: nn.Module, config: TrialConfig, batch: Batch) -> tuple[Tensor, LossTerms]:
    """Return X_s and the loss terms: an attack on its own, then every image in one pass."""
    knobs = Knobs.of(config, CPU)
    perturbed = sensitivity_images(model, batch, config, knobs, seeded())
    seen = {"clean": batch.images, "sensitivity": perturbed}
    if config.uses_invariance:
        assert batch.invariance is not None
        seen["invariance"] = batch.invariance.images
    joint = model(torch.cat(list(seen.values())))
    parts = zip(joint.logits.chunk(len(seen)), joint.embedding.chunk(len(seen)), strict=True)
    assert batch.invariance is not None
    terms = loss_terms(
        config,
        knobs,
        {name: Prediction(*part) for name, part in zip(seen, parts, strict=True)},
        batch.labels,
        invariance_labels=batch.invariance.labels,
        invariance_keep=batch.invariance.keep,
    )
    return perturbed, terms


def with_slopes(model: nn.Module, slope: float) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            nn.init.constant_(module.weight, slope)
    return model


@pytest.mark.parametrize("slope", [0.25, -0.3])
@pytest.mark.parametrize("case", SHARING)
def test_sharing_the_clean_pass_changes_no_number(case: str, slope: float) -> None:
    """Compare images, terms and gradients of the model in its fastest form with those of the model as written."""
    config, batch = TrialConfig(**SHARING[case]), a_batch()
    model, plain = move_to_device(with_slopes(a_model("cnn"), slope), CPU), with_slopes(a_model("cnn"), slope)
    perturbed, terms = plain_step(plain, config, batch)
    knobs = Knobs.of(config, CPU)
    seen = batch_views(model, batch, config, knobs, seeded(), clean_pass(model, batch, config))
    torch.testing.assert_close(seen["sensitivity"], perturbed, rtol=0, atol=1e-5)
    step = forward(model, batch, config, knobs, seeded())
    for name, expected in terms._asdict().items():
        if expected is not None:
            torch.testing.assert_close(getattr(step.terms, name), expected, rtol=1e-4, atol=1e-5, msg=name)
    update(torch.optim.SGD(model.parameters()), total_loss(step.terms, knobs))
    gradients = torch.autograd.grad(total_loss(terms, knobs), list(plain.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", SHARING)
def test_the_clean_images_pass_once(case: str) -> None:
    config, model, batch = TrialConfig(**SHARING[case]), a_model(), a_batch()
    passed = passes(model)
    step_of(model, config, batch)
    steps = 0 if config.sensitivity_steps == 1 else config.sensitivity_steps
    assert sum(passed) == (2 + config.uses_invariance + steps) * len(batch.labels)


def test_an_attack_alone_differentiates_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that an update skips their gradient, although the clean pass that it goes back through could give it."""
    config, model, batch = TrialConfig(**SHARING["fgsm"]), move_to_device(a_model("cnn"), CPU), a_batch()
    asked: list[int] = []

    def counting(*arguments: Any, **options: Any) -> Tensor:
        asked.append(1)
        return transposed_convolution(*arguments, **options)

    monkeypatch.setattr(models, "transposed_convolution", counting)
    step, knobs = step_of(model, config, batch)
    assert len(asked) == 1
    assert all(parameter.grad is None for parameter in model.parameters())
    update(make_optimizer(model, config), total_loss(step.terms, knobs))
    assert len(asked) == 1


@pytest.mark.parametrize("case", SHARING)
def test_batch_normalisation_shares_no_pass(case: str) -> None:
    config, model, batch = TrialConfig(**SHARING[case]), Normalised().train(), a_batch()
    assert clean_pass(model, batch, config) is None
    passed = passes(model)
    step_of(model, config, batch)
    assert passed[-1] == (2 + config.uses_invariance) * len(batch.labels)


@pytest.mark.parametrize("shared", [False, True])
def test_views_join_in_one_pass_beside_the_shared_one(shared: bool) -> None:
    batch, model = a_batch(), Normalised().eval()  # eval, so that each image's prediction is its own
    seen = {"clean": batch.images, "sensitivity": batch.images / 2, "invariance": 1 - batch.images}
    expected = {name: model(images) for name, images in seen.items()}
    clean = CleanPass(batch.images, expected["clean"]) if shared else None
    passed = passes(model)
    found = predict_views(model, seen, clean)
    assert passed == [(2 if shared else 3) * len(batch.labels)]
    assert list(found) == list(seen)
    for name, prediction in found.items():
        torch.testing.assert_close(prediction, expected[name])


# ------------------------------------------------------------------------------------------- the training attack

ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {"sensitivity_steps": 1},
    "pgd": {"sensitivity_steps": 5},
    "pgd, l2": {"sensitivity_steps": 5, "sensitivity_norm": "l2", "sensitivity_epsilon": 1.0},
    "kl": {"sensitivity_steps": 5, "sensitivity_objective": "kl"},
    "kl in one step": {"sensitivity_steps": 1, "sensitivity_objective": "kl"},
    "transport": {"sensitivity_steps": 3, "sensitivity_objective": "transport"},
}


def attacked(model: nn.Module, batch: Batch, seed: int = 0, **settings: Any) -> Tensor:
    config = TrialConfig(clean_ce_weight=0.0, sensitivity_ce_weight=1.0, **settings)
    return sensitivity_images(model, batch, config, Knobs.of(config, CPU), seeded(seed))


@pytest.mark.parametrize("name", ATTACKS)
def test_training_attacks_stay_in_their_ball_and_in_the_image(name: str) -> None:
    batch, model = a_batch(), a_model()
    images = attacked(model, batch, **ATTACKS[name])
    change = (images - batch.images).flatten(1)
    norm, epsilon = (2, 1.0) if "l2" in name else (torch.inf, 0.1)
    assert change.norm(norm, dim=1).max() <= epsilon + 1e-5
    assert change.abs().amax(1).min() > 0
    assert 0 <= images.min() <= images.max() <= 1
    assert not images.requires_grad


@pytest.mark.parametrize("name", ATTACKS)
def test_training_attacks_raise_what_they_maximise(name: str) -> None:
    batch, model = a_batch(32), a_model()
    clean = model(batch.images).logits
    perturbed = model(attacked(model, batch, **ATTACKS[name])).logits
    noise = model(
        (batch.images + 0.1 * (2 * torch.rand(batch.images.shape, generator=seeded(5)) - 1)).clamp(0, 1)
    ).logits

    def loss(logits: Tensor) -> Tensor:
        if ATTACKS[name].get("sensitivity_objective") is None:
            return F.cross_entropy(logits, batch.labels)
        return F.kl_div(logits.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean")

    assert loss(perturbed) > loss(noise)
    assert loss(perturbed) > loss(clean)


def test_fgsm_is_one_step_of_the_whole_budget_from_the_image() -> None:
    batch, model = a_batch(), a_model()
    images = batch.images.clone().requires_grad_()
    F.cross_entropy(model(images).logits, batch.labels).backward()
    assert images.grad is not None
    expected = (batch.images + 0.1 * images.grad.sign()).clamp(0, 1)
    found = attacked(model, batch, sensitivity_steps=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(found, attacked(model, batch, seed=1, sensitivity_steps=1))


@pytest.mark.parametrize(
    ("given", "steps", "length"),
    [
        pytest.param(0.0, 40, 2.5 * 0.3 / 40, id="left to the rule"),
        pytest.param(0.01, 40, 0.01, id="40 steps of 0.01"),
        pytest.param(0.5, 3, 0.5, id="longer than the budget"),
        pytest.param(0.01, 5, 0.3 / 5, id="too short to reach the edge"),
    ],
)
def test_a_step_of_the_training_attack_has_this_length(given: float, steps: int, length: float) -> None:
    batch, model = a_batch(), a_model()
    found = attacked(
        model, batch, sensitivity_epsilon=0.3, sensitivity_steps=steps, sensitivity_step_size=given, seed=3
    )
    loss = cross_entropy_loss(lambda images: model(images).logits, batch.labels)
    norm = NORMS["linf"]
    expected = pgd(loss, batch.images, norm=norm, epsilon=0.3, steps=steps, step_size=length, generator=seeded(3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_feature_scattering_takes_one_step_of_the_budget_from_its_start() -> None:
    batch, model = a_batch(), a_model()
    settings = preset("feature-scattering") | {"sensitivity_epsilon": 0.2}
    config = TrialConfig.from_mapping(settings)
    found = sensitivity_images(model, batch, config, Knobs.of(config, CPU), seeded())
    start = (batch.images + NORMS["linf"].random_start(batch.images, 0.2, seeded())).clamp(0, 1)
    one, other = ((start + sign * 0.2).clamp(batch.images - 0.2, batch.images + 0.2).clamp(0, 1) for sign in (-1, 1))
    nearest = torch.minimum((found - one).abs(), (found - other).abs())
    assert nearest.max() < 1e-6


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"fgsm"}))
def test_all_other_attacks_start_at_random(name: str) -> None:
    batch, model = a_batch(), a_model()
    assert torch.equal(attacked(model, batch, **ATTACKS[name]), attacked(model, batch, **ATTACKS[name]))
    assert not torch.equal(attacked(model, batch, **ATTACKS[name]), attacked(model, batch, seed=1, **ATTACKS[name]))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_leaves_no_trace_in_the_model(name: str) -> None:
    """Check above all the gradients: one that leaks from the attack into the step would change the training."""
    model, batch = Normalised().train(), a_batch()
    model.head.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    attacked(model, batch, **ATTACKS[name])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------------ the update


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def after_update(prepare: Callable[[nn.Module, Any, Knobs], object]) -> Tensor:
    config = TrialConfig(regularizer="triplet", sensitivity_weight=0.5, norm_weight=0.01, sensitivity_steps=2)
    model = a_model()
    optimizer = make_optimizer(model, config)
    step, knobs = step_of(model, config, a_batch())
    prepare(model, step, knobs)
    update(optimizer, total_loss(step.terms, knobs))
    return weights(model)


def nothing(model: nn.Module, step: Any, knobs: Knobs) -> None:
    """Leave the run undisturbed."""


def stale_gradients(model: nn.Module, step: Any, knobs: Knobs) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)


def a_diagnosis(model: nn.Module, step: Any, knobs: Knobs) -> None:
    diagnose(step, model, knobs)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("disturb", [stale_gradients, a_diagnosis])
def test_an_update_is_of_its_own_loss_alone(disturb: Callable[[nn.Module, Any, Knobs], object]) -> None:
    assert torch.equal(after_update(disturb), after_update(nothing))


def test_updates_go_downhill() -> None:
    config, model, batch = TrialConfig(learning_rate=1e-3), a_model(), a_batch()
    optimizer, seen = make_optimizer(model, config), []
    for _ in range(20):
        step, knobs = step_of(model, config, batch)
        update(optimizer, total_loss(step.terms, knobs))
        seen.append(step.terms.clean_ce.item())
    assert seen == sorted(seen, reverse=True)


def test_weight_decay_is_decoupled() -> None:
    """Check that a parameter without gradient shrinks by lr times decay, whatever the size of other gradients."""
    model = a_model()
    before = weights(model)
    optimizer = make_optimizer(model, TrialConfig(learning_rate=0.1, weight_decay=0.5))
    update(optimizer, 0 * sum(parameter.sum() for parameter in model.parameters()))  # type: ignore[arg-type]
    torch.testing.assert_close(weights(model), 0.95 * before)


def test_sgd_is_pytorchs_with_the_decay_in_the_gradient() -> None:
    ours, theirs, batch = a_model(), a_model(), a_batch()
    config = TrialConfig(optimizer="sgd", learning_rate=0.1, momentum=0.8, weight_decay=0.5)
    optimizers = make_optimizer(ours, config), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.8, weight_decay=0.5)
    for _ in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            update(optimizer, F.cross_entropy(model(batch.images).logits, batch.labels))
    torch.testing.assert_close(weights(ours), weights(theirs))


def test_an_update_accepts_parameters_without_a_gradient() -> None:
    """Accept parameters without a gradient, whether frozen or not part of the loss."""
    model, config, batch = a_model(), TrialConfig(), a_batch()
    optimizer = make_optimizer(model, config)
    model.get_parameter("encoder.1.weight").requires_grad_(False)
    update(optimizer, model(batch.images).embedding.square().sum())
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == {
        "encoder.1.weight",
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize("architecture", ["cnn", "mlp"])
def test_moving_a_model_does_not_change_it(architecture: str) -> None:
    images, model = torch.rand(5, 1, 8, 8, generator=seeded()), a_model(architecture)
    before = model(images)
    after = move_to_device(a_model(architecture), CPU)(images)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.embedding, before.embedding)


# ---------------------------------------------------------------------------------------------------- the diagnosis


def test_a_diagnosis_is_finite_where_the_cross_entropy_has_no_gradient_left() -> None:
    config = TrialConfig(norm_weight=1.0)
    model, batch = a_model(), a_batch()
    with torch.no_grad():
        model.get_parameter("head.bias")[0] = 1e4
    step, knobs = step_of(model, config, batch._replace(labels=torch.zeros_like(batch.labels)))
    found = diagnose(step, model, knobs)
    assert found["gradient_share/norm"] == LARGEST_SHARE
    assert all(torch.isfinite(value) for value in found.values())


@pytest.mark.parametrize("scale", [1e3, 1e18, 1e30])
def test_the_shape_of_embeddings_is_seen_at_any_scale(scale: float) -> None:
    """Check that the diagnosis stays finite as embeddings grow: divergence must show in the loss."""
    config, model, batch = TrialConfig(), a_model(), a_batch()
    expected = diagnose(step_of(model, config, batch)[0], model, Knobs.of(config, CPU))
    step, knobs = step_of(model, config, batch)
    found = diagnose(step._replace(embedding=step.embedding * scale), model, knobs)
    for name in ("embedding_rank", "embedding_spread"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)


def test_a_gradient_share_grows_with_the_weight() -> None:
    def share(weight: float) -> float:
        model = a_model()
        step, knobs = step_of(model, TrialConfig(norm_weight=weight), a_batch())
        return diagnose(step, model, knobs)["gradient_share/norm"].item()

    assert share(0.3) == pytest.approx(3 * share(0.1), rel=1e-4)


def test_a_collapse_is_seen() -> None:
    model = a_model()
    config, batch = TrialConfig(), a_batch()
    step, knobs = step_of(model, config, batch)
    assert diagnose(step, model, knobs)["collapsed"] == 0
    with torch.no_grad():
        model.get_parameter("encoder.5.weight").zero_()
    step, knobs = step_of(model, config, batch)
    found = diagnose(step, model, knobs)
    assert found["collapsed"] == 1
    assert found["embedding_spread"] < 1e-6
