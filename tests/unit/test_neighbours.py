from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.test_alignments import SMALL, grid_alignments, scipy_align
from trainer.config import EvaluationConfig
from trainer.data.datasets import Data, load_data
from trainer.errors import InputError
from trainer.invariance.affine_draws import AffineAligner, AffineDraws
from trainer.invariance.alignment_grid import AlignmentGrid
from trainer.invariance.attacks import allowed_targets
from trainer.invariance.class_index import ClassIndex, Neighbours
from trainer.invariance.lower_bounds import COVARIANCE_IMAGES, FLOAT32_ERROR, principal_bases, probe_of, widened
from trainer.invariance.neighbours import bring_back, find_neighbours
from trainer.invariance.published import PAPER_TARGETS, alignments_for
from trainer.parallel import threads


def brute_force(
    images: Tensor, labels: Tensor, training: Tensor, training_labels: Tensor, grid: AlignmentGrid, allowed: Tensor
) -> dict[tuple[int, int], list[tuple[float, int, int]]]:
    """Return (distance, alignment, index) of all training images, nearest first, by (source, target).

    scipy's transforms and distances in whole numbers; of equals the first alignment, then the first training image.
    """
    store = (training.numpy() * 255 + 0.5).astype(np.uint8).astype(np.int64).reshape(len(training), -1)
    found = {}
    for n, image in enumerate(images.numpy()):
        levels = (image * 255 + 0.5).astype(np.uint8)
        versions = np.stack([[scipy_align(c, *a) for c in levels] for a in grid_alignments(grid)])
        queries = versions.astype(np.int64).reshape(grid.size, 1, -1)
        for target in allowed[labels[n]].nonzero().squeeze(1).tolist():
            members = (training_labels == target).nonzero().squeeze(1).numpy()
            squared = ((queries - store[members]) ** 2).sum(2)
            best = squared.argmin(0)
            rows = sorted((int(squared[a, m]), int(a), int(members[m])) for m, a in enumerate(best))
            found[n, target] = [(d**0.5 / 255, a, m) for d, a, m in rows]
    return found


def assert_same(found: Neighbours, expected: dict[tuple[int, int], list[tuple[float, int, int]]], nearest: int) -> None:
    rows = [(*pair, *row) for pair, near in expected.items() for row in near[:nearest]]
    columns = list(zip(*rows, strict=True))
    assert found.source.tolist() == list(columns[0])
    assert found.target.tolist() == list(columns[1])
    np.testing.assert_allclose(found.distance, columns[2], rtol=1e-6)
    assert found.alignment.tolist() == list(columns[3])
    assert found.neighbour.tolist() == list(columns[4])


