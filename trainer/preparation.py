"""What all trials of a sweep share, computed once per machine: data, oracles, judging sets, training perturbations.

Everything is cached on disk under a name made of the data's fingerprint, all parameters and a format version. Files are
written aside and renamed; a checksum beside each shows damage; a lock lets one process compute while others wait.

Shapes: N images, C channels, H rows, W columns, Q (source, target) pairs, G budgets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.config import EvaluationConfig, InputError, did_you_mean
from trainer.data import Data, Split, load_data
from trainer.invariance import (
    ATTACKS,
    PAPER_TARGETS,
    AlignmentGrid,
    Neighbours,
    allowed_targets,
    bring_back,
    find_neighbours,
    ink_removed,
    least_ink,
)
from trainer.oracle import ABSTAINS, ROLES, Oracle, Quality, build_oracle, recipe_for, train_oracle

FORMAT = 1
"""Of the cached files and of the procedures that fill them: raise it when either changes."""

THREADS = 1
"""Whatever the caller's number, so that every machine's oracle is the same: sums depend on how they are divided. One,
since a second thread gains little on networks this small and loses much where other work shares the cores."""

PAIR_BATCH = 4096

Progress = Callable[[str, int, int], None]
"""Told a stage, how much of it is done, and how much there is."""


class JudgingSet(NamedTuple):
    """Perturbed images of the fixed transfer attack, and what the judge says they show."""

    images: Tensor
    """(M, C, H, W) in [0, 1], perturbed."""
    source_images: Tensor
    """(M, C, H, W) in [0, 1], what they were made from."""
    source_labels: Tensor
    """(M,) int64."""
    source_index: Tensor
    """(M,) int64, into the split."""
    oracle_labels: Tensor
    """(M,) int64, -1 where the judge abstained."""

    @property
    def changed(self) -> Tensor:
        """C, (M,) bool: the judge sees another class than the source's."""
        return (self.oracle_labels != ABSTAINS) & (self.oracle_labels != self.source_labels)

    @property
    def unchanged(self) -> Tensor:
        """(M,) bool: the judge still sees the source's class."""
        return self.oracle_labels == self.source_labels

    def to(self, device: torch.device | str) -> JudgingSet:
        return JudgingSet(*(field.to(device) for field in self))


class TrainingPerturbation(NamedTuple):
    """One invariance perturbation of every training image, at one budget."""

    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    labels: Tensor
    """(N,) int64: the target's class where the teacher sees it, else the source's."""
    keep: Tensor
    """(N,) bool: False where the teacher sees neither, or where the budget lies where its answer turns."""


@dataclass(frozen=True)
class Bank:
    """The training images' aligned neighbours and what the teacher sees at each budget, so that any budget is cheap."""

    attack: str
    train: Split
    neighbours: Neighbours
    aligned: Tensor
    """(Q, C, H, W) uint8 levels."""
    answers: Tensor
    """(G, Q) int8: the teacher's label at each of the attack's budgets, -1 where it abstains."""

    def at(self, epsilon: float) -> TrainingPerturbation:
        """Every training image perturbed towards the target that takes the least ink away at this budget.

        Raises:
            InputError: for a budget outside [0, 1].
        """
        if not 0 <= epsilon <= 1:
            raise InputError(f"invariance_epsilon = {epsilon!r}: must be at least 0 and at most 1")
        images, chosen = perturb_least(self.attack, self.train.images, self.neighbours, self.aligned, epsilon=epsilon)
        known = chosen >= 0
        answers = torch.where(known, self._answers_at(epsilon)[chosen].long(), self.train.labels)
        targets = torch.where(known, self.neighbours.target[chosen], self.train.labels)
        keep = known & ((answers == targets) | (answers == self.train.labels))
        return TrainingPerturbation(images, torch.where(keep, answers, self.train.labels), keep)

    def _answers_at(self, epsilon: float) -> Tensor:
        """(Q,): what the teacher says at the budgets on either side of `epsilon`, -1 where the two differ."""
        budgets = ATTACKS[self.attack].budgets
        below = max(g for g, budget in enumerate(budgets) if budget <= epsilon + 1e-9)
        above = next((g for g, budget in enumerate(budgets) if budget >= epsilon - 1e-9), len(budgets) - 1)
        return torch.where(self.answers[below] == self.answers[above], self.answers[below], ABSTAINS)


