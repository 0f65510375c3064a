from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import DBSCAN
from torch import Tensor
from torchvision.datasets import MNIST

from trainer.invariance.attacks import INVARIANCE_ATTACKS, TIE, allowed_targets, cheapest, ink_removed
from trainer.invariance.class_index import ClassIndex, Neighbours
from trainer.invariance.clusters import MOST_CLUSTERS, clusters, largest_subset, number_by_size
from trainer.invariance.neighbours import bring_back, find_neighbours
from trainer.invariance.published import PAPER_TARGETS, alignments_for

LINF, L0 = INVARIANCE_ATTACKS["linf"], INVARIANCE_ATTACKS["l0"]

images_1x1x6x6 = arrays(np.uint8, (1, 1, 6, 6), elements=st.integers(0, 255))
marks = arrays(np.bool_, (2, 12, 10))


@given(images_1x1x6x6, images_1x1x6x6, st.floats(0, 1))
def test_linf_stays_in_budget_and_moves_towards_the_neighbour(
    source: np.ndarray, neighbour: np.ndarray, epsilon: float
) -> None:
    image, target = torch.from_numpy(source).float() / 255, torch.from_numpy(neighbour)
    moved = LINF.perturb(image, LINF.plan(image, target), epsilon=epsilon)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved - image).abs().max() <= epsilon + TIE
    low, high = torch.minimum(image, target / 255), torch.maximum(image, target / 255)
    assert ((moved >= low - TIE) & (moved <= high + TIE)).all()


@given(images_1x1x6x6, images_1x1x6x6, st.integers(0, 255))
def test_linf_equals_the_published_rule(source: np.ndarray, neighbour: np.ndarray, budget: int) -> None:
    """Compute in whole levels, pixel by pixel, as the paper's authors describe it."""
    expected = source.astype(int)
    for at in np.ndindex(source.shape):
        x, nn = int(source[at]), int(neighbour[at])
        if abs(nn - x) <= budget and x > 0:
            expected[at] = nn
        elif abs(nn - x) > budget:
            expected[at] = x + budget * np.sign(nn - x)
    moved = LINF.perturb(torch.from_numpy(source).float() / 255, torch.from_numpy(neighbour), epsilon=budget / 255)
    np.testing.assert_allclose(moved.numpy() * 255, expected, atol=1e-3)


@given(marks)
def test_clusters_equal_scikit_learn(marked: np.ndarray) -> None:
    """Size 28 has the published radius and density; core pixels must agree, border pixels lie in a cluster near by."""
    padded = np.zeros((2, 28, 28), dtype=bool)
    padded[:, 3:15, 5:15] = marked
    found = clusters(torch.from_numpy(padded)).numpy()
    for mine, mask in zip(found, padded, strict=True):
        points = np.argwhere(mask)
        if not len(points):
            assert not mine.any()
            continue
        theirs = DBSCAN(eps=2, min_samples=5).fit(points)
        labels = mine[tuple(points.T)]
        assert ((labels > 0) == (theirs.labels_ >= 0)).all()
        core = np.zeros(len(points), dtype=bool)
        core[theirs.core_sample_indices_] = True
        pairs = {(a, b) for a, b in zip(labels[core], theirs.labels_[core], strict=True)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        for point, label in zip(points[~core], labels[~core], strict=True):
            near = np.hypot(*(points[core] - point).T) <= 2 if core.any() else np.zeros(0, dtype=bool)
            assert label == 0 or label in labels[core][near]


def test_clusters_scale_with_the_image() -> None:
    """Show that at 8x8 any touching pixels make a cluster, and at 28x28 five are needed."""
    corner = torch.zeros(1, 8, 8, dtype=torch.bool)
    corner[0, 1, 1] = corner[0, 2, 2] = corner[0, 6, 6] = True
    assert len(clusters(corner).unique()) == 3
    assert clusters(corner)[0, 1, 1] == clusters(corner)[0, 2, 2]
    assert not clusters(torch.nn.functional.pad(corner, (0, 20, 0, 20))).any()


def test_clusters_are_numbered_from_the_largest() -> None:
    numbers = torch.tensor([[[5, 5, 0], [9, 9, 9], [2, 2, 2]]], dtype=torch.int32)
    assert number_by_size(numbers).tolist() == [[[3, 3, 0], [2, 2, 2], [1, 1, 1]]]


def test_more_clusters_than_are_told_apart_stay_unmoved() -> None:
    numbers = torch.zeros(1, 4, 10, dtype=torch.int32)
    for c in range(10):
        numbers[0, : 1 + (c < 9), c] = c + 1
    ranks = number_by_size(numbers)
    assert sorted(ranks.unique().tolist()) == list(range(MOST_CLUSTERS + 1))
    assert ranks[0, 0, 9] == 0


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4), st.integers(0, 40))
def test_largest_subset_is_no_worse_than_any_other(sizes: list[int], allowed: int) -> None:
    chosen = largest_subset(torch.tensor([sizes]), torch.tensor([float(allowed)]))[0]
    total = sum(s for s, c in zip(sizes, chosen.tolist(), strict=True) if c)
    sums = {sum(s for b, s in enumerate(sizes) if subset >> b & 1) for subset in range(16)}
    assert total == max(s for s in sums if s <= allowed)


