from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import ot
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn

from trainer.config import TrialConfig
from trainer.models import Prediction
from trainer.objective import diagnosis, regularizers, transport
from trainer.objective import terms as terms_module
from trainer.objective.regularizers import Embedded, Penalty, regularizer, solver
from trainer.objective.terms import Knobs, LossTerms, loss_terms
from trainer.report import alarms

REGULARIZERS = ("triplet", "sinkhorn", "ot_triplet")
METRICS = ("cosine", "euclidean")
CLASSES = 4

seeds = st.integers(0, 2**32 - 1)


def batch(seed: int, images: int = 14, dimensions: int = 5) -> tuple[Embedded, Embedded]:
    """Return anchors, a third of them relabelled and some left out, and the clean side. float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    clean = torch.randn(CLASSES, dimensions, generator=generator, dtype=torch.float64)[labels]
    clean = clean + 0.5 * torch.randn(images, dimensions, generator=generator, dtype=torch.float64)
    anchors = clean + 0.3 * torch.randn(images, dimensions, generator=generator, dtype=torch.float64)
    changed = torch.rand(images, generator=generator) < 0.3
    anchor_labels = torch.where(changed, torch.randint(CLASSES, (images,), generator=generator), labels)
    keep = torch.rand(images, generator=generator) < 0.8
    return Embedded(anchors, anchor_labels, keep), Embedded(clean, labels)


def penalty(name: str, anchors: Embedded, clean: Embedded, *, entropy: float | None = 0.05, **options: Any) -> Penalty:
    """Compute a penalty with transport of this entropy, exact for None."""
    solve = solver("exact" if entropy is None else "entropic", entropy or 0.0)
    return regularizer(name, anchors, clean, classes=CLASSES, solve=solve, **options)


def moving(side: Embedded) -> Embedded:
    return side._replace(points=side.points.clone().requires_grad_())


def gradients(name: str, anchors: Embedded, clean: Embedded, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value and its gradients by the anchors and by the clean embeddings."""
    anchors, clean = moving(anchors), moving(clean)
    value = penalty(name, anchors, clean, **options).value
    by_anchor, by_clean = torch.autograd.grad(value, (anchors.points, clean.points))
    return value.detach(), by_anchor, by_clean


# --------------------------------------------------------------------------------------------------------- triplet


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        pytest.param("cosine", CosineSimilarity(), id="cosine"),
        pytest.param("euclidean", LpDistance(normalize_embeddings=False), id="euclidean"),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_triplet_agrees_with_pytorch_metric_learning(seed: int, metric: str, reference: Any) -> None:
    """Compare where no label changes; given one labelling for both sides, theirs leaves out i = j too."""
    anchors, clean = (moving(side) for side in batch(seed, images=30))
    anchors = anchors._replace(labels=clean.labels, keep=None)
    mined = BatchHardMiner(distance=reference)(anchors.points, clean.labels, clean.points, clean.labels)
    loss = TripletMarginLoss(margin=0.4, distance=reference, reducer=MeanReducer())
    theirs = loss(anchors.points, clean.labels, mined, clean.points, clean.labels)
    ours = penalty("triplet", anchors, clean, ground_metric=metric, margin=0.4).value
    assert ours.item() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    for mine, their in zip(
        torch.autograd.grad(ours, (anchors.points, clean.points)),
        torch.autograd.grad(theirs, (anchors.points, clean.points)),
        strict=True,
    ):
        torch.testing.assert_close(mine, their, rtol=1e-6, atol=1e-9)


def triplet_by_hand(distance: Tensor, anchors: Embedded, clean: Embedded, margin: float, mining: str) -> float:
    """Compute the definition, one anchor at a time."""
    assert anchors.keep is not None
    terms = []
    for i, y in enumerate(anchors.labels.tolist()):
        positives = [distance[i, j].item() for j, label in enumerate(clean.labels.tolist()) if label == y and j != i]
        negatives = [distance[i, j].item() for j, label in enumerate(clean.labels.tolist()) if label != y]
        if not (anchors.keep[i] and positives and negatives):
            continue
        beyond = [d for d in negatives if d > max(positives)]
        negative = min(negatives) if mining == "hard" else min(beyond) if beyond else max(negatives)
        terms.append(max(0.0, max(positives) - negative + margin))
    return sum(terms) / len(terms) if terms else 0.0


@given(seed=seeds, images=st.integers(1, 12), margin=st.floats(0, 2))
@pytest.mark.parametrize("mining", ["hard", "semihard"])
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=30)
def test_triplet_is_its_definition(metric: str, mining: str, seed: int, images: int, margin: float) -> None:
    anchors, clean = batch(seed, images)
    distance = regularizers.DISTANCES[metric](anchors.points, clean.points)
    ours = penalty("triplet", anchors, clean, ground_metric=metric, mining=mining, margin=margin).value
    assert ours.item() == pytest.approx(triplet_by_hand(distance, anchors, clean, margin, mining), rel=1e-9, abs=1e-12)


