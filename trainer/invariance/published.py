"""The choices of Tramèr et al. 2020 for MNIST, and those made after them for other data sets."""

from __future__ import annotations

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


def alignments_for(dataset: str, norm: str) -> Alignments:
    """Return the alignments of a norm's attack: the published ones for 28x28 images, shifts scaled for other sizes.

    CIFAR-10 is only shifted: a turned photograph has blank corners that no training image has.

    Raises:
        InputError: for a data set or norm without known alignments.
    """
    for name, value, known in (("data set", dataset, _ALIGNMENTS), ("norm", norm, ("linf", "l0"))):
        if value not in known:
            raise InputError(f"no alignments for {name} {value!r}: {did_you_mean(value, known)}")
    return _ALIGNMENTS[dataset][norm]


_DRAWS = 775
"""Number of affine draws: as many as the grid has points."""


def _scaled(side: int, *, turned: bool = True) -> dict[str, Alignments]:
    """Return, by norm, the published choices for images of 28 pixels a side, scaled to another side."""
    shift, turn = side / PAPER_SIZE, float(turned)
    return {
        "linf": AlignmentGrid(
            shift_limit=3 * shift, shift_count=5, rotation_limit=30 * turn, rotation_count=31 if turned else 1
        ),
        "l0": AffineDraws(
            rotation_limit=0.25 * turn,
            scale_limit=0.2 * turn,
            shear_limit=0.2 * turn,
            shift_limit=8 * shift,
            size=_DRAWS,
        ),
    }


_ALIGNMENTS = {
    "mnist": _scaled(28),
    "fashion_mnist": _scaled(28),
    "digits": _scaled(8),
    "cifar10": _scaled(32, turned=False),
}
"""Alignments by data set and norm."""
