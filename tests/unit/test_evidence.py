"""Evidence against a meaningless attack: intervals, curves, and models that are broken on purpose."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn

from trainer.attacks.evidence import (
    Curve,
    Evidence,
    accuracy_curve,
    gather_evidence,
    largest_epsilon,
    noise_attack,
    transfer_attack,
    white_box,
    wilson_interval,
)
from trainer.attacks.gradient import cross_entropy_loss, pgd, pgd_attack
from trainer.attacks.logits import Logits, frozen
from trainer.attacks.norms import NORMS
from trainer.attacks.worst_cases import worst_case
from trainer.data.datasets import Data
from trainer.errors import InputError

EPSILONS = {"linf": 0.15, "l2": 0.8}
SIZE = 150

norms = pytest.mark.parametrize("norm", NORMS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train(data: Data, norm: str | None) -> nn.Sequential:
    """Train a small network on the digits, against PGD in `norm` if given."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    generator = seeded()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(25):
        for chosen in torch.randperm(len(data.train.images), generator=generator).split(128):
            images, labels = data.train.images[chosen], data.train.labels[chosen]
            if norm:
                with frozen(model):
                    loss = cross_entropy_loss(model, labels)
                    images = pgd(loss, images, norm=NORMS[norm], epsilon=EPSILONS[norm], steps=5, generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def undefended(digits: Data) -> nn.Sequential:
    return train(digits, None)


@pytest.fixture(scope="module")
def defended(digits: Data) -> dict[str, nn.Sequential]:
    return {norm: train(digits, norm) for norm in NORMS}


@pytest.fixture(scope="module")
def images(digits: Data) -> Tensor:
    return digits.validation.images[:SIZE].clone()


@pytest.fixture(scope="module")
def labels(digits: Data) -> Tensor:
    return digits.validation.labels[:SIZE].clone()


Gather = Callable[..., Evidence]


@pytest.fixture
def gather(images: Tensor, labels: Tensor) -> Gather:
    """Gather the evidence on a model by short attacks."""

    def run(logits: Logits, norm: str = "linf", rows: Any = slice(None), **options: object) -> Evidence:
        options = {"epsilon": EPSILONS[norm], "steps": 20, "queries": 200, "generator": seeded(), **options}
        return gather_evidence(logits, images[rows], labels[rows], norm=norm, **options)

    return run


# Wilson's interval


@given(n=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_is_that_of_scipy(n: int, share: float, confidence: float):
    successes = round(share * n)
    ours = wilson_interval(successes, n, confidence=confidence)
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= successes / n <= ours.high <= 1


def test_wilson_solves_the_score_equation():
    """Check that both ends are 1.96 standard errors away, each measured with its own variance."""
    for bound in wilson_interval(30, 200):
        error = math.sqrt(bound * (1 - bound) / 200)
        assert abs(30 / 200 - bound) / error == pytest.approx(1.959964, abs=1e-5)


@given(successes=st.integers(0, 100))
def test_wilson_is_symmetric_and_narrows(successes: int):
    interval, mirrored = wilson_interval(successes, 100), wilson_interval(100 - successes, 100)
    assert (interval.low, interval.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))
    wider = wilson_interval(successes, 100, confidence=0.99)
    assert wider.high - wider.low > interval.high - interval.low


def test_wilson_of_nothing_is_everything_and_of_nonsense_an_error():
    assert wilson_interval(0, 0) == (0, 1)
    with pytest.raises(InputError, match="7 successes of 5: must be from 0 to 5"):
        wilson_interval(7, 5)


# The curve


def test_the_area_of_known_curves():
    def area(*accuracies: float) -> float:
        return Curve((0.0, 0.1, 0.3), accuracies, accuracies).area

    assert area(1.0, 1.0, 1.0) == pytest.approx(1)
    assert area(0.0, 0.0, 0.0) == 0
    assert area(1.0, 0.5, 0.0) == pytest.approx((0.1 * 0.75 + 0.2 * 0.25) / 0.3)


@norms
def test_the_curve_begins_at_clean_accuracy_falls_and_is_the_worst_case_over_smaller_budgets(
    norm: str, undefended: nn.Sequential, images: Tensor, labels: Tensor
):
    epsilons = [EPSILONS[norm] * share for share in (0.2, 0.5, 1, 3)]
    options = {"attacks_at": white_box(norm, classes=10), "steps": 10}
    curve = accuracy_curve(undefended, images, labels, epsilons=epsilons, **options, generator=seeded())
    assert curve.epsilons == (0.0, *epsilons)
    assert curve.alone[0] == (undefended(images).argmax(1) == labels).double().mean()
    assert list(curve.accuracies) == sorted(curve.accuracies, reverse=True)
    assert all(nested <= alone for nested, alone in zip(curve.accuracies, curve.alone, strict=True))
    assert curve.accuracies[-1] == 0
    assert curve == accuracy_curve(undefended, images, labels, epsilons=epsilons, **options, generator=seeded())


def test_a_wider_attack_that_fails_shows_in_alone_but_not_in_the_worst_case(
    undefended: nn.Sequential, images: Tensor, labels: Tensor
):
    """Build an attack that gives up beyond a budget of 0.1."""

    def timid(epsilon: float, steps: int) -> list:
        return [pgd_attack(norm="linf", epsilon=epsilon, steps=steps)] if epsilon <= 0.1 else []

    curve = accuracy_curve(
        undefended, images, labels, epsilons=[0.1, 0.2], attacks_at=timid, steps=10, generator=seeded()
    )
    assert curve.alone[2] == curve.alone[0]
    assert curve.accuracies[2] == curve.accuracies[1] < curve.accuracies[0]


@pytest.mark.parametrize("epsilons", [[], [0.0, 0.1], [0.2, 0.1], [0.1, 0.1]], ids=str)
def test_budgets_of_a_curve_must_rise_from_above_0(epsilons: list[float], undefended: nn.Sequential, images: Tensor):
    with pytest.raises(InputError, match="must be above 0 and rise"):
        accuracy_curve(
            undefended,
            images,
            torch.zeros(SIZE).long(),
            epsilons=epsilons,
            attacks_at=white_box("linf", classes=10),
            steps=1,
            generator=seeded(),
        )


# Rival attacks


@norms
def test_noise_and_transfer_stay_in_the_ball_and_do_no_better_than_white_box(
    norm: str, undefended: nn.Sequential, defended: dict[str, nn.Sequential], images: Tensor, labels: Tensor
):
    epsilon = EPSILONS[norm]
    rivals = {
        "noise": noise_attack(norm=norm, epsilon=epsilon, draws=5),
        "transfer": transfer_attack(undefended, norm=norm, epsilon=epsilon, steps=10),
        "white box": white_box(norm, classes=10)(epsilon, 20)[1],
    }
    survivors = {}
    for name, attack in rivals.items():
        result = worst_case(defended[norm], images, labels, [attack], generator=seeded())
        assert (NORMS[norm].size(result.images - images) <= epsilon + 1e-5).all()
        survivors[name] = int(result.survived.sum())
    assert survivors["white box"] < survivors["transfer"] < survivors["noise"]


@pytest.mark.parametrize(("norm", "expected"), [("linf", 1.0), ("l2", 8.0)])
def test_the_largest_budget_spans_the_cube_of_images(norm: str, expected: float):
    assert largest_epsilon(norm, torch.rand(5, 1, 8, 8)) == pytest.approx(expected)


# Healthy models


@norms
def test_healthy_models_give_no_warning(
    norm: str, undefended: nn.Sequential, defended: dict[str, nn.Sequential], images: Tensor, gather: Gather
):
    for model in (undefended, defended[norm]):
        evidence = gather(model, norm, undefended=undefended)
        assert evidence.warnings == []
        assert evidence.size == len(images)
        assert evidence.white_box_accuracy == evidence.curve.alone[evidence.curve.epsilons.index(EPSILONS[norm])]
        assert evidence.large_epsilon_accuracy == 0
    assert 0.2 < evidence.white_box_accuracy < evidence.clean_accuracy


def test_evidence_repeats_itself_and_does_without_a_twin(undefended: nn.Sequential, gather: Gather):
    first, second = gather(undefended), gather(undefended)
    assert first == second
    assert first.transfer_accuracy is None


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_have_evidence_too(classes: int, undefended: nn.Sequential, gather: Gather, labels: Tensor):
    """Neither has a targeted attack, whose loss compares four logits."""
    few = [name for name in range(len(labels)) if labels[name] < classes]
    evidence = gather(lambda images: undefended(images)[:, :classes], rows=few)
    assert evidence.size == len(few)
    assert evidence.white_box_accuracy < evidence.clean_accuracy


# Models broken on purpose: what each check says


def quantised(model: nn.Module) -> Logits:
    """Round the input, which lets no gradient through."""
    return lambda images: model((images * 3).round() / 3)


def huge(model: nn.Module) -> Logits:
    """Return logits so large that float32 rounds their softmax to 0 and 1."""
    return lambda images: model(images) * 1e4


def randomised(model: nn.Module) -> Logits:
    """Add other noise to the input at every call."""
    generator = seeded()
    return lambda images: model(images + 0.3 * torch.randn(images.shape, generator=generator))


@pytest.mark.parametrize(
    ("broken", "messages"),
    [
        (
            quantised,
            [
                r"gradient masking suspected: 100\.0% of the images have no gradient",
                r"gradient masking suspected: accuracy 0\.\d+ is left at an unbounded budget",
                r"gradient masking suspected: Square leaves 0\.\d+, the white-box attack 0\.\d+ \(interval",
                r"gradient masking suspected: transfer from an undefended baseline leaves",
            ],
        ),
        (huge, [r"gradient masking suspected: \d+\.\d% of the images have no gradient"]),
        (randomised, [r"randomised output: 100\.0% of the images get other logits when asked again"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_model_broken_on_purpose_trips_the_matching_check(
    broken: Callable[[nn.Module], Logits], messages: list[str], undefended: nn.Sequential, gather: Gather
):
    warnings = gather(broken(undefended), undefended=undefended).warnings
    for message in messages:
        assert any(matches(message, warning) for warning in warnings), f"{message!r} not in {warnings}"


def matches(pattern: str, text: str) -> bool:
    import re

    return re.match(pattern, text) is not None


def test_probabilities_are_refused(undefended: nn.Sequential, gather: Gather):
    with pytest.raises(InputError, match="returns probabilities"):
        gather(lambda images: undefended(images).softmax(1))


def test_an_attack_that_is_not_converged_is_told(defended: dict[str, nn.Sequential], gather: Gather):
    """Take steps far too small for their number: twice as many break more."""

    def slow(epsilon: float, steps: int) -> list:
        return [pgd_attack(norm="linf", epsilon=epsilon, steps=steps, step_size=0.015)]

    warnings = gather(defended["linf"], attacks_at=slow, steps=8, epsilon=0.25).warnings
    assert any(matches("attack not converged: twice the iterations leave", warning) for warning in warnings)


HEALTHY = Evidence(
    size=1000,
    clean_accuracy=0.9,
    curve=Curve((0.0, 0.1, 0.2), (0.9, 0.6, 0.2), (0.9, 0.6, 0.2)),
    white_box_accuracy=0.6,
    doubled_accuracy=0.59,
    large_epsilon_accuracy=0.0,
    square_accuracy=0.7,
    noise_accuracy=0.88,
    transfer_accuracy=0.8,
    zero_gradient_share=0.01,
    unstable_share=0.0,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doubled_accuracy": 0.56}, r"attack not converged: .* 0\.560, below the interval 0\.569 to 0\.630 of 0\.600"),
        ({"square_accuracy": 0.56}, "gradient masking suspected: Square leaves 0.560"),
        ({"noise_accuracy": 0.56}, "gradient masking suspected: random noise leaves 0.560"),
        ({"transfer_accuracy": 0.56}, "gradient masking suspected: transfer from an undefended baseline leaves 0.560"),
        ({"zero_gradient_share": 0.06}, r"gradient masking suspected: 6\.0% of the images have no gradient"),
        ({"large_epsilon_accuracy": 0.001}, "gradient masking suspected: accuracy 0.001 is left at an unbounded"),
        ({"unstable_share": 0.001}, r"randomised output: 0\.1%"),
        ({"clean_accuracy": 0.901}, r"wrong at epsilon 0: accuracy 0\.9000 .* clean accuracy 0\.9010"),
        (
            {"curve": Curve((0.0, 0.1, 0.2), (0.9, 0.6, 0.6), (0.9, 0.6, 0.64))},
            r"gradient masking suspected: accuracy rises from 0\.600 at 0\.1 to 0\.640 at 0\.2",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_number_has_its_own_warning(change: dict, message: str):
    assert HEALTHY.warnings == []
    (warning,) = dataclasses.replace(HEALTHY, **change).warnings
    assert matches(message, warning), warning


@pytest.mark.parametrize("name", ["doubled_accuracy", "square_accuracy", "noise_accuracy", "transfer_accuracy"])
def test_what_lies_within_the_interval_is_no_alarm(name: str):
    assert dataclasses.replace(HEALTHY, **{name: 0.575}).warnings == []