def test_own_clean_image_is_no_positive_but_can_be_the_negative() -> None:
    far = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    clean = Embedded(far, torch.tensor([0, 0, 1]))
    anchors = Embedded(far, torch.tensor([0, 0, 0]))  # the third was perturbed into class 0
    value = penalty("triplet", anchors, clean, margin=0.0).value
    # The first two: positive each other (1), negative the third (2 and 1). The third: positive 2 away, itself 0 away.
    assert value.item() == pytest.approx((max(0, 1 - 2) + max(0, 1 - 1) + (2 - 0)) / 3)


def test_semihard_mining_does_not_pull_mixed_embeddings_into_a_point() -> None:
    """Check that semi-hard gradient steps shrink a mixed cloud less than batch-hard ones."""

    def spread_after(mining: str) -> float:
        points = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        labels = torch.arange(40) % CLASSES
        side = Embedded(points, labels)
        for _ in range(40):
            value = penalty("triplet", side, side, ground_metric="euclidean", mining=mining, margin=1.0).value
            (gradient,) = torch.autograd.grad(value, points)
            points.data -= 2.0 * gradient
        return points.detach().std(0).mean().item()

    assert spread_after("hard") < 0.7 * spread_after("semihard")


# -------------------------------------------------------------------------------------------------------- sinkhorn


def test_without_a_label_cost_swapping_two_images_is_free() -> None:
    points = F.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    swapped = points[[1, 0, 2, 3, 4, 5]]
    anchors, clean = Embedded(swapped, labels), Embedded(points, labels)
    blind = penalty("sinkhorn", anchors, clean, label_cost=0.0, entropy=0.05).value
    seeing = penalty("sinkhorn", anchors, clean, label_cost=1.0, entropy=0.05).value
    assert abs(blind.item()) < 1e-6
    assert seeing.item() > 0.05


@given(seed=seeds, metric=st.sampled_from(METRICS), entropy=st.sampled_from([1.0, 0.05]))
@settings(max_examples=25)
def test_sinkhorn_is_the_divergence_of_images_with_the_anchors_class_masses(
    seed: int, metric: str, entropy: float
) -> None:
    anchors, clean = batch(seed)
    ours = penalty("sinkhorn", anchors, clean, ground_metric=metric, entropy=entropy, label_cost=0.7)
    a, b = class_masses(anchors, clean)

    def value(x: Embedded, y: Embedded, a: Tensor, b: Tensor) -> Tensor:
        cost = regularizers.COSTS[metric](x.points, y.points) + 0.7 * (x.labels[:, None] != y.labels)
        present = cost[a > 0][:, b > 0]
        return transport.entropic_transport(present[None], a[a > 0][None], b[b > 0][None], entropy=entropy).value[0]

    reference = torch.zeros((), dtype=torch.float64)
    if a.any():
        across, within = value(anchors, clean, a, b), (value(anchors, anchors, a, a), value(clean, clean, b, b))
        reference = across - sum(within) / 2
    torch.testing.assert_close(ours.value, reference, rtol=1e-6, atol=1e-7)


def class_masses(anchors: Embedded, clean: Embedded) -> tuple[Tensor, Tensor]:
    """Return the weights of `sinkhorn`, image by image: 1 for an anchor, its class's anchors shared by clean images."""
    assert anchors.keep is not None
    mine, theirs = anchors.labels.tolist(), clean.labels.tolist()
    kept = [label for label, keep in zip(mine, anchors.keep.tolist(), strict=True) if keep]
    a = [float(keep and label in theirs) for label, keep in zip(mine, anchors.keep.tolist(), strict=True)]
    b = [kept.count(label) / theirs.count(label) for label in theirs]
    return torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)


