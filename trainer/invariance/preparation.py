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
from trainer.crowds import THRESHOLDS, Crowd, check_crowd, crowd_for, other_crowds
from trainer.data import Data, Split, load_data
from trainer.errors import InputError
from trainer.files import Cache
from trainer.invariance.alignments import Alignments
from trainer.invariance.attacks import INVARIANCE_ATTACKS, allowed_targets
from trainer.invariance.class_index import ClassIndex, Neighbours
from trainer.invariance.ensembles import Ensembles, key_of
from trainer.invariance.judge import Judge, Quality
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
from trainer.invariance.readings import Readings
from trainer.invariance.recipes import ANY, recipe_for
from trainer.parallel import map_on_threads
from trainer.precision import exact_products
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

    def judging_set(self, split: str, *, judge: int = 0) -> JudgingSet:
        """Return the judging set of `validation`, or for an audit of `test`.

        All judges look at the same images.

        Args:
            split: a split that is not for training.
            judge: number of the judge, 0 for the one of every trial.

        Raises:
            InputError: if hardly anybody of the crowd sees a change at the evaluation's budget.
        """
        return self._pipeline.judging_set(split, judge)

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
        """The judge, which says what people see in an image."""
        return self.judge_numbered(0)

    def judge_numbered(self, number: int) -> Judge:
        """Return the judge of trials for 0, else one of another seed and on a bootstrap sample of the same half."""
        return self._pipeline.judge(number)

    @property
    def crowd(self) -> Crowd:
        """The crowd of the evaluation, by which trials are judged."""
        return crowd_for(self.data.name, self.evaluation.crowd)

    def answer(self, images: Tensor) -> Tensor:
        """Return the answer (N,) int64 that most of the crowd give to `images` (N, C, H, W) in [0, 1]."""
        return self.judge.shares(images, self.crowd).argmax(1)

    @cached_property
    def judge_quality(self) -> Quality:
        """The crowd's answers to clean validation images, on which the judge was not trained."""
        return self.judge.quality(*self.data.validation, self.crowd)


