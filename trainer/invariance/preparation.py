"""The preparation shared by all trials of a sweep, computed once per machine and cached.

It consists of data, judge and teacher, neighbours, judging sets and training perturbations.

Shapes: N images, C channels, H rows, W columns, Q (source, target) pairs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config import EvaluationConfig
from trainer.data import Data, Split, load_data
from trainer.errors import InputError
from trainer.files import Cache
from trainer.invariance.attacks import INVARIANCE_ATTACKS, allowed_targets
from trainer.invariance.class_index import ClassIndex, Neighbours
from trainer.invariance.judge import ABSTAINS, Judge, Quality, build_judge
from trainer.invariance.judge_training import train_judge
from trainer.invariance.neighbours import bring_back, find_neighbours
from trainer.invariance.perturbations import (
    BATCH,
    NEAREST,
    InvarianceAdversary,
    JudgingSet,
    Pairs,
    PerturbationCache,
    Progress,
)
from trainer.invariance.published import PAPER_TARGETS, alignments_for
from trainer.invariance.recipes import recipe_for
from trainer.parallel import map_on_threads
from trainer.words import did_you_mean

_SPLITS = ("train", "validation", "test")
_SHARES = (0.4, 0.6, 0.8, 1.0)
"""Budgets that the per-model attack tries, as shares of the limit."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that all trials share. Made by `prepare`; other parts are made and cached when asked for."""

    data: Data
    evaluation: EvaluationConfig
    _pipeline: PreparationPipeline

    @cached_property
    def judging(self) -> JudgingSet:
        """The judging set of the validation split."""
        return self.judging_set("validation")

    def judging_set(self, split: str) -> JudgingSet:
        """Return the judging set of `validation`, or for an audit of `test`.

        Raises:
            InputError: if the judge sees no changed image at the evaluation's budget.
        """
        return self._pipeline.judging_set(split)

    def adversary(self, split: str) -> InvarianceAdversary:
        """Return the per-model attack on a split, within the evaluation's budget."""
        return self._pipeline.adversary(split)

    def perturbations(self, norm: str) -> PerturbationCache:
        """Return the training perturbations of an invariance norm, `linf` or `l0`.

        Raises:
            InputError: for another norm.
        """
        return self._pipeline.perturbations(norm)

    @cached_property
    def judge(self) -> Judge:
        """The judge, which says what a judged image shows."""
        return self._pipeline.ensemble("judge")

    @cached_property
    def judge_quality(self) -> Quality:
        """The judge's accuracy and coverage on clean validation images, on which it was not trained."""
        return self.judge.quality(*self.data.validation)


def prepare(
    evaluation: EvaluationConfig,
    *,
    invariance_norms: Sequence[str] = ("linf",),
    data_dir: Path | None = None,
    cache_dir: Path,
    progress: Progress | None = None,
) -> Prepared:
    """Load the data and make, or find in the cache, everything that all trials share.

    Args:
        evaluation: data set, split and the judging attack.
        invariance_norms: norms of the training perturbations to make now; others are made when first asked for.
        data_dir: folder in which published files are looked for.
        cache_dir: folder whose `prepared/` keeps the results.
        progress: called with a stage's name, how much of it is done, and how much there is.

    Raises:
        InputError: for data that can't be had, an unknown norm, or a judging attack that changes no image's class.
    """
    data = load_data(evaluation, data_dir=data_dir, cache_dir=cache_dir)
    pipeline = PreparationPipeline(
        data, evaluation, Cache(cache_dir / "prepared"), progress or (lambda stage, done, total: None)
    )
    prepared = Prepared(data, evaluation, pipeline)
    _ = prepared.judging
    for norm in invariance_norms:
        prepared.perturbations(norm)
    return prepared


