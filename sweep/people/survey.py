"""The images of a sweep that people are asked about, chosen once, by the sweep's seed, and kept in its folder.

`people/` holds `images.npy` (N, H, W) or (N, C, H, W) with pixels from 0 to 255, `sources.npy` (N,), `labels.npy` (N,)
the sources' classes, `perturbed.npy` (N,), whether an image was changed at all, and `shares.npy` (N, K), what the
sweep's crowd would say by the judge. `answers.jsonl` and `votes/` are written as people answer.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sweep.plan import SweepPlan
from trainer.errors import InputError
from trainer.files import write_whole

if TYPE_CHECKING:
    from trainer.invariance import Prepared

_UNPERTURBED = 0.2
"""Share of images that are shown as they are: whoever misreads these did not look."""

_FIELDS = ("images", "sources", "labels", "perturbed", "shares")


@dataclass(frozen=True)
class Survey:
    """The images, in the order in which they are kept; nobody sees them in that order."""

    folder: Path
    images: np.ndarray
    """(N, C, H, W) uint8."""
    sources: np.ndarray
    """(N,) positions in the validation split."""
    labels: np.ndarray
    """(N,) classes of the sources."""
    perturbed: np.ndarray
    """(N,) bool."""
    shares: np.ndarray
    """(N, K) shares of the sweep's crowd who would give each answer, by the judge."""

    @property
    def classes(self) -> int:
        """K."""
        return self.shares.shape[1]

    def order(self, person: str) -> list[int]:
        """Return the order in which a person sees the images, their own and the same each time."""
        seed = np.frombuffer(person.encode(), np.uint8).tolist()
        return np.random.default_rng(seed).permutation(len(self.images)).tolist()


def open_survey(plan: SweepPlan, count: int, prepare: Callable[[], Prepared]) -> Survey:
    """Return the survey of a sweep; it is chosen where there is none yet.

    Args:
        plan: the sweep's plan.
        count: number of images of a new survey; an old one keeps its own.
        prepare: makes the sweep's judging set, if it is needed.

    Raises:
        InputError: for a file that is missing or damaged.
    """
    folder = plan.folder / "people"
    if not (folder / f"{_FIELDS[-1]}.npy").exists():  # written last
        _write(folder, _choose(prepare(), count, seed=plan.seed))
    try:
        fields = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _FIELDS}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder}: holds no whole survey ({error}); remove the folder to begin anew") from None
    images = fields.pop("images")
    return Survey(folder, images if images.ndim == 4 else images[:, None], **fields)


def _choose(prepared: Prepared, count: int, *, seed: int) -> dict[str, np.ndarray]:
    """Draw perturbed images of the judging set, and sources that are shown as they are, no source twice."""
    import torch

    judging = prepared.judging
    chosen = np.random.default_rng(seed).permutation(len(judging.images))[:count]
    plain = round(_UNPERTURBED * len(chosen))
    rows = torch.from_numpy(chosen)
    perturbed = np.arange(len(chosen)) >= plain
    as_they_are = torch.from_numpy(~perturbed)[:, None, None, None]
    images = torch.where(as_they_are, judging.source_images[rows], judging.images[rows])
    return {
        "images": (255 * images).round().to(torch.uint8).numpy(),
        "sources": judging.source_index[rows].numpy(),
        "labels": judging.source_labels[rows].numpy(),
        "perturbed": perturbed,
        "shares": prepared.judge.shares(images, prepared.crowd).numpy().astype(np.float32),
    }


def _write(folder: Path, fields: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FIELDS:
        write_array(folder / f"{name}.npy", fields[name])


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array whole; images of one channel as (N, H, W), as other studies publish them."""
    buffer = io.BytesIO()
    np.save(buffer, array[:, 0] if array.ndim == 4 and array.shape[1] == 1 else array, allow_pickle=False)
    write_whole(path, buffer.getvalue())
