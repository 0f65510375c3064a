"""TODO one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.attacks.attack import Attack, Victim
from trainer.attacks.checks import check_images, check_logits
from trainer.attacks.logits import Logits, is_wrong, predict


class WorstCase(NamedTuple):
    """What is left of a set of images after every attack and round."""

    clean: Tensor
    """(N,) bool: right on the unperturbed image."""
    survived: Tensor
    """(N,) bool: right on it and on everything that any attack found. Its mean is the sensitivity accuracy."""
    images: Tensor
    """(N, C, H, W): the image that broke the answer; where none did the last one tried; where the answer was wrong
    to begin with the clean one."""
    broken_by: Tensor
    """(N,) the position in `attacks` of the one that broke the answer; -1 where none did or none was needed."""


def worst_case(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[Attack],
    *,
    generator: torch.Generator,
    batch_size: int = 512,
) -> WorstCase:
    """Every attack in turn, each on the images that still stand.

    The model must be in evaluation mode: see `frozen`.

    Args:
        logits: images (B, C, H, W) to logits (B, K).
        images: (N, C, H, W) in [0, 1].
        labels: (N,) classes from 0 to K - 1.
        attacks: tried in this order, cheap ones best first.
        generator: seeds every round of every attack, whoever still stands.
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
    noise = torch.Generator(generator.device)
    for position, attack in enumerate(attacks):
        for number in range(attack.rounds):
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            standing = survived.nonzero().flatten()
            for first in range(0, len(standing), batch_size):
                rows = standing[first : first + batch_size]
                candidates = attack.run(victim, rows, number, noise.manual_seed(seed))
                broken = rows[is_wrong(predict(logits, candidates, batch_size=batch_size), labels[rows])]
                perturbed[rows] = candidates
                survived[broken] = False
                broken_by[broken] = position
    return WorstCase(clean, survived, perturbed, broken_by)
