"""The choices of Tramèr et al. 2020 for MNIST, and those made after them for other data sets."""

from __future__ import annotations

from trainer.data import is_own
from trainer.errors import InputError
from trainer.invariance.affine_draws import AffineDraws
from trainer.invariance.alignment_grid import AlignmentGrid
from trainer.invariance.alignments import Alignments
from trainer.words import did_you_mean

PAPER_SIZE = 28
"""Side, in pixels, of the images that the published choices are made for."""
PAPER_TARGETS = {
    0: (4, 6, 8, 9),
    1: (4, 6, 7, 9),
    2: (8,),
    3: (8,),
    4: (8, 9),
    5: (3, 8),
    6: (0,),
    7: (2, 3),
    8: (3,),
    9: (3, 4, 5),
}
"""Digits that a digit may be turned into, as chosen by the paper's authors."""


def alignments_for(
    dataset: str, norm: str, *, symmetries: str = "usual", shape: tuple[int, int, int] | None = None
) -> Alignments:
    """Return the alignments of a norm's attack: the published ones for 28x28 images, shifts scaled for other sizes.

    Args:
        dataset: name of the data set.
        norm: `linf` or `l0`.
        symmetries: movements that change no class, as the knob of that name says. The published ones, shifts and turns,
            are usual for single characters; photographs and data of one's own are only shifted: a turned photograph has
            blank corners that no training image has.
        shape: (C, H, W) of the images; None is that of a data set with a name.

    Raises:
        InputError: for a data set or norm without known alignments, or images too large to be turned.
    """
    if not is_own(dataset) and dataset not in _SIDES:
        raise InputError(f"no alignments for data set {dataset!r}: {did_you_mean(dataset, _SIDES)}")
    if norm not in ("linf", "l0"):
        raise InputError(f"no alignments for norm {norm!r}: {did_you_mean(norm, ('linf', 'l0'))}")
    if symmetries == "usual":
        symmetries = "shifts_and_turns" if dataset in _SIDES and dataset not in _ONLY_SHIFTED else "shifts"
    turned = symmetries in ("turns", "shifts_and_turns")
    if turned and shape is not None and shape[1] * shape[2] > _LARGEST_TURNED**2:
        raise InputError(
            f"symmetries = {symmetries!r}: images of {shape[1]}x{shape[2]} pixels are too large to be turned (at most "
            f"{_LARGEST_TURNED}x{_LARGEST_TURNED}), give 'shifts' or 'none'"
        )
    side = min(shape[1:]) if shape is not None else _SIDES[dataset]
    return _scaled(side, norm, shifted="shifts" in symmetries, turned=turned)


_DRAWS = 775
"""Number of affine draws: as many as the grid has points."""

_LARGEST_TURNED = 40
"""Largest side of images that are turned: the matrices of all turns of larger ones take more than 1.5 GB."""


def _scaled(side: int, norm: str, *, shifted: bool, turned: bool) -> Alignments:
    """Return the published choices for images of 28 pixels a side, scaled to another side."""
    shift, turn = side / PAPER_SIZE * shifted, float(turned)
    if norm == "linf":
        return AlignmentGrid(
            shift_limit=3 * shift,
            shift_count=5 if shifted else 1,
            rotation_limit=30 * turn,
            rotation_count=31 if turned else 1,
        )
    return AffineDraws(
        rotation_limit=0.25 * turn,
        scale_limit=0.2 * turn,
        shear_limit=0.2 * turn,
        shift_limit=8 * shift,
        size=_DRAWS if shifted or turned else 1,
    )


_SIDES = {
    "mnist": 28,
    "fashion_mnist": 28,
    "kmnist": 28,
    "emnist": 28,
    "usps": 16,
    "digits": 8,
    "cifar10": 32,
    "svhn": 32,
}
"""Side, in pixels, of the images of each named data set."""

_ONLY_SHIFTED = ("cifar10", "svhn")