class PreparationPipeline:
    """The steps of the preparation: each makes its part from the ones before it, through the cache.

    The names of stages and the keys of parameters name the cached files, so they stay as they are, "oracle" among them.
    """

    def __init__(self, data: Data, evaluation: EvaluationConfig, cache: Cache, progress: Progress) -> None:
        self._data, self._evaluation, self._cache, self._progress = data, evaluation, cache, progress
        self._indices: dict[str, ClassIndex] = {}
        self._table = PAPER_TARGETS if data.name in ("digits", "mnist") else None
        self._common = {
            "data": data.fingerprint,
            "table": self._table,
            "oracle": dataclasses.asdict(recipe_for(data.name)),
            "seed": evaluation.split_seed,
        }

    def ensemble(self, role: str) -> Judge:
        """Return the ensemble of a role, `judge` or `teacher`, trained on its half of the training images."""
        train, classes = self._data.train, self._data.classes
        ensemble = build_judge(self._data.name, role, tuple(train.images.shape[1:]), classes)

        def make() -> dict[str, Tensor]:
            trained = train_judge(
                self._data.name,
                role,
                *train,
                classes=classes,
                seed=self._evaluation.split_seed,
                progress=lambda done, total: self._progress(role, done, total),
            )
            return trained.state_dict()

        ensemble.load_state_dict(self._cache.get(f"{role} oracle", {**self._common, "role": role}, make))
        return ensemble

    def judging_set(self, split: str) -> JudgingSet:
        """Return the fixed transfer attack on a split, labelled by the judge.

        Raises:
            InputError: for an unknown split, or if the judge sees no changed image at the evaluation's budget.
        """
        norm, epsilon = self._evaluation.eval_invariance_norm, self._evaluation.eval_invariance_epsilon
        stage = f"{split} judging set"

        def make() -> dict[str, Tensor]:
            pairs = self._pairs(split, norm, nearest=1)
            images, chosen = pairs.perturb_all(norm, epsilon)
            index = (chosen >= 0).nonzero().squeeze(1)
            sources = Split(*(field[index] for field in pairs.sources))
            labels = self._ask("judge", stage, len(index), lambda part: images[index[part]])
            fields = JudgingSet(images[index], *sources, index, labels)._asdict()
            fields["oracle_labels"] = fields.pop("judge_labels")
            return fields

        stored = self._cache.get(stage, self._judged(split), make)
        judging = JudgingSet(judge_labels=stored.pop("oracle_labels"), **stored)
        if not judging.changed.any():
            raise InputError(
                f"eval_invariance_epsilon = {epsilon:g} ({norm}): of {len(judging.images)} perturbed {split} images "
                "the judge sees none as changed, so there is nothing to judge invariance by: give a larger budget, or "
                "a larger eval_invariance_size"
            )
        return judging

    def adversary(self, split: str) -> InvarianceAdversary:
        """Return the per-model attack on a split: every candidate in which the judge sees another class."""
        norm, limit = self._evaluation.eval_invariance_norm, self._evaluation.eval_invariance_epsilon
        stage = f"{split} adversary"
        pairs = self._pairs(split, norm, nearest=NEAREST)

        def make() -> dict[str, Tensor]:
            pair = torch.arange(len(pairs.plan)).repeat_interleave(len(_SHARES))
            epsilon = (torch.tensor(_SHARES) * limit).repeat(len(pairs.plan))
            labels = self._ask("judge", stage, len(pair), lambda part: pairs.perturb(norm, pair[part], epsilon[part]))
            source = pairs.sources.labels[pairs.neighbours.source[pair]]
            changed = (labels != ABSTAINS) & (labels != source)
            return {"pair": pair[changed], "epsilon": epsilon[changed], "label": labels[changed]}

        key = {**self._judged(split), "nearest": NEAREST, "shares": _SHARES}
        return InvarianceAdversary(norm, pairs, **self._cache.get(stage, key, make))

    def perturbations(self, norm: str) -> PerturbationCache:
        """Return the training perturbations of a norm, labelled by the teacher at every budget of the attack.

        Raises:
            InputError: for an unknown norm.
        """
        if norm not in INVARIANCE_ATTACKS:
            raise InputError(f"no invariance attack in norm {norm!r}: {did_you_mean(norm, INVARIANCE_ATTACKS)}")
        stage = f"{norm} training labels"
        pairs, budgets = self._pairs("train", norm, nearest=1), INVARIANCE_ATTACKS[norm].budgets

        def make() -> dict[str, Tensor]:
            count = len(pairs.plan)
            own = pairs.sources.labels[pairs.neighbours.source].to(torch.int8)
            # Budget by budget, all pairs at each; budget 0 needs no answer.
            answers = self._ask(
                "teacher",
                stage,
                count * (len(budgets) - 1),
                lambda part: pairs.perturb(norm, part % count, torch.tensor(budgets)[1 + part // count]),
            )
            return {"answers": torch.cat([own[None], answers.view(-1, count).to(torch.int8)])}

        key = {**self._common, "norm": norm, "budgets": budgets}
        return PerturbationCache(norm, pairs, self._cache.get(stage, key, make)["answers"])

    def _judged(self, split: str) -> dict[str, Any]:
        """Return everything that the judging of a split depends on."""
        evaluation = self._evaluation
        return {
            **self._common,
            "split": split,
            "size": evaluation.eval_invariance_size,
            "norm": evaluation.eval_invariance_norm,
            "epsilon": evaluation.eval_invariance_epsilon,
        }

    def _ask(self, role: str, stage: str, count: int, images: Callable[[Tensor], Tensor]) -> Tensor:
        """Label, in a role, images that are made batch by batch: (count,) int64."""
        ensemble, done = self.ensemble(role), itertools.count(1)
        parts = torch.arange(count).split(BATCH)

        def label(part: Tensor) -> Tensor:
            labels = ensemble.label(images(part))
            self._progress(f"{stage}: {role}", min(next(done) * BATCH, count), count)
            return labels

        return torch.cat(map_on_threads(label, parts)) if count else torch.empty(0, dtype=torch.int64)

    def _pairs(self, split: str, norm: str, *, nearest: int) -> Pairs:
        """Find the aligned nearest training images of a split's sources."""
        if split not in _SPLITS:
            raise InputError(f"no split {split!r}: {did_you_mean(split, _SPLITS)}")
        size = None if split == "train" else self._evaluation.eval_invariance_size or None
        sources = Split(*(field[:size] for field in getattr(self._data, split)))
        alignments, stage = alignments_for(self._data.name, norm), f"{split} neighbours ({norm})"

        def make() -> dict[str, Tensor]:
            found = find_neighbours(
                *sources,
                self._index(norm),
                alignments=alignments,
                allowed=allowed_targets(self._data.classes, self._table),
                nearest=nearest,
                progress=lambda done, total: self._progress(stage, done, total),
            )
            return {**found._asdict(), "aligned": bring_back(self._data.train.images, found, alignments)}

        key = {
            **self._common,
            "alignments": dataclasses.asdict(alignments),
            "split": split,
            "size": size,
            "nearest": nearest,
        }
        stored = dict(self._cache.get(stage, key, make))
        aligned = stored.pop("aligned")
        neighbours = Neighbours(**stored)
        plan = INVARIANCE_ATTACKS[norm].plan(sources.images[neighbours.source], aligned)
        return Pairs(sources, neighbours, plan)

    def _index(self, norm: str) -> ClassIndex:
        """Return the index of the training images; it is kept, because several splits are searched in it."""
        if norm not in self._indices:
            images, labels = self._data.train
            sought = alignments_for(self._data.name, norm).sought(images)
            self._indices[norm] = ClassIndex(sought, labels, classes=self._data.classes)
        return self._indices[norm]
