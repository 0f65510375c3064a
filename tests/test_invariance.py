from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor

from trainer.config import InputError
from trainer.invariance import (
    PAPER_TARGETS,
    TIE,
    Aligner,
    AlignmentGrid,
    Neighbours,
    allowed_targets,
    bring_back,
    find_neighbours,
    ink_removed,
    least_ink,
    linf_perturb,
)

SMALL = AlignmentGrid(shift_limit=1.5, shift_count=3, rotation_limit=20, rotation_count=3)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.images[:, None] / 16, dtype=torch.float32), torch.tensor(bunch.target)


def scipy_align(levels: np.ndarray, degrees: float, down: float, right: float) -> np.ndarray:
    """The published procedure on one 8-bit image."""
    return ndimage.shift(ndimage.rotate(levels, degrees, reshape=False), (down, right))


def grid_alignments(grid: AlignmentGrid) -> list[tuple[float, float, float]]:
    return [(r, down, right) for r in grid.rotations for down in grid.shifts for right in grid.shifts]


@pytest.mark.parametrize("shape", [(8, 8), (9, 12), (28, 28)], ids=str)
@pytest.mark.parametrize("grid", [SMALL, AlignmentGrid(3, 5, 0, 1)], ids=["rotated", "shifted"])
def test_alignments_equal_scipy(shape: tuple[int, int], grid: AlignmentGrid) -> None:
    levels = np.random.default_rng(0).integers(0, 256, size=(2, 3, *shape), dtype=np.uint8)
    levels[:, :, :, 0] = 0
    versions = Aligner(grid, *shape).all(torch.from_numpy(levels))
    for a, alignment in enumerate(grid_alignments(grid)):
        for n, c in np.ndindex(2, 3):
            np.testing.assert_array_equal(versions[n, a, c], scipy_align(levels[n, c], *alignment))


def test_each_image_moves_by_its_own_alignment() -> None:
    levels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, size=(SMALL.size, 1, 8, 8), dtype=np.uint8))
    aligner = Aligner(SMALL, 8, 8)
    moved = aligner.each(levels, torch.arange(SMALL.size))
    assert torch.equal(moved, torch.stack([aligner.all(levels[a : a + 1])[0, a] for a in range(SMALL.size)]))


def test_negated_alignment_turns_and_shifts_the_other_way() -> None:
    aligner = Aligner(SMALL, 8, 8)
    for a, (degrees, down, right) in enumerate(grid_alignments(SMALL)):
        opposite = grid_alignments(SMALL)[int(aligner.negated(torch.tensor(a)))]
        assert opposite == (-degrees, -down, -right)


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10"])
def test_grid_is_symmetric_and_holds_no_movement(name: str) -> None:
    alignments = grid_alignments(AlignmentGrid.for_dataset(name))
    assert (0, 0, 0) in alignments
    assert {tuple(-x for x in a) for a in alignments} == set(alignments)
    assert len(alignments) == len(set(alignments)) == AlignmentGrid.for_dataset(name).size


def test_paper_grid() -> None:
    grid = AlignmentGrid.for_dataset("mnist")
    assert grid.size == 775
    assert grid.shifts.tolist() == [-3, -1.5, 0, 1.5, 3]
    assert grid.rotations[[0, 1, -1]].tolist() == [-30, -28, 30]


def test_unknown_grid() -> None:
    with pytest.raises(InputError, match="'mnsit': did you mean 'mnist'"):
        AlignmentGrid.for_dataset("mnsit")


def brute_force(
    images: Tensor, labels: Tensor, training: Tensor, training_labels: Tensor, grid: AlignmentGrid, allowed: Tensor
) -> dict[tuple[int, int], tuple[float, int, int]]:
    """(distance, alignment, index) by (source, target): scipy's transforms, whole-number distances, first of equals."""
    store = (training.numpy() * 255 + 0.5).astype(np.uint8).astype(np.int64).reshape(len(training), -1)
    found = {}
    for n, image in enumerate(images.numpy()):
        levels = (image * 255 + 0.5).astype(np.uint8)
        versions = np.stack([[scipy_align(c, *a) for c in levels] for a in grid_alignments(grid)])
        queries = versions.astype(np.int64).reshape(grid.size, 1, -1)
        for target in allowed[labels[n]].nonzero().squeeze(1).tolist():
            members = (training_labels == target).nonzero().squeeze(1).numpy()
            squared = ((queries - store[members]) ** 2).sum(2)
            a, m = np.unravel_index(squared.argmin(), squared.shape)
            found[n, target] = (float(squared[a, m]) ** 0.5 / 255, int(a), int(members[m]))
    return found


@pytest.mark.parametrize("table", [None, PAPER_TARGETS], ids=["every_class", "paper_table"])
def test_neighbours_equal_brute_force(digits: tuple[Tensor, Tensor], table: dict[int, tuple[int, ...]] | None) -> None:
    images, labels = digits
    allowed = allowed_targets(10, table)
    sources = (images[:12], labels[:12])
    training = (images[100:400], labels[100:400])
    found = find_neighbours(*sources, *training, grid=SMALL, allowed=allowed)
    expected = brute_force(*sources, *training, SMALL, allowed)
    assert list(zip(found.source.tolist(), found.target.tolist(), strict=True)) == list(expected)
    for q, (distance, alignment, index) in enumerate(expected.values()):
        assert (int(found.alignment[q]), int(found.neighbour[q])) == (alignment, index)
        assert found.distance[q].item() == pytest.approx(distance, rel=1e-5)


