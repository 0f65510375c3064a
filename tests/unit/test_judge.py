from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from trainer.errors import InputError
from trainer.invariance.augmentation import augment, draw_unevenly, regions
from trainer.invariance.judge import ABSTAINS, ROLES, Contrast, Judge, build_judge
from trainer.invariance.judge_training import train_judge, training_half
from trainer.invariance.recipes import RECIPES, UnevenInk, recipe_for

EVEN = UnevenInk(faded=0, missing=0, pale=0, specks=0)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.images[:, None] / 16, dtype=torch.float32), torch.tensor(bunch.target)


@pytest.fixture(scope="module", params=ROLES)
def trained(digits: tuple[Tensor, Tensor], request: pytest.FixtureRequest) -> Judge:
    """Train an ensemble of each role, which has not seen the digits from 1200 on."""
    images, labels = digits
    return train_judge("digits", request.param, images[:1200], labels[:1200], classes=10, seed=0)


def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for no more steps than the recipe's epochs make."""
    monkeypatch.setattr(sys.modules[train_judge.__module__], "_LEAST_STEPS", 10)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Says(torch.nn.Module):
    """Always gives the same classes, as good as certain."""

    def __init__(self, *classes: int) -> None:
        super().__init__()
        self.logits = 50 * torch.nn.functional.one_hot(torch.tensor(classes), 10).float()

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[: len(images)]


def test_answers_only_where_its_members_together_are_confident() -> None:
    members: list[torch.nn.Module] = [Says(1, 2, 3), Says(1, 2, 4), Says(1, 5, 3)]
    assert Judge(members, confidence=0.6).label(torch.zeros(3, 1, 8, 8)).tolist() == [1, 2, 3]
    assert Judge(members, confidence=0.7).label(torch.zeros(3, 1, 8, 8)).tolist() == [1, ABSTAINS, ABSTAINS]
    assert Judge(members, confidence=0.6).label(torch.zeros(0, 1, 8, 8)).tolist() == []


def test_members_that_all_agree_are_not_believed_if_all_doubt() -> None:
    class Doubts(Says):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) / 50

    assert Judge([Doubts(1), Doubts(1)], confidence=0.6).label(torch.zeros(1, 1, 8, 8)).tolist() == [ABSTAINS]


def test_quality_counts_accuracy_where_it_answers() -> None:
    judge = Judge([Says(1, 2, 3, 4), Says(1, 2, 3, 5)], confidence=0.6)
    quality = judge.quality(torch.zeros(4, 1, 8, 8), torch.tensor([1, 2, 0, 4]))
    assert (quality.accuracy, quality.coverage, quality.size) == (pytest.approx(2 / 3), 0.75, 4)


