from __future__ import annotations

import dataclasses

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from trainer import oracle as oracle_module
from trainer.config import InputError
from trainer.oracle import ABSTAINS, RECIPES, ROLES, Contrast, Oracle, augment, build_oracle, half, train_oracle


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.images[:, None] / 16, dtype=torch.float32), torch.tensor(bunch.target)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Says(torch.nn.Module):
    """Always gives the same classes."""

    def __init__(self, *classes: int) -> None:
        super().__init__()
        self.logits = torch.nn.functional.one_hot(torch.tensor(classes), 10).float()

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[: len(images)]


def test_answers_only_where_all_members_agree() -> None:
    oracle = Oracle([Says(1, 2, 3), Says(1, 2, 4), Says(1, 5, 3)])
    assert oracle.label(torch.zeros(3, 1, 8, 8)).tolist() == [1, ABSTAINS, ABSTAINS]
    assert oracle.label(torch.zeros(0, 1, 8, 8)).tolist() == []


def test_quality_counts_accuracy_where_it_answers() -> None:
    oracle = Oracle([Says(1, 2, 3, 4), Says(1, 2, 3, 5)])
    quality = oracle.quality(torch.zeros(4, 1, 8, 8), torch.tensor([1, 2, 0, 4]))
    assert (quality.accuracy, quality.coverage, quality.size) == (pytest.approx(2 / 3), 0.75, 4)


@pytest.mark.parametrize("role", ROLES)
def test_learns_digits_it_has_not_seen(digits: tuple[Tensor, Tensor], role: str) -> None:
    images, labels = digits
    oracle = train_oracle("digits", role, images[:1200], labels[:1200], classes=10, seed=0)
    quality = oracle.quality(images[1200:], labels[1200:])
    assert quality.accuracy > 0.93
    assert quality.coverage > 0.8


def test_training_is_deterministic_and_leaves_the_global_generator_alone(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "digits", dataclasses.replace(RECIPES["digits"], epochs=2))
    images, labels = digits[0][:200], digits[1][:200]
    weights = []
    for _ in range(2):
        state = torch.get_rng_state()
        trained = train_oracle("digits", "judge", images, labels, classes=10, seed=3)
        weights.append(trained.state_dict())
        assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_state_round_trips(digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "digits", dataclasses.replace(RECIPES["digits"], epochs=1))
    images, labels = digits[0][:200], digits[1][:200]
    trained = train_oracle("digits", "teacher", images, labels, classes=10, seed=0)
    again = build_oracle("digits", "teacher", (1, 8, 8), 10)
    again.load_state_dict(trained.state_dict())
    assert torch.equal(trained.label(images), again.label(images))


def test_roles_share_neither_images_nor_architecture() -> None:
    indices = [set(range(101)[half(101, role)]) for role in ROLES]
    assert indices[0].isdisjoint(indices[1])
    assert set.union(*indices) == set(range(101))
    shapes = [[tuple(p.shape) for p in build_oracle("mnist", role, (1, 28, 28), 10).parameters()] for role in ROLES]
    assert shapes[0] != shapes[1]


def test_a_stroke_above_the_threshold_reads_like_full_ink() -> None:
    stroke = torch.zeros(1, 1, 8, 8)
    stroke[..., 3] = 1
    assert torch.equal(Contrast(0.25)(0.3 * stroke), Contrast(0.25)(stroke))
    assert Contrast(0.25)(0.2 * stroke).sum() == 0


def test_stretched_range_ignores_brightness_and_contrast() -> None:
    images = torch.rand(3, 3, 8, 8, generator=generator())
    torch.testing.assert_close(Contrast(0)(0.2 + 0.5 * images), Contrast(0)(images))
    assert Contrast(0)(torch.full((1, 3, 8, 8), 0.4)).isfinite().all()


def test_augmentation_keeps_range_and_is_identity_without_limits() -> None:
    images = torch.rand(5, 1, 8, 8, generator=generator())
    still = dataclasses.replace(RECIPES["digits"], rotation=0, shear=0, scale=0, shift=0)
    torch.testing.assert_close(augment(images, still, generator()), images, atol=1e-5, rtol=0)
    moved = augment(images, RECIPES["digits"], generator())
    assert moved.min() >= 0
    assert moved.max() <= 1 + 1e-6
    assert not torch.allclose(moved, images, atol=0.1)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="'juge': did you mean 'judge'"):
        build_oracle("digits", "juge", (1, 8, 8), 10)
    with pytest.raises(InputError, match="'digit': did you mean 'digits'"):
        build_oracle("digit", "judge", (1, 8, 8), 10)
    assert oracle_module.recipe_for("mnist").thresholds == (0.12, 0.18, 0.24)
