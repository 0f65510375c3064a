"""Sensitivity attacks: closed forms, reference libraries, and a model that is left exactly as it was found."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.attacks import norms as norms_module
from trainer.attacks import pgd as pgd_module
from trainer.attacks.apgd import apgd_attack, embedding_attack, targeted_apgd_attack, targeted_pgd_attack
from trainer.attacks.attack import Attack
from trainer.attacks.fab import fab_attack
from trainer.attacks.gradient import cross_entropy_loss, fgsm, fgsm_attack, kl_loss, pgd, pgd_attack
from trainer.attacks.logits import frozen
from trainer.attacks.norms import NORMS
from trainer.attacks.square import square_attack
from trainer.attacks.worst_cases import WorstCase, worst_case
from trainer.config import EvaluationConfig
from trainer.data.datasets import Split, load_data
from trainer.errors import InputError, TrialFailed
from trainer.training.evaluation import ensemble

CLASSES = 5
SHAPE = (2, 6, 6)
SIZE = math.prod(SHAPE)

norms = pytest.mark.parametrize("norm", NORMS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int = 12, *, seed: int = 0, low: float = 0, high: float = 1) -> Tensor:
    return low + (high - low) * torch.rand((count, *SHAPE), generator=seeded(seed))


class Linear(nn.Module):
    """A linear classifier that treats each row of a batch alone, to the last bit."""

    def __init__(self, *, seed: int = 0, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn((CLASSES, SIZE), generator=seeded(seed)))

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1)[:, None] * self.weight).sum(2)


class Messy(nn.Module):
    """Everything that an attack could disturb: running statistics, dropout, modes and switches that differ."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(SHAPE[0], 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4 * SIZE // SHAPE[0], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.convolution(images)).relu()).flatten(1))


def attack_builders(norm: str, epsilon: float) -> dict[str, Attack]:
    """Build every attack, short."""
    return {
        "fgsm": fgsm_attack(norm=norm, epsilon=epsilon),
        "pgd": pgd_attack(norm=norm, epsilon=epsilon, steps=5, restarts=2),
        "fab-t": fab_attack(norm=norm, epsilon=epsilon, steps=3, targets=2),
        "apgd-ce": apgd_attack(norm=norm, epsilon=epsilon, steps=10),
        "apgd-t": targeted_apgd_attack(norm=norm, epsilon=epsilon, steps=10, targets=4),
        "pgd-t": targeted_pgd_attack(norm=norm, epsilon=epsilon, steps=10, targets=4),
        "embedding": embedding_attack(with_embedding(Linear()), norm=norm, epsilon=epsilon, steps=10),
        "embedding-other": embedding_attack(
            with_embedding(Linear()), norm=norm, epsilon=epsilon, steps=10, towards_other=True
        ),
        "square": square_attack(norm=norm, epsilon=epsilon, queries=60),
    }


