from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from trainer.errors import InputError
from trainer.invariance.affine_draws import AffineAligner, AffineDraws, affine_maps
from trainer.invariance.alignment_grid import COARSE_STEP, AlignmentGrid, GridAligner
from trainer.invariance.published import alignments_for

CPU = torch.device("cpu")
SMALL = AlignmentGrid(shift_limit=1.5, shift_count=3, rotation_limit=20, rotation_count=3)


def scipy_align(levels: np.ndarray, degrees: float, down: float, right: float) -> np.ndarray:
    """Apply the published procedure to one 8-bit image."""
    return ndimage.shift(ndimage.rotate(levels, degrees, reshape=False), (down, right))


def grid_alignments(grid: AlignmentGrid) -> list[tuple[float, float, float]]:
    return [(r, down, right) for r in grid.rotations for down in grid.shifts for right in grid.shifts]


@pytest.mark.parametrize("shape", [(8, 8), (9, 12), (28, 28)], ids=str)
@pytest.mark.parametrize("grid", [SMALL, AlignmentGrid(3, 5, 0, 1)], ids=["rotated", "shifted"])
def test_alignments_equal_scipy(shape: tuple[int, int], grid: AlignmentGrid) -> None:
    levels = np.random.default_rng(0).integers(0, 256, size=(2, 3, *shape), dtype=np.uint8)
    levels[:, :, :, 0] = 0
    versions = GridAligner(grid, *shape, CPU).all(torch.from_numpy(levels))
    for a, alignment in enumerate(grid_alignments(grid)):
        for n, c in np.ndindex(2, 3):
            np.testing.assert_array_equal(versions[n, a, c], scipy_align(levels[n, c], *alignment))


def test_each_image_moves_by_its_own_alignment() -> None:
    levels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, size=(SMALL.size, 1, 8, 8), dtype=np.uint8))
    aligner = GridAligner(SMALL, 8, 8, CPU)
    moved = aligner.each(levels, torch.arange(SMALL.size))
    assert torch.equal(moved, torch.stack([aligner.all(levels[a : a + 1])[0, a] for a in range(SMALL.size)]))


def test_negated_alignment_turns_and_shifts_the_other_way() -> None:
    aligner = GridAligner(SMALL, 8, 8, CPU)
    for a, (degrees, down, right) in enumerate(grid_alignments(SMALL)):
        opposite = grid_alignments(SMALL)[int(aligner.negated(torch.tensor(a)))]
        assert opposite == (-degrees, -down, -right)


def mnist_grid() -> AlignmentGrid:
    grid = alignments_for("mnist", "linf")
    assert isinstance(grid, AlignmentGrid)
    return grid


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10"])
def test_grid_is_symmetric_and_holds_no_movement(name: str) -> None:
    grid = alignments_for(name, "linf")
    assert isinstance(grid, AlignmentGrid)
    alignments = grid_alignments(grid)
    assert (0, 0, 0) in alignments
    assert {tuple(-x for x in a) for a in alignments} == set(alignments)
    assert len(alignments) == len(set(alignments)) == grid.size


def test_paper_grid() -> None:
    grid = mnist_grid()
    assert grid.size == 775
    assert grid.shifts.tolist() == [-3, -1.5, 0, 1.5, 3]
    assert grid.rotations[[0, 1, -1]].tolist() == [-30, -28, 30]


def test_unknown_alignments() -> None:
    with pytest.raises(InputError, match="'mnsit': did you mean 'mnist'"):
        alignments_for("mnsit", "linf")
    with pytest.raises(InputError, match="norm 'l1': .*linf"):
        alignments_for("mnist", "l1")


