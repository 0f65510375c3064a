"""Certified bounds: they hold everywhere in the ball, are exact where they can be, and agree with an exact solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from sklearn.datasets import load_digits
from torch import Tensor, nn

from trainer.attacks import worst_case
from trainer.attacks.gradient import pgd_attack
from trainer.errors import InputError
from trainer.models import Classifier, build_model
from trainer.objective.bounds import image_box, worst_margins
from trainer.objective.certificates import METHODS, certified
from trainer.objective.crown import crown_margins

MODELS = {"mlp": (1, 8, 8), "cnn": (1, 8, 8), "resnet18": (3, 8, 8)}


def classifier(architecture: str, seed: int = 0) -> Classifier:
    shape = MODELS[architecture]
    statistics = torch.full(shape[:1], 0.3), torch.full(shape[:1], 0.35)
    model = build_model(
        architecture, shape=shape, classes=10, embedding_size=16, mean=statistics[0], std=statistics[1], seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():  # slopes on either side of 0 and 1: PReLU is then neither rising nor convex
        if isinstance(layer, nn.PReLU):
            layer.weight.data = torch.rand(layer.weight.shape, generator=generator) * 2 - 0.5
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.uniform_(-0.2, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            layer.weight.data.uniform_(-1, 1, generator=generator)
    return model.double().eval()


def margins(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    logits = model(images).logits
    return logits.gather(1, labels[:, None]) - logits


def bounds_of(architecture: str) -> list[Callable[..., Tensor]]:
    return [worst_margins] if architecture == "resnet18" else [worst_margins, crown_margins]


CASES = [(architecture, bound) for architecture in MODELS for bound in bounds_of(architecture)]
every_bound = pytest.mark.parametrize(("architecture", "bound"), CASES, ids=[f"{a}-{b.__name__}" for a, b in CASES])


@every_bound
@settings(max_examples=5)
@given(seed=st.integers(0, 2**16), epsilon=st.floats(0, 0.3))
def test_they_hold_at_random_points_corners_and_the_worst_that_descent_finds(
    architecture: str, bound: Callable[..., Tensor], seed: int, epsilon: float
) -> None:
    model, generator = classifier(architecture, seed % 7), torch.Generator().manual_seed(seed)
    images = torch.rand(3, *MODELS[architecture], dtype=torch.float64, generator=generator)
    labels = torch.randint(10, (3,), generator=generator)
    box = image_box(images, epsilon)
    with torch.no_grad():
        bounded = bound(model, images, labels, epsilon)
    for draw in range(12):
        share = torch.rand(images.shape, dtype=torch.float64, generator=generator)
        share = share.round() if draw % 2 else share
        point = box.lower + share * (box.upper - box.lower)
        for _ in range(3 if draw < 4 else 0):  # down the sum of the margins, corner by corner
            point.requires_grad_()
            (slope,) = torch.autograd.grad(margins(model, point, labels).sum(), point)
            point = torch.where(slope > 0, box.lower, box.upper)
        with torch.no_grad():
            assert (margins(model, point, labels) - bounded).min() > -1e-9


@every_bound
def test_without_a_budget_they_are_the_margins(architecture: str, bound: Callable[..., Tensor]) -> None:
    model, images = classifier(architecture), torch.rand(4, *MODELS[architecture], dtype=torch.float64)
    labels = torch.arange(4)
    torch.testing.assert_close(bound(model, images, labels, 0.0), margins(model, images, labels))


def linear_model(classes: int = 3) -> Classifier:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    zero, one = torch.zeros(1), torch.ones(1)
    return Classifier(encoder, shape=(1, 4, 4), head=nn.Linear(5, classes), mean=zero, std=one).double().eval()


def test_crown_refuses_windows_that_overlap() -> None:
    """The entry that is chosen in one window would be missing among its neighbours'."""
    encoder, zero, one = nn.Sequential(nn.MaxPool2d(2, stride=1), nn.Flatten()), torch.zeros(1), torch.ones(1)
    model = Classifier(encoder, shape=(1, 4, 4), head=nn.Linear(9, 3), mean=zero, std=one)
    with pytest.raises(InputError, match="windows that do not overlap"):
        crown_margins(model, torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64), 0.1)


