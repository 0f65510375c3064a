from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from trainer.crowds import THRESHOLDS, UNCALIBRATED, Crowd
from trainer.errors import InputError
from trainer.invariance.augmentation import augment, black_and_white, draw_unevenly, regions
from trainer.invariance.judge import ABSTAINS, Contrast, Judge, Teacher, build_judge, build_teacher
from trainer.invariance.judge_training import train_ensemble, training_half, training_rows
from trainer.invariance.recipes import ANY, RECIPES, ROLES, UnevenInk, recipe_for

EVEN = UnevenInk(faded=0, missing=0, pale=0, specks=0)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.images[:, None] / 16, dtype=torch.float32), torch.tensor(bunch.target)


@pytest.fixture(scope="module")
def judge(digits: tuple[Tensor, Tensor]) -> Judge:
    """Train a judge, which has not seen the digits from 1200 on."""
    judge = build_judge("digits", (1, 8, 8), 10)
    train_ensemble(list(judge.members), "digits", "judge", digits[0][:1200], digits[1][:1200], seed=0)
    return judge


@pytest.fixture(scope="module")
def teacher(digits: tuple[Tensor, Tensor]) -> Teacher:
    teacher = build_teacher("digits", (1, 8, 8), 10)
    train_ensemble(list(teacher.members), "digits", "teacher", digits[0][:1200], digits[1][:1200], seed=0)
    return teacher


def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for no more steps than the recipe's epochs make."""
    monkeypatch.setattr(sys.modules[train_ensemble.__module__], "_LEAST_STEPS", 10)


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
    assert Teacher(members, confidence=0.6).label(torch.zeros(3, 1, 8, 8)).tolist() == [1, 2, 3]
    assert Teacher(members, confidence=0.7).label(torch.zeros(3, 1, 8, 8)).tolist() == [1, ABSTAINS, ABSTAINS]
    assert Teacher(members, confidence=0.6).label(torch.zeros(0, 1, 8, 8)).tolist() == []


def test_members_that_all_agree_are_not_believed_if_all_doubt() -> None:
    class Doubts(Says):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) / 50

    assert Teacher([Doubts(1), Doubts(1)], confidence=0.6).label(torch.zeros(1, 1, 8, 8)).tolist() == [ABSTAINS]