def test_learns_digits_it_has_not_seen(trained: Judge, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    quality = trained.quality(images[1200:], labels[1200:])
    assert quality.accuracy > 0.95
    assert quality.coverage > 0.8


def test_reads_a_digit_whose_half_is_faded(trained: Judge, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits[0][1200:].clone(), digits[1][1200:]
    images[:, :, :4] *= 0.4
    quality = trained.quality(images, labels)
    assert quality.accuracy > 0.92
    assert quality.coverage > 0.6


def test_sees_past_pale_clutter(trained: Judge, digits: tuple[Tensor, Tensor]) -> None:
    """Add clutter that a threshold makes as black as ink: strips of another digit."""
    images, labels = digits[0][1200:], digits[1][1200:]
    strips = torch.zeros_like(images)
    strips[..., 6:] = 0.3 * (images.roll(1, 0)[..., 6:] > 0.3)
    quality = trained.quality(torch.maximum(images, strips), labels)
    assert quality.accuracy > 0.94
    assert quality.coverage > 0.6


def test_training_is_deterministic_and_leaves_the_global_generator_alone(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "digits", dataclasses.replace(RECIPES["digits"], epochs=1, uneven=UnevenInk()))
    few_steps(monkeypatch)
    images, labels = digits[0][:200], digits[1][:200]
    weights = []
    for _ in range(2):
        state = torch.get_rng_state()
        trained = train_judge("digits", "judge", images, labels, classes=10, seed=3)
        weights.append(trained.state_dict())
        assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_state_round_trips(digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "digits", dataclasses.replace(RECIPES["digits"], epochs=1))
    few_steps(monkeypatch)
    images, labels = digits[0][:200], digits[1][:200]
    trained = train_judge("digits", "teacher", images, labels, classes=10, seed=0)
    again = build_judge("digits", "teacher", (1, 8, 8), 10)
    again.load_state_dict(trained.state_dict())
    assert torch.equal(trained.label(images), again.label(images))


def test_roles_share_neither_images_nor_architecture() -> None:
    indices = [set(range(101)[training_half(101, role)]) for role in ROLES]
    assert indices[0].isdisjoint(indices[1])
    assert set.union(*indices) == set(range(101))
    shapes = [[tuple(p.shape) for p in build_judge("mnist", role, (1, 28, 28), 10).parameters()] for role in ROLES]
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


def test_uneven_drawing_keeps_range_and_is_identity_without_limits() -> None:
    images = torch.rand(50, 1, 28, 28, generator=generator())
    assert torch.equal(draw_unevenly(images, EVEN, generator()), images)
    drawn = draw_unevenly(images, UnevenInk(), generator())
    assert torch.equal(drawn, draw_unevenly(images, UnevenInk(), generator()))
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert ((drawn - images).abs() > 0.05).flatten(1).any(1).float().mean() > 0.8


def test_fading_leaves_some_of_all_ink_and_adds_none() -> None:
    images = torch.rand(50, 1, 28, 28, generator=generator())
    drawn = draw_unevenly(images, dataclasses.replace(EVEN, faded=0.9, strength=0.25), generator())
    assert (drawn <= images).all()
    assert (drawn >= 0.25 * images - 1e-6).all()
    assert (drawn < 0.5 * images).any()


def test_what_shines_through_is_pale_and_comes_from_another_image() -> None:
    images = torch.zeros(50, 1, 28, 28)
    images[::2, ..., :14], images[1::2, ..., 14:] = 1, 1
    drawn = draw_unevenly(images, dataclasses.replace(EVEN, pale=0.5, pale_strength=0.3), generator())
    assert torch.equal(drawn[images == 1], images[images == 1])
    clutter = drawn[images == 0]
    assert 0.2 < clutter.max() <= 0.3


def test_specks_are_full_ink_and_what_is_missing_leaves_none() -> None:
    images = torch.zeros(50, 1, 28, 28)
    images[::2, ..., :14], images[1::2, ..., 14:] = 1, 1
    speckled = draw_unevenly(images, dataclasses.replace(EVEN, specks=0.1), generator())
    assert 0 < (speckled[images == 0] == 1).float().mean() < 0.1
    broken = draw_unevenly(images, dataclasses.replace(EVEN, missing=0.1), generator())
    assert 0 < (broken[images == 1] == 0).float().mean() < 0.1


def test_regions_take_their_share() -> None:
    share = torch.tensor([0.0, 0.1, 0.5, 1.0]).repeat_interleave(100)[:, None, None, None]
    taken = regions(share, torch.Size([28, 28]), generator()).view(4, 100, -1).mean((1, 2))
    assert taken[0] == 0
    assert taken[3] == 1
    torch.testing.assert_close(taken[1:3], torch.tensor([0.1, 0.5]), atol=0.03, rtol=0)


def test_only_members_that_see_strength_learn_from_uneven_ink(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPES["digits"], epochs=1, thresholds=(0.25, 0.0))
    few_steps(monkeypatch)
    weights = []
    for uneven in (None, UnevenInk()):
        monkeypatch.setitem(RECIPES, "digits", dataclasses.replace(recipe, uneven=uneven))
        judge = train_judge("digits", "judge", digits[0][:200], digits[1][:200], classes=10, seed=0)
        weights.append([next(member.parameters()) for member in judge.members])
    assert torch.equal(weights[0][0], weights[1][0])
    assert not torch.equal(weights[0][1], weights[1][1])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="'juge': did you mean 'judge'"):
        build_judge("digits", "juge", (1, 8, 8), 10)
    with pytest.raises(InputError, match="'digit': did you mean 'digits'"):
        build_judge("digit", "judge", (1, 8, 8), 10)
    assert recipe_for("mnist") is RECIPES["mnist"]