def test_crown_is_exact_for_affine_layers_and_an_interval_for_one() -> None:
    """The margin's weights are one matrix; its least value over a box stands in closed form."""
    model = linear_model()
    images = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    labels = torch.randint(3, (6,))
    encoder, box = model.encoder[1], image_box(images, 0.1)  # type: ignore[index]
    matrix = model.head.weight @ encoder.weight  # (K, 16)
    offset = model.head.weight @ encoder.bias + model.head.bias
    rows = matrix[labels][:, None, :] - matrix
    lower, upper = (end.flatten(1)[:, None, :] for end in box)
    exact = (rows.clamp(min=0) * lower + rows.clamp(max=0) * upper).sum(2) + offset[labels][:, None] - offset
    torch.testing.assert_close(crown_margins(model, images, labels, 0.1), exact)
    assert (worst_margins(model, images, labels, 0.1) <= exact + 1e-12).all()
    head, zero, one = nn.Linear(16, 3), torch.zeros(1), torch.ones(1)
    model = Classifier(nn.Flatten(), shape=(1, 4, 4), head=head, mean=zero, std=one).double()
    rows, bias = model.head.weight[labels][:, None, :] - model.head.weight, model.head.bias
    exact = (rows.clamp(min=0) * lower + rows.clamp(max=0) * upper).sum(2) + bias[labels][:, None] - bias
    torch.testing.assert_close(worst_margins(model, images, labels, 0.1), exact)