def perturb_least(
    attack: str, images: Tensor, neighbours: Neighbours, aligned: Tensor, *, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Every image at the target that takes the least ink away.

    Args:
        attack: a name in `ATTACKS`.
        images: sources (N, C, H, W) in [0, 1].
        neighbours: Q pairs.
        aligned: (Q, C, H, W) uint8 levels, the pairs' neighbours over their sources.
        epsilon: budget of the attack.

    Returns:
        The perturbed images (N, C, H, W), an image without a pair left as it is, and the pair that was chosen (N,), -1
        for none.
    """
    perturb = ATTACKS[attack].perturb
    removed = []
    for part in torch.arange(len(aligned)).split(PAIR_BATCH):
        sources = images[neighbours.source[part]]
        removed.append(ink_removed(sources, perturb(sources, aligned[part], epsilon=epsilon)))
    chosen = least_ink(neighbours, torch.cat(removed) if removed else torch.empty(0), len(images))
    perturbed = images.clone()
    for part in (chosen >= 0).nonzero().squeeze(1).split(PAIR_BATCH):
        perturbed[part] = perturb(images[part], aligned[chosen[part]], epsilon=epsilon)
    return perturbed, chosen


@dataclass(frozen=True, eq=False)
class Prepared:
    """What all trials share. Made by `prepare`; the parts that it did not make are made and cached when asked for."""

    data: Data
    evaluation: EvaluationConfig
    _workshop: Workshop

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

    def bank(self, norm: str) -> Bank:
        """The training perturbations of an invariance norm."""
        return self._workshop.bank(norm)

    @cached_property
    def oracle_agreement(self) -> dict[str, Quality]:
        """By role: the oracle's accuracy and coverage on clean validation images, on which it was not trained."""
        return {role: self._workshop.oracle(role).quality(*self.data.validation) for role in ROLES}


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
    workshop = Workshop(data, evaluation, Cache(cache_dir / "prepared"), progress or (lambda stage, done, total: None))
    prepared = Prepared(data, evaluation, workshop)
    _ = prepared.judging
    for norm in invariance_norms:
        prepared.bank(norm)
    return prepared


class Workshop:
    """Makes each shared part from the ones before it, through the cache."""

    def __init__(self, data: Data, evaluation: EvaluationConfig, cache: Cache, progress: Progress) -> None:
        self._data, self._evaluation, self._cache, self._progress = data, evaluation, cache, progress
        self._grid = AlignmentGrid.for_dataset(data.name)
        self._table = PAPER_TARGETS if data.name in ("digits", "mnist") else None
        self._common = {
            "data": data.fingerprint,
            "grid": dataclasses.asdict(self._grid),
            "table": self._table,
            "oracle": dataclasses.asdict(recipe_for(data.name)),
        }

    def oracle(self, role: str) -> Oracle:
        """The oracle of a role, trained on its half of the training images."""
        train, classes = self._data.train, self._data.classes
        oracle = build_oracle(self._data.name, role, tuple(train.images.shape[1:]), classes)
        stage = f"{role} oracle"

        def make() -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(self._evaluation.split_seed)
            trained = train_oracle(
                self._data.name,
                role,
                *train,
                classes=classes,
                generator=generator,
                progress=lambda done, total: self._progress(stage, done, total),
            )
            return trained.state_dict()

        key = {**self._common, "role": role, "seed": self._evaluation.split_seed}
        oracle.load_state_dict(self._cache.get(stage, key, make))
        return oracle

    def judging_set(self, split: str) -> JudgingSet:
        """The fixed transfer attack on a split, labelled by the judge."""
        if split not in ("validation", "test"):
            raise InputError(f"no judging set of split {split!r}: {did_you_mean(split, ('validation', 'test'))}")
        evaluation = self._evaluation
        norm, epsilon, size = (
            evaluation.eval_invariance_norm,
            evaluation.eval_invariance_epsilon,
            evaluation.eval_invariance_size,
        )
        stage = f"{split} judging set"

        def make() -> dict[str, Tensor]:
            sources = Split(*(field[: size or None] for field in getattr(self._data, split)))
            neighbours, aligned = self._search(sources, norm, stage)
            images, chosen = perturb_least(norm, sources.images, neighbours, aligned, epsilon=epsilon)
            index = (chosen >= 0).nonzero().squeeze(1)
            images = images[index]
            labels = self.oracle("judge").label(images)
            return JudgingSet(images, sources.images[index], sources.labels[index], index, labels)._asdict()

        key = {
            **self._common,
            "split": split,
            "seed": evaluation.split_seed,
            "norm": norm,
            "epsilon": epsilon,
            "size": size,
        }
        judging = JudgingSet(**self._cache.get(stage, key, make))
        if not judging.changed.any():
            raise InputError(
                f"eval_invariance_epsilon = {epsilon:g} ({norm}): of {len(judging.images)} perturbed {split} images "
                "the oracle sees none as changed, so there is nothing to judge invariance by: give a larger budget, or "
                "a larger eval_invariance_size"
            )
        return judging

    def bank(self, norm: str) -> Bank:
        """The training perturbations of an invariance norm, labelled by the teacher at every budget of the attack."""
        if norm not in ATTACKS:
            raise InputError(f"no invariance attack in norm {norm!r}: {did_you_mean(norm, ATTACKS)}")
        train = self._data.train
        stage = f"{norm} training perturbations"

        def make() -> dict[str, Tensor]:
            neighbours, aligned = self._search(train, norm, stage)
            answers = self._ask_teacher(norm, neighbours, aligned)
            return {**neighbours._asdict(), "aligned": aligned, "answers": answers}

        key = {**self._common, "norm": norm, "seed": self._evaluation.split_seed, "budgets": ATTACKS[norm].budgets}
        stored = dict(self._cache.get(stage, key, make))
        aligned, answers = stored.pop("aligned"), stored.pop("answers")
        return Bank(norm, train, Neighbours(**stored), aligned, answers)

    def _search(self, sources: Split, norm: str, stage: str) -> tuple[Neighbours, Tensor]:
        """The aligned nearest training images of `sources`."""
        train = self._data.train
        neighbours = find_neighbours(
            *sources,
            *train,
            grid=self._grid,
            allowed=allowed_targets(self._data.classes, self._table),
            progress=lambda done, total: self._progress(f"{stage}: neighbours", done, total),
        )
        return neighbours, bring_back(train.images, neighbours, self._grid)

    def _ask_teacher(self, norm: str, neighbours: Neighbours, aligned: Tensor) -> Tensor:
        """(G, Q) int8: what the teacher sees at each budget; at the first, 0, the source's own label."""
        attack, teacher, train = ATTACKS[norm], self.oracle("teacher"), self._data.train
        answers = torch.empty(len(attack.budgets), len(aligned), dtype=torch.int8)
        answers[0] = train.labels[neighbours.source]
        done = 0
        for part in torch.arange(len(aligned)).split(PAIR_BATCH):
            sources = train.images[neighbours.source[part]]
            for g, budget in enumerate(attack.budgets[1:], start=1):
                answers[g, part] = teacher.label(attack.perturb(sources, aligned[part], epsilon=budget)).to(torch.int8)
            done += len(part)
            self._progress(f"{norm} training perturbations: labels", done, len(aligned))
        return answers


class Cache:
    """Tensors by what they depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(
        self, stage: str, parameters: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors kept for these parameters, memory-mapped; made first where there are none, or damaged ones.

        Raises:
            InputError: if the folder can't be written.
        """
        path = self._folder / f"{stage.replace(' ', '-')}-{digest(stage, parameters)}.pt"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock")):
                stored = read(path)
                if stored is None:
                    with fixed_threads(THREADS):
                        write(path, make())
                    stored = read(path)
        except OSError as error:
            raise InputError(f"cannot keep prepared data in {str(self._folder)!r}: {error}") from error
        assert stored is not None
        return stored


def digest(stage: str, parameters: Mapping[str, Any]) -> str:
    """A short name for a stage with its parameters."""
    text = json.dumps({"format": FORMAT, "stage": stage, **parameters}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system frees it if the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Run torch with `count` threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, then their checksum, each to a file aside that is then renamed."""
    buffer = io.BytesIO()
    torch.save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, buffer)
    replace(path, buffer.getbuffer())
    replace(path.with_suffix(".sha256"), hashlib.sha256(buffer.getbuffer()).hexdigest().encode())


def replace(path: Path, content: bytes | memoryview) -> None:
    """Put `content` under `path` at once and whole."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    aside.replace(path)


def read(path: Path) -> dict[str, Tensor] | None:
    """The tensors under `path`, memory-mapped; None where there are none or the checksum tells of damage."""
    checksum = path.with_suffix(".sha256")
    if not path.exists() or not checksum.exists():
        return None
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != checksum.read_text(errors="replace"):
            return None
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