def with_embedding(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the logits once more as their own embedding."""

    def pair(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return logits, logits

    return pair


every_attack = pytest.mark.parametrize("name", attack_builders("linf", 0.1))


def run(attacks: list[Attack], images: Tensor, labels: Tensor, *, batch_size: int = 512, seed: int = 0) -> WorstCase:
    with frozen(Linear()) as model:
        return worst_case(model, images, labels, attacks, generator=seeded(seed), batch_size=batch_size)


def answers(images: Tensor) -> Tensor:
    with torch.no_grad():
        return Linear()(images).argmax(1)


def sizes(norm: str, delta: Tensor) -> Tensor:
    return NORMS[norm].size(delta).flatten()


# Norms


@norms
@given(seed=st.integers(0, 1000), epsilon=st.floats(0, 3))
def test_projection_is_into_the_ball_idempotent_and_the_identity_inside(norm: str, seed: int, epsilon: float):
    ball, delta = NORMS[norm], 4 * some_images(seed=seed) - 2
    inside = ball.project(delta, epsilon)
    assert (sizes(norm, inside) <= epsilon * (1 + 1e-5)).all()
    torch.testing.assert_close(ball.project(inside, epsilon), inside)
    torch.testing.assert_close(ball.project(delta, float(sizes(norm, delta).max()) * 1.001), delta)


@norms
@given(seed=st.integers(0, 1000), epsilon=st.floats(0.01, 2))
def test_no_other_point_of_the_ball_is_nearer_than_the_projection(norm: str, seed: int, epsilon: float):
    ball, delta = NORMS[norm], 4 * some_images(1, seed=seed) - 2
    nearest = (delta - ball.project(delta, epsilon)).norm()
    others = ball.random_start(some_images(50), epsilon, seeded(seed))
    towards = ball.project(ball.project(delta, epsilon) + 0.01 * others, epsilon)
    assert (nearest <= (delta - others).flatten(1).norm(dim=1) + 1e-5).all()
    assert (nearest <= (delta - towards).flatten(1).norm(dim=1) + 1e-5).all()


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_steepest_step_gains_the_dual_norm_of_the_gradient(norm: str, dual: int):
    gradient = 2 * some_images() - 1
    step = NORMS[norm].steepest_step(gradient)
    torch.testing.assert_close(sizes(norm, step), torch.ones(len(gradient)))
    gain = (gradient * step).flatten(1).sum(1)
    torch.testing.assert_close(gain, torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1))


@norms
def test_no_gradient_means_no_step(norm: str):
    assert (NORMS[norm].steepest_step(torch.zeros(2, *SHAPE)) == 0).all()


@norms
def test_random_starts_fill_the_ball(norm: str):
    starts = NORMS[norm].random_start(torch.zeros(4000, 1, 2, 2), 0.5, seeded())
    length = sizes(norm, starts)
    assert length.max() <= 0.5 * (1 + 1e-6)
    assert length.max() > 0.49
    assert length.min() < 0.15
    assert starts.mean(0).abs().max() < 0.02


@norms
def test_a_budget_per_image_is_that_image_s_budget(norm: str):
    images, ball = some_images(3), NORMS[norm]
    epsilons = torch.tensor([0.0, 0.1, 0.4])
    loss = cross_entropy_loss(Linear(), torch.tensor([0, 1, 2]))
    together = pgd(loss, images, norm=ball, epsilon=epsilons, steps=4)
    for i, epsilon in enumerate(epsilons):
        alone = pgd(
            cross_entropy_loss(Linear(), torch.tensor([i])), images[i : i + 1], norm=ball, epsilon=epsilon, steps=4
        )
        torch.testing.assert_close(together[i : i + 1], alone)
    assert (sizes(norm, together - images) <= epsilons * (1 + 1e-5)).all()


# Losses


def test_kl_is_that_of_torch_distributions():
    model, clean, perturbed = Linear(), some_images(seed=1), some_images(seed=2)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=model(clean)), torch.distributions.Categorical(logits=model(perturbed))
    )
    torch.testing.assert_close(kl_loss(model, model(clean))(perturbed), expected)


# FGSM and PGD


def linear_loss(weight: Tensor) -> pgd_module.Loss:
    return lambda images: (images * weight).flatten(1).sum(1)


def test_fgsm_and_pgd_reach_the_closed_form_for_a_linear_loss_in_linf():
    weight, images = torch.randn(SHAPE, generator=seeded()), some_images()
    best = (images + 0.3 * weight.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(linear_loss(weight), images, norm=NORMS["linf"], epsilon=0.3), best)
    found = pgd(linear_loss(weight), images, norm=NORMS["linf"], epsilon=0.3, steps=10, generator=seeded())
    torch.testing.assert_close(found, best)


def test_fgsm_and_pgd_reach_the_closed_form_for_a_linear_loss_in_l2():
    weight, images = torch.randn(SHAPE, generator=seeded()), some_images(low=0.4, high=0.6)
    best = images + 0.3 * weight / weight.norm()
    torch.testing.assert_close(fgsm(linear_loss(weight), images, norm=NORMS["l2"], epsilon=0.3), best)
    found = pgd(linear_loss(weight), images, norm=NORMS["l2"], epsilon=0.3, steps=30, step_size=0.3, generator=seeded())
    torch.testing.assert_close(found, best, rtol=0, atol=1e-5)


@norms
def test_pgd_depends_on_its_generator_alone(norm: str):
    model, images, labels = Linear(), some_images(), torch.arange(12) % CLASSES
    state = torch.get_rng_state()

    def once(seed: int | None, epsilon: float | Tensor = 0.2) -> Tensor:
        generator = None if seed is None else seeded(seed)
        loss = cross_entropy_loss(model, labels)
        return pgd(loss, images, norm=NORMS[norm], epsilon=epsilon, steps=1, step_size=0.01, generator=generator)

    assert torch.equal(once(1), once(1))
    assert torch.equal(once(1), once(1, torch.tensor(0.2)))
    assert not torch.equal(once(1), once(2))
    assert sizes(norm, once(None) - images).max() < 0.0101
    assert torch.equal(torch.get_rng_state(), state)


def test_pgd_works_where_gradients_are_off_and_leaves_none():
    model = Linear()
    with torch.no_grad():
        perturbed = pgd(
            cross_entropy_loss(model, torch.arange(12) % CLASSES), some_images(), norm=NORMS["l2"], epsilon=1.0, steps=3
        )
    assert not perturbed.requires_grad
    assert model.weight.grad is None


# The model is left as it was found


def snapshot(model: nn.Module) -> dict[str, object]:
    """Return everything that could change, with copies of the tensors."""
    tensors = {f"state {name}": value.clone() for name, value in model.state_dict().items()}
    grads = {
        f"grad {name}": None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }
    wanted = {f"requires {name}": parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {f"mode {name}": module.training for name, module in model.named_modules()}
    return {**tensors, **grads, **wanted, **modes, "random": torch.get_rng_state()}


def assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, Tensor) else value is after[name], name


def messy_model() -> Messy:
    model = Messy().train()
    model.norm.eval()
    model.head.weight.requires_grad_(False)
    model.convolution.weight.grad = torch.full_like(model.convolution.weight, 3.0)
    return model


@norms
def test_every_attack_leaves_all_of_the_model_s_state_as_it_was(norm: str):
    model = messy_model()
    images = some_images()
    labels = torch.arange(12) % CLASSES
    before = snapshot(model)
    with frozen(model):
        attacks = [
            *attack_builders(norm, 0.3).values(),
            embedding_attack(with_embedding(model), norm=norm, epsilon=0.3, steps=3),
        ]
        fgsm(cross_entropy_loss(model, labels), images, norm=NORMS[norm], epsilon=0.1)
        pgd(cross_entropy_loss(model, labels), images, norm=NORMS[norm], epsilon=0.1, steps=2, generator=seeded())
        worst_case(model, images, labels, attacks, generator=seeded())
    assert_same(before, snapshot(model))


def test_frozen_is_evaluation_mode_without_gradients_and_ends_after_an_error():
    model = messy_model()
    before = snapshot(model)

    def fail_inside() -> None:
        with frozen(model):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert_same(before, snapshot(model))


# Worst case


@norms
@every_attack
def test_every_attack_stays_in_its_ball_and_says_the_truth(norm: str, name: str):
    images = some_images(40)
    labels = answers(images)
    labels[:5] = (labels[:5] + 1) % CLASSES
    epsilon = {"linf": 0.05, "l2": 0.4}[norm]
    result = run([attack_builders(norm, epsilon)[name]], images, labels)
    assert (sizes(norm, result.images - images) <= epsilon + 1e-5).all()
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert (result.clean == (torch.arange(40) >= 5)).all()
    assert (result.survived == (result.clean & (answers(result.images) == labels))).all()
    assert torch.equal(result.images[:5], images[:5])
    assert (result.broken_by == torch.where(result.clean & ~result.survived, 0, -1)).all()
    assert 0 < result.survived.sum() < 35, "an attack that breaks all or nothing here shows nothing"


@norms
@every_attack
def test_every_attack_finds_nothing_at_epsilon_0(norm: str, name: str):
    images = some_images(20)
    result = run([attack_builders(norm, 0.0)[name]], images, answers(images))
    assert result.survived.all()
    torch.testing.assert_close(result.images, images)


@norms
@every_attack
def test_every_attack_repeats_itself_bit_for_bit(norm: str, name: str):
    images = some_images(20)
    first, second = (run([attack_builders(norm, 0.1)[name]], images, answers(images), seed=3) for _ in range(2))
    assert torch.equal(first.images, second.images)


@norms
@every_attack
def test_an_image_s_fate_depends_neither_on_the_batch_nor_on_the_others(norm: str, name: str):
    images = some_images(24)
    labels = answers(images)
    epsilon = {"linf": 0.03, "l2": 0.2}[norm]
    attack = attack_builders(norm, epsilon)[name]
    whole = run([attack], images, labels)
    assert torch.equal(run([attack], images, labels, batch_size=7).images, whole.images)
    others_wrong = torch.where(torch.arange(24) % 3 == 0, labels, (labels + 1) % CLASSES)
    sparse = run([attack], images, others_wrong)
    assert torch.equal(sparse.images[::3], whole.images[::3])
    assert torch.equal(sparse.survived[::3], whole.survived[::3])


def test_broken_images_leave_the_batch():
    images = some_images(50)
    seen: list[int] = []
    model = Linear()

    def counted(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return model(batch)

    attacks = [
        pgd_attack(norm="linf", epsilon=0.9, steps=50, restarts=5),
        apgd_attack(norm="linf", epsilon=0.9, steps=100),
        square_attack(norm="linf", epsilon=0.9, queries=500),
    ]
    result = worst_case(counted, images, answers(images), attacks, generator=seeded())
    assert not result.survived.any()
    assert (result.broken_by == 0).all()
    assert sum(seen) < 5 * 50


def test_the_worst_case_is_over_all_attacks_and_restarts():
    images = some_images(60)
    labels = answers(images)
    attacks = list(attack_builders("linf", 0.03).values())
    alone = torch.stack([run([attack], images, labels).survived for attack in attacks])
    together = run(attacks, images, labels)
    assert together.survived.sum() <= alone.sum(1).min()
    assert set(together.broken_by.tolist()) <= {-1, *range(len(attacks))}
    restarts = [
        run([pgd_attack(norm="linf", epsilon=0.03, steps=1, step_size=0.0, restarts=n)], images, labels).survived
        for n in (1, 20)
    ]
    assert restarts[1].sum() < restarts[0].sum()
    assert not (restarts[1] & ~restarts[0]).any()


def exact_robustness(images: Tensor, labels: Tensor, norm: str, epsilon: float) -> Tensor:
    """Return the largest margin (N,) that a linear model's wrong class can reach inside ball and [0, 1]: wrong above 0.

    For L2 only where [0, 1] doesn't cut the ball.
    """
    weight = Linear().weight.detach()
    logits = images.flatten(1) @ weight.T
    rise = weight[None] - weight[labels][:, None]  # (N, K, d)
    if norm == "linf":
        up = (images + epsilon).clamp(0, 1).flatten(1)[:, None] - images.flatten(1)[:, None]
        down = (images - epsilon).clamp(0, 1).flatten(1)[:, None] - images.flatten(1)[:, None]
        gain = torch.maximum(rise * up, rise * down).sum(2)
    else:
        gain = epsilon * rise.norm(dim=2)
    reach = logits - logits.gather(1, labels[:, None]) + gain
    return reach.scatter(1, labels[:, None], -math.inf).amax(1)


@pytest.mark.parametrize(
    ("norm", "epsilon", "low", "high"), [("linf", 0.05, 0, 1), ("l2", 0.1, 0.4, 0.6)], ids=["linf", "l2"]
)
def test_a_linear_model_is_broken_exactly_where_the_closed_form_says(
    norm: str, epsilon: float, low: float, high: float
):
    images = some_images(200, low=low, high=high)
    labels = answers(images)
    reach = exact_robustness(images, labels, norm, epsilon)
    assert 20 < (reach > 0).sum() < 180
    targeted = targeted_apgd_attack(norm=norm, epsilon=epsilon, steps=100, targets=CLASSES - 1)
    clear = reach.abs() > 0.02
    assert ((run([targeted], images, labels).survived == (reach <= 0)) | ~clear).all()
    for name, attack in attack_builders(norm, epsilon).items():
        survived = run([attack], images, labels).survived
        assert survived[reach < -1e-4].all(), f"{name} broke what cannot be broken"


# APGD


# Square


# Bad input


def probabilities(images: Tensor) -> Tensor:
    return Linear()(images).softmax(1)


def few_classes(count: int) -> Callable[[Tensor], Tensor]:
    return lambda images: Linear()(images)[:, :count]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": some_images() + 0.5}, r"images range from 0\.\d+ to 1\.\d+: must lie in \[0, 1\]"),
        ({"images": some_images() - 0.5}, r"images range from -0\.\d+"),
        ({"images": torch.full((12, *SHAPE), math.nan)}, "images range from nan"),
        ({"images": some_images()[0]}, r"\(2, 6, 6\).*must be \(N, C, H, W\)"),
        ({"images": torch.zeros((0, *SHAPE))}, r"\(0, 2, 6, 6\)"),
        ({"images": torch.zeros((12, *SHAPE), dtype=torch.uint8)}, "uint8.*floating"),
        ({"labels": torch.full((12,), CLASSES)}, "labels range from 5 to 5: the model has classes 0 to 4"),
        ({"labels": torch.full((12,), -1)}, "labels range from -1 to -1"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"\(3,\); must be one per image, \(12,\)"),
        ({"logits": probabilities}, "returns probabilities.*needs logits"),
        (
            {"logits": few_classes(3), "attacks": [targeted_apgd_attack(norm="linf", epsilon=0.1)]},
            "targeted DLR loss needs at least 4 classes: the model has 3",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_worst_case_refuses_what_would_make_its_number_meaningless(changes: dict, message: str):
    given = {
        "logits": Linear(),
        "images": some_images(),
        "labels": torch.zeros(12, dtype=torch.long),
        "attacks": [],
        "generator": seeded(),
    }
    with pytest.raises(InputError, match=message):
        worst_case(**{**given, **changes})


def test_logits_that_are_not_finite_fail_the_trial():
    with pytest.raises(TrialFailed, match="not finite"):
        worst_case(lambda x: Linear()(x) / 0, some_images(), torch.zeros(12).long(), [], generator=seeded())


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (pgd_attack, {"norm": "linf", "epsilon": 1.5, "steps": 5}, "epsilon = 1.5: must be at least 0 and at most 1"),
        (square_attack, {"norm": "linf", "epsilon": -0.1}, "epsilon = -0.1: must be a finite number, at least 0"),
        (apgd_attack, {"norm": "l2", "epsilon": math.inf}, "epsilon = inf"),
        (apgd_attack, {"norm": "l2", "epsilon": math.nan}, "epsilon = nan"),
        (fgsm_attack, {"norm": "linff", "epsilon": 0.1}, "unknown norm 'linff': did you mean 'linf'"),
        (pgd_attack, {"norm": "l2", "epsilon": 1.0, "steps": 0}, "steps = 0: must be at least 1"),
        (pgd_attack, {"norm": "l2", "epsilon": 1.0, "steps": 1, "restarts": 0}, "restarts = 0"),
        (square_attack, {"norm": "l2", "epsilon": 1.0, "queries": 0}, "queries = 0"),
        (targeted_apgd_attack, {"norm": "l2", "epsilon": 1.0, "targets": 0}, "targets = 0"),
        (targeted_pgd_attack, {"norm": "l2", "epsilon": 1.0, "targets": 0}, "targets = 0"),
        (targeted_pgd_attack, {"norm": "linf", "epsilon": 0.1, "steps": 0}, "steps = 0"),
        (ensemble, {"norm": "linf", "epsilon": 2.0}, "epsilon = 2.0"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),  # a function's address differs between workers
)
def test_attacks_refuse_options_out_of_range(build: Callable[..., object], options: dict, message: str):
    with pytest.raises(InputError, match=message):
        build(**options)


# References: other libraries' attacks on the same trained models, with the same steps, restarts and budgets


class Target(NamedTuple):
    """A trained model and the images that it is judged on."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    epsilons: dict[str, float]


class Trained(NamedTuple):
    """A model's training, and the budgets that leave it some of its accuracy."""

    dataset: str
    defended: bool
    width: int
    epochs: int
    train_size: int
    size: int
    """Images that the attacks are compared on."""
    linf: float
    """Judging budget; what the defended train with as well."""
    l2: float


TRAINED = {
    "digits-undefended": Trained("digits", False, 16, 10, 1200, 200, linf=0.1, l2=0.6),
    "digits-pgd": Trained("digits", True, 16, 12, 1200, 200, linf=0.2, l2=1.0),
    "mnist-undefended": Trained("mnist", False, 8, 2, 6000, 200, linf=0.08, l2=1.5),
    "mnist-pgd": Trained("mnist", True, 8, 4, 6000, 200, linf=0.15, l2=2.0),
}


def small_network(width: int, pixels: int) -> nn.Sequential:
    side = pixels // 4
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * side**2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(trained: Trained, split: Split) -> nn.Sequential:
    """Train by Adam on the clean images, or on PGD images of a budget that grows over the first half of the epochs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_network(trained.width, split.images.shape[-1])
    generator = seeded()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(trained.epochs):
        epsilon = trained.linf * min(1, 2 * (epoch + 1) / trained.epochs)
        for chosen in torch.randperm(trained.train_size, generator=generator).split(128):
            images, labels = split.images[chosen], split.labels[chosen]
            if trained.defended:
                with frozen(model):
                    loss = cross_entropy_loss(model, labels)
                    images = pgd(loss, images, norm=NORMS["linf"], epsilon=epsilon, steps=5, generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest, cache_dir: Path) -> Target:
    """Train the model of that name in `TRAINED`."""
    trained = TRAINED[request.param]
    data_dir = request.getfixturevalue("data_dir") if trained.dataset == "mnist" else None
    data = load_data(EvaluationConfig(dataset=trained.dataset), data_dir=data_dir, cache_dir=cache_dir)
    model = train(trained, data.train)
    # Cloned: the loader's tensors are memory-mapped and shared.
    images, labels = (field[: trained.size].clone() for field in data.validation)
    assert (model(images).argmax(1) == labels).double().mean() > 0.8
    return Target(model, images, labels, {"linf": trained.linf, "l2": trained.l2})


on_trained_models = pytest.mark.parametrize(
    "target",
    [
        pytest.param(name, marks=[pytest.mark.mnist, pytest.mark.slow] if trained.dataset == "mnist" else ())
        for name, trained in TRAINED.items()
    ],
    indirect=True,
)

Reference = Callable[[Target, str, int], Tensor]
"""(target, norm, seed) to the perturbed images of another library."""


def torchattacks(name: str, **options: object) -> Reference:
    """Run one attack of torchattacks, whose own autoattack uses other steps than the official one."""

    def perturb(target: Target, norm: str, seed: int) -> Tensor:
        import torchattacks

        epsilon = target.epsilons[norm]

        if name == "PGD":
            build = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
            attack = build(target.model, eps=epsilon, alpha=2.5 * epsilon / 20, steps=20)
        else:
            norm_name = {"linf": "Linf", "l2": "L2"}[norm]
            attack = getattr(torchattacks, name)(target.model, norm=norm_name, eps=epsilon, seed=seed, **options)
        return attack(target.images, target.labels)

    return perturb


def foolbox(name: str, **options: object) -> Reference:
    """Run one attack of foolbox."""

    def perturb(target: Target, norm: str, seed: int) -> Tensor:
        import foolbox

        model = foolbox.PyTorchModel(target.model, bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, {"linf": "Linf", "l2": "L2"}[norm] + name)(**options)
        return attack(model, target.images, target.labels, epsilons=target.epsilons[norm])[1]

    return perturb


def reference_survivors(reference: Reference, target: Target, norm: str, *, seed: int = 0) -> Tensor:
    """Return where (N,) a model is right when clean and on the reference's images, in the same ball and [0, 1]."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        perturbed = reference(target, norm, seed)
    assert (sizes(norm, perturbed - target.images) <= target.epsilons[norm] + 1e-5).all()
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    right = [target.model(images).argmax(1) == target.labels for images in (target.images, perturbed)]
    return right[0] & right[1]


def survivors(attacks: list[Attack], target: Target, *, seed: int = 0) -> Tensor:
    return worst_case(target.model, target.images, target.labels, attacks, generator=seeded(seed)).survived


class Compared(NamedTuple):
    """One of our attacks beside another library's."""

    build: Callable[..., Attack]
    options: dict[str, int]
    reference: Reference
    restarts: int = 1
    """For both sides; luck in a single random start moves more images than the limit."""


COMPARED = {
    "fgsm-foolbox": Compared(fgsm_attack, {}, foolbox("FastGradientAttack")),
    "pgd-foolbox": Compared(pgd_attack, {"steps": 20}, foolbox("PGD", rel_stepsize=2.5 / 20, steps=20), restarts=4),
    "pgd-torchattacks": Compared(pgd_attack, {"steps": 20}, torchattacks("PGD"), restarts=4),
    "apgd-ce": Compared(apgd_attack, {"steps": 30}, torchattacks("APGD", steps=30), restarts=4),
    "apgd-t": Compared(targeted_apgd_attack, {"steps": 20}, torchattacks("APGDT", steps=20)),
    "square": Compared(square_attack, {"queries": 300}, torchattacks("Square", n_queries=300), restarts=3),
}


@on_trained_models
@norms
@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.filterwarnings("ignore")
def test_no_attack_is_weaker_than_another_library_s(target: Target, norm: str, name: str):
    """Compare robust accuracies, which differ by at most 1 point."""
    build, options, reference, restarts = COMPARED[name]
    if restarts > 1:
        options = {**options, "restarts": restarts}
    ours = survivors([build(norm=norm, epsilon=target.epsilons[norm], **options)], target)
    theirs = torch.stack([reference_survivors(reference, target, norm, seed=seed) for seed in range(restarts)]).all(0)
    assert ours.sum() <= theirs.sum() + len(ours) / 100


@pytest.mark.parametrize("target", ["digits-pgd"], indirect=True)
@norms
@pytest.mark.filterwarnings("ignore")
def test_apgd_from_the_same_start_ends_as_torchattacks_does(target: Target, norm: str, monkeypatch: pytest.MonkeyPatch):
    right = target.model(target.images).argmax(1) == target.labels
    target = target._replace(images=target.images[right], labels=target.labels[right])

    class SameStart(type(NORMS[norm])):
        def random_start(self, images: Tensor, epsilon: norms_module.Budget, generator: torch.Generator) -> Tensor:
            torch.manual_seed(0)
            return 2 * torch.rand(images.shape) - 1 if norm == "linf" else torch.randn(images.shape)

    with torch.random.fork_rng():
        monkeypatch.setitem(NORMS, norm, SameStart())
        ours = survivors([apgd_attack(norm=norm, epsilon=target.epsilons[norm], steps=100)], target)
    assert torch.equal(ours, reference_survivors(torchattacks("APGD", steps=100), target, norm))


@pytest.mark.slow
@on_trained_models
@norms
@pytest.mark.filterwarnings("ignore")
def test_the_full_set_is_not_weaker_than_the_reference_s_at_the_official_iterations(target: Target, norm: str):
    """Allow a difference of one image, which either side loses or wins by its seed."""
    ours = survivors(ensemble(norm=norm, epsilon=target.epsilons[norm], queries=500), target)
    references = [
        torchattacks("APGD", steps=100),
        torchattacks("APGDT", steps=100),
        torchattacks("Square", n_queries=500),
    ]
    theirs = torch.stack([reference_survivors(reference, target, norm) for reference in references]).all(0)
    assert ours.sum() <= theirs.sum() + 1