def perfect(seed: int, images: int = 40) -> tuple[Embedded, Embedded]:
    """Return the two sides of a perfect classifier: every image lies at its class's corner, whatever it was before."""
    anchors, clean = batch(seed, images)
    corners = F.normalize(torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    corners = torch.linalg.qr(corners.mT).Q.mT
    return anchors._replace(points=corners[anchors.labels]), clean._replace(points=corners[clean.labels])


@given(seed=seeds, name=st.sampled_from(["sinkhorn", "ot_triplet"]), metric=st.sampled_from(METRICS))
@settings(max_examples=40)
def test_a_perfect_classifier_is_not_punished_whatever_the_labels_composition(
    seed: int, name: str, metric: str
) -> None:
    value, by_anchor, by_clean = gradients(name, *perfect(seed), ground_metric=metric, margin=0.5)
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert by_anchor.abs().max() < 1e-4
    assert by_clean.abs().max() < 1e-4


def test_sinkhorn_does_not_fall_as_the_classes_of_a_perfect_classifier_merge() -> None:
    """Check the fault of a divergence between unequal class masses: there, closer classes cost less."""
    anchors, clean = perfect(1)
    for shrink in (1.0, 0.5, 0.1):
        sides = (side._replace(points=shrink * side.points) for side in (anchors, clean))
        assert penalty("sinkhorn", *sides, ground_metric="euclidean").value.item() == pytest.approx(0, abs=1e-5)


# ------------------------------------------------------------------------------------------------------ ot_triplet


def ot_triplet_by_hand(
    anchors: Embedded, clean: Embedded, metric: str, margin: float, share: float, entropy: float | None
) -> float:
    """Compute the definition with POT class by class, anchor by anchor; a prohibitive cost stands for "not itself"."""
    assert anchors.keep is not None
    cost = regularizers.COSTS[metric](anchors.points, clean.points).numpy()
    itself = np.eye(len(cost))
    hinges: list[float] = []
    for c in range(CLASSES):
        rows = ((anchors.labels == c) & anchors.keep).nonzero()[:, 0].numpy()
        own, others = ((clean.labels == c) == is_own for is_own in (True, False))
        if not (len(rows) and own.any() and others.any()):
            continue
        to_own, to_others = cost[rows][:, own], cost[rows][:, others]
        positive = plan_by_pot(to_own + 100.0 * itself[rows][:, own], entropy)
        if (positive * itself[rows][:, own]).sum() > 1e-6:  # it had to match an image to itself
            continue
        negative = partial_plan_by_pot(to_others, share, entropy)
        towards_own, towards_others = (
            (plan * part).sum(1) / plan.sum(1) for plan, part in ((positive, to_own), (negative, to_others))
        )
        hinges.extend(np.maximum(towards_own - towards_others + margin, 0))
    return float(np.mean(hinges)) if hinges else 0.0


def plan_by_pot(cost: np.ndarray, entropy: float | None) -> np.ndarray:
    even = [np.full(size, 1 / size) for size in cost.shape]
    if entropy is None:
        return ot.emd(*even, cost)
    return ot.bregman.sinkhorn_log(*even, cost, reg=entropy, numItermax=20_000, stopThr=1e-12)


def partial_plan_by_pot(cost: np.ndarray, share: float, entropy: float | None) -> np.ndarray:
    """Return the plan (n, m) that moves n anchors of mass 1 to a share of n / share in m images.

    The exact one is POT's own partial transport. Its entropic one gives the mass left behind no entropy, so it agrees
    only as the entropy falls; at any entropy the reference is the balanced problem with the row for what is left.
    """
    n, m = cost.shape
    if share == 1:
        return plan_by_pot(cost, entropy) * n
    if entropy is None:
        return ot.partial.partial_wasserstein(np.ones(n), np.full(m, n / share / m), cost, m=n, nb_dummies=10)
    a, b = np.append(np.ones(n), n / share - n), np.full(m, n / share / m)
    with_rest = np.vstack([cost, np.zeros(m)])
    scaled = ot.bregman.sinkhorn_log(a / a.sum(), b / b.sum(), with_rest, entropy, numItermax=50_000, stopThr=1e-13)
    return scaled[:n] * a.sum()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [1.0, 0.25, 0.0625, 0.02])
@pytest.mark.parametrize("entropy", [0.2, 0.05, None], ids=["0.2", "0.05", "exact"])
@pytest.mark.parametrize("seed", range(3))
def test_ot_triplet_agrees_with_pot_class_by_class(seed: int, entropy: float | None, share: float, metric: str) -> None:
    anchors, clean = batch(seed, images=30)
    if entropy is not None and metric == "euclidean":
        entropy *= 5  # its costs are larger by about as much
    options = {"ground_metric": metric, "negative_share": share, "entropy": entropy}
    for margin in (0.3, 5.0):
        ours = penalty("ot_triplet", anchors, clean, margin=margin, **options)
        reference = ot_triplet_by_hand(anchors, clean, metric, margin, share, entropy)
        assert ours.value.item() == pytest.approx(reference, rel=1e-4, abs=1e-6)
        assert ours.marginal_error is not None
        assert ours.marginal_error < 1e-4
    assert reference > 0


def large_batch() -> tuple[Embedded, Embedded]:
    """Return both sides of a batch as MNIST's space has it, embeddings of an unregularised network's size. float32."""
    anchors, clean = batch(0, images=128, dimensions=32)
    return anchors._replace(points=10 * anchors.points.float()), clean._replace(points=10 * clean.points.float())


@pytest.mark.parametrize("share", [0.03, 0.0625, 1.0])
@pytest.mark.parametrize("entropy", [0.02, 0.05, 1.0])
def test_transport_of_a_batch_is_solved_over_the_ranges_of_the_spaces(entropy: float, share: float) -> None:
    error = penalty("ot_triplet", *large_batch(), entropy=entropy, negative_share=share).marginal_error
    assert error is not None
    assert error < 1e-4
    assert not alarms({"marginal_error": error.item()})


