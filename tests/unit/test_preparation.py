from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.config import EvaluationConfig
from trainer.data.datasets import Split
from trainer.errors import InputError
from trainer.invariance.attacks import INVARIANCE_ATTACKS
from trainer.invariance.class_index import Neighbours
from trainer.invariance.judge_training import train_ensemble
from trainer.invariance.perturbations import InvarianceAdversary, JudgingSet, Pairs, PerturbationCache
from trainer.invariance.preparation import Prepared, prepare
from trainer.invariance.recipes import RECIPES
from trainer.invariance.resampled_mass import changed_mass

LIMIT = EvaluationConfig().eval_invariance_epsilon


def test_judging_set_keeps_its_budget_and_knows_its_sources(prepared: Prepared) -> None:
    judging = prepared.judging
    assert (judging.images - judging.source_images).abs().max() <= LIMIT + 1e-6
    assert 0 <= judging.images.min() <= judging.images.max() <= 1
    validation = prepared.data.validation
    assert torch.equal(judging.source_images, validation.images[judging.source_index])
    assert torch.equal(judging.source_labels, validation.labels[judging.source_index])


def test_every_image_has_the_shares_of_the_whole_crowd(prepared: Prepared) -> None:
    judging = prepared.judging
    assert list(judging.shares) == ["uncalibrated"]
    torch.testing.assert_close(judging.crowd.sum(1), torch.ones(len(judging.images)))
    assert judging.crowd.min() >= 0
    own = judging.crowd[torch.arange(len(judging.images)), judging.source_labels]
    assert torch.equal(judging.changed, 1 - own)
    torch.testing.assert_close(judging.crowd, prepared.judge.shares(judging.images, prepared.crowd))


def test_moving_a_judging_set_keeps_its_fields(prepared: Prepared) -> None:
    assert same(prepared.judging, prepared.judging.to("cpu"))
    assert len(prepared.judging.first(3).crowd) == 3


def same(one: JudgingSet, other: JudgingSet) -> bool:
    """Return whether two judging sets are equal, field by field."""
    return all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)) and all(
        torch.equal(share, other.shares[name]) for name, share in one.shares.items()
    )


def test_digest_tells_judging_sets_apart(prepared: Prepared) -> None:
    judging = prepared.judging
    other = judging._replace(shares={"uncalibrated": judging.crowd.roll(1, 0)})
    assert judging.digest == judging._replace(images=judging.images.clone()).digest
    assert judging.digest != other.digest


def test_second_preparation_computes_nothing(prepared: Prepared, cache_dir: Path) -> None:
    reported: list[str] = []
    again = prepare(
        prepared.evaluation, cache_dir=cache_dir, progress=lambda stage, done, total: reported.append(stage)
    )
    assert reported == []
    assert same(prepared.judging, again.judging)
    assert torch.equal(prepared.perturbations("linf").answers, again.perturbations("linf").answers)


def test_progress_of_every_stage_ends_at_its_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for recipes in RECIPES.values():
        monkeypatch.setitem(recipes, "digits", dataclasses.replace(recipes["digits"], epochs=20))
    monkeypatch.setattr(sys.modules[train_ensemble.__module__], "_LEAST_STEPS", 80)
    reported: dict[str, list[tuple[int, int]]] = {}
    small = EvaluationConfig(train_size=60, validation_size=40)
    prepare(small, cache_dir=tmp_path, progress=lambda stage, *rest: reported.setdefault(stage, []).append(rest))
    assert {"judge", "teacher", "validation neighbours (linf)", "train neighbours (linf)"} <= set(reported)
    assert all(steps[-1][0] == steps[-1][1] for steps in reported.values())


def test_audit_set_is_made_from_test_images(prepared: Prepared) -> None:
    judging = prepared.judging_set("test")
    assert torch.equal(judging.source_labels, prepared.data.test.labels[judging.source_index])
    with pytest.raises(InputError, match="'tset': did you mean 'test'"):
        prepared.judging_set("tset")


def test_several_judges_look_at_the_same_images(prepared: Prepared) -> None:
    first, second, again = (prepared.judging_set("test", judge=number) for number in (0, 1, 1))
    assert all(torch.equal(one, other) for one, other in zip(first[:4], second[:4], strict=True))
    assert same(second, again)
    assert same(first, prepared.judging_set("test"))
    torch.testing.assert_close(second.crowd, prepared.judge_numbered(1).shares(first.images, prepared.crowd))
    assert 0.001 < (first.crowd - second.crowd).abs().mean() < 0.3