def prepare(
    evaluation: EvaluationConfig,
    *,
    invariance_norms: Sequence[str] = ("linf",),
    data_dir: Path | None = None,
    cache_dir: Path,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Prepared:
    """Load the data and make, or find in the cache, everything that all trials share.

    Args:
        evaluation: data set, split and the judging attack.
        invariance_norms: norms of the training perturbations to make now; others are made when first asked for.
        data_dir: folder in which published files are looked for.
        cache_dir: folder whose `prepared/` keeps the results.
        device: torch device on which neighbours are searched for. Judge and teacher are trained on the CPU, so that
            they are the same everywhere.
        progress: called with a stage's name, how much of it is done, and how much there is.

    Raises:
        InputError: for data that can't be had, an unknown norm, a judging attack that changes no image's class, or the
            definition of earlier versions.
    """
    check_crowd(evaluation)
    data = load_data(evaluation, data_dir=data_dir, cache_dir=cache_dir)
    pipeline = PreparationPipeline(
        data, evaluation, Cache(cache_dir / "prepared"), progress or (lambda stage, done, total: None), device=device
    )
    prepared = Prepared(data, evaluation, pipeline)
    _ = prepared.judging
    for norm in invariance_norms:
        prepared.perturbations(norm)
    return prepared


def open_judge(
    data: Data, evaluation: EvaluationConfig, *, cache_dir: Path, progress: Progress = lambda stage, done, total: None
) -> Judge:
    """Return the judge of trials with this evaluation on its data, from the cache or trained now."""
    return PreparationPipeline(data, evaluation, Cache(cache_dir / "prepared"), progress).judge()


class PreparationPipeline:
    """The steps of the preparation: each makes its part from the ones before it, through the cache.

    The names of stages and the keys of parameters name the cached files, so they stay as they are.
    """

    def __init__(
        self, data: Data, evaluation: EvaluationConfig, cache: Cache, progress: Progress, *, device: str = "cpu"
    ) -> None:
        self._data, self._evaluation, self._cache, self._progress = data, evaluation, cache, progress
        self._device = device
        self._indices: dict[str, ClassIndex] = {}
        self._table = PAPER_TARGETS if data.name in ("digits", "mnist", "usps") else None
        self._common = {
            "data": data.fingerprint,
            "table": self._table,
            "seed": evaluation.split_seed,
            **({} if evaluation.symmetries == "usual" else {"symmetries": evaluation.symmetries}),
        }
        self._ensembles = Ensembles(data, evaluation.split_seed, self._common, cache, progress)

    def judge(self, number: int = 0) -> Judge:
        """Return the judge of trials for 0, else another one, as `Prepared.judge_numbered` says."""
        return self._ensembles.judge(number)

    def judging_set(self, split: str, judge: int = 0) -> JudgingSet:
        """Return the fixed transfer attack on a split, with the crowds' answers by a judge's number.

        Raises:
            InputError: for an unknown split, or if hardly anybody sees a change at the evaluation's budget.
        """
        norm, epsilon = self._evaluation.eval_invariance_norm, self._evaluation.eval_invariance_epsilon
        stage = f"{split} judging set"

        def make() -> dict[str, Tensor]:
            pairs = self._pairs(split, norm, nearest=1)
            images, chosen = pairs.perturb_all(norm, epsilon)
            index = (chosen >= 0).nonzero().squeeze(1)
            source_images, source_labels = (field[index] for field in pairs.sources)
            return {
                "images": images[index],
                "source_images": source_images,
                "source_labels": source_labels,
                "source_index": self._drawn(split)[index],
                "readings": self._read(stage, len(index), lambda part: images[index[part]]),
            }

        stored = dict(self._cache.get(stage, self._judged(split), make))
        readings = self._readings(stored.pop("readings"))
        if judge:
            again, images = f"{stage} {judge}", stored["images"]
            read = lambda: {"readings": self._read(again, len(images), lambda part: images[part], judge)}  # noqa: E731
            readings = self._readings(self._cache.get(again, self._judged(split), read)["readings"])
        crowds = (self._crowd, *other_crowds(self._data.name, self._evaluation.crowd))
        judging = JudgingSet(shares={crowd.name: readings.shares(crowd) for crowd in crowds}, **stored)
        if judging.changed.sum() < 1 or torch.equal(judging.images, judging.source_images):
            raise InputError(
                f"eval_invariance_epsilon = {epsilon:g} ({norm}): in {len(judging.images)} perturbed {split} images "
                "hardly anybody of the crowd sees a change, so there is nothing to judge invariance by: give a larger "
                "budget, or a larger eval_invariance_size"
            )
        return judging

    def adversary(self, split: str) -> InvarianceAdversary:
        """Return the per-model attack on a split: all candidates, with the answers of the crowd."""
        norm, limit = self._evaluation.eval_invariance_norm, self._evaluation.eval_invariance_epsilon
        stage = f"{split} adversary"
        pairs = self._pairs(split, norm, nearest=NEAREST)
        pair = torch.arange(len(pairs.plan)).repeat_interleave(len(_SHARES))
        epsilon = (torch.tensor(_SHARES) * limit).repeat(len(pairs.plan))

        def make() -> dict[str, Tensor]:
            return {
                "readings": self._read(stage, len(pair), lambda part: pairs.perturb(norm, pair[part], epsilon[part]))
            }

        key = {**self._judged(split), "nearest": NEAREST, "shares": _SHARES}
        readings = self._readings(self._cache.get(stage, key, make)["readings"])
        return InvarianceAdversary(norm, pairs, pair, epsilon, readings.shares(self._crowd))

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
                self._ensembles.teacher().label,
                f"{stage}: teacher",
                count * (len(budgets) - 1),
                lambda part: pairs.perturb(norm, part % count, torch.tensor(budgets)[1 + part // count]),
            )
            return {"answers": torch.cat([own[None], answers.view(-1, count).to(torch.int8)])}

        key = {**self._common, **key_of(self._data.name, "teacher"), "norm": norm, "budgets": budgets}
        return PerturbationCache(norm, pairs, self._cache.get(stage, key, make)["answers"])

    def _judged(self, split: str) -> dict[str, Any]:
        """Return everything that the judging of a split depends on."""
        evaluation = self._evaluation
        return {
            **self._common,
            **key_of(self._data.name, "judge"),
            "thresholds": THRESHOLDS,
            "split": split,
            "drawn": len(self._drawn(split)),
            "norm": evaluation.eval_invariance_norm,
            "epsilon": evaluation.eval_invariance_epsilon,
        }

    @property
    def _crowd(self) -> Crowd:
        return crowd_for(self._data.name, self._evaluation.crowd)

    def _read(self, stage: str, count: int, images: Callable[[Tensor], Tensor], judge: int = 0) -> Tensor:
        """Return a judge's readings (R, count, K) of images that are made batch by batch."""
        read = self.judge(judge).read
        # Images first, so that batches can be joined as the answers of the teacher are.
        return self._ask(lambda part: read(part).values.transpose(0, 1), f"{stage}: judge", count, images).transpose(
            0, 1
        )

    def _readings(self, values: Tensor) -> Readings:
        """Return stored readings with what the recipe says of them."""
        kinds = recipe_for(self._data.name, "judge").thresholds
        return Readings(values, thresholds=ANY in kinds, ink=0 in kinds)

    def _ask(
        self, answer: Callable[[Tensor], Tensor], stage: str, count: int, images: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the answers (count, ...) to images that are made batch by batch."""
        done = itertools.count(1)

        def ask(part: Tensor) -> Tensor:
            answers = answer(images(part))
            self._progress(stage, min(next(done) * BATCH, count), count)
            return answers

        return torch.cat(map_on_threads(ask, torch.arange(count).split(BATCH)))

    def _pairs(self, split: str, norm: str, *, nearest: int) -> Pairs:
        """Find the aligned nearest training images of a split's sources."""
        drawn = self._drawn(split)
        sources = Split(*(field[drawn] for field in getattr(self._data, split)))
        alignments, stage = self._alignments(norm), f"{split} neighbours ({norm})"

        def make() -> dict[str, Tensor]:
            with exact_products():
                there = find_neighbours(
                    sources.images.to(self._device),
                    sources.labels.to(self._device),
                    self._index(norm),
                    alignments=alignments,
                    allowed=allowed_targets(self._data.classes, self._table),
                    nearest=nearest,
                    progress=lambda done, total: self._progress(stage, done, total),
                )
            found = Neighbours(*(column.cpu() for column in there))
            return {**found._asdict(), "aligned": bring_back(self._data.train.images, found, alignments)}

        key = {
            **self._common,
            "alignments": dataclasses.asdict(alignments),
            "split": split,
            "drawn": len(drawn),
            "nearest": nearest,
        }
        stored = dict(self._cache.get(stage, key, make))
        aligned = stored.pop("aligned")
        neighbours = Neighbours(**stored)
        plan = INVARIANCE_ATTACKS[norm].plan(sources.images[neighbours.source], aligned)
        return Pairs(sources, neighbours, plan)

    def _drawn(self, split: str) -> Tensor:
        """Return the positions of the sources in a split, in order: drawn by the seed, for training all of them."""
        if split not in _SPLITS:
            raise InputError(f"no split {split!r}: {did_you_mean(split, _SPLITS)}")
        count = len(getattr(self._data, split).labels)
        size = 0 if split == "train" else self._evaluation.eval_invariance_size
        if not 0 < size < count:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(self._evaluation.split_seed)
        return torch.randperm(count, generator=generator)[:size].sort().values

    def _alignments(self, norm: str) -> Alignments:
        name, symmetries = self._data.name, self._evaluation.symmetries
        return alignments_for(name, norm, symmetries=symmetries, shape=self._data.shape)

    def _index(self, norm: str) -> ClassIndex:
        """Return the index of the training images; it is kept, because several splits are searched in it."""
        if norm not in self._indices:
            images, labels = (field.to(self._device) for field in self._data.train)
            sought = self._alignments(norm).sought(images)
            self._indices[norm] = ClassIndex(sought, labels, classes=self._data.classes)
        return self._indices[norm]