def test_transport_that_is_not_solved_raises_the_alarm() -> None:
    """An entropy that is far too small for the squared distances of such embeddings."""
    error = penalty("ot_triplet", *large_batch(), ground_metric="euclidean").marginal_error
    assert error is not None
    [alarm] = alarms({"marginal_error": error.item()})
    assert "transport was not solved" in alarm


def negative_plans(
    anchors: Embedded, clean: Embedded, share: float, entropy: float | None, metric: str
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return costs and plan (n, m), of mass 1 for each anchor, that `ot_triplet` made from each class to the others."""
    solved = []
    inner = solver("exact" if entropy is None else "entropic", entropy or 0.0)

    def solve(*problems: Tensor, forbidden: Tensor | None = None) -> Any:
        solved.append(inner(*problems, forbidden=forbidden))
        return solved[-1]

    options = {"ground_metric": metric, "negative_share": share}
    regularizer("ot_triplet", anchors, clean, classes=CLASSES, solve=solve, **options)
    _, between = solved
    assert anchors.keep is not None
    cost, found = regularizers.COSTS[metric](anchors.points, clean.points), {}
    for c in between.solvable.nonzero()[:, 0].tolist():
        rows, others = ((anchors.labels == c) & anchors.keep).nonzero()[:, 0], clean.labels != c
        plan = between.plan[c, : len(rows)][:, others] * len(rows) / share
        found[c] = cost[rows][:, others].numpy(), plan.numpy()
    return found


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [1.0, 0.25, 0.0625])
@pytest.mark.parametrize("entropy", [0.2, 0.05, None], ids=["0.2", "0.05", "exact"])
@pytest.mark.parametrize("seed", range(3))
def test_the_negative_plan_is_pots(seed: int, entropy: float | None, share: float, metric: str) -> None:
    if entropy is not None and metric == "euclidean":
        entropy *= 5
    plans = negative_plans(*batch(seed, images=30), share, entropy, metric)
    assert len(plans) > 1
    for cost, plan in plans.values():
        solved_to = 1e-5 * len(cost) / share  # the solver's tolerance is of plans with mass 1
        np.testing.assert_allclose(plan, partial_plan_by_pot(cost, share, entropy), rtol=0, atol=solved_to)


@pytest.mark.parametrize("seed", range(3))
def test_the_negative_plan_tends_to_the_entropic_partial_plan_of_pot(seed: int) -> None:
    """POT's own gives the mass left behind no entropy, so that the two agree only as the entropy falls."""
    share = 0.25

    def gap(entropy: float) -> float:
        """Return the largest difference of the two transport costs, which tend to the exact one from above."""
        found = []
        for cost, plan in negative_plans(*batch(seed, images=30), share, entropy, "cosine").values():
            n, m = cost.shape
            even = np.ones(n), np.full(m, n / share / m)
            theirs = ot.partial.entropic_partial_wasserstein(*even, cost, reg=entropy, m=n, numItermax=5000)
            found.append(abs(((plan - theirs) * cost).sum() / n))
        return max(found)

    assert gap(0.005) < 0.003
    assert gap(0.2) > 0.01


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_share_finds_the_nearest_negative_and_the_whole_the_mean(seed: int, metric: str) -> None:
    """Check it where the clean images of a class lie in one point, so that any positive plan costs the same."""
    anchors, (clean, _) = batch(seed, images=60)[0], perfect(seed, images=60)[::-1]
    anchors = anchors._replace(points=torch.randn(60, 6, generator=torch.Generator().manual_seed(seed)).double())
    cost = regularizers.COSTS[metric](anchors.points, clean.points)
    other = clean.labels != anchors.labels[:, None]
    towards_own = cost.masked_fill(other, 0).sum(1) / (~other).sum(1)
    nearest, mean = cost.masked_fill(~other, torch.inf).amin(1), (cost * other).sum(1) / other.sum(1)
    assert anchors.keep is not None

    def value(share: float, entropy: float) -> float:
        options = {"ground_metric": metric, "margin": 100.0, "negative_share": share, "entropy": entropy}
        return penalty("ot_triplet", anchors, clean, **options).value.item() - 100

    assert value(0.01, 0.01) == pytest.approx((towards_own - nearest)[anchors.keep].mean().item(), abs=5e-3)
    assert value(1.0, 1000.0) == pytest.approx((towards_own - mean)[anchors.keep].mean().item(), abs=5e-2)


@pytest.mark.parametrize("metric", METRICS)
def test_a_changed_image_nearer_to_its_sources_class_than_to_its_own_has_a_gradient(metric: str) -> None:
    """Check where the hinge over a whole class was 0: most anchors are right, one is still where its source is."""
    anchors, clean = perfect(3)
    stuck = int((anchors.labels != clean.labels).nonzero()[0, 0])
    towards_source = 0.8 * clean.points[stuck] + 0.2 * anchors.points[stuck]
    points = torch.where(torch.arange(len(clean.labels))[:, None] == stuck, towards_source, anchors.points)
    keep = torch.ones_like(clean.labels, dtype=torch.bool)
    for share in (0.25, 0.0625, 0.01):
        options = {"ground_metric": metric, "margin": 0.0, "negative_share": share}
        value, by_anchor, _ = gradients("ot_triplet", Embedded(points, anchors.labels, keep), clean, **options)
        assert value.item() > 0
        assert by_anchor[stuck].norm() > 1e-3


@pytest.mark.parametrize("name", ["triplet", "ot_triplet"])
def test_classes_further_apart_than_the_margin_cost_nothing(name: str) -> None:
    labels = torch.arange(12) % CLASSES
    points = 10 * torch.eye(CLASSES)[labels]
    side = Embedded(points, labels)
    assert penalty(name, side, side, ground_metric="euclidean", margin=1.0).value.item() == 0
    assert penalty(name, side, side, ground_metric="euclidean", margin=1000.0).value.item() > 0


@given(seed=seeds, images=st.integers(1, 20), classes=st.integers(1, 6))
def test_grouping_lists_each_image_kept_once_under_its_class(seed: int, images: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    keep = torch.rand(images, generator=generator) < 0.7
    index, present = regularizers.group_by_class(Embedded(torch.zeros(images, 1), labels, keep), classes)
    for c in range(classes):
        assert index[c][present[c]].tolist() == ((labels == c) & keep).nonzero()[:, 0].tolist()


# ------------------------------------------------------------------------------------------------ all regularisers


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("metric", METRICS)
@given(seed=seeds)
@settings(max_examples=15)
def test_order_of_the_batch_changes_nothing(name: str, metric: str, seed: int) -> None:
    anchors, clean = batch(seed)
    assert anchors.keep is not None
    order = torch.randperm(len(clean.labels), generator=torch.Generator().manual_seed(seed))
    shuffled = Embedded(anchors.points[order], anchors.labels[order], anchors.keep[order])
    value, by_anchor, by_clean = gradients(name, anchors, clean, ground_metric=metric)
    value_, by_anchor_, by_clean_ = gradients(
        name, shuffled, Embedded(clean.points[order], clean.labels[order]), ground_metric=metric
    )
    # The value of `ot_triplet` follows its plans' error to first order, and that of `sinkhorn` to second.
    torch.testing.assert_close(value_, value, rtol=1e-4 if name == "ot_triplet" else 1e-6, atol=1e-9)
    torch.testing.assert_close(by_anchor_, by_anchor[order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_clean_, by_clean[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REGULARIZERS)
@given(seed=seeds)
@settings(max_examples=15)
def test_anchor_left_out_decides_nothing(name: str, seed: int) -> None:
    anchors, clean = batch(seed)
    assert anchors.keep is not None
    other = torch.randn(anchors.points.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    moved = anchors._replace(points=torch.where(anchors.keep[:, None], anchors.points, other))
    value, by_anchor, _ = gradients(name, anchors, clean)
    # Where the cost begins to fall depends on the largest of all, so that the solver ends elsewhere in its tolerance.
    torch.testing.assert_close(penalty(name, moved, clean).value, value, rtol=1e-5, atol=1e-8)
    assert by_anchor[~anchors.keep].abs().sum() == 0


@pytest.mark.parametrize("name", REGULARIZERS)
@given(seed=seeds, scale=st.floats(0.01, 100))
@settings(max_examples=15)
def test_cosine_is_blind_to_the_length_of_embeddings(name: str, seed: int, scale: float) -> None:
    anchors, clean = batch(seed)
    longer = clean._replace(points=scale * clean.points)
    torch.testing.assert_close(
        penalty(name, anchors, longer).value, penalty(name, anchors, clean).value, rtol=1e-6, atol=1e-9
    )


@given(seed=seeds, metric=st.sampled_from(METRICS), name=st.sampled_from(["sinkhorn", "ot_triplet"]))
@settings(max_examples=30)
def test_entropic_penalties_tend_to_the_exact(seed: int, metric: str, name: str) -> None:
    anchors, clean = batch(seed)
    exact = penalty(name, anchors, clean, ground_metric=metric, entropy=None, margin=50.0).value.item()
    entropic = penalty(name, anchors, clean, ground_metric=metric, entropy=0.01, margin=50.0).value.item()
    assert abs(entropic - exact) <= 0.01 * np.log(len(clean.labels)) * 4 * CLASSES
    assert exact > 0


def test_the_configuration_decides_how_transport_is_solved() -> None:
    """Check that the entropic value tends to the exact one, which does not depend on the entropy."""
    config = TrialConfig(regularizer="sinkhorn", sensitivity_weight=1.0, entropy=1.0)
    anchors, clean = batch(0)
    predictions = {
        "clean": Prediction(clean.points, clean.points),
        "sensitivity": Prediction(anchors.points, anchors.points),
    }

    def term(**changes: Any) -> float:
        changed = dataclasses.replace(config, **changes)
        value = loss_terms(changed, Knobs.of(changed, torch.device("cpu")), predictions, clean.labels).sensitivity
        assert value is not None
        return value.item()

    exact = term(transport="exact")
    assert term(transport="exact", entropy=0.01) == exact
    assert abs(term(entropy=0.01) - exact) < 0.1 * abs(term() - exact)


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(2))
def test_gradient_is_that_of_finite_differences(name: str, metric: str, seed: int) -> None:
    """Check it, for `ot_triplet` with its plans held, as no gradient passes through them."""
    anchors, clean = batch(seed, images=12, dimensions=3)
    solve = held(solver("entropic", 0.2)) if name == "ot_triplet" else solver("entropic", 0.2)

    def value(x: Tensor, y: Tensor) -> Tensor:
        sides = anchors._replace(points=x), clean._replace(points=y)
        return regularizer(name, *sides, classes=CLASSES, ground_metric=metric, solve=solve, margin=5.0).value

    points = anchors.points.clone().requires_grad_(), clean.points.clone().requires_grad_()
    assert value(*points).item() > 0
    torch.autograd.gradcheck(value, points, eps=1e-5, atol=2e-4, rtol=2e-3)


def held(solve: transport.Solver) -> transport.Solver:
    """Return a solver that gives the plan of the first problems of each shape for ever."""
    first: dict[torch.Size, Any] = {}

    def solve_once(cost: Tensor, a: Tensor, b: Tensor, *, forbidden: Tensor | None = None) -> Any:
        if cost.shape not in first:
            first[cost.shape] = solve(cost, a, b, forbidden=forbidden)
        return first[cost.shape]

    return solve_once


def degenerate() -> dict[str, tuple[Embedded, Embedded]]:
    generator = torch.Generator().manual_seed(0)
    points, labels = torch.randn(8, 3, generator=generator), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])

    def same(points: Tensor, labels: Tensor) -> tuple[Embedded, Embedded]:
        return Embedded(points, labels), Embedded(points, labels)

    none_kept = torch.zeros(8, dtype=torch.bool)
    return {
        "one image": same(points[:1], labels[:1]),
        "two images of one class": same(points[:2], labels[:2]),
        "two images of two classes": same(points[2:4], labels[2:4]),
        "one class": same(points, torch.zeros_like(labels)),
        "every image its own class": same(points[:4], torch.arange(4)),
        "all the same point": same(torch.ones(8, 3), labels),
        "all of norm zero": same(torch.zeros(8, 3), labels),
        "norms that underflow": same(1e-30 * points, labels),
        "all labels in doubt": (Embedded(points, labels, none_kept), Embedded(points, labels)),
        "labels that no clean image has": (Embedded(points, torch.full_like(labels, 3)), Embedded(points, labels)),
        "two anchors, one clean image of the class": (
            Embedded(points[:3], torch.tensor([0, 0, 1])),
            Embedded(points[:3], torch.tensor([0, 1, 1])),
        ),
    }


@pytest.mark.parametrize("case", degenerate())
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("entropy", [1.0, 0.01, None], ids=["much", "little", "exact"])
def test_degenerate_batches_give_finite_values_and_gradients(
    name: str, metric: str, case: str, entropy: float | None
) -> None:
    for part in gradients(name, *degenerate()[case], ground_metric=metric, entropy=entropy):
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("name", REGULARIZERS)
def test_nothing_to_compare_is_zero_with_zero_gradient(name: str) -> None:
    for part in gradients(name, *degenerate()["all labels in doubt"]):
        assert part.abs().sum() == 0


@pytest.mark.parametrize("name", ["triplet", "ot_triplet"])
@pytest.mark.parametrize(
    "case", ["one image", "one class", "every image its own class", "labels that no clean image has"]
)
def test_anchors_without_a_positive_or_a_negative_are_left_out(name: str, case: str) -> None:
    for part in gradients(name, *degenerate()[case], margin=1.0):
        assert part.abs().sum() == 0


@pytest.mark.parametrize("name", REGULARIZERS)
def test_same_call_gives_the_same_bits(name: str) -> None:
    sides = batch(3, images=40)
    first, second = (gradients(name, *sides) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# ------------------------------------------------------------------------------------------------------- objective


def predictions(seed: int = 0, images: int = 12, dimensions: int = 5) -> dict[str, Prediction]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Prediction(
            torch.randn(images, CLASSES, generator=generator, requires_grad=True),
            torch.randn(images, dimensions, generator=generator, requires_grad=True),
        )
        for name in ("clean", "sensitivity", "invariance")
    }


LABELS = torch.arange(12) % CLASSES
INVARIANCE_LABELS = (LABELS + 1) % CLASSES
KEEP = torch.arange(12) < 9


def terms_of(config: TrialConfig, seen: dict[str, Prediction] | None = None) -> LossTerms:
    knobs = Knobs.of(config, torch.device("cpu"))
    seen = predictions() if seen is None else seen
    return terms_module.loss_terms(
        config, knobs, seen, LABELS, invariance_labels=INVARIANCE_LABELS, invariance_keep=KEEP
    )


def total_of(config: TrialConfig) -> Tensor:
    return terms_module.total_loss(terms_of(config), Knobs.of(config, torch.device("cpu")))


@pytest.mark.parametrize("name", ["none", *REGULARIZERS])
def test_every_weight_at_zero_is_the_cross_entropy_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for term in ("regularizer", "embedding_norm", "trades"):
        monkeypatch.setattr(terms_module, term, _must_not_run(term))
    config = TrialConfig(regularizer=name)
    terms = terms_of(config, {"clean": predictions()["clean"]})
    assert terms._replace(clean_ce=None) == LossTerms()
    total = terms_module.total_loss(terms, Knobs.of(config, torch.device("cpu")))
    assert torch.equal(total, F.cross_entropy(predictions()["clean"].logits, LABELS))


def _must_not_run(term: str) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError(f"{term} was computed at weight 0")

    return fail


def test_each_cross_entropy_sees_its_own_view_with_its_own_labels() -> None:
    seen = predictions()
    terms = terms_of(TrialConfig(clean_ce_weight=0.1, sensitivity_ce_weight=0.2, invariance_ce_weight=0.3))
    torch.testing.assert_close(terms.clean_ce, F.cross_entropy(seen["clean"].logits, LABELS))
    torch.testing.assert_close(terms.sensitivity_ce, F.cross_entropy(seen["sensitivity"].logits, LABELS))
    torch.testing.assert_close(
        terms.invariance_ce, F.cross_entropy(seen["invariance"].logits[KEEP], INVARIANCE_LABELS[KEEP])
    )


@pytest.mark.parametrize("view", ["clean", "sensitivity", "invariance"])
def test_a_cross_entropy_of_weight_0_is_left_out(view: str) -> None:
    weights = {f"{name}_ce_weight": float(name == view) for name in ("clean", "sensitivity", "invariance")}
    terms = terms_of(TrialConfig(**weights), {view: predictions()[view]})
    assert [name for name in LossTerms._fields if getattr(terms, name) is not None] == [f"{view}_ce"]


@pytest.mark.parametrize("smoothing", [0.1, 5 / 9, 1.0])
def test_smooth_labels_are_pytorchs(smoothing: float) -> None:
    config = TrialConfig(sensitivity_ce_weight=1.0, invariance_ce_weight=1.0, label_smoothing=smoothing)
    seen = predictions()
    terms = terms_of(config, seen)
    expected = {
        "clean_ce": (seen["clean"].logits, LABELS),
        "sensitivity_ce": (seen["sensitivity"].logits, LABELS),
        "invariance_ce": (seen["invariance"].logits[KEEP], INVARIANCE_LABELS[KEEP]),
    }
    for name, (logits, labels) in expected.items():
        torch.testing.assert_close(getattr(terms, name), F.cross_entropy(logits, labels, label_smoothing=smoothing))


def test_cross_entropy_over_nothing_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(3, CLASSES, requires_grad=True)
    value = terms_module.cross_entropy(logits, LABELS[:3], torch.zeros(3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == gradient.abs().sum().item() == 0


@pytest.mark.parametrize("name", REGULARIZERS)
def test_total_is_the_weighted_sum(name: str) -> None:
    config = TrialConfig(
        regularizer=name,
        clean_ce_weight=0.7,
        sensitivity_ce_weight=0.4,
        invariance_ce_weight=0.3,
        sensitivity_weight=0.5,
        invariance_weight=2.0,
        norm_weight=0.1,
        trades_weight=3.0,
        margin=1.0,
    )
    terms = terms_of(config)
    assert None not in terms._replace(certified_ce=torch.zeros(()), marginal_error=torch.zeros(()))
    assert terms.certified_ce is None
    assert (terms.marginal_error is None) == (name == "triplet")
    weighted = (
        0.7 * terms.clean_ce  # type: ignore[operator]
        + 0.4 * terms.sensitivity_ce
        + 0.3 * terms.invariance_ce
        + 0.5 * terms.sensitivity
        + 2 * terms.invariance
        + 0.1 * terms.norm
        + 3 * terms.trades
    )
    torch.testing.assert_close(total_of(config), weighted)


def test_perturbations_are_regularised_apart_each_with_its_own_labels() -> None:
    config = TrialConfig(regularizer="triplet", sensitivity_weight=1.0, invariance_weight=1.0, margin=1.0)
    seen, terms = predictions(), terms_of(config)
    clean = Embedded(seen["clean"].embedding, LABELS)
    for name, anchors in (
        ("sensitivity", Embedded(seen["sensitivity"].embedding, LABELS)),
        ("invariance", Embedded(seen["invariance"].embedding, INVARIANCE_LABELS, KEEP)),
    ):
        torch.testing.assert_close(
            getattr(terms, name), regularizer("triplet", anchors, clean, classes=CLASSES, margin=1.0).value
        )


def test_the_regulariser_acts_on_the_logits_if_configured() -> None:
    config = TrialConfig(regularizer="sinkhorn", sensitivity_weight=1.0, regularizer_on="logits", norm_weight=1.0)
    seen, terms = predictions(), terms_of(config)
    sides = (Embedded(seen[name].logits, LABELS) for name in ("sensitivity", "clean"))
    assert terms.sensitivity is not None
    assert terms.norm is not None
    torch.testing.assert_close(terms.sensitivity, regularizer("sinkhorn", *sides, classes=CLASSES).value)
    torch.testing.assert_close(terms.norm, torch.cat([s.embedding for s in seen.values()]).norm(dim=1).mean())


def test_trades_is_the_mean_divergence_of_the_predictions() -> None:
    seen = predictions()
    clean, perturbed = seen["clean"].logits.detach(), seen["sensitivity"].logits.detach()
    reference = scipy.stats.entropy(clean.softmax(1).numpy(), perturbed.softmax(1).numpy(), axis=1).mean()
    assert terms_module.trades(clean, perturbed).item() == pytest.approx(reference, rel=1e-5)
    assert terms_module.trades(clean, clean).item() == pytest.approx(0, abs=1e-7)


def test_norm_penalty_has_a_gradient_at_zero() -> None:
    points = torch.zeros(3, 2, requires_grad=True)
    terms_module.embedding_norm([points]).backward()
    assert points.grad is not None
    assert torch.isfinite(points.grad).all()


def test_transport_attack_follows_the_gradient_of_the_batch_transport() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(6, CLASSES, generator=generator)
    weights = torch.randn(CLASSES, 9, generator=generator)
    images = torch.rand(6, 1, 3, 3, generator=generator, requires_grad=True)

    def logits(images: Tensor) -> Tensor:
        return images.flatten(1) @ weights.T

    shares = terms_module.transport_attack_loss(logits, clean)(images)
    assert shares.shape == (6,)
    even = torch.ones(1, 6)
    value = transport.entropic_transport(
        transport.cosine_cost(logits(images), clean)[None], even, even, entropy=0.01
    ).value
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), images)[0] for loss in (shares, value)))


