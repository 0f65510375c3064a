"""The style of all pictures, and saving them: no global figure, no window, the same bytes every time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import REGULARIZERS
from trainer.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
INK, MUTED, FAINT, KNEE_COLOUR, AREA_COLOUR = "#222222", "#777777", "#BDBDBD", "#D55E00", "#0072B2"
GRID: dict[str, Any] = {"color": "#E8E8E8", "linewidth": 0.6}

_OKABE_ITO = ("#999999", "#E69F00", "#56B4E9", "#009E73")
"""Colours that can be told apart with any colour vision; in grey print the shapes tell them apart."""
LOOKS: dict[str, tuple[str, str]] = dict(zip(REGULARIZERS, zip(_OKABE_ITO, "o^sD", strict=True), strict=True))
"""Colour and marker of each regularizer's trials."""
OWN_LOOK, UNKNOWN_LOOK = ("#CC79A7", "v"), ("#CCCCCC", "X")

MEMBER_RADIUS = 4.5
"""Radius of the marker of a trial on the front, in points (1/72 inch)."""

_SUFFIXES = (".png", ".svg", ".pdf")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": "#555555",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    # Without a salt of our own the identifiers in an SVG are random.
    "svg.hashsalt": "otsweep",
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Apply our settings on top of Matplotlib's own, whatever a user's settings file says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@contextlib.contextmanager
def house_figure(*, height: float = 5.8) -> Iterator[tuple[Figure, Axes]]:
    """Open a figure with one pair of axes, drawn in the house style; its height is in inches."""
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=(7.2, height), dpi=DPI, layout="constrained")
        yield figure, figure.add_subplot()


def save_figure(figure: Figure, path: Path, *, dpi: float = DPI) -> None:
    """Write a picture as PNG, SVG or PDF, by the path's suffix; the same picture gives the same bytes.

    Args:
        dpi: pixels of a PNG per inch.

    Raises:
        InputError: for another suffix, or where nothing can be written.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"can't draw {str(path)!r}: its name must end in {', '.join(_SUFFIXES)}")
    undated = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[suffix]
    try:
        with house_style():
            figure.savefig(path, metadata=undated, dpi=dpi)
    except OSError as error:
        raise InputError(f"can't write the picture {str(path)!r}: {error.strerror}") from error