def test_a_moved_training_image_is_found_and_brought_back(digits: tuple[Tensor, Tensor]) -> None:
    """A source that is a training image of another class, moved, has that image as its neighbour at distance 0."""
    images, labels = digits
    aligner = Aligner(SMALL, 8, 8)
    alignment = torch.tensor([5])
    original = int((labels == 3).nonzero()[0])
    levels = (images[original : original + 1] * 255).round()
    moved_back = (aligner.each(levels, alignment) / 255).float()
    # Shifts by whole pixels and no rotation are exact, so the source moved by the opposite is the original.
    whole = AlignmentGrid(shift_limit=1, shift_count=3, rotation_limit=0, rotation_count=1)
    padded = torch.nn.functional.pad(images[:200], (2, 2, 2, 2))
    source = padded[original : original + 1].roll((1, -1), (2, 3))
    found = find_neighbours(source, torch.tensor([8]), padded, labels[:200], grid=whole, allowed=allowed_targets(10))
    pair = int((found.target == 3).nonzero())
    assert found.neighbour[pair] == original
    assert found.distance[pair] == 0
    assert torch.equal(bring_back(padded, found, whole)[pair], (source[0] * 255 + 0.5).floor().to(torch.uint8))
    assert moved_back.shape == images[:1].shape


images_1x1x6x6 = arrays(np.uint8, (1, 1, 6, 6), elements=st.integers(0, 255))


@given(images_1x1x6x6, images_1x1x6x6, st.floats(0, 1))
@settings(deadline=None)
def test_linf_perturbation_stays_in_budget_and_moves_towards_the_neighbour(
    source: np.ndarray, neighbour: np.ndarray, epsilon: float
) -> None:
    image, target = torch.from_numpy(source).float() / 255, torch.from_numpy(neighbour)
    moved = linf_perturb(image, target, epsilon=epsilon)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved - image).abs().max() <= epsilon + TIE
    low, high = torch.minimum(image, target / 255), torch.maximum(image, target / 255)
    assert ((moved >= low - TIE) & (moved <= high + TIE)).all()


@given(images_1x1x6x6, images_1x1x6x6, st.integers(0, 255))
@settings(deadline=None)
def test_linf_perturbation_equals_the_published_rule(source: np.ndarray, neighbour: np.ndarray, budget: int) -> None:
    """In whole levels, pixel by pixel, as the paper's authors describe it."""
    expected = source.astype(int)
    for at in np.ndindex(source.shape):
        x, nn = int(source[at]), int(neighbour[at])
        if abs(nn - x) <= budget and x > 0:
            expected[at] = nn
        elif abs(nn - x) > budget:
            expected[at] = x + budget * np.sign(nn - x)
    moved = linf_perturb(torch.from_numpy(source).float() / 255, torch.from_numpy(neighbour), epsilon=budget / 255)
    np.testing.assert_allclose(moved.numpy() * 255, expected, atol=1e-3)


def test_one_budget_per_image() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 4, 4, generator=generator)
    targets = torch.randint(0, 256, (3, 1, 4, 4), generator=generator).to(torch.uint8)
    budgets = torch.tensor([0.0, 0.2, 1.0])
    together = linf_perturb(images, targets, epsilon=budgets)
    assert all(
        torch.equal(together[n], linf_perturb(images[n : n + 1], targets[n : n + 1], epsilon=float(budgets[n]))[0])
        for n in range(3)
    )
    assert torch.equal(together[0], images[0])


def test_ink_removed_counts_only_lost_ink() -> None:
    before, after = torch.tensor([[[[0.5, 0.2]]]]), torch.tensor([[[[0.1, 0.9]]]])
    assert ink_removed(before, after).item() == pytest.approx(0.4)


def test_least_ink_takes_the_first_of_equals_and_marks_sources_without_a_pair() -> None:
    source = torch.tensor([0, 0, 0, 2, 2])
    pairs = Neighbours(source, *(torch.zeros(5, dtype=torch.int64) for _ in range(3)), torch.zeros(5))
    chosen = least_ink(pairs, torch.tensor([3.0, 1.0, 1.0, 0.5, 0.2]), sources=4)
    assert chosen.tolist() == [1, -1, 4, -1]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.full((1, 1, 8, 8), 2.0), torch.tensor([0]), r"images in \[2, 2\]: pixels must lie in \[0, 1\]"),
        (torch.full((1, 1, 8, 8), torch.nan), torch.tensor([0]), "pixels must lie in"),
        (torch.zeros(1, 1, 8, 8), torch.tensor([10]), r"labels in \[10, 10\]: must lie in \[0, 9\]"),
        (torch.zeros(1, 1, 9, 8), torch.tensor([0]), r"sources \(1, 9, 8\), training images \(1, 8, 8\): differ"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0]), r"must be \(N, C, H, W\) and \(N,\)"),
    ],
    ids=["too_bright", "nan", "label", "size", "count"],
)
def test_wrong_input_is_refused(images: Tensor, labels: Tensor, message: str) -> None:
    training, training_labels = torch.zeros(4, 1, 8, 8), torch.arange(4)
    with pytest.raises(InputError, match=message):
        find_neighbours(images, labels, training, training_labels, grid=SMALL, allowed=allowed_targets(10))