@pytest.mark.parametrize(
    "grid", [SMALL, AlignmentGrid(3, 5, 0, 1), AlignmentGrid(1, 3, 30, 31), AlignmentGrid(1, 1, 9, 6)]
)
def test_every_rotation_lies_between_two_knots_of_the_same_shifts(grid: AlignmentGrid) -> None:
    tracks = grid.tracks
    alignments = np.array(grid_alignments(grid)).reshape(-1, tracks.number, 3)
    knots, (position, below, above, share) = list(tracks.knots), (part.numpy() for part in tracks.inner)
    line = (1 - share)[:, None, None] * alignments[knots][below] + share[:, None, None] * alignments[knots][above]
    np.testing.assert_allclose(line, alignments[position], atol=1e-5)
    assert sorted([*knots, *position]) == list(range(grid.rotation_count))
    assert len(knots) <= -(-grid.rotation_count // COARSE_STEP) + 1


def draws(**changes: float) -> AffineDraws:
    """Return the published draws, or others."""
    published = alignments_for("mnist", "l0")
    assert isinstance(published, AffineDraws)
    return dataclasses.replace(published, **changes)


def blob() -> Tensor:
    """Draw a bright rectangle off the centre, of which one corner is dark: (1, 1, 28, 28) uint8."""
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[0, 0, 8:20, 10:17] = 255
    image[0, 0, 8:11, 10:13] = 0
    return image


def test_draws_lie_within_their_limits() -> None:
    maps = affine_maps(draws(size=4000), 28, 28).double()
    scale = maps[:, :2, :2].det().sqrt()
    angle = torch.atan2(maps[:, 1, 0], maps[:, 0, 0])
    shear = (maps[:, 0, 0] * maps[:, 0, 1] + maps[:, 1, 0] * maps[:, 1, 1]) / scale**2
    shift = maps[:, :2, 2] * 14
    for values, limit, middle in ((angle, 0.25, 0), (scale, 0.2, 1), (shear, 0.2, 0), (shift, 8, 0)):
        assert (values - middle).abs().max() <= limit * (1 + 1e-5)
        assert (values - middle).abs().max() > 0.98 * limit
        assert abs((values - middle).mean()) < 0.05 * limit


def test_affine_maps_equal_scipy() -> None:
    """Compare with bilinear sampling by SciPy, whose matrix is over (row, column) and about the corner."""
    few = draws(size=20, shift_limit=4.0)
    moved = AffineAligner(few, 28, 28, CPU).all(blob())[0, :, 0].numpy()
    maps = affine_maps(few, 28, 28).double().numpy()
    centre = np.array([13.5, 13.5])
    for a, one in enumerate(maps):
        turned = one[:2, :2][::-1, ::-1]
        offset = centre + 14 * one[:2, 2][::-1] - turned @ centre
        expected = ndimage.affine_transform(blob()[0, 0].double().numpy(), turned, offset, order=1)
        np.testing.assert_allclose(moved[a].astype(float), expected, atol=1)


def test_affine_draws_are_brought_back() -> None:
    aligner = AffineAligner(draws(shift_limit=2.0, size=50), 28, 28, CPU)
    there = aligner.all(blob())[0]
    back = aligner.back(there, torch.arange(50))
    wrong = ((back.int() > 127) != (blob()[0].int() > 127)).flatten(1).sum(1)
    assert (there.int() - blob()[0].int()).abs().flatten(1).sum(1).min() > 0
    assert wrong.max() <= 12  # of the 75 pixels of ink, some at the edges, after two samplings


def test_draws_that_lose_ink_are_not_used() -> None:
    aligner = AffineAligner(draws(), 28, 28, CPU)
    edge = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    edge[0, 0, :, :3] = 255
    usable = aligner.usable(torch.cat([blob(), edge]))
    assert usable[0].float().mean() > 0.9
    assert 0 < usable[1].float().mean() < 0.6
    right = affine_maps(draws(), 28, 28)[:, 0, 2] * 14
    assert (right[~usable[1]].mean()) > right[usable[1]].mean()  # sampled from further right: moved out on the left


def test_some_draw_is_always_used() -> None:
    far = AffineAligner(draws(shift_limit=100.0, size=3), 28, 28, CPU)
    assert far.usable(blob()).sum() == 1
    assert far.usable(torch.zeros_like(blob())).all()


def test_draws_compare_black_and_white() -> None:
    assert draws().sought(torch.tensor([0.0, 0.5, 0.51, 1.0])).tolist() == [0, 0, 1, 1]


def test_cifar_is_only_shifted() -> None:
    cifar = alignments_for("cifar10", "l0")
    assert isinstance(cifar, AffineDraws)
    maps = affine_maps(cifar, 32, 32)
    assert torch.equal(maps[:, :2, :2], torch.eye(2).expand(cifar.size, 2, 2))