@pytest.mark.parametrize("norm", list(INVARIANCE_ATTACKS))
def test_no_budget_leaves_the_training_images_as_they_are(prepared: Prepared, norm: str) -> None:
    perturbation, train = prepared.perturbations(norm).at(0.0), prepared.data.train
    assert torch.equal(perturbation.images, train.images)
    assert torch.equal(perturbation.labels, train.labels)
    assert perturbation.keep.all()


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("linf", 0.37), ("linf", 1.0), ("l0", 0.2)])
def test_training_perturbations_take_the_cheapest_target(prepared: Prepared, norm: str, epsilon: float) -> None:
    cache, train = prepared.perturbations(norm), prepared.data.train
    perturbation = cache.at(epsilon)
    own = train.images[cache.pairs.neighbours.source]
    candidates = INVARIANCE_ATTACKS[norm].perturb(own, cache.pairs.plan, epsilon=epsilon)
    cost = INVARIANCE_ATTACKS[norm].cost(own, candidates, cache.pairs.plan)
    for n in range(0, len(train.labels), 7):
        pairs = cache.pairs.neighbours.source == n
        best = candidates[pairs][cost[pairs].argmin()] if pairs.any() else train.images[n]
        torch.testing.assert_close(perturbation.images[n], best)
        legal = {int(train.labels[n]), *cache.pairs.neighbours.target[pairs].tolist()}
        assert int(perturbation.labels[n]) in legal


def test_a_larger_budget_changes_more_labels(prepared: Prepared) -> None:
    cache = prepared.perturbations("linf")
    changed = [int((cache.at(e).labels != prepared.data.train.labels).sum()) for e in (0.0, 0.1, 0.3)]
    assert changed == sorted(changed)
    assert changed[-1] > 10


def pairs_of(count: int) -> Pairs:
    """Build `count` grey images of class 4, each paired with a brighter one of class 7."""
    sources = Split(torch.full((count, 1, 2, 2), 0.5), torch.full((count,), 4))
    zeros = torch.zeros(count, dtype=torch.int64)
    neighbours = Neighbours(torch.arange(count), zeros + 7, zeros, zeros, torch.zeros(count))
    return Pairs(sources, neighbours, torch.full((count, 1, 2, 2), 230, dtype=torch.uint8))


def test_teacher_labels_a_budget_between_two_only_where_both_agree() -> None:
    budgets = INVARIANCE_ATTACKS["linf"].budgets
    answers = torch.full((len(budgets), 3), 4, dtype=torch.int8)
    answers[budgets.index(0.3) :, 1] = 7
    answers[budgets.index(0.3) :, 2] = 9
    cache = PerturbationCache("linf", pairs_of(3), answers)
    below, between, above = cache.at(0.25), cache.at(0.28), cache.at(0.3)
    assert below.labels.tolist() == [4, 4, 4]
    assert below.keep.tolist() == [True, True, True]
    assert between.keep.tolist() == [True, False, False]
    assert above.labels[:2].tolist() == [4, 7]
    assert above.keep.tolist() == [True, True, False]


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
def test_training_budget_outside_the_range_is_refused(epsilon: float) -> None:
    cache = PerturbationCache(
        "linf", pairs_of(1), torch.zeros(len(INVARIANCE_ATTACKS["linf"].budgets), 1, dtype=torch.int8)
    )
    with pytest.raises(InputError, match=f"invariance_epsilon = {epsilon}: must be at least 0 and at most 1"):
        cache.at(epsilon)


def test_unknown_norm_is_refused(prepared: Prepared) -> None:
    with pytest.raises(InputError, match="'l8'"):
        prepared.perturbations("l8")


def test_a_budget_that_changes_nothing_is_refused(prepared: Prepared, cache_dir: Path) -> None:
    nothing = prepared.evaluation.replace(eval_invariance_epsilon=0, eval_invariance_size=10)
    with pytest.raises(InputError, match=r"eval_invariance_epsilon = 0 \(linf\).*larger budget"):
        prepare(nothing, cache_dir=cache_dir)


def test_the_judge_s_quality_tells_of_clean_images(prepared: Prepared) -> None:
    assert prepared.judge_quality.size == 60
    assert prepared.judge_quality.accuracy > 0.7


def brightness_model(threshold: float) -> Callable[[Tensor], Tensor]:
    """Build a model that answers 7 to images brighter than the threshold, 4 to others."""
    return lambda images: torch.nn.functional.one_hot(
        torch.where(images.mean((1, 2, 3)) > threshold, 7, 4), num_classes=10
    ).float()


