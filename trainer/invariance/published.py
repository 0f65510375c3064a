"""TODO one line."""

from __future__ import annotations

from trainer.errors import InputError
from trainer.invariance.affine_draws import (
    AffineDraws,
)
from trainer.invariance.alignment_grid import (
    AlignmentGrid,
)
from trainer.invariance.alignments import Alignments
from trainer.words import did_you_mean


def alignments_for(dataset: str, norm: str) -> Alignments:
    """What the attack of a norm tries on a data set: the published choice for 28x28 images, shifts scaled for others.

    CIFAR-10 is only shifted: a turned photograph has blank corners that no training image has.

    Raises:
        InputError: for a data set or norm that none is known for.
    """
    for name, value, known in (("data set", dataset, _ALIGNMENTS), ("norm", norm, ("linf", "l0"))):
        if value not in known:
            raise InputError(f"no alignments for {name} {value!r}: {did_you_mean(value, known)}")
    return _ALIGNMENTS[dataset][norm]


def _scaled(side: int, *, turned: bool = True) -> dict[str, Alignments]:
    """By norm, the published choices for images of 28 pixels a side, for others."""
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


PAPER_SIZE = 28
_DRAWS = 775
"""As many as the grid has points."""
_ALIGNMENTS = {
    "mnist": _scaled(28),
    "fashion_mnist": _scaled(28),
    "digits": _scaled(8),
    "cifar10": _scaled(32, turned=False),
}
"""By data set and norm."""


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