def doubtful(*rows: list[float]) -> torch.nn.Module:
    """Build a member that gives these probabilities to images in black and white, whatever they show."""

    class Gives(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor(rows).log()

    return Gives()


def test_quality_tells_of_the_whole_crowd() -> None:
    judge = Judge([doubtful([0.7, 0.2, 0.1], [0.4, 0.6, 0.0], [0.4, 0.3, 0.3])], (0.0,))
    quality = judge.quality(torch.zeros(3, 1, 8, 8), torch.tensor([0, 0, 2]), UNCALIBRATED)
    assert quality == (pytest.approx(1 / 3), pytest.approx((0.7 + 0.4 + 0.3) / 3), 3)


def learned(answers: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy and coverage of the teacher's answers."""
    answered = answers != ABSTAINS
    return (answers == labels)[answered].double().mean().item(), answered.double().mean().item()


def test_learns_digits_it_has_not_seen(judge: Judge, teacher: Teacher, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits[0][1200:], digits[1][1200:]
    accuracy, coverage = learned(teacher.label(images), labels)
    assert accuracy > 0.95
    assert coverage > 0.8
    quality = judge.quality(images, labels, UNCALIBRATED)
    assert quality.accuracy > 0.9
    assert quality.agreement > 0.7


def test_the_teacher_reads_a_digit_whose_half_is_faded(teacher: Teacher, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits[0][1200:].clone(), digits[1][1200:]
    images[:, :, :4] *= 0.4
    accuracy, coverage = learned(teacher.label(images), labels)
    assert accuracy > 0.92
    assert coverage > 0.6


def test_the_teacher_sees_past_pale_clutter(teacher: Teacher, digits: tuple[Tensor, Tensor]) -> None:
    """Add clutter that a threshold makes as black as ink: strips of another digit."""
    images, labels = digits[0][1200:], digits[1][1200:]
    strips = torch.zeros_like(images)
    strips[..., 6:] = 0.3 * (images.roll(1, 0)[..., 6:] > 0.3)
    accuracy, coverage = learned(teacher.label(torch.maximum(images, strips)), labels)
    assert accuracy > 0.94
    assert coverage > 0.6


def test_pale_ink_is_read_from_its_threshold_down(judge: Judge, digits: tuple[Tensor, Tensor]) -> None:
    """Ink at 0.3 is there for thresholds below it, and for those above there is nothing to read."""
    images = (digits[0][1200:1300] > 0.4).float()
    readings = judge.read(0.3 * images)
    assert (readings.thresholds, readings.ink) == (True, False)
    full, blank = judge.read(images).values, judge.read(torch.zeros_like(images)).values
    for at, threshold in enumerate(THRESHOLDS):
        expected = full if threshold < 0.3 else blank
        torch.testing.assert_close(readings.values[at], expected[at])


def test_a_crowd_of_one_threshold_reads_as_a_judge_does_there(judge: Judge, digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0][1200:1300]
    readings = judge.read(images).values
    for at in (3, 6, 9):
        crowd = Crowd("one", threshold=THRESHOLDS[at], concentration=1e5)
        torch.testing.assert_close(judge.shares(images, crowd), readings[at], atol=1e-4, rtol=0)
    torch.testing.assert_close(judge.shares(images, UNCALIBRATED), readings.mean(0))
    lapsing = judge.shares(images, dataclasses.replace(UNCALIBRATED, lapse=0.3))
    torch.testing.assert_close(lapsing, 0.7 * readings.mean(0) + 0.03)


def test_the_share_that_goes_by_strength_is_mixed_in() -> None:
    judge = Judge([doubtful([1.0, 0.0]), doubtful([0.0, 1.0])], (ANY, 0.0))
    crowd = dataclasses.replace(UNCALIBRATED, strength=0.25)
    torch.testing.assert_close(judge.shares(torch.rand(1, 1, 4, 4), crowd), torch.tensor([[0.75, 0.25]]))


def recipe_of(monkeypatch: pytest.MonkeyPatch, role: str, **changes: Any) -> None:
    """Have a role learn digits by a changed recipe, for no more steps than one epoch has."""
    few_steps(monkeypatch)
    recipe = dataclasses.replace(RECIPES[role]["digits"], **{"epochs": 1, **changes})
    monkeypatch.setitem(RECIPES[role], "digits", recipe)


def trained_briefly(role: str, digits: tuple[Tensor, Tensor], *, seed: int) -> Judge | Teacher:
    """Train one of the two on a few digits."""
    ensemble = {"judge": build_judge, "teacher": build_teacher}[role]("digits", (1, 8, 8), 10)
    train_ensemble(list(ensemble.members), "digits", role, digits[0][:200], digits[1][:200], seed=seed)
    return ensemble


def test_training_is_deterministic_and_leaves_the_global_generator_alone(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_of(monkeypatch, "judge", thresholds=(ANY, 0.0), uneven=UnevenInk())
    weights = []
    for _ in range(2):
        state = torch.get_rng_state()
        weights.append(trained_briefly("judge", digits, seed=3).state_dict())
        assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_judge_learns_from_a_sample_of_the_same_half() -> None:
    half, first, again, second = (training_rows(1001, "judge", seed=0, repeat=number) for number in (0, 1, 1, 2))
    assert torch.equal(half, torch.arange(0, 1001, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert set(first.tolist()) <= set(half.tolist())
    assert len(first) == len(half)
    # A sample with replacement leaves out a share of 1/e.
    assert len(first.unique()) / len(half) == pytest.approx(1 - math.exp(-1), abs=0.04)


def test_another_judge_is_another_ensemble(digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe_of(monkeypatch, "judge")
    judges = [build_judge("digits", (1, 8, 8), 10) for _ in range(3)]
    for judge, repeat in zip(judges, (0, 1, 0), strict=True):
        train_ensemble(list(judge.members), "digits", "judge", digits[0][:200], digits[1][:200], seed=0, repeat=repeat)
    first, other, again = (judge.read(digits[0][:50]).values for judge in judges)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.01)


def test_state_round_trips(digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe_of(monkeypatch, "judge")
    trained, again = trained_briefly("judge", digits, seed=0), build_judge("digits", (1, 8, 8), 10)
    again.load_state_dict(trained.state_dict())
    assert isinstance(trained, Judge)
    assert torch.equal(trained.read(digits[0][:50]).values, again.read(digits[0][:50]).values)


def test_roles_share_neither_images_nor_architecture() -> None:
    indices = [set(range(101)[training_half(101, role)]) for role in ROLES]
    assert indices[0].isdisjoint(indices[1])
    assert set.union(*indices) == set(range(101))
    shapes = [
        [tuple(weights.shape) for weights in build("mnist", (1, 28, 28), 10).parameters()]
        for build in (build_judge, build_teacher)
    ]
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
    still = dataclasses.replace(RECIPES["judge"]["digits"], rotation=0, shear=0, scale=0, shift=0)
    torch.testing.assert_close(augment(images, still, generator()), images, atol=1e-5, rtol=0)
    moved = augment(images, RECIPES["judge"]["digits"], generator())
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
    weights = []
    for uneven in (None, UnevenInk()):
        recipe_of(monkeypatch, "judge", thresholds=(ANY, 0.0), uneven=uneven)
        judge = trained_briefly("judge", digits, seed=0)
        weights.append([next(member.parameters()) for member in judge.members])
    assert torch.equal(weights[0][0], weights[1][0])
    assert not torch.equal(weights[0][1], weights[1][1])


def test_black_and_white_keeps_ink_above_a_threshold_of_its_own() -> None:
    ramp = torch.linspace(0, 1, 64).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    drawn = black_and_white(ramp, generator())
    assert set(drawn.unique().tolist()) == {0, 1}
    inked = drawn.flatten(1).mean(1)
    assert 0.13 < inked.min() < 0.25
    assert 0.85 < inked.max() < 0.97
    assert (drawn.flatten(1).diff(dim=1) >= 0).all()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="'juge': did you mean 'judge'"):
        recipe_for("digits", "juge")
    with pytest.raises(InputError, match="'digit': did you mean 'digits'"):
        build_judge("digit", (1, 8, 8), 10)
    assert recipe_for("mnist", "teacher") is RECIPES["teacher"]["mnist"]
