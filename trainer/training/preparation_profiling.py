"""The time of the preparation before it runs: a little of each stage that the cache lacks is done and timed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

import torch

from trainer.files import NotPrepared
from trainer.invariance import (
    INVARIANCE_ATTACKS,
    TRAINING_BATCH,
    Judge,
    PreparationPipeline,
    alignments_for,
    allowed_targets,
    bring_back,
    build_judge,
    find_neighbours,
    recipe_for,
    train_member,
    training_half,
    training_passes,
)
from trainer.parallel import threads

_SOURCES, _LABELLED = 128, 1024
"""Sample sizes: images whose neighbours are sought, and images that a judge labels."""

_BATCHES, _PASSES = 4, 2
"""Sample of a member's training: batches of a pass, and passes after a first one that warms up."""


class _Enough(Exception):
    """The signal that a stage has run long enough to be timed."""


class PreparationTimer(PreparationPipeline):
    """The preparation, with an estimate of how long its missing stages would take."""

    def seconds(self, norms: tuple[str, ...]) -> dict[str, float]:
        """Estimate the seconds that each missing stage would take on one core, by its name.

        Args:
            norms: norms of the training perturbations.
        """
        stages: dict[str, float] = {}
        with threads(1):
            if _is_missing(lambda: self.judging_set("validation")):
                images = self._evaluation.eval_invariance_size or len(self._data.validation.labels)
                stages |= self._neighbours("validation", self._evaluation.eval_invariance_norm)
                stages |= self._training("judge")
                stages["validation judging set"] = images * self._labelling("judge")
            for norm in norms:
                if _is_missing(lambda norm=norm: self.perturbations(norm)):
                    stages |= self._neighbours("train", norm) | self._training("teacher")
                    allowed = allowed_targets(self._data.classes, self._table)
                    pairs = int(allowed[self._data.train.labels].sum())
                    answers = pairs * (len(INVARIANCE_ATTACKS[norm].budgets) - 1)
                    stages[f"{norm} training labels"] = answers * self._labelling("teacher")
        return stages

    def _neighbours(self, split: str, norm: str) -> dict[str, float]:
        """Time the search for the neighbours of a split's images."""
        if not _is_missing(lambda: self._pairs(split, norm, nearest=1)):
            return {}
        size = None if split == "train" else self._evaluation.eval_invariance_size or None
        images, labels = (field[:size] for field in getattr(self._data, split))
        sample, alignments = slice(_SOURCES), alignments_for(self._data.name, norm)
        allowed = allowed_targets(self._data.classes, self._table)
        begun = time.process_time()
        index, built = self._index(norm), time.process_time()
        found = find_neighbours(images[sample], labels[sample], index, alignments=alignments, allowed=allowed)
        bring_back(self._data.train.images, found, alignments)
        pace = (time.process_time() - built) / min(_SOURCES, len(labels))
        return {f"{split} neighbours ({norm})": built - begun + len(labels) * pace}

    def _training(self, role: str) -> dict[str, float]:
        """Time the training of a judge by a few steps of each of its members."""
        if not _is_missing(lambda: self.ensemble(role)):
            return {}
        images, labels = (field[training_half(len(field), role)] for field in self._data.train)
        sample = slice(_BATCHES * TRAINING_BATCH)
        recipe, generator = recipe_for(self._data.name), torch.Generator().manual_seed(0)
        pace = 0.0
        for member, threshold in zip(self._untrained(role).members, recipe.thresholds, strict=True):
            uneven = recipe.uneven if threshold == 0 else None
            ticks: list[float] = []

            def tick(ticks: list[float] = ticks) -> None:
                ticks.append(time.process_time())
                if len(ticks) > _PASSES:
                    raise _Enough

            with contextlib.suppress(_Enough):
                train_member(member, images[sample], labels[sample], recipe, uneven, generator, tick)
            pace += (ticks[-1] - ticks[0]) / (len(ticks) - 1)
        batches, sampled = (math.ceil(len(part) / TRAINING_BATCH) for part in (labels, labels[sample]))
        return {f"{role} oracle": training_passes(recipe, len(labels)) * batches * pace / sampled}

    def _labelling(self, role: str) -> float:
        """Return the seconds of a judge's answer to one image."""
        images, judge = self._data.train.images[:_LABELLED], self._untrained(role)
        judge.label(images[: len(images) // 4])
        begun = time.process_time()
        judge.label(images)
        return (time.process_time() - begun) / len(images)

    def _untrained(self, role: str) -> Judge:
        return build_judge(self._data.name, role, tuple(self._data.train.images.shape[1:]), self._data.classes)


def _is_missing(part: Callable[[], object]) -> bool:
    """Return whether the cache lacks a part."""
    try:
        part()
    except NotPrepared:
        return True
    return False