def blobs(seed: int) -> tuple[Tensor, Tensor]:
    """Draw smooth images (4, 1, 28, 28) in [0, 1] and neighbours in levels, whose differences form clusters."""
    noise = torch.rand(8, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, size=28, mode="nearest").round()
    return smooth[:4], (smooth[4:] * 255).to(torch.uint8)


@given(st.integers(0, 50), st.floats(0, 1))
def test_l0_moves_whole_clusters_within_its_share_of_pixels(seed: int, epsilon: float) -> None:
    images, aligned = blobs(seed)
    plan = L0.plan(images, aligned)
    moved = L0.perturb(images, plan, epsilon=epsilon)
    changed = moved != images
    assert (changed.flatten(1).sum(1) <= epsilon * 784 + TIE).all()
    assert torch.equal(moved[changed], (aligned / 255)[changed])
    for n in range(len(images)):
        for number in range(1, MOST_CLUSTERS + 1):
            flags = changed[n, 0][plan[n, -1] == number]
            assert flags.all() or not flags.any()


def test_l0_moves_every_numbered_cluster_at_the_full_budget() -> None:
    images, aligned = blobs(3)
    plan = L0.plan(images, aligned)
    moved = L0.perturb(images, plan, epsilon=1.0)
    assert torch.equal(moved != images, (plan[:, -1:] > 0))
    assert (L0.cost(images, moved, plan) <= L0.cost(images, images, plan)).all()


def test_l0_leaves_small_differences_alone() -> None:
    images = torch.full((1, 1, 28, 28), 0.5)
    assert torch.equal(L0.perturb(images, L0.plan(images, torch.full((1, 1, 28, 28), 250).byte()), epsilon=1.0), images)


@pytest.mark.parametrize("norm", list(INVARIANCE_ATTACKS))
def test_one_budget_per_image(norm: str) -> None:
    attack, (images, aligned) = INVARIANCE_ATTACKS[norm], blobs(1)
    plan, budgets = attack.plan(images, aligned), torch.tensor([0.0, 0.05, 0.3, 1.0])
    together = attack.perturb(images, plan, epsilon=budgets)
    alone = [attack.perturb(images[n : n + 1], plan[n : n + 1], epsilon=float(budgets[n]))[0] for n in range(4)]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(together[0], images[0])
    assert not torch.equal(together[3], images[3])


@pytest.mark.parametrize("norm", list(INVARIANCE_ATTACKS))
def test_budgets_ascend_from_nothing_to_all(norm: str) -> None:
    budgets = INVARIANCE_ATTACKS[norm].budgets
    assert list(budgets) == sorted(set(budgets))
    assert (budgets[0], budgets[-1]) == (0, 1)


def test_ink_removed_counts_only_lost_ink() -> None:
    before, after = torch.tensor([[[[0.5, 0.2]]]]), torch.tensor([[[[0.1, 0.9]]]])
    assert ink_removed(before, after).item() == pytest.approx(0.4)


def test_cheapest_takes_the_first_of_equals_and_marks_sources_without_a_pair() -> None:
    source = torch.tensor([0, 0, 0, 2, 2])
    pairs = Neighbours(source, *(torch.zeros(5, dtype=torch.int64) for _ in range(3)), torch.zeros(5))
    chosen = cheapest(pairs, torch.tensor([3.0, 1.0, 1.0, 0.5, 0.2]), sources=4)
    assert chosen.tolist() == [1, -1, 4, -1]


def test_allowed_targets_never_hold_the_source() -> None:
    for table in (None, PAPER_TARGETS):
        assert not allowed_targets(10, table).diagonal().any()
    assert allowed_targets(10).sum() == 90
    assert allowed_targets(10, PAPER_TARGETS)[7].nonzero().flatten().tolist() == [2, 3]


@pytest.mark.slow
def test_the_published_images_are_reproduced(data_dir: Path) -> None:
    """Use all 60,000 training images, and the 100 test images and results that the authors published for Linf 0.3."""
    train, test = MNIST(data_dir, train=True), MNIST(data_dir, train=False)
    folder = data_dir / "invariance_examples"
    chosen = torch.from_numpy(np.load(folder / "indexs.npy", allow_pickle=False))
    published = np.load(folder / "linf" / "automated_eps03.npy", allow_pickle=False)
    images, labels = test.data[chosen, None] / 255, test.targets[chosen]
    training = train.data[:, None] / 255
    grid = alignments_for("mnist", "linf")
    index = ClassIndex(training, train.targets, classes=10)
    found = find_neighbours(images, labels, index, alignments=grid, allowed=allowed_targets(10, PAPER_TARGETS))
    sources, plan = images[found.source], bring_back(training, found, grid)
    perturbed = LINF.perturb(sources, plan, epsilon=0.3)
    best = cheapest(found, LINF.cost(sources, perturbed, plan), len(images))
    off = (perturbed[best][:, 0] * 255 - torch.from_numpy(published)).abs().amax((1, 2))
    missed = [f"test image {int(chosen[n])}: off by {off[n] / 255:.3f}" for n in (off > 1).nonzero().flatten()]
    assert len(missed) <= 1, missed