# -------------------------------------------------------------------------------------------------------- diagnosis


@pytest.mark.parametrize("dimensions", [2, 5, 16])
def test_round_cloud_has_full_rank_and_spread(dimensions: int) -> None:
    cloud = torch.randn(4000, dimensions, generator=torch.Generator().manual_seed(0))
    shape = diagnosis.embedding_spread(cloud)
    assert shape.rank.item() == pytest.approx(dimensions, rel=0.01)
    assert shape.spread.item() == pytest.approx(1, abs=0.01)
    assert not shape.collapsed


@pytest.mark.parametrize(
    ("cloud", "rank", "spread"),
    [
        pytest.param(torch.ones(20, 4), 0, 0, id="one point"),
        pytest.param(torch.zeros(20, 4), 0, 0, id="norm zero"),
        pytest.param(torch.linspace(-1, 1, 20)[:, None] * torch.ones(4), 1, 1, id="a line"),
        pytest.param(1e-9 * torch.eye(4), 0, 0, id="norms too short for a direction"),
    ],
)
def test_collapsed_clouds_raise_the_alarm(cloud: Tensor, rank: float, spread: float) -> None:
    shape = diagnosis.embedding_spread(cloud)
    assert shape.rank.item() == pytest.approx(rank, abs=1e-2)
    assert shape.spread.item() == pytest.approx(spread, abs=1e-2)
    assert shape.collapsed


@given(seed=seeds, scale=st.floats(0.01, 100))
@settings(max_examples=20)
def test_shape_of_a_cloud_ignores_scale_and_rotation(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.randn(30, 4, generator=generator, dtype=torch.float64) + 1
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    for part, other in zip(
        diagnosis.embedding_spread(cloud), diagnosis.embedding_spread(scale * cloud @ rotation), strict=True
    ):
        torch.testing.assert_close(part, other, rtol=1e-9, atol=0)


def test_gradient_share_is_the_weighted_norm_over_the_cross_entropys() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    images = torch.randn(5, 3)
    output = model(images)
    terms = LossTerms(clean_ce=output[:, 0].sum(), norm=3 * output[:, 0].sum(), trades=output[:, 1].sum() * 0)
    knobs = Knobs.of(TrialConfig(norm_weight=2.0, trades_weight=1.0), torch.device("cpu"))
    shares = diagnosis.gradient_shares(terms, knobs, model.parameters())
    assert {name: share.item() for name, share in shares.items()} == pytest.approx({"norm": 6.0, "trades": 0.0})
    terms_module.total_loss(terms, knobs).backward()  # the graph is still there
    assert all(parameter.grad is not None and math.isfinite(parameter.grad.sum()) for parameter in model.parameters())
