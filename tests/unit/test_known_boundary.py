"""The whole evaluation on a data set whose class boundary is known exactly, and on classifiers whose scores are theory.

An image holds a stroke in each of K directions and a mark in each of K corners. Its class is the direction whose
stroke has the most ink, the mean over its pixels; that defines the truth of any image whatever, however perturbed. In
images as they are drawn the corner of the class is marked as well: a shortcut that predicts the class and means
nothing.

In 0-255 levels the class's stroke has 127 + g/2 of ink and all others 127 - g/2 (g, the gap, is even), the class's mark
255 and the others 0. Hence, while no pixel is clipped:

    a change of at most e levels per pixel moves a mean by at most e: the class can change from e = g/2 on, and the
    marks' order from e = 255/2 on;
    strokes of p and q pixels change places by the least L2 norm of g / sqrt(1/p + 1/q) / 255.

Shapes: N images of H x W, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.attacks.gradient import pgd_attack
from trainer.config import EvaluationConfig
from trainer.data.datasets import Data, Split
from trainer.errors import InputError
from trainer.files.cache import Cache
from trainer.invariance.attacks import INVARIANCE_ATTACKS, LinfInvariance
from trainer.invariance.class_index import Neighbours
from trainer.invariance.judge import Judge
from trainer.invariance.perturbations import JudgingSet, Pairs
from trainer.invariance.preparation import PreparationPipeline, Prepared
from trainer.invariance.readings import Readings
from trainer.invariance.tradeoff import ceiling
from trainer.models import Prediction
from trainer.training.evaluation import Evaluation, ensemble, evaluate

SIZE, CLASSES = 16, 4
WHITE = 255
GAP = 128
CONSTANT = 2
"""Class that the constant classifier always answers."""
BOTH_AXES = EvaluationConfig(dataset="fashion_mnist", eval_invariance_epsilon=0.4)
"""Evaluation on both axes; its data set lets any class be turned into any other."""


def direction_masks() -> Tensor:
    """Return the pixels of each stroke, a bar through the centre without its middle, where all meet: (K, H, W) bool."""
    down, right = torch.meshgrid(*[torch.arange(SIZE) - (SIZE - 1) / 2] * 2, indexing="ij")
    radius = (down.square() + right.square()).sqrt()
    angles = torch.arange(CLASSES) * torch.pi / CLASSES
    aside = torch.stack([(angle.cos() * down - angle.sin() * right).abs() for angle in angles])
    return (aside < 1.1) & (radius > 3.2) & (radius < 7.2)


def mark_masks() -> Tensor:
    """Return a corner of 2x2 pixels for each class: (K, H, W) bool."""
    masks = torch.zeros(CLASSES, SIZE, SIZE, dtype=torch.bool)
    for mask, (down, right) in zip(masks, [(0, 0), (0, -2), (-2, 0), (-2, -2)], strict=True):
        mask[down : down + 2 or None, right : right + 2 or None] = True
    return masks


STROKES, MARKS = direction_masks(), mark_masks()


def ink(images: Tensor, masks: Tensor) -> Tensor:
    """Return the mean (N, K) of `images` (N, 1, H, W) over each of `masks` (K, H, W)."""
    weights = masks.flatten(1).to(images.dtype)
    return images.flatten(1) @ (weights / weights.sum(1, keepdim=True)).T


def truth(images: Tensor) -> Tensor:
    """Return the class (N,) of any images (N, 1, H, W), by definition."""
    return ink(images.double(), STROKES).argmax(1)


def draw(labels: Tensor, *, gaps: Sequence[int] = (GAP,), seed: int = 0) -> Split:
    """Draw an image of each label (N,), whole levels over 255; the gaps take turns, each for one image of every class.

    Pixels of a stroke differ by up to 16 levels, in pairs that leave its mean as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = torch.zeros(len(labels), SIZE, SIZE)
    for number, (image, label) in enumerate(zip(levels, labels.tolist(), strict=True)):
        gap = gaps[number // CLASSES % len(gaps)]
        for direction, mask in enumerate(STROKES):
            pairs = int(mask.sum()) // 2
            noise = torch.randint(0, 9, (pairs,), generator=generator)
            rest = torch.zeros(int(mask.sum()) - 2 * pairs)
            image[mask] = 127 + (gap if direction == label else -gap) / 2 + torch.cat([noise, -noise, rest])
        image[MARKS[label]] = WHITE
    return Split(levels[:, None] / WHITE, labels)


def balanced(count: int) -> Tensor:
    """Return `count` labels, every class as often as any other."""
    return torch.arange(count) % CLASSES


class Ideal(nn.Module):
    """A classifier that sees what the truth is made of, and nothing else."""

    def forward(self, images: Tensor) -> Prediction:
        strokes = ink(images, STROKES)
        return Prediction(10 * strokes, strokes)


class Constant(nn.Module):
    """A classifier that answers the same to everything."""

    def forward(self, images: Tensor) -> Prediction:
        nothing = images.flatten(1).sum(1, keepdim=True) * 0
        answer = torch.zeros(CLASSES)
        answer[CONSTANT] = 5
        return Prediction(nothing + answer, nothing)


class OverRobust(nn.Module):
    """A classifier that sees the marks alone, whose order no budget below a half can change."""

    def forward(self, images: Tensor) -> Prediction:
        marks = ink(images, MARKS)
        return Prediction(10 * marks, marks)


class Truth(Judge):
    """A judge that always knows, and whose people all agree."""

    def __init__(self) -> None:
        nn.Module.__init__(self)  # it has no members

    def read(self, images: Tensor) -> Readings:
        known = nn.functional.one_hot(truth(images), CLASSES).float()
        return Readings(known[None], thresholds=False, ink=True)


class KnownPipeline(PreparationPipeline):
    """A preparation judged by the truth; neighbours are not aligned, as a turned stroke is of another class."""

    def judge(self, number: int = 0) -> Judge:
        return Truth()

    def _pairs(self, split: str, norm: str, *, nearest: int) -> Pairs:
        """Pair every source with the first few training images of every other class."""
        sources, train = getattr(self._data, split), self._data.train
        rows = [
            (source, target, neighbour)
            for source, label in enumerate(sources.labels.tolist())
            for target in range(CLASSES)
            for neighbour in (train.labels == target).nonzero().flatten()[:nearest].tolist()
            if target != label
        ]
        source, target, index = torch.tensor(rows).T
        levels = (train.images[index] * WHITE).round().to(torch.uint8)
        plan = INVARIANCE_ATTACKS[norm].plan(sources.images[source], levels)
        return Pairs(sources, Neighbours(source, target, index, torch.zeros_like(index), torch.zeros(len(index))), plan)


def prepared_in(folder: Path, *, epsilon: float, norm: str = "linf", gap: int = GAP) -> Prepared:
    evaluation = BOTH_AXES.replace(eval_invariance_epsilon=epsilon, eval_invariance_norm=norm)
    train, validation, test = (draw(balanced(count), gaps=[gap], seed=seed) for seed, count in enumerate((80, 24, 24)))
    data = Data("fashion_mnist", train, validation, test, classes=CLASSES, fingerprint="strokes")
    return Prepared(data, evaluation, KnownPipeline(data, evaluation, Cache(folder), lambda *stage: None))


@pytest.fixture
def known(tmp_path: Path) -> Prepared:
    """Prepare for an invariance budget that lies beyond half the gap."""
    return prepared_in(tmp_path, epsilon=0.4)


def judge(model: nn.Module, prepared: Prepared, *, epsilon: float, norm: str = "linf") -> Evaluation:
    """Evaluate a model by the full set of attacks."""
    attacks = ensemble(norm=norm, epsilon=epsilon, steps=20, queries=60, model=model)
    generator = torch.Generator().manual_seed(0)
    return evaluate(model, prepared.data.test, prepared.judging_set("test"), attacks, generator=generator)


def survival(model: nn.Module, split: Split, *, epsilon: float, norm: str = "linf") -> float:
    """Measure the sensitivity accuracy under the full set of attacks, and PGD."""
    attacks = [
        *ensemble(norm=norm, epsilon=epsilon, steps=20, queries=60, model=model),
        pgd_attack(norm=norm, epsilon=epsilon, steps=20),
    ]
    image, zero, one = torch.zeros(1, 1, SIZE, SIZE), torch.tensor([0]), {"all": torch.tensor([[0.0, 1.0]])}
    generator = torch.Generator().manual_seed(0)
    unread = JudgingSet(image, image, zero, zero, one)
    return evaluate(model, split, unread, attacks, generator=generator).sensitivity_accuracy


# ----------------------------------------------------------------------------------------------------------- the data


def test_strokes_and_marks_lie_apart() -> None:
    assert torch.cat([STROKES, MARKS]).int().sum(0).max() == 1
    assert (STROKES.flatten(1).sum(1) >= 12).all()
    assert (MARKS.flatten(1).sum(1) == 4).all()


@pytest.mark.parametrize("gap", [64, GAP, 160])
def test_every_image_has_just_the_margin_that_was_asked_for(gap: int) -> None:
    split = draw(balanced(24), gaps=[gap])
    assert torch.equal(truth(split.images), split.labels)
    first, second = (ink(split.images.double(), STROKES) * WHITE).topk(2).values.T
    torch.testing.assert_close(first - second, torch.full_like(first, gap))
    assert (split.images[:, 0, STROKES.any(0)] * WHITE).round().unique().numel() > 8


# --------------------------------------------------------------------------------------------------- the three scores


def test_the_ideal_classifier_scores_one_on_both_axes(known: Prepared) -> None:
    found = judge(Ideal(), known, epsilon=0.2)
    assert found.clean_accuracy == found.sensitivity_accuracy == found.invariance_accuracy == 1
    assert found.invariance_stuck == 0
    assert found.invariance_changed_mass == found.invariance_effective_size == 24
    attack = known.adversary("test").run(lambda images: Ideal()(images).logits)
    assert (attack.changed == 1).all()
    assert not attack.missed.any()
    assert not attack.stuck.any()


def test_a_constant_classifier_scores_the_share_of_its_class(known: Prepared) -> None:
    found = judge(Constant(), known, epsilon=0.2)
    assert found.clean_accuracy == found.sensitivity_accuracy == 1 / CLASSES
    judging = known.judging_set("test")
    assert (judging.changed == 1).all()
    by_truth = (truth(judging.images) == CONSTANT).double().mean()
    assert 0 < by_truth < 1
    assert found.invariance_accuracy == by_truth
    # It is right when clean on its own class alone, and no changed image of that class still shows it.
    assert found.invariance_stuck == 1
    attack = known.adversary("test").run(lambda images: Constant()(images).logits)
    assert (attack.stuck == 1).all()
    # Candidates turn every source into each other class, so that none has that of one class alone.
    assert (attack.missed == 1).all()
    assert torch.equal(attack.right, known.data.test.labels == CONSTANT)


def test_an_over_robust_classifier_scores_one_and_nothing(known: Prepared) -> None:
    found = judge(OverRobust(), known, epsilon=0.2)
    assert found.clean_accuracy == found.sensitivity_accuracy == 1
    assert found.invariance_accuracy == 0
    assert found.invariance_stuck == 1
    assert found.invariance_original_label == 1
    attack = known.adversary("test").run(lambda images: OverRobust()(images).logits)
    assert (attack.stuck == 1).all()
    assert (attack.missed == 1).all()


# -------------------------------------------------------------------------------------------- budgets at the boundary


@pytest.mark.parametrize(
    ("model", "levels"), [(Ideal(), GAP / 2), (OverRobust(), WHITE / 2)], ids=["ideal", "over-robust"]
)
def test_all_survive_just_below_the_margin_and_all_fall_just_above_it(model: nn.Module, levels: float) -> None:
    split = draw(balanced(12))
    assert survival(model, split, epsilon=(levels - 1) / WHITE) == 1
    assert survival(model, split, epsilon=(levels + 1) / WHITE) == 0


def test_the_same_in_l2() -> None:
    split = draw(balanced(12))
    pixels = STROKES.flatten(1).sum(1).double()
    apart = (1 / pixels[:, None] + 1 / pixels).sqrt()
    nearest = (GAP / WHITE / apart).fill_diagonal_(torch.inf).amin(1)
    assert survival(Ideal(), split, epsilon=0.99 * float(nearest.min()), norm="l2") == 1
    assert survival(Ideal(), split, epsilon=1.02 * float(nearest.max()), norm="l2") == 0


@pytest.mark.parametrize(("levels", "share"), [(31, 1), (41, 2 / 3), (57, 1 / 3), (73, 0)])
def test_of_unequal_margins_those_beyond_the_budget_survive(levels: int, share: float) -> None:
    split = draw(balanced(24), gaps=[64, 96, 128])
    assert survival(Ideal(), split, epsilon=levels / WHITE) == pytest.approx(share)


@pytest.mark.parametrize(("levels", "changes"), [(GAP // 2 - 1, False), (GAP // 2 + 1, True)])
def test_the_invariance_attack_changes_the_class_from_half_the_gap_on(levels: int, changes: bool) -> None:
    sources = draw(balanced(12), seed=1)
    others = draw((sources.labels + 1) % CLASSES, seed=2)
    attack = LinfInvariance()
    plan = attack.plan(sources.images, (others.images * WHITE).round().to(torch.uint8))
    perturbed = attack.perturb(sources.images, plan, epsilon=levels / WHITE)
    assert torch.equal(truth(perturbed), others.labels if changes else sources.labels)
    assert (perturbed - sources.images).abs().max() <= levels / WHITE + 1e-6
    assert torch.equal(OverRobust()(perturbed).logits.argmax(1), sources.labels)


def test_below_half_the_gap_there_is_nothing_to_judge_by(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hardly anybody of the crowd sees a change"):
        prepared_in(tmp_path, epsilon=(GAP / 2 - 1) / WHITE).judging_set("test")


def test_the_l0_attack_changes_the_class_where_it_may_move_both_strokes(tmp_path: Path) -> None:
    """Let a stroke give its ink to another: both are clusters of the difference; the marks' corners are two more."""
    prepared = prepared_in(tmp_path, epsilon=1.0, norm="l0", gap=200)
    found = judge(Ideal(), prepared, epsilon=0.2)
    assert found.invariance_changed_mass == found.invariance_effective_size == 24
    assert found.invariance_accuracy == 1
    # All that differs is moved, the marks too: who looks at them alone is right for the wrong reason.
    assert judge(OverRobust(), prepared, epsilon=0.2).invariance_accuracy == 1


# --------------------------------------------------------------------------------------- the line that nobody can cross


class Blend(nn.Module):
    """A classifier that sees both strokes and marks, the marks by a weight of its own."""

    def __init__(self, marks: float) -> None:
        super().__init__()
        self.marks = marks

    def forward(self, images: Tensor) -> Prediction:
        seen = (1 - self.marks) * ink(images, STROKES) + self.marks * ink(images, MARKS)
        return Prediction(10 * seen, seen)


def test_no_classifier_lies_beyond_the_ceiling_and_some_lie_on_it(tmp_path: Path) -> None:
    evaluation = BOTH_AXES.replace(eval_sensitivity_epsilon=0.4)
    prepared = prepared_in(tmp_path, epsilon=0.4)
    line = ceiling(prepared.judging_set("test"), evaluation, images=24)
    models = [Ideal(), OverRobust(), Constant(), *map(Blend, (0.2, 0.4, 0.6, 0.8))]
    found = [judge(model, prepared, epsilon=0.4) for model in models]
    points = [(each.sensitivity_accuracy, each.invariance_accuracy) for each in found]
    beyond = [v - np.interp(s, *zip(*line, strict=True)) for s, v in points]
    assert max(beyond) < 1e-9
    assert {points[0], points[1]} == {(0.0, 1.0), (1.0, 0.0)}, "the ends of the line"
    assert beyond[0] == beyond[1] == 0


def test_people_who_disagree_lower_the_ceiling_and_sources_left_alone_widen_it() -> None:
    """Compare with the best of all choices of who is robust, tried one by one."""
    shares = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.9, 0.1], [0.8, 0.1, 0.1], [0.2, 0.4, 0.4]])
    image, labels = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    judging = JudgingSet(image, image, labels, torch.arange(4), {"crowd": shares})
    evaluation = EvaluationConfig(eval_sensitivity_epsilon=0.3, eval_invariance_epsilon=0.3)
    line = ceiling(judging, evaluation, images=6)
    gain, changed = [0.3, 0.9, 0.1, 0.4], 0.5 + 1.0 + 0.2 + 0.8
    for robust in range(7):
        choices = itertools.combinations(range(6), robust)
        best = max(sum(g for i, g in enumerate(gain) if i not in chosen) for chosen in choices)
        assert line[robust] == (pytest.approx(robust / 6), pytest.approx(best / changed))


@pytest.mark.parametrize(
    "changes",
    [{"eval_invariance_epsilon": 0.4}, {"eval_invariance_norm": "l0"}, {"eval_sensitivity_norm": "l2"}],
    ids=["larger budget", "other norm", "other norm of the attack"],
)
def test_there_is_no_ceiling_where_the_changed_image_is_out_of_reach(changes: dict[str, Any], known: Prepared) -> None:
    evaluation = EvaluationConfig(eval_sensitivity_epsilon=0.3, eval_invariance_epsilon=0.3).replace(**changes)
    assert ceiling(known.judging_set("test"), evaluation, images=24) == []
