"""What all trials of a sweep share, computed once per machine: data, oracles, judging sets, training perturbations.

Shapes: N images, C channels, H rows, W columns, M images of a judging set, Q (source, target) pairs, G budgets, J
candidates.
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
"""Of the limit: the budgets that the per-model attack tries."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What all trials share. Made by `prepare`; the parts that it did not make are made and cached when asked for."""

    data: Data
    evaluation: EvaluationConfig
    _workshop: PreparationPipeline

    @cached_property
    def judging(self) -> JudgingSet:
        """The judging set of the validation split."""
        return self.judging_set("validation")

    def judging_set(self, split: str) -> JudgingSet:
        """The judging set of `validation`, or for an audit of `test`.

        Raises:
            InputError: if the judge sees no changed image at the evaluation's budget.
        """
        return self._workshop.judging_set(split)

    def adversary(self, split: str) -> InvarianceAdversary:
        """The per-model attack on a split, within the evaluation's budget."""
        return self._workshop.adversary(split)

    def bank(self, norm: str) -> PerturbationCache:
        """The training perturbations of an invariance norm."""
        return self._workshop.bank(norm)

    @cached_property
    def judge(self) -> Judge:
        """Who says what a judged image shows."""
        return self._workshop.oracle("judge")

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
    """Load the data and make, or find in the cache, what all trials share.

    Args:
        evaluation: data set, split and the judging attack.
        invariance_norms: training perturbations that will be needed; others are made when first asked for.
        data_dir: where published files are looked for.
        cache_dir: where results are kept, under `prepared/`.
        progress: told a stage, how much of it is done, and how much there is.

    Raises:
        InputError: for data that can't be had, an unknown norm, or a judging attack that changes no image's label.
    """
    data = load_data(evaluation, data_dir=data_dir, cache_dir=cache_dir)
    workshop = PreparationPipeline(
        data, evaluation, Cache(cache_dir / "prepared"), progress or (lambda stage, done, total: None)
    )
    prepared = Prepared(data, evaluation, workshop)
    _ = prepared.judging
    for norm in invariance_norms:
        prepared.bank(norm)
    return prepared


class PreparationPipeline:
    """Makes each shared part from the ones before it, through the cache."""

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

    def oracle(self, role: str) -> Judge:
        """The oracle of a role, trained on its half of the training images."""
        train, classes = self._data.train, self._data.classes
        oracle = build_judge(self._data.name, role, tuple(train.images.shape[1:]), classes)
        stage = f"{role} oracle"

        def make() -> dict[str, Tensor]:
            trained = train_judge(
                self._data.name,
                role,
                *train,
                classes=classes,
                seed=self._evaluation.split_seed,
                progress=lambda done, total: self._progress(stage, done, total),
            )
            return trained.state_dict()

        key = {**self._common, "role": role}
        oracle.load_state_dict(self._cache.get(stage, key, make))
        return oracle

    def judging_set(self, split: str) -> JudgingSet:
        """The fixed transfer attack on a split, labelled by the judge."""
        norm, epsilon = self._evaluation.eval_invariance_norm, self._evaluation.eval_invariance_epsilon
        stage = f"{split} judging set"

        def make() -> dict[str, Tensor]:
            pairs = self._pairs(split, norm, nearest=1)
            images, chosen = pairs.perturb_all(norm, epsilon)
            index = (chosen >= 0).nonzero().squeeze(1)
            sources = Split(*(field[index] for field in pairs.sources))
            labels = self._ask("judge", stage, len(index), lambda part: images[index[part]])
            return JudgingSet(images[index], *sources, index, labels)._asdict()

        judging = JudgingSet(**self._cache.get(stage, self._judged(split), make))
        if not judging.changed.any():
            raise InputError(
                f"eval_invariance_epsilon = {epsilon:g} ({norm}): of {len(judging.images)} perturbed {split} images "
                "the oracle sees none as changed, so there is nothing to judge invariance by: give a larger budget, or "
                "a larger eval_invariance_size"
            )
        return judging

    def adversary(self, split: str) -> InvarianceAdversary:
        """The per-model attack on a split: every candidate that the judge sees as changed."""
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

    def bank(self, norm: str) -> PerturbationCache:
        """The training perturbations of an invariance norm, labelled by the teacher at every budget of the attack."""
        if norm not in INVARIANCE_ATTACKS:
            raise InputError(f"no invariance attack in norm {norm!r}: {did_you_mean(norm, INVARIANCE_ATTACKS)}")
        stage = f"{norm} training labels"
        pairs, budgets = self._pairs("train", norm, nearest=1), INVARIANCE_ATTACKS[norm].budgets

        def make() -> dict[str, Tensor]:
            count = len(pairs.plan)
            own = pairs.sources.labels[pairs.neighbours.source].to(torch.int8)
            # Pair by pair, so that a batch holds each image at all of its budgets; budget 0 needs no answer.
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
        """What the judging of a split depends on."""
        evaluation = self._evaluation
        return {
            **self._common,
            "split": split,
            "size": evaluation.eval_invariance_size,
            "norm": evaluation.eval_invariance_norm,
            "epsilon": evaluation.eval_invariance_epsilon,
        }

    def _ask(self, role: str, stage: str, count: int, images: Callable[[Tensor], Tensor]) -> Tensor:
        """(count,) int64: the oracle's labels of images that are made batch by batch."""
        oracle, done = self.oracle(role), itertools.count(1)
        parts = torch.arange(count).split(BATCH)

        def label(part: Tensor) -> Tensor:
            labels = oracle.label(images(part))
            self._progress(f"{stage}: {role}", min(next(done) * BATCH, count), count)
            return labels

        return torch.cat(map_on_threads(label, parts)) if count else torch.empty(0, dtype=torch.int64)

    def _pairs(self, split: str, norm: str, *, nearest: int) -> Pairs:
        """The sources of a split with their aligned nearest training images."""
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
        """Of the training images, kept: several splits are searched in it."""
        if norm not in self._indices:
            images, labels = self._data.train
            sought = alignments_for(self._data.name, norm).sought(images)
            self._indices[norm] = ClassIndex(sought, labels, classes=self._data.classes)
        return self._indices[norm]
