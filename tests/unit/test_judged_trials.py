"""Trials judged on the same images, drawn anew: against enumeration, closed forms and images really repeated."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from search_spaces.requirement import Requirement
from sweep.front.draws import front_draws
from sweep.front.judged_trials import JudgedTrials, source_weights
from sweep.front.objectives import Objectives
from sweep.front.pareto import front_mask, hypervolume, knee
from sweep.front.resampling import reflected_interval, resample_front, resampled_hypervolumes
from trainer.intervals import wilson_interval

CLASSES = 4
BOTH = Objectives(("sensitivity_accuracy", "invariance_accuracy"), (True, True), (0.0, 0.0))
MIXED = Objectives(("clean_accuracy", "invariance_stuck"), (True, False), (0.0, 1.0))
NAMES = ["clean_accuracy", "sensitivity_accuracy", "invariance_original_label"]
NAMES += ["invariance_accuracy", "invariance_stuck", "invariance_unchanged", "other/invariance_stuck"]


def judged(trials: int, images: int, perturbed: int, *, seed: int) -> JudgedTrials:
    """Return random answers, to images of different difficulty."""
    generator = np.random.default_rng(seed)
    skill, ease = generator.normal(size=(trials, 1)), generator.normal(size=images)
    right = generator.random((trials, images)) < 1 / (1 + np.exp(-2 - skill - ease))
    robust = right & (generator.random((trials, images)) < 1 / (1 + np.exp(-skill - ease)))
    source = generator.integers(images, size=perturbed)
    shares = generator.dirichlet(np.ones(CLASSES), size=(2, perturbed)).astype(np.float32)
    return JudgedTrials(
        right,
        robust,
        generator.integers(CLASSES, size=(trials, perturbed)).astype(np.uint8),
        right[:, source],
        source,
        generator.integers(CLASSES, size=perturbed),
        {"own": shares[0], "other": shares[1]},
        {"learning_rate": np.arange(trials) / 8},
    )


def some(trials: JudgedTrials, rows: list[int]) -> JudgedTrials:
    """Return some of the trials, in that order."""
    answers = {name: getattr(trials, name)[rows] for name in ("right", "robust", "perturbed", "right_sources")}
    others = {name: each[rows] for name, each in trials.others.items()}
    return JudgedTrials(**answers, source=trials.source, labels=trials.labels, shares=trials.shares, others=others)


def by_hand(trials: JudgedTrials, number: str, row: int, drawn: list[int]) -> float:
    """Compute a number of one trial image by image, over the drawn images with all that was made from each."""
    if number in ("clean_accuracy", "sensitivity_accuracy"):
        right = trials.right if number == "clean_accuracy" else trials.robust
        return sum(right[row, image] for image in drawn) / len(drawn)
    part = whole = 0.0
    crowd = trials.shares["other" if number.startswith("other/") else "own"]
    for image in drawn:
        for j in np.flatnonzero(trials.source == image):
            answer, label = int(trials.perturbed[row, j]), int(trials.labels[j])
            unchanged = float(crowd[j, label])
            if number.endswith("original_label"):
                part, whole = part + (answer == label), whole + 1
            elif number.endswith("unchanged"):
                part, whole = part + unchanged * (answer == label), whole + unchanged
            elif number.endswith("accuracy"):
                part, whole = part + (float(crowd[j, answer]) if answer != label else 0), whole + 1 - unchanged
            elif trials.right_sources[row, j]:
                part, whole = part + (1 - unchanged) * (answer == label), whole + 1 - unchanged
    return part / whole if whole else 0.0


@given(st.integers(0, 1000), st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_a_drawn_number_is_that_of_the_drawn_images(seed: int, drawn: list[int]) -> None:
    trials = judged(3, 6, 9, seed=seed)
    weights = np.bincount(drawn, minlength=6)[None].astype(float)
    found = trials.measure([*NAMES, "learning_rate"], weights)
    expected = [[by_hand(trials, name, row, drawn) for name in NAMES] for row in range(3)]
    np.testing.assert_allclose(found[0, :, :-1], expected, atol=1e-9)
    assert found[0, :, -1].tolist() == [0, 0.125, 0.25]
    with pytest.raises(KeyError, match="train_seconds"):
        trials.measure(["train_seconds"], weights)


@pytest.mark.parametrize("objectives", [BOTH, MIXED], ids=["both up", "one down"])
def test_shares_of_draws_are_those_of_all_draws_enumerated(objectives: Objectives) -> None:
    """Go through all 256 draws of four images with replacement, each as likely as any other."""
    trials, require = judged(4, 4, 8, seed=3), [Requirement("clean_accuracy", True, 0.6)]
    on_front, knees, volumes = np.zeros(4), np.zeros(4), []
    for drawn in itertools.product(range(4), repeat=4):
        points = np.array([[by_hand(trials, name, row, list(drawn)) for name in objectives.names] for row in range(4)])
        clean = np.array([by_hand(trials, "clean_accuracy", row, list(drawn)) for row in range(4)])
        allowed = np.flatnonzero(clean >= 0.6)
        points = points.round(12)
        on_front[allowed] += front_mask(points[allowed], objectives)
        volumes.append(hypervolume(points[allowed], objectives))
        if (found := knee(points[allowed], objectives)) is not None:
            knees[allowed[found]] += 1
    found = resample_front(trials, objectives, require=require, draws=20_000)
    np.testing.assert_allclose(found.on_front, on_front / 256, atol=0.012)
    np.testing.assert_allclose(found.knees, knees / 256, atol=0.012)
    assert found.hypervolumes.mean() == pytest.approx(np.mean(volumes), abs=0.005)
    assert found.hypervolumes.std() == pytest.approx(np.std(volumes), abs=0.005)


def test_one_trial_alone_varies_as_a_binomial_number() -> None:
    """Compare with the binomial distribution's moments and quantiles, and with Wilson's interval."""
    trials = judged(1, 200, 10, seed=5)
    share = trials.robust.mean()
    weights = source_weights(200, draws=20_000, generator=np.random.default_rng(0))
    drawn = trials.measure(["sensitivity_accuracy"], weights)[:, 0, 0]
    assert (weights.sum(axis=1) == 200).all()
    assert drawn.mean() == pytest.approx(share, abs=1e-3)
    assert drawn.var() == pytest.approx(share * (1 - share) / 200, rel=0.03)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert [low, high] == pytest.approx(binom.ppf([0.025, 0.975], 200, share) / 200, abs=0.0051)
    assert [low, high] == pytest.approx(list(wilson_interval(int(trials.robust.sum()), 200)), abs=0.01)


def test_equal_trials_tie_and_one_that_is_better_on_every_image_always_leads() -> None:
    trials = judged(6, 40, 60, seed=7)
    twice = some(trials, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])
    found = resample_front(twice, BOTH).on_front
    assert found[:6].tolist() == found[6:].tolist()
    assert found.min() > 0, "else these trials tell nothing"
    best = some(trials, [0, 1])
    best.right[1], best.robust[1], best.right_sources[1] = True, True, True
    others = np.where(np.arange(CLASSES) == best.labels[:, None], -1, best.shares["own"])
    best.perturbed[1] = others.argmax(axis=1)
    assert resample_front(best, BOTH).on_front[1] == 1


def test_what_trials_have_in_common_cancels_out() -> None:
    """Let one trial be right wherever another is, and once more: drawn jointly it leads in most draws, else in half."""
    trials = some(judged(1, 300, 1, seed=1), [0, 0])
    trials.robust[1, np.flatnonzero(trials.right[1] & ~trials.robust[1])[:3]] = True
    sensitivity = Objectives(("sensitivity_accuracy", "clean_accuracy"), (True, True), (0.0, 0.0))
    jointly = resample_front(trials, sensitivity).on_front
    assert jointly[1] == 1
    assert jointly[0] == pytest.approx((1 - 1 / 100) ** 300, abs=0.03), "where none of the three is drawn they tie"


def test_seeds_are_drawn_for_each_configuration_and_images_for_all() -> None:
    """Compare the spread of a mean over seeds with the sum of both parts."""
    one = dataclasses.replace(judged(30, 400, 1, seed=2), others={"learning_rate": np.ones(30)})
    names = Objectives(("sensitivity_accuracy", "learning_rate"), (True, True), (0.0, 0.0))
    volumes = resample_front(one, names, seeds=30, draws=4000).hypervolumes
    shares = one.robust.mean(axis=1)
    expected = shares.var(ddof=1) / 30 + one.robust.mean(axis=0).var() / 400
    assert volumes.mean() == pytest.approx(shares.mean(), abs=2e-3)
    assert volumes.var() == pytest.approx(expected, rel=0.1)


def test_sweeps_share_the_images_of_each_draw() -> None:
    trials = judged(5, 60, 80, seed=4)
    [[alone, again, part]] = resampled_hypervolumes([trials, trials, some(trials, [0, 1, 2])], BOTH, draws=50)
    assert alone.tolist() == again.tolist()
    assert (part <= alone).all()
    assert (part < alone).any()
    with pytest.raises(ValueError, match="different images"):
        resampled_hypervolumes([trials, judged(5, 61, 80, seed=4)], BOTH)


def test_other_references_are_measured_in_the_same_draws() -> None:
    trials = judged(5, 60, 80, seed=4)
    parts = [dataclasses.replace(BOTH, reference=(least, 0.1)) for least in (0.2, 0.4)]
    together = resampled_hypervolumes([trials], BOTH, draws=50, parts=parts)
    alone = [resampled_hypervolumes([trials], each, draws=50)[0] for each in (BOTH, *parts)]
    assert together.tolist() == np.array(alone).tolist()
    assert len(np.unique(together)) > 100


coarse = st.integers(0, 4).map(lambda value: value / 4)
clouds = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.tuples(coarse, coarse, coarse), min_size=n, max_size=n), min_size=1, max_size=4)
)


@given(clouds, st.sampled_from([2, 3]), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_fronts_of_many_draws_are_those_of_each(
    cloud: list[list[tuple[float, float, float]]], d: int, maximise: tuple[bool, bool, bool]
) -> None:
    points = np.array(cloud)
    these = Objectives(("a", "b", "c")[:d], maximise[:d], (0.3,) * d)
    excesses = points[..., 2:] - 0.8
    found = front_draws(points[..., :d], these, excesses=excesses)
    on_front, knees = np.zeros(points.shape[1]), np.zeros(points.shape[1])
    for row, (drawn, broken) in enumerate(zip(points[..., :d], excesses, strict=True)):
        allowed = np.flatnonzero(broken[:, 0] <= 0)
        on_front[allowed] += front_mask(drawn[allowed], these)
        if (place := knee(drawn[allowed], these)) is not None:
            knees[allowed[place]] += 1
        assert found.hypervolumes[row] == pytest.approx(hypervolume(drawn[allowed], these), abs=1e-12)
    np.testing.assert_allclose(found.on_front, on_front / len(points))
    np.testing.assert_allclose(found.knees, knees / len(points))


def test_the_joint_interval_holds_the_truth_oftener_than_one_of_independent_shares() -> None:
    """Simulate sweeps of 24 trials on 300 images that are hard or easy for all of them alike."""
    generator, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(40):
        first = generator.normal(size=24)
        skill = np.stack([first, 0.3 * generator.normal(size=24) - first])[:, :, None]
        ease, changed = 3 * generator.normal(size=(2, 1, 3000)), generator.beta(0.5, 0.5, size=3000)
        chance = 1 / (1 + np.exp(ease - skill))
        truth = np.stack([chance[0].mean(1), (chance[1] * changed).sum(1) / changed.sum()], axis=1)
        robust, answers = generator.random((2, 24, 300)) < chance[..., :300]
        right, seen = np.ones_like(robust), changed[:300]
        shares = {"own": np.stack([1 - seen, seen], axis=1)}
        images, labels = np.arange(300), np.zeros(300, dtype=int)
        trials = JudgedTrials(right, robust, answers.astype(np.uint8), right, images, labels, shares, {})
        points = trials.measure(BOTH.names, np.ones((1, 300)))[0]
        sizes = np.array([300, int(seen.sum() ** 2 / (seen**2).sum())])
        draws = (
            resample_front(trials, BOTH, draws=200).hypervolumes,
            np.array([hypervolume(generator.binomial(sizes, points) / sizes, BOTH) for _ in range(200)]),
        )
        found = [reflected_interval(hypervolume(points, BOTH), each) for each in draws]
        held += [each.low <= hypervolume(truth, BOTH) <= each.high for each in found]
    assert held[0] / 40 >= 0.9
    assert held[1] / 40 < 0.85