def test_neighbours_over_affine_draws_equal_brute_force(digits: Data) -> None:
    """Search in black and white, and only by draws that keep the ink, which rules out some for one of the sources."""
    images = torch.nn.functional.interpolate(digits.train.images[:200], size=24, mode="bilinear").clamp(0, 1)
    images[0] = images[0].roll(-9, 2)
    sources, training = (images[:6], digits.train.labels[:6]), (images[6:], digits.train.labels[6:200])
    draws = AffineDraws(rotation_limit=0.25, scale_limit=0.2, shear_limit=0.2, shift_limit=6, size=40)
    index = ClassIndex(draws.sought(training[0]), training[1], classes=10)
    found = find_neighbours(*sources, index, alignments=draws, allowed=allowed_targets(10))
    aligner, levels = AffineAligner(draws, 24, 24, torch.device("cpu")), draws.sought(sources[0]) * 255
    versions, usable = aligner.all(levels).flatten(2).long(), aligner.usable(levels)
    assert not usable[0].all()
    rows = iter(zip(*(column.tolist() for column in found[:4]), strict=True))
    for n, label in enumerate(sources[1].tolist()):
        for target in sorted(set(range(10)) - {label}):
            members = (training[1] == target).nonzero().squeeze(1)
            store = (draws.sought(training[0])[members] * 255).long().flatten(1)
            squared = (versions[n][:, None] - store).square().sum(2)
            squared[~usable[n]] = squared.max() + 1
            best = int(squared.argmin())
            expected = (n, target, int(members[best % len(members)]), best // len(members))
            assert next(rows) == expected


def test_bright_images_are_told_apart_by_one_level() -> None:
    """Use images whose squared lengths are no whole numbers in float32."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(200, 256, (1, 1, 28, 28), generator=generator) / 255
    training = image.repeat(9, 1, 1, 1)
    training[torch.arange(9), 0, 14, torch.arange(9)] -= 1 / 255
    training[4, 0, 20, 20] = 1 - (training[4, 0, 20, 20] < 0.9).float() * 0.5
    shifts = AlignmentGrid(0, 1, 0, 1)
    labels = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 1])
    found = find_neighbours(
        image, torch.tensor([0]), ClassIndex(training, labels, classes=2), alignments=shifts, allowed=allowed_targets(2)
    )
    assert_same(found, brute_force(image, torch.tensor([0]), training, labels, shifts, allowed_targets(2)), 1)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["single", "half"])
@pytest.mark.parametrize("nearest", [1, 3])
@pytest.mark.parametrize("table", [None, PAPER_TARGETS], ids=["every_class", "paper_table"])
def test_neighbours_equal_brute_force(
    digits: Data, table: dict[int, tuple[int, ...]] | None, nearest: int, precision: torch.dtype
) -> None:
    """Use enlarged images, which have enough pixels for a subspace to rule images out."""
    images = torch.nn.functional.interpolate(digits.train.images[:260], size=24, mode="bilinear").clamp(0, 1)
    sources, training = (images[:8], digits.train.labels[:8]), (images[60:], digits.train.labels[60:260])
    allowed = allowed_targets(10, table)
    index = ClassIndex(*training, classes=10, precision=precision)
    assert index._coarse.basis is not None
    found = find_neighbours(*sources, index, alignments=SMALL, allowed=allowed, nearest=nearest)
    assert_same(found, brute_force(*sources, *training, SMALL, allowed), nearest)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["single", "half"])
def test_bounds_are_never_above_the_distances(precision: torch.dtype) -> None:
    """Use two heaps of images, each far from the mean: rounding errors are large, distances within a heap small."""
    generator = torch.Generator().manual_seed(0)
    heaps = torch.rand(2, 1, 28, 28, generator=generator)[torch.arange(601) % 2]
    images = (heaps + 0.02 * torch.rand(601, 1, 28, 28, generator=generator)).clamp_max(1)
    index = ClassIndex(images[1:], torch.zeros(600, dtype=torch.int64), classes=1, precision=precision)
    points = images[:1].mul(255).add(0.5).floor().flatten(2)[:, :, None]
    squared = (index._pixels[0, :600].float() - points.flatten()).square().sum(1)

    knots = probe_of(index._coarse.project(points).transpose(0, 1), precision)
    bounds = index._bounds_of_knots(knots, 0, index._pixels.shape[1])
    reach = widened(squared, index._coarse.rounded_by + knots.rounded_by) * (1 + bounds.rounding)
    assert (bounds.least[0, :600] <= reach).all()

    fine, lengths = probe_of(index._fine.project(points), torch.float32), index._fine.lengths[0, :600]
    found = index._fine.rows[0, :600].float() @ fine.weights.flatten() + lengths
    assert (found <= widened(squared, index._fine.rounded_by) + FLOAT32_ERROR * (lengths + fine.longest)).all()


def test_axes_are_those_of_all_images() -> None:
    """Show that axes are not those of the first images, which may all be of one class."""
    levels = torch.zeros(2 * COVARIANCE_IMAGES + 1, 12)
    generator = torch.Generator().manual_seed(0)
    levels[:-COVARIANCE_IMAGES, :2] = torch.randn(COVARIANCE_IMAGES + 1, 2, generator=generator)
    levels[-COVARIANCE_IMAGES:, 2:4] = torch.randn(COVARIANCE_IMAGES, 2, generator=generator)
    [basis] = principal_bases(levels, (4,))
    np.testing.assert_allclose(basis.square().sum(1), [1, 1, 1, 1] + [0] * 8, atol=1e-5)


def test_neighbours_of_digits_equal_brute_force(digits: Data) -> None:
    sources, training = [t[:10] for t in digits.validation], [t[:300] for t in digits.train]
    found = find_neighbours(
        *sources, ClassIndex(*training, classes=10), alignments=SMALL, allowed=allowed_targets(10), nearest=2
    )
    assert_same(found, brute_force(*sources, *training, SMALL, allowed_targets(10)), 2)


def test_number_of_threads_changes_nothing(digits: Data) -> None:
    index = ClassIndex(*digits.train, classes=10)
    sources = [t[:40] for t in digits.validation]
    results = []
    for count in (1, 3):
        with threads(count):
            results.append(find_neighbours(*sources, index, alignments=SMALL, allowed=allowed_targets(10)))
            assert torch.get_num_threads() == count
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_of_equally_near_ones_the_first_is_taken() -> None:
    """Use equal images: every alignment of every training image lies at distance 0."""
    training = torch.zeros(12, 1, 8, 8)
    labels = torch.arange(12) % 3
    index = ClassIndex(training, labels, classes=3)
    found = find_neighbours(
        training[:1], torch.tensor([0]), index, alignments=SMALL, allowed=allowed_targets(3), nearest=2
    )
    assert found.target.tolist() == [1, 1, 2, 2]
    assert found.neighbour.tolist() == [1, 4, 2, 5]
    assert found.alignment.tolist() == [0, 0, 0, 0]
    assert found.distance.tolist() == [0, 0, 0, 0]


def test_a_class_of_few_images_gives_all_it_has_and_a_missing_one_none(digits: Data) -> None:
    few = torch.tensor([int((digits.train.labels == c).nonzero()[i]) for c, i in ((0, 0), (1, 0), (1, 1))])
    index = ClassIndex(digits.train.images[few], digits.train.labels[few], classes=10)
    found = find_neighbours(
        digits.validation.images[:1], torch.tensor([9]), index, alignments=SMALL, allowed=allowed_targets(10), nearest=2
    )
    assert found.target.tolist() == [0, 1, 1]
    assert found.distance[1] <= found.distance[2]


def test_no_sources_give_no_pairs(digits: Data) -> None:
    index = ClassIndex(*digits.train, classes=10)
    found = find_neighbours(
        digits.train.images[:0], digits.train.labels[:0], index, alignments=SMALL, allowed=allowed_targets(10)
    )
    assert all(len(column) == 0 for column in found)


def test_a_moved_training_image_is_found_and_brought_back(digits: Data) -> None:
    """Shift by whole pixels, which loses nothing: the neighbour at distance 0 returns as the source itself."""
    whole = AlignmentGrid(shift_limit=1, shift_count=3, rotation_limit=0, rotation_count=1)
    images, labels = torch.nn.functional.pad(digits.train.images[:200], (2, 2, 2, 2)), digits.train.labels[:200]
    original = int((labels == 3).nonzero()[0])
    source = images[original : original + 1].roll((1, -1), (2, 3))
    index = ClassIndex(images, labels, classes=10)
    found = find_neighbours(source, torch.tensor([8]), index, alignments=whole, allowed=allowed_targets(10))
    pair = int((found.target == 3).nonzero())
    assert found.neighbour[pair] == original
    assert found.distance[pair] == 0
    assert torch.equal(bring_back(images, found, whole)[pair], (source[0] * 255 + 0.5).floor().to(torch.uint8))


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
def test_wrong_sources_are_refused(images: Tensor, labels: Tensor, message: str) -> None:
    index = ClassIndex(torch.zeros(4, 1, 8, 8), torch.arange(4), classes=10)
    with pytest.raises(InputError, match=message):
        find_neighbours(images, labels, index, alignments=SMALL, allowed=allowed_targets(10))


def test_wrong_training_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels in \[0, 3\]: must lie in \[0, 1\]"):
        ClassIndex(torch.zeros(4, 1, 8, 8), torch.arange(4), classes=2)


@pytest.mark.slow
def test_mnist_neighbours_equal_brute_force(data_dir: Path, cache_dir: Path) -> None:
    """Use the whole grid, but fewer training images, so that brute force ends."""
    data = load_data(EvaluationConfig(dataset="mnist", train_size=3000), data_dir=data_dir, cache_dir=cache_dir)
    grid = alignments_for("mnist", "linf")
    sources = [t[:3] for t in data.validation]
    found = find_neighbours(*sources, ClassIndex(*data.train, classes=10), alignments=grid, allowed=allowed_targets(10))
    store = (data.train.images * 255).flatten(1).numpy().astype(np.float64)
    for n, image in enumerate(sources[0][:, 0].numpy()):
        levels = (image * 255 + 0.5).astype(np.uint8)
        queries = np.stack([scipy_align(levels, *a) for a in grid_alignments(grid)]).reshape(grid.size, -1)
        queries = queries.astype(np.float64)
        # Products of whole numbers: exact in float64.
        squared = (queries**2).sum(1)[:, None] + (store**2).sum(1) - 2 * queries @ store.T
        for pair in (found.source == n).nonzero().squeeze(1).tolist():
            own = np.where((data.train.labels == found.target[pair]).numpy(), squared, np.inf)
            alignment, neighbour = np.unravel_index(own.argmin(), own.shape)
            assert (int(found.alignment[pair]), int(found.neighbour[pair])) == (alignment, neighbour)
