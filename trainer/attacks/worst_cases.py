"""The worst case of a set of images over several attacks: sensitivity accuracy is what survives it.

Shape letters: N images of a set, B of a batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.attacks.attack import Attack, Victim
from trainer.attacks.checks import check_images, check_logits
from trainer.attacks.logits import Logits, is_wrong, predict


class WorstCase(NamedTuple):
    """The outcome of every attack and round on a set of images."""

    clean: Tensor
    """(N,) bool: right on the unperturbed image."""
    survived: Tensor
    """(N,) bool: right on the unperturbed image and on every candidate. The mean is the sensitivity accuracy."""
    images: Tensor
    """(N, C, H, W): the candidate that made the answer wrong; the last candidate where none did; the unperturbed image
    where the answer was wrong to begin with."""
    broken_by: Tensor
    """(N,) position in `attacks` of the one that made the answer wrong; -1 where none did or none was needed."""


def worst_case(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[Attack],
    *,
    generator: torch.Generator,
    batch_size: int = 512,
) -> WorstCase:
    """Run every attack in turn, each on the images that the model still has right.

    The model must be in evaluation mode: see `frozen`.

    Args:
        logits: images (B, C, H, W) to logits (B, K).
        images: (N, C, H, W) in [0, 1].
        labels: (N,) classes from 0 to K - 1.
        attacks: tried in this order, cheap ones best first.
        generator: seeds every round of every attack, independently of which images are still right.
        batch_size: images per call of the model.

    Raises:
        InputError: for images outside [0, 1], labels outside the classes, or a model that returns probabilities.
        TrialFailed: for logits that are not finite.
    """
    check_images(images)
    victim = Victim(logits, images.detach(), labels)
    clean_logits = predict(logits, images, batch_size=batch_size)
    check_logits(clean_logits, labels)
    clean = clean_logits.argmax(1) == labels
    survived, perturbed, broken_by = clean.clone(), victim.images.clone(), torch.full_like(labels, -1)
    noise = torch.Generator()
    for position, attack in enumerate(attacks):
        for number in range(attack.rounds):
            seed = int(torch.randint(2**62, (), generator=generator))
            right = survived.nonzero().flatten()
            for first in range(0, len(right), batch_size):
                rows = right[first : first + batch_size]
                candidates = attack.run(victim, rows, number, noise.manual_seed(seed))
                broken = rows[is_wrong(predict(logits, candidates, batch_size=batch_size), labels[rows])]
                perturbed[rows] = candidates
                survived[broken] = False
                broken_by[broken] = position
    return WorstCase(clean, survived, perturbed, broken_by)