def crowd_of(*rows: tuple[float, float]) -> Tensor:
    """Return shares (J, 10) of people who say 4, the source's class, and 7; the others say 9."""
    shares = torch.zeros(len(rows), 10)
    shares[:, 4], shares[:, 7] = torch.tensor(rows).T
    shares[:, 9] = 1 - shares.sum(1)
    return shares


@pytest.mark.parametrize(("threshold", "stuck", "missed"), [(0.55, 0.0, 0.25), (0.75, 0.5, 0.5), (2.0, 0.75, 0.75)])
def test_per_model_attack_finds_where_the_answer_does_not_change(threshold: float, stuck: float, missed: float) -> None:
    """Let half of the people see a change at brightness 0.6 and three quarters at 0.8: a model that reacts later, or
    never, is stuck; of the three quarters one in three says 9, which no model here does."""
    adversary = InvarianceAdversary(
        "linf", pairs_of(2), torch.tensor([0, 0]), torch.tensor([0.1, 0.3]), crowd_of((0.5, 0.5), (0.25, 0.5))
    )
    found = adversary.run(brightness_model(threshold))
    assert found.right.tolist() == [True, True]
    assert found.changed.tolist() == [0.75, 0]
    assert found.stuck.tolist() == [stuck, 0]
    assert found.missed.tolist() == [missed, 0]
    expected = {0.0: 0.5, 0.5: 0.6, 0.75: 0.8}[stuck]
    assert found.images[0].mean().item() == pytest.approx(expected, abs=1e-3)
    assert found.images[1].mean() == 0.5


def test_per_model_attack_is_no_weaker_than_the_transfer_attack(prepared: Prepared) -> None:
    """Check that a model stuck on an image of the fixed set is stuck here, where that is among the candidates."""
    adversary, judging = prepared.adversary("validation"), prepared.judging
    answers = torch.zeros(10)
    answers[3] = 1
    found = adversary.run(lambda images: answers.expand(len(images), 10))
    assert torch.equal(found.stuck, found.changed)
    assert (found.changed[judging.source_index] >= judging.changed - 1e-6).all()
    assert (found.missed <= found.changed).all()
    assert (found.images - adversary.pairs.sources.images).abs().max() <= LIMIT + 1e-6


def test_l0_evaluation_has_its_own_sets(prepared: Prepared, cache_dir: Path) -> None:
    evaluation = prepared.evaluation.replace(eval_invariance_norm="l0", eval_invariance_epsilon=0.4)
    judging = prepare(evaluation, invariance_norms=(), cache_dir=cache_dir).judging
    changed = (judging.images != judging.source_images).any(1).flatten(1).double().mean(1)
    assert (changed <= 0.4).all()
    assert changed.max() > 0.1


def test_the_changed_mass_has_intervals_over_sources() -> None:
    """Compare with a direct bootstrap; copies of a source make nothing surer."""
    changed = torch.rand(40, generator=torch.Generator().manual_seed(0))
    shares = torch.stack([1 - changed, changed], 1)
    image, labels = torch.zeros(40, 1, 2, 2), torch.zeros(40, dtype=torch.int64)
    judging = JudgingSet(image, image, labels, torch.arange(40), {"crowd": shares})
    found = changed_mass(judging)
    weights = changed.double().numpy()
    assert found.share == pytest.approx(weights.mean())
    assert found.effective_size == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    drawn = weights[np.random.default_rng(1).integers(40, size=(4000, 40))]
    expected = np.quantile(drawn.mean(1), [0.025, 0.975])
    assert found.share_interval == pytest.approx(tuple(expected), abs=0.02)
    sizes = np.quantile(drawn.sum(1) ** 2 / (drawn**2).sum(1), [0.025, 0.975])
    assert found.effective_interval == pytest.approx(tuple(sizes), rel=0.05)
    image, labels, index = (torch.cat([each] * 3) for each in (image, labels, judging.source_index))
    often = JudgingSet(image, image, labels, index, {"crowd": torch.cat([shares] * 3)})
    assert changed_mass(often).share_interval == pytest.approx(found.share_interval)
    apart = often._replace(source_index=torch.arange(120))
    width = found.share_interval.high - found.share_interval.low
    assert changed_mass(apart).share_interval.high - changed_mass(apart).share_interval.low < 0.7 * width