def small_network(seed: int, *, side: int = 4, classes: int = 3) -> Classifier:
    """Return a network that an exact solver can bound."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(side**2, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)
        )
        head = nn.Linear(4, classes)
    mean, std = torch.tensor([0.4]), torch.tensor([0.5])
    return Classifier(encoder, shape=(1, side, side), head=head, mean=mean, std=std).double()


def exact_margin(model: Classifier, image: Tensor, label: int, other: int, epsilon: float) -> float:
    """Return the least logit difference over the ball, by mixed-integer programming (HiGHS; Tjeng et al. 2019)."""
    lower, upper = (end.flatten().numpy() for end in image_box(image, epsilon))
    layers = [each for each in model.encoder if isinstance(each, nn.Linear)]  # type: ignore[union-attr]
    columns, low, high, integer = len(lower), list(lower), list(upper), [0] * len(lower)
    rows: list[tuple[dict[int, float], float, float]] = []
    mean, std = model.mean.item(), model.std.item()
    scale, shift, inputs, box = 1 / std, -mean / std, list(range(columns)), ((lower - mean) / std, (upper - mean) / std)
    for layer in layers[:-1]:
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        centre, radius = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
        ends = weight @ centre + bias - abs(weight) @ radius, weight @ centre + bias + abs(weight) @ radius
        outputs = []
        for unit, (least, most) in enumerate(zip(*ends, strict=True)):
            out, switch = len(low), len(low) + 1
            low += [0, 0]
            high += [max(most, 0), 1]
            integer += [0, 1]
            terms = {column: weight[unit, place] * scale for place, column in enumerate(inputs)}
            constant = bias[unit] + (weight[unit].sum() * shift)
            minus = {column: -value for column, value in terms.items()}
            rows.append(({out: 1, **minus}, constant, np.inf))  # out >= z
            rows.append(({out: 1, switch: -least, **minus}, -np.inf, constant - least))  # out <= z - l (1 - s)
            rows.append(({out: 1, switch: -max(most, 0)}, -np.inf, 0))  # out <= u s
            outputs.append(out)
        inputs, scale, shift = outputs, 1.0, 0.0
        box = tuple(np.maximum(end, 0) for end in ends)
    last = layers[-1]
    difference = (model.head.weight[label] - model.head.weight[other]).detach().numpy()
    goal = np.zeros(len(low))
    goal[inputs] = difference @ last.weight.detach().numpy()
    constant = difference @ last.bias.detach().numpy() + (model.head.bias[label] - model.head.bias[other]).item()
    matrix = np.zeros((len(rows), len(low)))
    for row, (terms, _, _) in enumerate(rows):
        for column, value in terms.items():
            matrix[row, column] = value
    limits = LinearConstraint(matrix, [row[1] for row in rows], [row[2] for row in rows])
    solved = milp(goal, constraints=limits, bounds=Bounds(low, high), integrality=integer)
    assert solved.success
    return solved.fun + constant


@pytest.mark.parametrize("seed", range(3))
def test_they_lie_below_the_exact_optimum_and_crown_lies_nearer(seed: int) -> None:
    model = small_network(seed)
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    labels = model(images).logits.argmax(1)
    with torch.no_grad():
        interval, crown = (bound(model, images, labels, 0.05) for bound in (worst_margins, crown_margins))
    gaps = []
    for index in range(3):
        for other in set(range(3)) - {int(labels[index])}:
            exact = exact_margin(model, images[index : index + 1], int(labels[index]), other, 0.05)
            assert interval[index, other] <= exact + 1e-7
            assert crown[index, other] <= exact + 1e-7
            gaps.append((exact - interval[index, other].item(), exact - crown[index, other].item()))
    by_interval, by_crown = np.array(gaps).mean(0)
    assert by_crown <= by_interval + 1e-9


def test_on_trained_digits_they_certify_nothing_that_the_exact_optimum_breaks() -> None:
    """A trained network's bounds differ from a random one's: its units are decided, and its margins large."""
    digits: Any = load_digits()
    images = torch.from_numpy(digits.images / 16).unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    model, epsilon = small_network(0, side=8, classes=10), 0.02
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images).logits, labels).backward()
        optimizer.step()
    model.requires_grad_(False)
    right = torch.nonzero(model(images).logits.argmax(1) == labels).flatten()
    assert len(right) > 0.9 * len(labels)
    some = right[:: len(right) // 8][:8]
    bounds = {bound: bound(model, images[some], labels[some], epsilon) for bound in (worst_margins, crown_margins)}
    exact = torch.full((8, 10), math.inf, dtype=torch.float64)
    for row, index in enumerate(some):
        for other in set(range(10)) - {int(labels[index])}:
            exact[row, other] = exact_margin(model, images[index : index + 1], int(labels[index]), other, epsilon)
    others = exact.isfinite()
    for bound in bounds.values():
        assert (bound[others] <= exact[others] + 1e-7).all()
    robust, by_interval, by_crown = (
        int((each.where(others, torch.inf).amin(1) > 0).sum()) for each in (exact, *bounds.values())
    )
    assert by_interval <= by_crown <= robust
    assert by_crown > 0
    assert robust < 8  # so that a bound had something to get wrong


@pytest.mark.parametrize("architecture", MODELS)
def test_no_image_is_certified_that_an_attack_breaks(architecture: str) -> None:
    model = classifier(architecture).float()
    images = torch.rand(8, *MODELS[architecture], generator=torch.Generator().manual_seed(0))
    labels = model(images).logits.argmax(1)
    for epsilon in (0.0, 0.0005, 0.01):
        attack = pgd_attack(norm="linf", epsilon=epsilon, steps=10, restarts=1)
        found = worst_case(
            lambda batch: model(batch).logits, images, labels, [attack], generator=torch.Generator(), batch_size=8
        )
        for method in ("interval",) if architecture == "resnet18" else METHODS:
            assert not (certified(model, images, labels, epsilon, method=method) & ~found.survived).any()
    assert certified(model, images, labels, 0.0).all()


def test_what_has_no_bounds_is_refused_by_name() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    model = Classifier(
        nn.Sequential(nn.Flatten(), nn.Tanh()), shape=(1, 4, 4), head=nn.Linear(16, 3), mean=zero, std=one
    )
    images, labels = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    for bound in (worst_margins, crown_margins):
        with pytest.raises(InputError, match="Tanh"):
            bound(model, images, labels, 0.1)
    with pytest.raises(InputError, match="eval mode"):
        worst_margins(classifier("resnet18").train(), torch.rand(2, 3, 8, 8).double(), labels, 0.1)
    with pytest.raises(InputError, match="CROWN needs an encoder that is a sequence of layers, not ResNet"):
        crown_margins(classifier("resnet18"), torch.rand(2, 3, 8, 8).double(), labels, 0.1)
    with pytest.raises(InputError, match="method = 'exact': must be one of interval, crown"):
        certified(model, images, labels, 0.1, method="exact")
